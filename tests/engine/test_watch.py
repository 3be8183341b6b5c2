"""Calls in progress over many freezes, and over generations: they end when they should, and as they should."""
from __future__ import annotations

import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from need import need
from pods import PROGRAMS, Subject, compile_program

from crhpc.engine.freeze import freeze
from crhpc.errors import ENDING, CheckpointFailed
from crhpc.kernel import libc, proc

from .inside import frozen, state, until, untraced

_MOST = 100
"""Far more checkpoints, or generations, than fit into the time that the programs wait."""


@pytest.fixture
def sleeping(tmp_path: Path) -> Iterator[Subject]:
    """Threads that wait for some time in all calls that have one; told to verify when the waits are over."""
    need(shutil.which("gcc"), "there is no C compiler (gcc)")
    subject = Subject([str(compile_program(PROGRAMS / "sleeping.c", tmp_path / "sleeping"))], tmp_path)
    subject.start()
    subject.node.signal(15, group=False)
    yield subject
    subject.close()


def ended(subject: Subject) -> bool:
    """Whether the program has ended, and was content."""
    pod = subject.node.pod
    while pod.events or select.select([pod], [], [], 0.02)[0]:
        event = pod.read_event()
        if event["op"] == "exited":
            assert event["status"] == 0, subject.said()
            return True
    return False


def image_of(subject: Subject, *, kill: bool = False) -> Path | None:
    """None where the program ends at that very moment."""
    try:
        return subject.checkpoint(kill=kill)
    except CheckpointFailed as error:
        assert ENDING in str(error)
        return None


def test_waits_end_however_often_they_are_interrupted(sleeping):
    for _ in range(_MOST):
        if ended(sleeping):
            return
        image_of(sleeping)
    pytest.fail("a wait begins anew at every checkpoint")


def test_waits_end_over_generations(sleeping):
    for _ in range(_MOST):
        if ended(sleeping):
            return
        image = image_of(sleeping, kill=True)
        if image is not None:
            sleeping.restart(image)
    pytest.fail("a wait begins anew at every restart")


# -- one call, and what can come in between ------------------------------------------------------------
PIPE = """
libc = ctypes.CDLL(None, use_errno=True)
def write_all(fd, size):
    return libc.write(fd, bytes(size), size), ctypes.get_errno()
reader, writer = os.pipe()
def drain(size):
    got = 0
    while got < size:
        got += len(os.read(reader, 65536))
    return got
def full():
    return fcntl.ioctl(reader, termios.FIONREAD, bytes(4))[:3] == (65536).to_bytes(3, "little")
import fcntl, termios
"""
WRITING = PIPE + """
def work():
    result = write_all(writer, 200000)
    say("wrote", *result)
thread = threading.Thread(target=work)
thread.start()
while not full():
    time.sleep(0.001)
say("ready", thread.native_id)
"""


def stop_a_few_times(pod) -> None:
    for _ in range(3):
        with frozen(pod):
            pass


def test_a_write_goes_on_for_the_rest(pod, run):
    program = run(WRITING + "wait(); say(drain(200000))")
    program.hear()
    stop_a_few_times(pod)
    assert not untraced(pod)
    program.tell()
    assert sorted([program.hear(), program.hear()]) == ["200000", "wrote 200000 0"]
    assert untraced(pod)


def test_another_part_is_moved_between_two_stops(pod, run):
    program = run(WRITING + "wait(); drain(65536); say('drained'); wait(); say(drain(200000 - 65536))")
    program.hear()
    stop_a_few_times(pod)
    program.tell()
    assert program.hear() == "drained"
    stop_a_few_times(pod)
    program.tell()
    assert sorted([program.hear(), program.hear()]) == ["134464", "wrote 200000 0"]


def test_a_handler_ends_it_as_it_would_have(pod, run):
    """pipe(7): a blocked write that has moved a part returns that when a signal is handled."""
    program = run("signal.signal(signal.SIGUSR1, lambda number, frame: None)\n" + WRITING + "wait()")
    thread = int(program.hear().split()[1])
    host = next(tid for tid in proc.threads(program.host) if proc.status(program.host, tid).inner("NSpid") == thread)
    stop_a_few_times(pod)
    libc.syscall("tgkill", program.host, host, signal.SIGUSR1)
    assert program.hear() == "wrote 65536 0"
    assert untraced(pod)


@pytest.mark.parametrize("number", [signal.SIGCHLD, signal.SIGWINCH, signal.SIGURG, signal.SIGUSR2])
def test_what_is_ignored_does_not_end_it(pod, run, number):
    program = run("signal.signal(signal.SIGUSR2, signal.SIG_IGN)\n" + WRITING + "wait(); say(drain(200000))")
    program.hear()
    stop_a_few_times(pod)
    for tid in proc.threads(program.host):
        libc.syscall("tgkill", program.host, tid, number)
        time.sleep(0.005)
    assert program.silent()
    with frozen(pod):
        for tid in proc.threads(program.host):
            libc.syscall("tgkill", program.host, tid, number)
    assert program.silent()
    program.tell()
    assert sorted([program.hear(), program.hear()]) == ["200000", "wrote 200000 0"]


def test_stopped_by_job_control(pod, run):
    """The kernel itself ends the call with what has been moved then."""
    program = run(WRITING + "wait(); say('on')")
    program.hear()
    stop_a_few_times(pod)
    os.kill(program.host, signal.SIGSTOP)
    until(lambda: state(program.host) == "T", "it does not stop")
    until(lambda: untraced(pod), "it is traced")
    stop_a_few_times(pod)
    until(lambda: state(program.host) == "T", "it goes on")
    os.kill(program.host, signal.SIGCONT)
    assert program.hear() == "wrote 65536 0"
    program.tell()
    assert program.hear() == "on"


def test_killed_meanwhile(pod, run):
    program = run(WRITING + "wait()")
    program.hear()
    stop_a_few_times(pod)
    os.kill(program.host, signal.SIGKILL)
    assert program.ended() == signal.SIGKILL
    with frozen(pod) as found:
        assert found.tasks == []


def test_killed_while_it_stands_still(pod, run):
    program = run(WRITING + "wait()")
    program.hear()
    stop_a_few_times(pod)
    with frozen(pod):
        os.kill(program.host, signal.SIGKILL)
    assert program.ended() == signal.SIGKILL


def test_another_thread_makes_an_exec(pod, run):
    program = run(WRITING + "wait(); os.execv('/bin/sh', ['sh', '-c', 'echo new; read line; echo $line'])")
    program.hear()
    stop_a_few_times(pod)
    program.tell()
    assert program.hear() == "new"
    stop_a_few_times(pod)
    program.tell("on")
    assert program.hear() == "on"
    assert untraced(pod)


def test_the_reader_goes_away(pod, run):
    """Of the error the next write tells; SIGPIPE comes as it would have."""
    program = run("signal.signal(signal.SIGPIPE, signal.SIG_IGN)\n" + WRITING + """
wait()
os.close(reader)
thread.join()
say(*write_all(writer, 5))
""")
    program.hear()
    stop_a_few_times(pod)
    program.tell()
    assert [program.hear(), program.hear()] == ["wrote 65536 0", "-1 32"]


def test_a_write_that_must_not_wait_is_left_alone(pod, run):
    program = run(PIPE + """
os.set_blocking(writer, False)
say(*write_all(writer, 200000))
say("ready")
wait()
say(*write_all(writer, 200000))
""")
    program.hear()
    program.hear()
    stop_a_few_times(pod)
    assert untraced(pod)
    program.tell()
    assert program.hear() == "-1 11"


def test_a_terminal_that_is_full(pod, run):
    program = run(PIPE + """
import pty, tty
master, terminal = pty.openpty()
tty.setraw(terminal)
def work():
    say("wrote", *write_all(terminal, 60000))
thread = threading.Thread(target=work)
thread.start()
before = -1
while (now := fcntl.ioctl(master, termios.FIONREAD, bytes(4))) != before or before == bytes(4):
    before = now
    time.sleep(0.02)
say("ready")
wait()
got = 0
while got < 60000:
    got += len(os.read(master, 65536))
say(got)
""")
    program.hear()
    stop_a_few_times(pod)
    program.tell()
    assert sorted([program.hear(), program.hear()]) == ["60000", "wrote 60000 0"]


@pytest.mark.parametrize("call", ["read(zero, room, size)", "getrandom(room, size, 0)", "read(random, room, size)"])
def test_endless_devices(pod, run, call):
    """They look for signals every few pages of a large read."""
    program = run(f"""
        libc, size = ctypes.CDLL(None), 256 << 20
        room = ctypes.create_string_buffer(size)
        zero, random = os.open("/dev/zero", 0), os.open("/dev/urandom", 0)
        libc.read.restype = libc.getrandom.restype = ctypes.c_long
        say("ready")
        for _ in range(4):
            assert libc.{call} == size
        say("over")
    """)
    program.hear()
    for _ in range(200):
        with frozen(pod):
            pass
    assert program.hear() == "over"
    assert untraced(pod)


def test_a_freeze_that_fails_disturbs_nobody(pod, run, monkeypatch):
    """It is given up before anything else has looked at the threads: they go on like any others."""
    program = run(WRITING + "wait(); say(drain(200000))")
    program.hear()
    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(proc, "smaps", lambda pid: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                freeze(pod.pid)
    program.tell()
    assert sorted([program.hear(), program.hear()]) == ["200000", "wrote 200000 0"]


def test_a_freeze_that_fails_ends_no_wait(pod, run, monkeypatch):
    program = run("""
        signal.pthread_sigmask(signal.SIG_BLOCK, {40})
        libc = ctypes.CDLL(None, use_errno=True)
        mask = ctypes.create_string_buffer((1 << 39).to_bytes(8, "little") + bytes(120))
        say("ready")
        say(libc.sigwaitinfo(mask, None), ctypes.get_errno())
    """)
    program.hear()
    until(lambda: state(program.host) == "S", "it does not wait")
    monkeypatch.setattr(proc, "smaps", lambda pid: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        freeze(pod.pid)
    assert program.silent()
    os.kill(program.host, 40)
    assert program.hear() == "40 0"


# -- signals ------------------------------------------------------------------------------------------
WAITS_MASKED = """
signal.signal(signal.SIGUSR1, lambda number, frame: say("first"))
signal.signal(signal.SIGUSR2, lambda number, frame: say("second"))
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
libc = ctypes.CDLL(None, use_errno=True)
mask = ctypes.create_string_buffer((1 << 11).to_bytes(8, "little") + bytes(120))   # SIGUSR2 only
say("ready")
result = libc.CALL
say(result, ctypes.get_errno())
"""


@pytest.mark.parametrize("call", ["sigsuspend(mask)", "ppoll(None, 0, None, mask)", "pselect(0, *[None] * 4, mask)",
                                  "epoll_pwait(libc.epoll_create1(0), mask, 1, -1, mask)"])
def test_what_a_call_blocks_does_not_come_through(pod, run, call):
    """Sent while it stands still, blocked by the call alone: it has to wait for the end of the call."""
    program = run(WAITS_MASKED.replace("CALL", call))
    program.hear()
    until(lambda: state(program.host) == "S", "it does not wait")
    for _ in range(2):
        with frozen(pod):
            os.kill(program.host, signal.SIGUSR2)
        assert program.silent()
        until(lambda: state(program.host) == "S", "it does not wait again")
    with frozen(pod):
        os.kill(program.host, signal.SIGUSR1)
    assert [program.hear() for _ in range(3)] == ["first", "second", "-1 4"]
    assert untraced(pod)


ENDED_BY_A_SIGNAL = """
signal.signal(signal.SIGUSR1, lambda number, frame: say("signal"))
signal.siginterrupt(signal.SIGUSR1, {interrupt})
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.epoll_create1(0)
say("ready")
result = libc.{call}
say(result, ctypes.get_errno())
"""


@pytest.mark.parametrize("call", ["pause()", "epoll_wait(fd, bytes(64), 1, -1)", "epoll_wait(fd, bytes(64), 1, 100000)",
                                  "poll(None, 0, 100000)", "usleep(900000)", "select(0, None, None, None, None)"])
def test_a_handler_ends_a_wait_also_after_a_stop(pod, run, call):
    """Had it run before the call was made again, the program would wait for ever."""
    program = run(ENDED_BY_A_SIGNAL.format(call=call, interrupt=False))
    program.hear()
    until(lambda: state(program.host) == "S", "it does not wait")
    stop_a_few_times(pod)
    with frozen(pod):
        os.kill(program.host, signal.SIGUSR1)
    assert [program.hear(), program.hear()] == ["signal", "-1 4"]
    assert untraced(pod)


CONTINUED = """
libc = ctypes.CDLL(None, use_errno=True)
say("ready")
begin = time.monotonic()
result = libc.CALL
say(result, ctypes.get_errno(), time.monotonic() - begin >= 1.2)
wait()
"""


@pytest.mark.parametrize(("call", "result"), [
    ("usleep(1200000)", "0 0"), ("poll(None, 0, 1200)", "0 0"),
    ("syscall(35, (ctypes.c_long * 2)(1, 200000000), None)", "0 0"),
    ("syscall(202, bytes(8), 0, 0, (ctypes.c_long * 2)(1, 200000000), None, 0)", "-1 110")],
    ids=["usleep", "poll", "nanosleep", "futex"])
def test_a_call_that_the_kernel_had_begun_again_before_we_came(job, call, result):
    """The number of the call is nowhere to be seen then (restart_syscall(2)), but where the thread sleeps is."""
    job.start(CONTINUED.replace("CALL", call))
    job.hear()
    until(lambda: state(job.node.root_host) == "S", "it does not wait")
    os.kill(job.node.root_host, signal.SIGSTOP)
    until(lambda: state(job.node.root_host) == "T", "it does not stop")
    os.kill(job.node.root_host, signal.SIGCONT)
    until(lambda: state(job.node.root_host) == "S", "it does not go on")
    job.restart(job.checkpoint(stop=True))
    assert job.hear() == f"{result} True"
