"""Stopping whole pods, and letting them go as if nothing had been."""
from __future__ import annotations

import os
import signal
import time

import pytest

from crhpc.engine.freeze import freeze, kill, thaw
from crhpc.errors import Unsupported
from crhpc.kernel import proc, ptrace

from .inside import COUNTING, frozen, state, until, untraced

STOPPED = "T"
TRACED = "t"


# -- what is found ------------------------------------------------------------------------------------
def test_an_empty_pod(pod):
    with frozen(pod) as found:
        assert (found.tasks, found.zombies) == ([], [])


def test_a_tree_with_threads(pod, run):
    """Parents before their children; every thread by its number in the pod."""
    program = run("""
        def child():
            threading.Thread(target=time.sleep, args=(1000,)).start()
            fork(pause)
            say("ready", os.getpid(), *sorted(map(int, os.listdir("/proc/self/task"))))
            pause()
        fork(child)
        wait()
    """)
    child, *threads = map(int, program.hear().split()[1:])
    with frozen(pod) as found:
        assert [(task.pid, sorted(task.threads)) for task in found.tasks] == [
            (program.pid, [program.pid]), (child, threads), (child + 2, [child + 2])]
        assert found.tasks[0].host == program.host
        for task in found.tasks:
            assert task.leader is task.threads[task.pid]
            assert {proc.stat(task.host, tracee.tid).state for tracee in task.threads.values()} == {TRACED}
            assert [m.start for m in task.mappings] == [m.start for m in proc.maps(task.host)]
            assert not task.stopped
    assert untraced(pod)


def test_zombies(pod, run):
    """Those of the job, which nobody but their parents may take away."""
    program = run("""
        pids = [fork(lambda: os._exit(n)) for n in (3, 4)]
        for pid in pids:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        say(*pids)
        wait()
        say(*(os.waitpid(pid, 0)[1] >> 8 for pid in pids))
    """)
    pids = program.numbers()
    with frozen(pod) as found:
        assert [task.pid for task in found.tasks] == [program.pid]
        assert [(task.pid, task.zombie) for task in found.zombies] == [(pid, True) for pid in pids]
    program.tell()
    assert program.numbers() == [3, 4]


def test_a_process_whose_first_thread_has_ended(pod, run):
    program = run("""
        def go_on():
            until = lambda: open("/proc/self/stat").read().split()[2] == "Z"
            while not until():
                time.sleep(0.001)
            say("ready")
            say(wait())
        threading.Thread(target=go_on).start()
        ctypes.CDLL(None).syscall(60, 0)
    """)
    program.hear()
    with pytest.raises(Unsupported, match=f"a process whose first thread has ended of pid {program.pid} .python"):
        freeze(pod.pid)
    assert untraced(pod)
    program.tell("on")
    assert program.hear() == "on"


# -- standing still -----------------------------------------------------------------------------------
def test_nothing_moves_until_the_thaw(pod, run, shared):
    path, read = shared
    run(COUNTING.format(path=path) + """
def work(number):
    while True:
        count(number)
for number in (0, 2, 4):
    def child():
        threading.Thread(target=work, args=(number + 1,)).start()
        work(number)
    fork(child)
pause()
""")
    until(lambda: all(read()[:6]), "it does not work")
    for _ in range(3):
        began = time.monotonic()
        found = freeze(pod.pid)
        before = read()
        time.sleep(0.02)
        assert read() == before
        told = thaw(found)
        assert 0.02 <= told <= time.monotonic() - began
        until(lambda old=before: all(new > was for new, was in zip(read()[:6], old, strict=False)), "it stands still")


# -- after the thaw -----------------------------------------------------------------------------------
def seen(pid: int) -> dict[str, object]:
    """What /proc tells of a process that a freeze could disturb."""
    fields = proc.status(pid).fields
    return {name: fields[name] for name in ("SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd", "State", "TracerPid")} | {
        "maps": proc.maps(pid), "call": proc.read(f"/proc/{pid}/syscall")}


def test_a_process_that_waits_is_as_before(pod, run):
    program = run("""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, 40})
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for number in (signal.SIGUSR1, 40):
            os.kill(os.getpid(), number)
        say("ready")
        say(wait())
    """)
    program.hear()
    until(lambda: state(program.host) == "S", "it does not wait")
    before = seen(program.host)
    with frozen(pod):
        registers = bytes(ptrace.get_registers(program.host)), ptrace.get_regset(program.host)
    with frozen(pod):
        assert (bytes(ptrace.get_registers(program.host)), ptrace.get_regset(program.host)) == registers
    until(lambda: state(program.host) == "S", "it does not wait again")
    assert seen(program.host) == before
    program.tell("well")
    assert program.hear() == "well"


CALLS = {
    "read": "libc.read(0, room, 1)",
    "read of an eventfd": "libc.read(libc.eventfd(0, 0), room, 8)",
    "epoll_wait": "libc.epoll_wait(libc.epoll_create1(0), room, 1, -1)",
    "poll": "libc.poll(None, 0, -1)",
    "nanosleep": "libc.nanosleep((ctypes.c_long * 2)(1000, 0), None)",
    "futex": "libc.syscall(202, room, 0, 0, None, None, 0)",
    "waitpid": "fork(pause) and libc.waitpid(-1, None, 0)",
    "sigwaitinfo": "libc.sigwaitinfo(ctypes.create_string_buffer(bytes([0, 2]) + bytes(126)), None)",
    "semop": "libc.semop(libc.semget(0, 1, 0o1600), ctypes.create_string_buffer(bytes([0, 0, 255, 255, 0, 0])), 1)",
    "recv with a limit": "libc.recv(limited.fileno(), room, 8, 0)",
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_no_call_is_interrupted(pod, run, call):
    """Of some the kernel says EINTR when a process was only stopped (signal(7)): the job must not see it."""
    program = run(f"""
        libc, room = ctypes.CDLL(None, use_errno=True), ctypes.create_string_buffer(4096)
        limited, other = socket.socketpair()
        limited.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, (1000).to_bytes(8, "little") + bytes(8))
        say("ready")
        say({call}, ctypes.get_errno())
    """)
    program.hear()
    until(lambda: state(program.host) == "S", "it does not wait")
    for _ in range(2):
        with frozen(pod):
            pass
        until(lambda: state(program.host) in ("S", ""), "it does not wait again")
    assert program.silent(), program.hear()


def test_signals_that_come_meanwhile_are_delivered(pod, run):
    """Each to whom it was sent, in order and with its value."""
    program = run("""
        numbers = {10, 12, 40, 41}
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        ready = threading.Barrier(2)
        def other():
            say(threading.get_native_id())
            ready.wait()
            say("other", signal.sigwait({12}))
        thread = threading.Thread(target=other)
        thread.start()
        ready.wait()
        for _ in range(5):
            got = signal.sigwaitinfo({10, 40, 41})
            say(got.si_signo, got.si_pid)
        thread.join()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        say("over")
    """)
    thread = program.numbers()[0]
    with frozen(pod) as found:
        for number in (41, 40, 40, 41, 10):
            os.kill(program.host, number)
        os.kill(found.tasks[0].threads[thread].tid, 12)
        assert program.silent()
    said = [program.hear() for _ in range(7)]
    assert sorted(said) == sorted(["10 0", "40 0", "40 0", "41 0", "41 0", "other 12", "over"])
    assert [line for line in said if line[:2] in ("40", "41")] == ["40 0", "40 0", "41 0", "41 0"]
    assert said[-1] == "over"


def test_a_handler_runs_after_the_thaw(pod, run):
    program = run("""
        signal.signal(signal.SIGUSR1, lambda number, frame: say("signal", number))
        say("ready")
        say(wait())
    """)
    program.hear()
    with frozen(pod):
        os.kill(program.host, signal.SIGUSR1)
        time.sleep(0.005)
        assert program.silent()
    assert program.hear() == "signal 10"
    program.tell("still reading")
    assert program.hear() == "still reading"


def test_a_signal_on_its_way_when_we_come(pod, run):
    """Seized and not stopped yet, a thread shows the signal to us first."""
    program = run("""
        signal.signal(signal.SIGUSR1, lambda number, frame: say("signal", number))
        say("ready")
        while True:
            pass
    """)
    program.hear()
    for _ in range(50):
        os.kill(program.host, signal.SIGUSR1)
        with frozen(pod):
            pass
        assert program.hear() == "signal 10"


# -- job control --------------------------------------------------------------------------------------
def test_a_stopped_process_stays_stopped(pod, run):
    program = run("say('ready')\nsay(wait())")
    program.hear()
    os.kill(program.host, signal.SIGSTOP)
    until(lambda: state(program.host) == STOPPED, "it does not stop")
    for _ in range(2):
        with frozen(pod) as found:
            assert found.tasks[0].stopped
        until(lambda: state(program.host) == STOPPED, "it goes on")
    program.tell("on")
    os.kill(program.host, signal.SIGCONT)
    assert program.hear() == "on"
    with frozen(pod) as found:
        assert all(not task.stopped for task in found.tasks)


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGTSTP])
def test_one_that_is_stopped_meanwhile(pod, run, number):
    program = run("say('ready')\nsay(wait())")
    program.hear()
    with frozen(pod):
        os.kill(program.host, number)
    until(lambda: state(program.host) == STOPPED, "it goes on")
    os.kill(program.host, signal.SIGCONT)
    program.tell("on")
    assert program.hear() == "on"


def test_one_that_is_just_being_stopped(pod, run):
    program = run("""
        say("ready")
        while True:
            pass
    """)
    program.hear()
    for _ in range(20):
        os.kill(program.host, signal.SIGSTOP)
        with frozen(pod):
            pass
        until(lambda: state(program.host) == STOPPED, "it goes on")
        os.kill(program.host, signal.SIGCONT)
        with frozen(pod) as found:
            assert not found.tasks[0].stopped
        until(lambda: state(program.host) == "R", "it does not go on")


def test_one_that_is_continued_meanwhile(pod, run):
    program = run("say('ready')\nsay(wait())")
    program.hear()
    os.kill(program.host, signal.SIGSTOP)
    until(lambda: state(program.host) == STOPPED, "it does not stop")
    with frozen(pod):
        os.kill(program.host, signal.SIGCONT)
    program.tell("on")
    assert program.hear() == "on"


def test_its_parent_does_not_hear_of_our_stops(pod, run):
    """A shell with job control looks for stopped children."""
    program = run("""
        pid = fork(pause)
        say("ready")
        wait()
        say(os.waitpid(pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED))
    """)
    program.hear()
    for _ in range(3):
        with frozen(pod):
            pass
    program.tell()
    assert program.hear() == "(0, 0)"


# -- ends ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("threads", [0, 3])
def test_one_that_is_killed_while_it_stands_still(pod, run, threads):
    """Its parent learns of it; nobody waits for ever."""
    program = run(f"""
        for _ in range({threads}):
            threading.Thread(target=time.sleep, args=(1000,)).start()
        say("ready")
        wait()
    """)
    program.hear()
    with frozen(pod):
        os.kill(program.host, signal.SIGKILL)
    assert program.ended() == signal.SIGKILL


def test_kill(pod, run):
    """With all their threads, and what has no thread left goes with them."""
    program = run("""
        def child():
            threading.Thread(target=time.sleep, args=(1000,)).start()
            fork(lambda: None)
            say("ready")
            pause()
        fork(child)
        pause()
    """)
    program.hear()
    found = freeze(pod.pid)
    kill(found)
    assert program.ended() == signal.SIGKILL
    until(lambda: proc.descendants(pod.pid) == [], "something is left")
    kill(found)
    thaw(found)
