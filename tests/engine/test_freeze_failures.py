"""Pods that are hard to stop, or can't be: fork storms, processes that come behind our back, vforks, debuggers."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from crhpc.engine import freeze as freezing
from crhpc.engine.freeze import freeze
from crhpc.errors import CheckpointFailed, Unsupported
from crhpc.kernel import proc, ptrace

from .inside import COUNTING, ROOT, frozen, state, until, untraced

FORKS = "while True: os.waitpid(fork(lambda: count(1)), 0); count(0)"
ORPHANS = "while True: os.waitpid(fork(lambda: fork(lambda: count(1))), 0); count(0)"
COMET = """
def comet():
    while True:
        count(0)
        if os.fork():
            os._exit(0)
fork(comet)
pause()
"""
THREADS = """
while True:
    threads = [threading.Thread(target=count, args=(0,)) for _ in range(5)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""
EXECS = """
while True:
    os.waitpid(fork(lambda: os.execv("/bin/true", ["true"])), 0)
    count(0)
"""
EXECS_OF_THREADS = """
def leave():
    threading.Thread(target=os.execv, args=("/bin/true", ["true"])).start()
    time.sleep(10)
while True:
    os.waitpid(fork(leave), 0)
    count(0)
"""
VFORKS = """
while True:
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
    count(0)
"""


def loose(pod, found) -> list[str]:
    """Processes of the pod that are not held."""
    held = {task.host for task in found.tasks}
    return [f"{host} {letter}" for host in proc.descendants(pod.pid)
            if host not in held and (letter := state(host)) not in ("", "Z")]


# -- what never holds still ---------------------------------------------------------------------------
@pytest.mark.parametrize(("storm", "times"), [
    (FORKS, 30), (ORPHANS, 80), (COMET, 80), (THREADS, 30), (EXECS, 30), (EXECS_OF_THREADS, 50), (VFORKS, 5)],
    ids=["forks", "orphans", "a comet", "threads", "execs", "execs of threads", "vforks"])
def test_what_never_holds_still_does(pod, run, shared, storm, times):
    """Nobody is missed, nobody is harmed, however the moment falls."""
    path, read = shared
    program = run(COUNTING.format(path=path) + storm)
    until(lambda: read()[0], "it does not begin")
    for _ in range(times):
        with frozen(pod) as found:
            before = read()
            time.sleep(0.0005)
            assert loose(pod, found) == []
            assert read() == before
        until(lambda old=before: read()[0] > old[0], "it does not go on")
    assert state(program.host)
    assert program.silent()


def test_one_that_is_always_elsewhere_when_we_look(pod, run, monkeypatch):
    """Each time that we look at it, it has just forked and ended; its child is of the pod's first process by then."""
    program = run("""
        def comet():
            while wait():
                if os.fork():
                    os._exit(0)
        fork(comet)
        say("ready")
        pause()
    """)
    program.hear()
    looks, look = iter(range(6)), proc.threads

    def late(pid):
        runs = pid not in (pod.pid, program.host) and state(pid) not in ("", "Z", "t")
        if runs and next(looks, None) is not None:
            program.tell("go")
            until(lambda: state(pid) in ("", "Z"), "it does not go on")
        return look(pid)

    monkeypatch.setattr(proc, "threads", late)
    found = freeze(pod.pid)
    monkeypatch.undo()
    try:
        assert loose(pod, found) == []
        assert len(found.tasks) == 2
    finally:
        freezing.thaw(found)


def test_an_orphan_that_is_reaped_while_we_look(pod, run, monkeypatch):
    """The pod's first process does not stand still: what it takes away need not be saved."""
    program = run("""
        os.waitpid(fork(lambda: fork(wait)), 0)
        say("ready")
        pause()
    """)
    program.hear()
    os.kill(pod.pid, signal.SIGSTOP)
    program.tell()
    until(lambda: "Z" in map(state, proc.descendants(pod.pid)), "it does not end")
    look = proc.stat

    def late(pid, tid=None):
        if state(pid) == "Z":
            os.kill(pod.pid, signal.SIGCONT)
            until(lambda: not state(pid), "it is not reaped")
        return look(pid, tid)

    monkeypatch.setattr(proc, "stat", late)
    found = freeze(pod.pid)
    monkeypatch.undo()
    try:
        assert [task.pid for task in found.tasks] == [program.pid]
        assert found.zombies == []
    finally:
        freezing.thaw(found)


def test_one_that_is_killed_while_we_look(pod, run, monkeypatch):
    """It stood still already: the others do, and its parent learns of it."""
    program = run("pid = fork(pause)\nsay(pid)\nwait()\nsay(os.waitpid(pid, 0)[1])")
    program.hear()
    (host,) = proc.children(program.host)
    look = proc.status

    def late(pid, tid=None):
        if pid == host and state(pid) == "t":
            os.kill(pid, signal.SIGKILL)
            until(lambda: state(pid) == "Z", "it does not die")
        return look(pid, tid)

    monkeypatch.setattr(proc, "status", late)
    found = freeze(pod.pid)
    monkeypatch.undo()
    freezing.thaw(found)
    assert program.pid in [task.pid for task in found.tasks]
    program.tell()
    assert program.numbers() == [signal.SIGKILL]


# -- vfork(2) -----------------------------------------------------------------------------------------
@pytest.fixture
def vforking(run, tmp_path):
    """A program in a vfork, whose child waits for somebody to write to a fifo: ``(program, fifo)``."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    program = run(f"""
        fork(pause)
        say("ready")
        wait_for_writer = [(os.POSIX_SPAWN_OPEN, 3, {str(fifo)!r}, os.O_RDONLY, 0)]
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {{}}, file_actions=wait_for_writer), 0)
        say("over")
        say(wait())
    """)
    program.hear()
    until(lambda: state(program.host) == "D" and len(proc.children(program.host)) == 2, "it is not in vfork")
    return program, fifo


def test_a_vfork_in_progress_is_waited_for(pod, vforking):
    program, fifo = vforking
    writer = threading.Timer(0.3, lambda: os.close(os.open(fifo, os.O_WRONLY)))
    writer.start()
    with frozen(pod) as found:
        writer.join()
        assert found.tasks[0].pid == program.pid
    assert program.hear() == "over"
    program.tell("on")
    assert program.hear() == "on"


@pytest.mark.parametrize("time_to_let_go", [0.05, 0.0])
def test_a_vfork_that_does_not_end(pod, vforking, monkeypatch, time_to_let_go):
    """No checkpoint, for a while; the process goes on when its child does, all others at once."""
    program, fifo = vforking
    other = proc.children(program.host)[0]
    for name, value in (("_ATTEMPTS", 2), ("_PATIENCE", 0.02), ("_PAUSE", 0.001), ("_LET_GO", time_to_let_go)):
        monkeypatch.setattr(freezing, name, value, raising=False)
    for _ in range(2):
        with pytest.raises(CheckpointFailed, match=r"of python3.* does not stop; the job goes on. Cure: try again"):
            freeze(pod.pid)
        assert proc.status(other).number("TracerPid") == 0
    monkeypatch.undo()
    os.close(os.open(fifo, os.O_WRONLY))
    assert program.hear() == "over"
    assert untraced(pod)
    with frozen(pod) as found:
        assert len(found.tasks) == 2


# -- what may not be traced ---------------------------------------------------------------------------
DEBUGGER = """
import sys
from crhpc.kernel import ptrace
ptrace.seize(int(sys.argv[1]), 0)
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_process_under_a_debugger(pod, run):
    """It is named, and so is the debugger; everything else goes on."""
    program = run("""
        def child():
            say("ready", os.getpid())
            say("child", wait())
        fork(child)
        pause()
    """)
    child = int(program.hear().split()[1])
    (host,) = proc.children(program.host)
    with subprocess.Popen([sys.executable, "-c", DEBUGGER, str(host)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}) as debugger:
        assert debugger.stdout is not None
        assert debugger.stdout.readline() == b"ready\n"
        with pytest.raises(Unsupported) as caught:
            freeze(pod.pid)
        tracer, name = proc.program(debugger.pid), proc.program(host)
        assert str(caught.value) == (
            f"cannot save a process under {tracer} of pid {child} ({name}). Cure: detach the debugger")
        assert proc.status(program.host).number("TracerPid") == 0
        assert proc.status(host).number("TracerPid") == debugger.pid
        program.tell("on")
        assert program.hear() == "child on"


def test_when_the_debugger_is_gone_it_can_be_saved(pod, run):
    program = run("say('ready')\nsay(wait())")
    program.hear()
    with subprocess.Popen([sys.executable, "-c", DEBUGGER, str(program.host)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}) as debugger:
        assert debugger.stdout is not None
        debugger.stdout.readline()
        with pytest.raises(Unsupported):
            freeze(pod.pid)
    with frozen(pod) as found:
        assert len(found.tasks) == 1
    program.tell("on")
    assert program.hear() == "on"


def test_a_process_that_the_system_does_not_let_us_trace(pod, run, monkeypatch):
    """As a security module may decide (Yama's ptrace_scope 3)."""
    program = run("fork(pause)\nsay('ready')\nsay(wait())")
    program.hear()
    (child,) = proc.children(program.host)
    seize = ptrace.seize

    def refuse(tid, options):
        if tid == child:
            raise PermissionError(1, "Operation not permitted", f"PTRACE_SEIZE of {tid}")
        seize(tid, options)

    monkeypatch.setattr(ptrace, "seize", refuse)
    with pytest.raises(Unsupported, match=r"a process that may not be traced of pid 3 .*Cure: run it without setuid"):
        freeze(pod.pid)
    assert untraced(pod)
    program.tell("on")
    assert program.hear() == "on"


def test_an_undumpable_process_stands_still_too(pod, run):
    """The pod is the agent's own: it may trace what hides from others (PR_SET_DUMPABLE)."""
    program = run("ctypes.CDLL(None).prctl(4, 0)\nsay('ready')\nsay(wait())")
    program.hear()
    with frozen(pod) as found:
        assert len(found.tasks) == 1
    program.tell("on")
    assert program.hear() == "on"
