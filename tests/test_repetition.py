"""Again and again: many checkpoints of one job, and many generations. Nothing grows, nothing is lost.

CRHPC_TEST_LONG=1 takes 200 checkpoints of each job and 10 generations of an MPI job; otherwise it is a few.
"""
from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from heatrun import Answer, HeatRun
from need import need
from pods import PROGRAMS, Subject, compile_program
from test_random_jobs import report, same, undisturbed
from wholejob import Job, NewJob, Running, interrupt_and_resume, wait_until

from crhpc.kernel import proc

LONG = os.environ.get("CRHPC_TEST_LONG") == "1"
CHECKPOINTS = 200 if LONG else 12
GENERATIONS = 10
WARM = 4
"""Checkpoints after which nothing may grow any more: by then all modules are loaded and all buffers made."""
_GROWTH = 16 << 20
"""Bytes: what Python and the C library keep back differs by some; a leak of a hundredth of an image is more, in 200."""

RICH = ("p.0.1.3.2,p.0.0.7.3,o.0.1.73.4,o.0.3.88.5,M.0.9.3.8,e.0.5.1.2,E.0.3.1.4,S.0.4.3.2,l.0.0.0.2,"
        "l.0.0.3.1,l.0.0.5.3,u.0.0.2.4,u.0.1.3.4,u.0.2.2.2,R.0.1.2.20,B.0.1.0.2,B.0.2.1.4,B.0.0.0.6,"
        "B.0.1.1.8,n.0.2.4.2,n.0.3.2.2,f.0.0.0.0,F.0.1.0.0,f.1.0.0.0,s.1.9.230.1,s.1.11.90.1,"
        "s.2.12.205.1,w.2.3.210.1,m.0.3.0.9,m.1.4.1.5,m.1.5.3.7,m.2.6.4.9,m.2.7.6.4,v.1.3.1.20,v.2.4.27.3,"
        "V.3.5.9.3,k.0.4.2.9,k.1.15.2.8,k.1.15.2.7,k.2.3.3.1,b.2.3.4.5,A.1.3.2.5,t.0.3.80.1,t.1.9.18.1,"
        "t.2.7.67.1,i.0.0.1.9,I.1.0.4.7,I.2.1.71.9,y.1.2.4.1,y.2.7.3.1,C.0.4.5.1,C.1.3.7.3,d.1.3.9.1")
"""A script for tests/random_job with something of everything."""


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need(shutil.which("gcc"), "there is no C compiler (gcc)")
    return compile_program(PROGRAMS / "undisturbed.c", tmp_path_factory.mktemp("busy") / "undisturbed")


@pytest.fixture(scope="module")
def random_job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need(shutil.which("gcc"), "there is no C compiler (gcc)")
    source = Path(__file__).with_name("random_job") / "random_job.c"
    return compile_program(source, tmp_path_factory.mktemp("random") / "random_job")


class Use:
    """What processes have: bytes of memory, and descriptors, by what they are."""

    def __init__(self, hosts: dict[str, int]) -> None:
        self.memory = {name: proc.resident(host) for name, host in hosts.items()}
        self.descriptors = {name: len(proc.fds(host)) for name, host in hosts.items()}

    def must_not_exceed(self, before: Use, *, but: frozenset[str] = frozenset()) -> None:
        """Those in ``but`` open and close descriptors all the time."""
        for name, size in self.memory.items():
            assert size <= before.memory[name] + _GROWTH, f"{name} has grown from {before.memory[name]} to {size} bytes"
        more = self.more_descriptors(before, but=but)
        assert not more, f"more descriptors than before: {more}"

    def more_descriptors(self, before: Use, *, but: frozenset[str] = frozenset()) -> dict[str, tuple[int, int]]:
        return {name: (before.descriptors[name], count) for name, count in self.descriptors.items()
                if count > before.descriptors[name] and name not in but}


def use_of(subject: Subject) -> Use:
    """Of the agent, which is this process, the pod's first process, and the job."""
    assert subject.node is not None and subject.node.pod is not None
    return Use({"agent": os.getpid(), "init": subject.node.pod.pid, "job": subject.node.root_host})


def test_a_busy_program_is_undisturbed(busy: Path, tmp_path: Path) -> None:
    """It counts ticks and EINTRs, and looks after its descriptors; then it comes back from the first and last image."""
    subject = Subject([str(busy)], tmp_path)
    try:
        subject.start()
        first, last, before = subject.checkpoint(), None, None
        for number in range(2, CHECKPOINTS + 1):
            if last is not None:
                shutil.rmtree(last)
            last = subject.checkpoint()
            assert "FAIL" not in subject.said(), subject.said()
            if number == WARM:
                before = use_of(subject)
        assert before is not None and last is not None
        use_of(subject).must_not_exceed(before, but=frozenset({"job"}))
        assert sorted(path.name for path in subject.images.iterdir()) == sorted([first.name, last.name])
        subject.check()
        for image in (first, last):
            subject.restart(image)
            subject.check()
    finally:
        subject.close()


def test_a_job_with_something_of_everything(random_job: Path, tmp_path: Path) -> None:
    expected = undisturbed(random_job, RICH)
    subject = Subject([str(random_job), RICH], tmp_path)
    try:
        subject.start()
        first, before = subject.checkpoint(), None
        last = first
        for number in range(2, CHECKPOINTS + 1):
            if last != first:
                shutil.rmtree(last)
            last = subject.checkpoint()
            if number == WARM:
                before = use_of(subject)
        assert before is not None
        use_of(subject).must_not_exceed(before)
        same(expected, report(subject))
        for image in (first, last):
            subject.restart(image)
            said = subject.out.read_text()
            assert said.endswith("ready\n"), said
            same(expected, report(subject))
    finally:
        subject.close()


def test_a_chain_of_generations(random_job: Path, tmp_path: Path) -> None:
    expected = undisturbed(random_job, RICH)
    subject = Subject([str(random_job), RICH], tmp_path)
    try:
        subject.start()
        for _ in range(GENERATIONS):
            subject.restart(subject.checkpoint(kill=True))
            subject.checkpoint()
        same(expected, report(subject))
    finally:
        subject.close()


# -- a whole MPI job ------------------------------------------------------------------------------------
def crhpcs_own(running: Running) -> Use:
    """Of the supervisor, its agent and the pod's first process."""
    tree = running.tree()
    found = {"supervisor": running.pid}
    for pid, process in tree.items():
        words = process.command
        if "crhpc.agent" in words:
            found["agent"] = pid
        elif any(word.endswith("engine/init.py") or word == "crhpc.engine.init" for word in words):
            found["init"] = pid
    return Use(found)


def test_an_mpi_job(short_run: HeatRun, crhpc: NewJob, tmp_path: Path) -> None:
    """Checkpointed over and over, it ends with the right answer, and so it does from the first and the last image."""
    checkpoints = CHECKPOINTS if LONG else 6
    run = HeatRun(short_run.mpi, short_run.program, size=256, steps=150 * CHECKPOINTS if LONG else 1000, report=20,
                  pause=10000)
    answer = run.uninterrupted(tmp_path)
    job = crhpc(run.argv, run.mpi.environment)
    running = job.run("--every", "0", "--keep", str(checkpoints + 1))
    job.wait_for_output(running, 0)
    before = None
    for number in range(1, checkpoints + 1):
        done = job.ask("checkpoint", str(job.directory))
        assert done.returncode == 0, done.stderr
        if number == WARM:
            before = crhpcs_own(running)
    assert before is not None and running.poll() is None
    used = [crhpcs_own(running)]

    def is_quiet() -> bool:   # it may look at the job just now
        used.append(crhpcs_own(running))
        return not used[-1].more_descriptors(before)

    wait_until(is_quiet, 5.0, lambda: f"more descriptors than before: {used[-1].more_descriptors(before)}")
    used[-1].must_not_exceed(before)
    assert running.wait(600) == 0
    right(answer, job)
    numbers = [image["number"] for image in job.images()]
    assert numbers == list(range(1, checkpoints + 1))
    for number in (numbers[-1], numbers[0]):
        assert job.restart("--every", "0", image=job.directory / f"ckpt-{number:06d}").wait(600) == 0
        right(answer, job)


def right(answer: Answer, job: Job) -> None:
    assert answer.differences(Answer.read(job.place, job.stdout)) == []


@pytest.mark.skipif(not LONG, reason="two generations of every MPI job are in tests/jobs/test_matrix.py")
def test_a_chain_of_generations_of_an_mpi_job(short_run: HeatRun, crhpc: NewJob, tmp_path: Path,
                                              chance: random.Random) -> None:
    run = HeatRun(short_run.mpi, short_run.program, size=256, steps=600 * GENERATIONS, report=20, pause=10000)
    answer = run.uninterrupted(tmp_path)
    job = crhpc(run.argv, run.mpi.environment)
    code, killings = interrupt_and_resume(job, chance, "--every", "1", kills=GENERATIONS, spread=1.0)
    assert (code, len(killings)) == (0, GENERATIONS)
    right(answer, job)
