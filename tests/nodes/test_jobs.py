"""Jobs over several nodes: every MPI's daemons come up through the agents; the power fails, and the same command line
on the first node brings all back."""
from __future__ import annotations

import os
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from conftest import installed
from heatrun import Answer, HeatRun, prepared
from mpis import ALL
from wholejob import COMMAND

from .cluster import Cluster

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can make nodes")
PATIENCE = 120.0
CELLS = [("mpich", "heat.py"), ("openmpi", "ring.c")]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    place = Path(tempfile.mkdtemp(prefix="crhpc-nodes-", dir="/var/tmp"))
    with Cluster(3, place) as made:
        yield made


def command(cluster: Cluster, *options: str, hosts: Sequence[int] = (1, 2)) -> list[str]:
    names = ",".join(cluster[number].name for number in hosts)
    return [*COMMAND, "run", "--dir", str(cluster.shared / "ckpt"), "--hosts", names, "--launcher", str(cluster.rsh),
            *options, "--"]


def start(cluster: Cluster, run: HeatRun, place: Path, *options: str,
          hosts: Sequence[int] = (1, 2)) -> subprocess.Popen[bytes]:
    """On the first of some nodes, with output in files."""
    with (place / "job.out").open("ab") as out, (place / "job.err").open("ab") as err:
        return cluster[hosts[0]].start_command(
            [*command(cluster, *options, hosts=hosts), *run.argv], cwd=place, stdin=subprocess.DEVNULL,
            environment={**run.mpi.environment, "HOME": "/tmp"}, stdout=out, stderr=err)


def images(cluster: Cluster) -> set[str]:
    return {path.name for path in (cluster.shared / "ckpt").glob("ckpt-*")}


def kill_all(cluster: Cluster, process: subprocess.Popen[bytes]) -> None:
    """The power fails, on all nodes at once, and comes back: closed connections don't keep their ports for a minute."""
    for node in cluster.nodes:
        node.kill()
    process.wait()
    for node in cluster.nodes:
        node.start()


def await_new_image(cluster: Cluster, process: subprocess.Popen[bytes], place: Path) -> None:
    """One of when the job had begun to write: files that it opens later are not the checkpoint's matter."""
    deadline = time.monotonic() + PATIENCE
    known: set[str] | None = None
    while known is None or len(images(cluster) - known) < 2:   # the first one may have been begun before
        if known is None and (place / "log").exists() and (place / "log").stat().st_size:
            known = images(cluster)
        said = (place / "job.err").read_text()
        assert process.poll() is None, f"it ended with {process.returncode}: {said}"
        assert time.monotonic() < deadline, f"no image comes: {said}"
        time.sleep(0.05)


@pytest.mark.parametrize(("name", "job"), CELLS)
def test_killed_twice_and_resumed(cluster: Cluster, name: str, job: str, chance: random.Random, repetition: int,
                                  tmp_path: Path) -> None:
    place = cluster.shared / "job"
    place.mkdir()
    run = prepared(installed(ALL[name]()), job, cluster.shared, steps=400)
    expected = run.uninterrupted(tmp_path)
    for _ in range(2):
        process = start(cluster, run, place, "--every", "1", "--keep", "0", "-v")
        await_new_image(cluster, process, place)
        time.sleep(chance.uniform(0.0, 1.5))
        kill_all(cluster, process)
    process = start(cluster, run, place, "--every", "1", "--keep", "0", "-v")
    code = process.wait(PATIENCE)
    said = (place / "job.err").read_text()
    assert code == 0, said
    assert said.count("crhpc: resumed from ") >= 1, said
    assert expected.differences(Answer.read(place, place / "job.out")) == [], said


@pytest.mark.parametrize(("name", "job", "places"), [
    ("mpich", "heat.c", [(1, 2), (2, 1), (3, 1)]), ("openmpi", "ring.c", [(1, 2), (1, 3), (3, 2)]),
    ("mpich", "alltoall.c", [(1, 2), (3,), (2, 3)])])
def test_resumed_on_other_nodes(cluster: Cluster, name: str, job: str, places: list[tuple[int, ...]],
                                chance: random.Random, repetition: int, tmp_path: Path) -> None:
    """In another order, on nodes that the job has never seen, on fewer; it calls them as it always did."""
    place = cluster.shared / "job"
    place.mkdir()
    run = prepared(installed(ALL[name]()), job, cluster.shared, steps=400)
    expected = run.uninterrupted(tmp_path)
    for hosts in places[:-1]:
        process = start(cluster, run, place, "--every", "1", "--keep", "0", "-v", hosts=hosts)
        await_new_image(cluster, process, place)
        time.sleep(chance.uniform(0.0, 1.5))
        kill_all(cluster, process)
    process = start(cluster, run, place, "--every", "1", "--keep", "0", "-v", hosts=places[-1])
    code = process.wait(PATIENCE)
    said = (place / "job.err").read_text()
    assert code == 0, said
    assert said.count("crhpc: resumed from ") >= 1, said
    assert expected.differences(Answer.read(place, place / "job.out")) == [], said


def test_a_spare_takes_over(cluster: Cluster, tmp_path: Path) -> None:
    """By itself: first for a node without power, then for an agent that was killed, whose node goes on."""
    place = cluster.shared / "job"
    place.mkdir()
    run = prepared(installed(ALL["mpich"]()), "heat.c", cluster.shared, steps=600)
    expected = run.uninterrupted(tmp_path)
    process = start(cluster, run, place, "--every", "1", "--keep", "0", "--heartbeat", "3", "--spares", "node3",
                    "--restarts", "2", "-v")
    await_new_image(cluster, process, place)
    cluster[2].kill()
    await_line(process, place, "resumed from ")
    await_line(process, place, "checkpoint ", after="resumed from ")
    cluster[3].run("pkill -KILL -f '[c]rhpc.agent'")
    code = process.wait(PATIENCE)
    said = (place / "job.err").read_text()
    assert code == 0, said
    print(said)
    assert "node2 is lost (no sign of life for 3.0 s); restart 1 of 2 on node1, node3" in said, said
    assert said.count("; restart 2 of 2 on node1, node3") == 1 and said.count("crhpc: resumed from ") == 2, said
    assert expected.differences(Answer.read(place, place / "job.out")) == [], said


def await_line(process: subprocess.Popen[bytes], place: Path, words: str, after: str = "crhpc: started") -> None:
    """Until it is said."""
    deadline = time.monotonic() + PATIENCE
    while words not in (said := (place / "job.err").read_text()).rpartition(after)[2]:
        assert process.poll() is None and time.monotonic() < deadline, said
        time.sleep(0.05)


def test_a_node_that_is_gone_ends_the_job(cluster: Cluster, tmp_path: Path) -> None:
    """In one line, and nothing of it runs on; what is saved can be resumed when the node is back."""
    place = cluster.shared / "job"
    place.mkdir()
    run = prepared(installed(ALL["mpich"]()), "heat.c", cluster.shared, steps=400)
    expected = run.uninterrupted(tmp_path)
    process = start(cluster, run, place, "--every", "1", "--keep", "0", "--heartbeat", "3")
    await_new_image(cluster, process, place)
    cluster[2].kill()
    assert process.wait(PATIENCE) != 0
    said = (place / "job.err").read_text()
    assert "node2" in said.splitlines()[-1], said
    assert "heat" not in cluster[1].run("ps -eo args"), said
    cluster[2].start()
    process = start(cluster, run, place, "--every", "1")
    code = process.wait(PATIENCE)
    said = (place / "job.err").read_text()
    assert (code, said.count("crhpc: resumed from ")) == (0, 1), said
    assert expected.differences(Answer.read(place, place / "job.out")) == []
