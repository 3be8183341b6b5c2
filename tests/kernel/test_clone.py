"""Making processes with chosen ids, in a pid namespace of their own."""
from __future__ import annotations

import ctypes
import errno
import os
import threading

import pytest

from crhpc.kernel import clone

from .targets import OWN_PIDS, apart


class CloneArgs(ctypes.Structure):
    """struct clone_args of <linux/sched.h>."""

    _fields_ = [(name, ctypes.c_uint64) for name in (
        "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls", "set_tid",
        "set_tid_size", "cgroup")]


def test_clone_args():
    words = clone.clone_args(flags=1, pidfd=2, exit_signal=3, set_tid=4, set_tid_size=5)
    args = CloneArgs.from_buffer_copy((ctypes.c_uint64 * 11)(*words))
    assert ctypes.sizeof(CloneArgs) == clone.ARGS_SIZE
    assert {name: getattr(args, name) for name, _ in CloneArgs._fields_ if getattr(args, name)} == {
        "flags": 1, "pidfd": 2, "exit_signal": 3, "set_tid": 4, "set_tid_size": 5}
    assert clone.clone_args()[4] == 17, "SIGCHLD"


def test_a_child_with_a_chosen_id():
    said = apart(OWN_PIDS + """
from crhpc.kernel import pidfd
def work():
    pid, handle = clone.fork_as(4242)
    if pid == 0:
        os._exit(handle == -1 and os.getpid() == 4242 and 7)
    same = os.waitid(os.P_PIDFD, handle, os.WEXITED | os.WNOWAIT)
    say(pid, same.si_pid, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), os.get_inheritable(handle))
own()
as_first(work)
""")
    assert said == "4242 4242 7 False"


def test_an_id_that_is_in_use():
    """By a process, by one that nobody has reaped, and by a session alone."""
    said = apart(OWN_PIDS + """
def taken(pid):
    try:
        new, handle = clone.fork_as(pid)
    except FileExistsError as error:
        return error.filename
    if new == 0:
        os._exit(0)
    os.close(handle)
    os.waitpid(new, 0)
    return "free"
def work():
    pid, handle = clone.fork_as(50)
    if pid == 0:
        os.setsid()
        member, _ = clone.fork_as(51)
        if member == 0:
            wait()
            os._exit(0)
        os._exit(0)
    os.waitid(os.P_PID, 50, os.WEXITED | os.WNOWAIT)
    say("zombie", taken(50))
    os.waitpid(50, 0)
    say("session", taken(50))
    os.kill(51, 9)
    os.waitpid(51, 0)
    say("gone", taken(50), taken(51))
    say("self", taken(1))
own()
as_first(work)
""")
    assert said.splitlines() == ["zombie clone3", "session clone3", "gone free free", "self clone3"]


def test_an_id_that_cannot_be(tmp_path):
    with pytest.raises(OSError, match="clone3") as caught:
        clone.fork_as(-5)
    assert caught.value.errno == errno.EINVAL


def test_a_process_with_threads_keeps_its_user_namespace():
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with pytest.raises(OSError, match="unshare") as caught:
            clone.unshare(clone.CLONE_NEWUSER)
        assert caught.value.errno == errno.EINVAL
    finally:
        done.set()
        thread.join()


def test_unshare():
    said = apart(OWN_PIDS + """
before = os.readlink("/proc/self/ns/uts"), os.readlink("/proc/self/ns/ipc")
own(clone.CLONE_NEWUTS)
say(os.readlink("/proc/self/ns/uts") != before[0], os.readlink("/proc/self/ns/ipc") == before[1], os.getuid())
""")
    assert said == f"True True {os.getuid()}"
