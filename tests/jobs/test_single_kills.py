"""SIGKILL to one process of crhpc or of the job while an image is written: no orphans, no false image."""
from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from heatrun import Answer, HeatRun
from processes import Process, kill
from wholejob import Job, NewJob, Running, wait_until

pytestmark = pytest.mark.shared

AGENT = re.compile(r"crhpc(\.\w+)*\.agent")


def is_agent(process: Process) -> bool:
    """The agent itself, not the launcher that has it among its arguments."""
    command = process.command
    return any(map(AGENT.fullmatch, command)) and "python" in Path(command[0]).name


def choose(running: Running, which: str) -> Process:
    """The process that is to die."""
    tree = running.tree()
    agent = next(process for process in tree.values() if is_agent(process))
    if which == "supervisor":
        return tree[running.pid]
    if which == "agent":
        return agent
    if which == "launcher":
        return first_below(tree, running.pid, agent.pid)
    if which == "pod":
        return next(process for process in tree.values() if process.parent == agent.pid)
    ours = {agent.pid, running.pid}
    return next(process for process in tree.values() if "mpiexec" in process.name and "-n" in process.command
                and not is_above(tree, process.pid, agent.pid) and process.pid not in ours)


def first_below(tree: Mapping[int, Process], top: int, bottom: int) -> Process:
    """The child of ``top`` on the way down to ``bottom``."""
    while tree[bottom].parent != top:
        bottom = tree[bottom].parent
    return tree[bottom]


def is_above(tree: Mapping[int, Process], top: int, bottom: int) -> bool:
    while bottom in tree:
        if bottom == top:
            return True
        bottom = tree[bottom].parent
    return False


def kill_while_writing(job: Job, running: Running, which: str, chance: random.Random) -> None:
    """One good image, then the kill at some moment of the making of the next."""
    good = job.wait_for_image(running)
    victim = choose(running, which)
    wait_until(lambda: list(job.directory.glob(".ckpt-*.tmp-*")) or job.newest() > good, 20, running.said)
    time.sleep(chance.uniform(0.0, 0.3))
    kill([victim])
    wait_until(lambda: not running.tree(), 30,
               lambda: f"left after the {which} was killed: {'; '.join(map(str, running.tree().values()))}")
    running.killed = True
    assert running.wait(1) != 0


@pytest.mark.parametrize("which", ["supervisor", "launcher", "agent", "pod", "mpiexec"])
def test_one_process_is_killed_while_an_image_is_written(
        *, short_run: HeatRun, short_answer: Answer, crhpc: NewJob, chance: random.Random, which: str,
        repetition: int) -> None:
    job = crhpc(short_run.argv, short_run.mpi.environment)
    kill_while_writing(job, job.run("--every", "1"), which, chance)
    print(repetition, job.runs[-1].said())
    images = job.images()
    assert images
    for image in images:
        verified = job.ask("verify", image["path"])
        assert verified.returncode == 0, f"image {image['number']} was taken for usable: {verified.stderr}"
    running = job.run("--every", "2", "--resume", "require")
    assert running.wait() == 0, running.said()
    assert short_answer.differences(Answer.read(job.place, job.stdout)) == []
    assert not list(job.directory.glob(".ckpt-*.tmp-*")), "what the killed writer left was not taken away"


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_a_damaged_image_is_passed_over(short_run: HeatRun, short_answer: Answer, crhpc: NewJob,
                                        chance: random.Random, damage: str) -> None:
    job = crhpc(short_run.argv, short_run.mpi.environment)
    running = job.run("--every", "1", "--keep", "0")
    job.wait_for_image(running, job.wait_for_image(running))
    running.kill_all(chance)
    newest = Path(job.images()[-1]["path"])
    harm(chance.choice(sorted(newest.iterdir())), damage, chance)
    assert job.ask("verify", str(newest)).returncode == 75
    refused = job.restart(image=newest)
    assert refused.wait() == 75
    assert len(refused.log.splitlines()) == 1, refused.said()
    running = job.run("--every", "0")
    assert running.wait() == 0, running.said()
    assert newest.name in running.log   # which one, and why not
    assert short_answer.differences(Answer.read(job.place, job.stdout)) == []


def harm(path: Path, damage: str, chance: random.Random) -> None:
    """Change one bit of a file, cut off its end, or take it away."""
    content = bytearray(path.read_bytes())
    print(damage, path.name, len(content))
    if damage == "missing":
        path.unlink()
        return
    at = chance.randrange(len(content))
    if damage == "cut":
        del content[at:]
    else:
        content[at] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
