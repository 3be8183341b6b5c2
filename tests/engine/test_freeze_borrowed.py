"""Threads that are lent for remote calls come back as they were."""
from __future__ import annotations

import os
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from crhpc.engine.freeze import Borrowed, Frozen
from crhpc.errors import Unsupported
from crhpc.kernel import proc, ptrace
from crhpc.kernel.libc import NR
from crhpc.kernel.tracee import ALL_BUT_TRAP

from .inside import frozen, state, until

CAP_SYS_RESOURCE = 1 << 24
UNBLOCKABLE = 1 << (signal.SIGKILL - 1) | 1 << (signal.SIGSTOP - 1)

ACTIONS = """
libc = ctypes.CDLL(None)
room = ctypes.create_string_buffer(32)
def action(number):
    libc.syscall(13, number, None, room, 8)
    return room.raw.hex()
"""


@contextmanager
def borrowed(found: Frozen) -> Iterator[Borrowed]:
    loan = Borrowed(found)
    try:
        loan.borrow()
        yield loan
    finally:
        loan.give_back()


def threads(found: Frozen) -> list[int]:
    return [tracee.tid for task in found.tasks for tracee in task.threads.values()]


def inner(found: Frozen) -> list[object]:
    """What a loan could change of a pod that stands still."""
    return [(bytes(ptrace.get_registers(tid)), ptrace.get_regset(tid), ptrace.get_signal_mask(tid),
             ptrace.pending_signals(tid, shared=True), ptrace.pending_signals(tid, shared=False))
            for tid in threads(found)] + [proc.smaps(task.host) for task in found.tasks]


def use(found: Frozen) -> None:
    """Calls in every way: one by one, by every thread, and many at once."""
    for task in found.tasks:
        for pid, tracee in task.threads.items():
            assert tracee.call("gettid") == pid
        assert task.area.run([("getpid", ())] * 100) == [task.pid] * 100
        task.leader.write(task.area.data, b"\xff" * task.area.room)


TREE = """
signal.pthread_sigmask(signal.SIG_BLOCK, {10, 40})
signal.signal(12, lambda number, frame: None)
for number in (10, 40, 40):
    os.kill(os.getpid(), number)
def spin():
    while True:
        pass
def child():
    threading.Thread(target=time.sleep, args=(1000,)).start()
    threading.Thread(target=spin).start()
    say("ready")
    pause()
fork(child)
wait()
say("over", *sorted(signal.sigpending()))
"""


def test_nothing_is_different_afterwards(pod, run):
    program = run(TREE)
    program.hear()
    with frozen(pod) as found:
        before = inner(found)
        for _ in range(2):
            with borrowed(found):
                use(found)
            assert inner(found) == before
            assert all(task.mapped_area is None for task in found.tasks)
    program.tell()
    assert program.hear() == "over 10 40"


def test_while_they_are_lent(pod, run):
    """No signal but SIGTRAP gets through, and each process has a scratch area."""
    program = run(TREE)
    program.hear()
    with frozen(pod) as found, borrowed(found):
        for tid in threads(found):
            assert proc.status(tid).number("SigBlk", 16) == ALL_BUT_TRAP & ~UNBLOCKABLE
        for task in found.tasks:
            (area,) = [m for m in proc.maps(task.host) if m.start <= task.area.address < m.end]
            assert (area.protection, area.shared, area.inode) == (7, False, 0)
            assert area.end >= task.area.address + task.area.size


@pytest.mark.parametrize("set_up", [
    "signal.signal(5, signal.SIG_DFL)", "signal.signal(5, signal.SIG_IGN)",
    "signal.signal(5, lambda number, frame: say('trapped'))",
    "signal.signal(5, signal.SIG_IGN); signal.siginterrupt(5, False)",
    "signal.signal(5, lambda number, frame: say('trapped')); signal.pthread_sigmask(signal.SIG_BLOCK, {5})"])
def test_the_action_of_sigtrap(pod, run, set_up):
    """The runner ends in a trap: the kernel resets the action of one that is ignored."""
    program = run(ACTIONS + set_up + """
before = action(5)
say("ready")
wait()
say(before == action(5), 5 in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
os.kill(os.getpid(), 5)
say("over")
""")
    program.hear()
    for _ in range(2):
        with frozen(pod) as found, borrowed(found):
            use(found)
    program.tell()
    assert program.hear() == f"True {'BLOCK' in set_up}"
    if "SIG_DFL" in set_up:
        assert os.WTERMSIG(program.ended()) == signal.SIGTRAP
    else:
        said = [program.hear()]
        assert said + [program.hear() for _ in said if said == ["trapped"]] == [
            *["trapped"] * ("lambda" in set_up and "BLOCK" not in set_up), "over"]


def test_a_sigtrap_that_waits(pod, run):
    """It gets through to a thread that is lent, and has to wait again as it did."""
    program = run("""
        signal.pthread_sigmask(signal.SIG_BLOCK, {5})
        os.kill(os.getpid(), 5)
        say("ready")
        wait()
        say(signal.sigpending(), signal.sigwait({5}), signal.sigpending())
    """)
    program.hear()
    for _ in range(2):
        with frozen(pod) as found, borrowed(found):
            use(found)
    program.tell()
    assert program.hear() == "{<Signals.SIGTRAP: 5>} 5 set()"


def test_a_call_that_was_interrupted_is_made_again(pod, run):
    """As it would have been without us; of what it returns the remote calls leave nothing."""
    program = run("""
        say("ready")
        say(wait())
        began = time.monotonic()
        time.sleep(0.05)
        say(time.monotonic() - began >= 0.05)
    """)
    program.hear()
    until(lambda: state(program.host) == "S", "it does not wait")
    with frozen(pod) as found, borrowed(found):
        use(found)
    assert program.silent()
    program.tell("hello")
    assert program.hear() == "hello"
    with frozen(pod) as found, borrowed(found):
        use(found)
    assert program.hear() == "True"


def test_a_stopped_process_is_lent_too(pod, run):
    program = run("say('ready')\nsay(wait())")
    program.hear()
    os.kill(program.host, signal.SIGSTOP)
    until(lambda: state(program.host) == "T", "it does not stop")
    with frozen(pod) as found, borrowed(found):
        use(found)
    until(lambda: state(program.host) == "T", "it goes on")
    os.kill(program.host, signal.SIGCONT)
    program.tell("on")
    assert program.hear() == "on"


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGUSR1, 40])
def test_signals_that_come_while_it_is_lent(pod, run, number):
    """SIGSTOP gets through whatever is blocked."""
    program = run("""
        for number in (10, 40):
            signal.signal(number, lambda number, frame: say("signal", number))
        say("ready")
        say(wait())
    """)
    program.hear()
    with frozen(pod) as found, borrowed(found):
        use(found)
        os.kill(program.host, number)
        use(found)
        assert program.silent()
    if number == signal.SIGSTOP:
        until(lambda: state(program.host) == "T", "it goes on")
        os.kill(program.host, signal.SIGCONT)
    else:
        assert program.hear() == f"signal {number:d}"
    program.tell("on")
    assert program.hear() == "on"


# -- failures -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("hard", ["-1", "used"])
def test_no_room_for_the_scratch_area(pod, run, hard):
    """A limit is raised for the moment, where that is allowed. Those that have been lent by then come back, too."""
    program = run(f"""
        def small():
            used = int(open("/proc/self/statm").read().split()[0]) * 4096
            resource.setrlimit(resource.RLIMIT_AS, (used, {hard}))
            say("ready")
            say(wait())
        fork(small)
        pause()
    """)
    program.hear()
    (host,) = proc.children(program.host)
    limits = proc.limits(host)
    with frozen(pod) as found:
        before = inner(found)
        if hard == "-1" or proc.status(os.getpid()).number("CapEff", 16) & CAP_SYS_RESOURCE:
            with borrowed(found):
                use(found)
        else:
            with pytest.raises(Unsupported, match="a process that may have no more memory"), borrowed(found):
                raise AssertionError
        assert inner(found) == before
        assert proc.limits(host) == limits
    program.tell("on")
    assert program.hear() == "on"


def test_one_that_dies_while_it_is_lent(pod, run):
    """The others come back, and its parent learns of it."""
    program = run("""
        pid = fork(pause)
        say(pid)
        say(os.waitpid(pid, 0) == (pid, 9), wait())
    """)
    child = program.numbers()[0]
    with frozen(pod) as found:
        before = proc.maps(program.host)
        (task,) = [task for task in found.tasks if task.pid == child]
        with borrowed(found):
            os.kill(task.host, signal.SIGKILL)
            with pytest.raises(ProcessLookupError):
                task.call("getpid")
        assert proc.maps(program.host) == before
    program.tell("on")
    assert program.hear() == "True on"


def test_what_was_made_in_its_name_stays(pod, run):
    """Loans end, and what calls did is done."""
    program = run("say(os.getpid())\nwait()\nsay(os.umask(0))")
    program.hear()
    with frozen(pod) as found, borrowed(found):
        assert found.tasks[0].leader.call_raw(NR["umask"], 0o123) == 0o022
    program.tell()
    assert program.numbers() == [0o123]


def test_the_area_holds_the_action_of_every_signal(pod, run):
    """What the kinds lay down in it at once (crhpc/resources/signals.py)."""
    run("say('ready')\nwait()").hear()
    with frozen(pod) as found, borrowed(found):
        task = found.tasks[0]
        assert task.area.room >= 65 * 32
        assert len(task.trap_action) == 32
        assert struct.unpack("4Q", task.trap_action) == (0, 0, 0, 0)
