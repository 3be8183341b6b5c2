"""Making processes: clone3(2) with chosen ids, and the namespaces they live in (namespaces(7))."""
from __future__ import annotations

import ctypes

from crhpc.kernel import libc

CLONE_VM, CLONE_FS, CLONE_FILES, CLONE_SIGHAND, CLONE_PIDFD = 0x100, 0x200, 0x400, 0x800, 0x1000
CLONE_PARENT, CLONE_THREAD, CLONE_SYSVSEM = 0x8000, 0x10000, 0x40000
CLONE_NEWTIME, CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x80, 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
ARGS_SIZE = 88
"""Bytes of struct clone_args up to and with ``cgroup`` (CLONE_ARGS_SIZE_VER2)."""


def clone_args(*, flags: int = 0, pidfd: int = 0, exit_signal: int = 17, set_tid: int = 0,
               set_tid_size: int = 0) -> list[int]:
    """The words of a struct clone_args; addresses are those of the process that makes the call."""
    return [flags, pidfd, 0, 0, exit_signal, 0, 0, 0, set_tid, set_tid_size, 0]


def fork_as(pid: int) -> tuple[int, int]:
    """fork(2) with a chosen process id; (0, -1) in the child, (pid, pidfd) in the parent.

    Needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE over the pid namespace (Linux 5.5). The caller must have
    one thread; the child must not return into code that expects a forked interpreter.

    Raises:
        OSError: EEXIST where the id is in use, as a session's or group's too.
    """
    wanted = (ctypes.c_int * 1)(pid)
    pidfd = ctypes.c_int(-1)
    words = clone_args(flags=CLONE_PIDFD, pidfd=ctypes.addressof(pidfd), set_tid=ctypes.addressof(wanted),
                       set_tid_size=1)
    args = (ctypes.c_uint64 * 11)(*words)
    child = libc.syscall_keeping_lock("clone3", ctypes.addressof(args), ARGS_SIZE)
    return (0, -1) if child == 0 else (child, pidfd.value)


def unshare(flags: int) -> None:
    """Leave namespaces for new ones (unshare(2)); NEWPID and NEWTIME count for children only.

    Raises:
        OSError: EINVAL for NEWUSER and others in a process with several threads, EPERM, ENOSPC.
    """
    libc.syscall("unshare", flags)

