"""Rebuilding a pod: phases in their order, the number that files are passed through, and what is let go in the end."""
from __future__ import annotations

import gc
import os
import signal
import time
from pathlib import Path

import pytest

from crhpc.engine import restore
from crhpc.engine.restore import Rebuilding, control_number
from crhpc.kernel import proc
from crhpc.log import Steps
from crhpc.resources import Kind, Phase, at
from crhpc.resources.context import Restore
from crhpc.resources.files import Descriptor

from .inside import PATIENCE, Job, next_event, state, until

NAMES = [phase.name.lower() for phase in Phase]


class FakeShard:
    """A shard with descriptors of these numbers, and nothing else."""

    def __init__(self, *numbers: int) -> None:
        self.rows = [Descriptor(2, number, 1, False) for number in numbers]

    def tables(self) -> list[str]:
        return ["descriptor"]

    def table(self, record: type, name: str) -> list[Descriptor]:
        assert (record, name) == (Descriptor, "descriptor")
        return self.rows


class Watcher(Kind):
    """Notes every phase; one of them may fail. (A kind without a name is nobody's but this file's.)"""

    def __init__(self, fails: Phase | None = None) -> None:
        self.fails = fails
        self.seen: list[Phase] = []
        self.closed = False

    def note(self, phase: Phase, ctx: Restore) -> None:
        self.seen.append(phase)
        if phase is self.fails:
            raise OSError(5, "no luck")
        if phase is Phase.CHECK:
            ctx.closing.callback(setattr, self, "closed", True)

    def steps(self, moment: Phase) -> list:
        return [lambda ctx: self.note(moment, ctx)]


@pytest.fixture
def rebuild(pod):
    """``rebuild(kind)``: the restart of an image without tasks."""
    started: list[Rebuilding] = []

    def begin(*kinds: Kind, steps: Steps | None = None) -> Rebuilding:
        started.append(Rebuilding(FakeShard(), Path("/nowhere"), pod, pod.context((0, 1, 2)), list(kinds),
                                  lambda line: None, steps or Steps()))
        return started[-1]
    yield begin
    for rebuilding in started:
        rebuilding.close()


# -- phases -------------------------------------------------------------------------------------------
def test_phases_in_their_order(rebuild):
    """Barriers over all nodes lie between open and connect, and before the release."""
    watcher, steps = Watcher(), Steps()
    rebuilding = rebuild(watcher, steps=steps)
    rebuilding.build()
    assert watcher.seen == [phase for phase in Phase if phase <= Phase.OPEN]
    assert not watcher.closed
    rebuilding.connect()
    assert watcher.seen == [phase for phase in Phase if phase <= Phase.CONNECT]
    rebuilding.finish()
    assert watcher.seen == list(Phase)
    assert list(steps.seconds) == NAMES
    rebuilding.release(0, 0)
    assert watcher.closed


def test_all_kinds_have_a_phase_before_the_next_begins(rebuild):
    order: list[tuple[Phase, int]] = []

    class Noting(Kind):
        def __init__(self, number: int) -> None:
            self.number = number

        @at(Phase.TREE)
        def tree(self, ctx: Restore) -> None:
            order.append((Phase.TREE, self.number))

        @at(Phase.CHECK)
        def check(self, ctx: Restore) -> None:
            order.append((Phase.CHECK, self.number))

    rebuild(Noting(1), Noting(2)).build()
    assert order == [(Phase.CHECK, 1), (Phase.CHECK, 2), (Phase.TREE, 1), (Phase.TREE, 2)]


@pytest.mark.parametrize("phase", [Phase.CHECK, Phase.PAGES, Phase.OPEN])
def test_nothing_comes_after_a_phase_that_failed(rebuild, phase):
    watcher = Watcher(phase)
    with pytest.raises(OSError, match="no luck"):
        rebuild(watcher).build()
    assert watcher.seen == [p for p in Phase if p <= phase]


def test_closing_lets_go_of_all_descriptors(pod, rebuild):
    gc.collect()   # what earlier tests have left must not be closed in the middle
    before = os.listdir("/proc/self/fd")
    rebuilding = rebuild(Watcher())
    rebuilding.ctx.hold(1, os.dup(0))
    rebuilding.ctx.hold_file(2, os.dup(0))
    assert len(os.listdir("/proc/self/fd")) == len(before) + 3
    for _ in range(2):
        rebuilding.close()
        assert os.listdir("/proc/self/fd") == before


# -- the number that files are passed through ---------------------------------------------------------
@pytest.mark.parametrize(("used", "limit", "number"), [
    ((), 1024, 16), ((0, 1, 2), 1024, 18), ((0, 500), 1024, 516), ((1023,), 1024, 1022), ((1020,), 1024, 1023),
    ((*range(100), 1023, 1022), 1024, 1021), (tuple(range(3, 1024)), 1100, 1039), ((*range(16, 64),), 64, None),
    ((*range(17, 64),), 64, 16), ((2000,), 1024, 1023)])
def test_it_is_above_all_or_in_a_gap(monkeypatch, used, limit, number):
    """Never below 16, where the pod's first process has its own."""
    monkeypatch.setattr(restore.resource, "getrlimit", lambda which: (256, limit))
    if number is None:
        with pytest.raises(OSError, match="Too many open files: 'descriptor for passing files'"):
            control_number(FakeShard(*used))
    else:
        assert control_number(FakeShard(*used)) == number


def test_numbers_that_no_job_can_have_do_not_keep_it_busy(monkeypatch):
    """Whoever made the image may have put in anything."""
    def too_long(number, frame):
        raise AssertionError("it counts down from there")
    monkeypatch.setattr(restore.resource, "getrlimit", lambda which: (256, 1024))
    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE / 10)
    try:
        assert control_number(FakeShard(3, 1 << 62)) == 1023
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# -- what comes back ----------------------------------------------------------------------------------
TREE = """
def child():
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    say("child", os.getpid(), os.getppid())
    pause()
pid = fork(child)
zombie = fork(lambda: os._exit(7))
os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
say(os.getpid(), pid, zombie)
while True:
    word = wait()
    if word == "fork":
        new = fork()
        os.waitpid(new, 0)
        say(new)
    if word == "zombie":
        say(os.waitpid(zombie, 0)[1] >> 8)
    if word == "look":
        say(os.getpid(), *sorted(int(name) for name in os.listdir("/proc") if name.isdigit()))
        say(*descriptors())
"""


def started(job: Job) -> tuple[int, int, int]:
    """The tree; its first process, the child and the zombie."""
    job.start(TREE)
    said = sorted([job.hear(), job.hear()])
    root, child, zombie = map(int, said[0].split())
    return root, child, zombie


def test_the_tree_is_let_go(job):
    gc.collect()   # what earlier tests have left must not be closed in the middle
    descriptors = os.listdir("/proc/self/fd")
    root, child, zombie = started(job)
    image = job.checkpoint(stop=True)
    told = job.restart(image)
    assert len(os.listdir("/proc/self/fd")) == len(descriptors) + 1, "the channel to the pod, and nothing else"
    assert (told["pid"], told["tasks"]) == (root, 2)
    assert proc.status(told["host_pid"]).inner("NSpid") == root
    for task in job.node.tasks():
        assert {proc.status(task["host_pid"], tid).number("TracerPid") for tid in proc.threads(task["host_pid"])} == {0}
    job.tell("look")
    assert job.numbers() == [root, 1, root, child, zombie]
    assert job.numbers() == [0, 1, 2], "nothing of ours is left among its descriptors"
    job.tell("zombie")
    assert job.numbers() == [7]


def test_new_processes_get_ids_behind_the_old_ones(job):
    started(job)
    job.tell("fork")
    (before,) = job.numbers()
    job.restart(job.checkpoint(stop=True))
    job.tell("fork")
    assert job.numbers() == [before + 1]


def test_it_can_be_stopped_and_started_again_and_again(job):
    root, child, zombie = started(job)
    for _ in range(3):
        job.restart(job.checkpoint(stop=True))
        job.tell("look")
        assert job.numbers() == [root, 1, root, child, zombie]
        job.hear()


def test_a_stopped_process_comes_back_stopped(job):
    job.start("""
        pid = fork(lambda: (os.kill(os.getpid(), 19), say("on"), pause()))
        os.waitpid(pid, os.WUNTRACED)
        say(pid)
        wait()
        os.kill(pid, 18)
        wait()
    """)
    pid = job.numbers()[0]
    job.restart(job.checkpoint(stop=True))
    (host,) = [task["host_pid"] for task in job.node.tasks() if task["pid"] == pid]
    until(lambda: state(host) == "T", "it runs")
    assert job.silent()
    job.tell()
    assert job.hear() == "on"


def test_clocks_go_on_where_they_were(job):
    """For the job no time has passed, however long its image lay about."""
    job.start("""
        while True:
            wait()
            say(time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME))
    """)
    job.tell()
    before = [float(word) for word in job.hear().split()]
    image = job.checkpoint(stop=True)
    began = time.monotonic()
    job.restart(image, monotonic=before[0] + 1e5, boottime=before[1] + 2e5)
    job.tell()
    after = [float(word) for word in job.hear().split()]
    took = time.monotonic() - began
    assert 1e5 <= after[0] - before[0] <= 1e5 + took
    assert 2e5 <= after[1] - before[1] <= 2e5 + took


def test_its_hostname_is_the_old_one(job):
    job.start("while True:\n    wait()\n    say(os.uname().nodename)")
    job.restart(job.checkpoint(stop=True), hostname="elsewhere")
    job.tell()
    assert job.hear() == "elsewhere"


def test_its_end_is_told(job):
    job.start("say('ready')\nfork(wait)\nwait()\nos._exit(5)")
    job.hear()
    job.restart(job.checkpoint(stop=True))
    job.tell()
    job.tell()
    assert job.ended() == 5 << 8
    assert next_event(job.node.pod) == {"op": "empty"}


def test_one_that_is_killed_before_the_release(job):
    """As the kernel does when memory is short: its parent learns of it, nobody waits for ever."""
    started(job)
    image = job.checkpoint(stop=True)
    described = job.described(image)
    job.node = job.new_node()
    job.node.build(str(image), described, job.stdio)
    job.node.connect()
    job.node.finish()
    (host,) = [task["host_pid"] for task in job.node.tasks() if task["pid"] == job.node.root]
    os.kill(host, signal.SIGKILL)
    until(lambda: state(host) == "Z", "it does not die")
    job.node.release(described["last_pid"])
    assert job.ended() == signal.SIGKILL


def test_tasks_die_with_the_agent_until_they_are_let_go(job):
    """Half a job must not be left behind."""
    started(job)
    image = job.checkpoint(stop=True)
    job.node = job.new_node()
    job.node.build(str(image), job.described(image), job.stdio)
    hosts = [task["host_pid"] for task in job.node.tasks()]
    assert len(hosts) == 3
    assert {state(host) for host in hosts} == {"t", "Z"}
    job.node.end()
    assert not any(state(host) for host in hosts)
