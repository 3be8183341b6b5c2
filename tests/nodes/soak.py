"""Jobs over several nodes that lose their power again and again: ``python tests/nodes/soak.py -n 20`` as root.

Each round runs a job of some ranks on a cluster of namespaces. In mode ``all`` the power of all nodes goes twice at
random moments, and the same job is resumed on the same nodes, permuted ones, others, or fewer; in mode ``one`` a node
other than the first loses its power while the job runs, and a spare takes over by itself. What the job has written is
compared with what an uninterrupted run writes. Prints a line a round, and a table.
"""
from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[2] / "jobs")]

from heatrun import SIZES, Answer, HeatRun, prepared  # noqa: E402
from mpis import ALL  # noqa: E402

from nodes.cluster import Cluster  # noqa: E402

CRHPC = [sys.executable, "-m", "crhpc"]
PATIENCE = 240.0
HEARTBEAT = "3"


class Wrong(Exception):
    """A round that does not end right."""


class Round:
    """One job, from its start to its comparison."""

    def __init__(self, cluster: Cluster, run: HeatRun, place: Path, options: argparse.Namespace,
                 chance: random.Random) -> None:
        self.cluster, self.run, self.place, self.options, self.chance = cluster, run, place, options, chance
        self.place.mkdir()
        if options.user is not None:
            os.chown(place, options.user, options.user)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, hosts: list[int], *more: str) -> None:
        names = ",".join(f"node{number}" for number in hosts)
        words = [*CRHPC, "run", "--dir", "ckpt", "--every", "1", "--heartbeat", HEARTBEAT, "--hosts", names,
                 "--launcher", str(self.cluster.rsh), "-v", *more, "--", *self.run.argv]
        with (self.place / "job.out").open("ab") as out, (self.place / "job.err").open("ab") as err:
            self.process = self.cluster[hosts[0]].start_command(
                words, user=self.options.user, cwd=self.place, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                environment={**self.run.mpi.environment, "HOME": "/tmp"})

    def said(self) -> str:
        return (self.place / "job.err").read_text()

    def await_images(self, count: int) -> None:
        """So many more than there were, once the job has written something that can be rolled back."""
        known: set[str] | None = None
        deadline = time.monotonic() + PATIENCE
        while True:
            now = {path.name for path in (self.place / "ckpt").glob("ckpt-*")}
            if known is None and (self.place / "log").exists() and (self.place / "log").stat().st_size:
                known = now
            if known is not None and len(now - known) >= count:
                return
            assert self.process is not None
            if self.process.poll() is not None:
                raise Wrong(f"it ended with {self.process.returncode}")
            if time.monotonic() > deadline:
                raise Wrong("no image comes")
            time.sleep(0.03)

    def end(self) -> None:
        assert self.process is not None
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Wrong("it does not end") from None
        if code:
            raise Wrong(f"it ended with {code}")

    def power_fails_everywhere(self) -> None:
        for node in self.cluster.nodes:
            node.kill()
        assert self.process is not None
        self.process.wait()
        for node in self.cluster.nodes:
            node.start()

    def hosts(self) -> list[int]:
        """Where the job goes on."""
        every = [node.number for node in self.cluster.nodes]
        used = every[:self.options.nodes]
        match self.options.places:
            case "same":
                return used
            case "permuted":
                return self.chance.sample(used, len(used))
            case "others":
                return self.chance.sample(every, len(used))
            case _:
                return self.chance.sample(every, self.chance.randint(1, len(used)))

    def all_nodes(self) -> None:
        hosts = list(range(1, self.options.nodes + 1))
        for _ in range(2):
            self.start(hosts, "--keep", "0")
            self.await_images(2)
            time.sleep(self.chance.uniform(0.0, 1.5))
            self.power_fails_everywhere()
            hosts = self.hosts()
        self.start(hosts, "--keep", "0")
        self.end()

    def one_node(self) -> None:
        spare = self.options.nodes + 1
        self.start(list(range(1, spare)), "--spares", f"node{spare}", "--restarts", "3", "--keep", "0")
        self.await_images(1)
        time.sleep(self.chance.uniform(0.0, 3.0))
        lost = self.cluster[self.chance.randint(2, self.options.nodes)]
        lost.kill()
        try:
            self.end()
        finally:
            lost.start()
        if "; restart 1 of 3" not in self.said():
            raise Wrong("nobody has noticed")


def play(cluster: Cluster, run: HeatRun, expected: Answer, place: Path, options: argparse.Namespace,
         chance: random.Random) -> str:
    """One round. Returns: what is wrong, empty if nothing is."""
    played = Round(cluster, run, place, options, chance)
    try:
        played.all_nodes() if options.mode == "all" else played.one_node()
        differ = expected.differences(Answer.read(place, place / "job.out"))
        return "; ".join(differ)
    except Wrong as error:
        return f"{error}: {played.said()[-1500:]}"
    finally:
        if played.process is not None and played.process.poll() is None:
            played.process.kill()
            played.process.wait()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Jobs over several nodes whose power fails, again and again.")
    parser.add_argument("-n", "--rounds", type=int, default=20, help="of each combination (%(default)s)")
    parser.add_argument("--mode", choices=["all", "one"], default="all", help="whose power fails (%(default)s)")
    parser.add_argument("--places", choices=["same", "permuted", "others", "fewer"], default="same",
                        help="where jobs go on (%(default)s)")
    parser.add_argument("--nodes", type=int, default=4, help="that a job begins on (%(default)s)")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--steps", type=int, default=500, help="each takes 10 ms or more (%(default)s)")
    parser.add_argument("--mpi", choices=list(ALL), action="append", help="(all)")
    parser.add_argument("--job", choices=list(SIZES), action="append", help="(all)")
    parser.add_argument("--user", type=int, help="run the jobs as this user id")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 20))
    return parser.parse_args()


def main() -> int:
    options = parse()
    chance, right, rounds = random.Random(options.seed), Counter[tuple[str, str]](), 0
    place = Path(tempfile.mkdtemp(prefix="crhpc-soak-", dir="/var/tmp"))
    print(f"seed {options.seed}", flush=True)
    with Cluster(options.nodes + 2, place) as cluster:
        for mpi in options.mpi or ALL:
            for job in options.job or SIZES:
                made = prepared(ALL[mpi](), job, cluster.shared, steps=options.steps)
                run = HeatRun(made.mpi, made.program, size=made.size, steps=made.steps, report=made.report,
                              pause=made.pause, ranks=options.ranks)
                alone = Path(tempfile.mkdtemp(dir=cluster.shared))
                expected = run.uninterrupted(alone)
                for number in range(1, options.rounds + 1):
                    rounds += 1
                    began, target = time.monotonic(), cluster.shared / f"round{rounds}"
                    wrong = play(cluster, run, expected, target, options, chance)
                    right[mpi, job] += not wrong
                    print(f"{mpi} {job} {number}: {wrong or 'right'} ({time.monotonic() - began:.0f} s)", flush=True)
                    shutil.rmtree(target, ignore_errors=True)
    for (mpi, job), count in right.items():
        print(f"{mpi:9} {job:11} {count} of {options.rounds}")
    return 0 if sum(right.values()) == rounds else 1


if __name__ == "__main__":
    sys.exit(main())
