"""Handles to other processes: pidfds, copies of their descriptors, and what two tasks share (kcmp(2))."""
from __future__ import annotations

import ctypes
import os
import struct

from crhpc.kernel import libc

KCMP_FILE, KCMP_VM, KCMP_FILES, KCMP_FS, KCMP_SIGHAND, KCMP_IO, KCMP_SYSVSEM, KCMP_EPOLL_TFD = range(8)


def pidfd_open(pid: int) -> int:
    """A descriptor that refers to a process (Linux 5.3)."""
    return libc.syscall("pidfd_open", pid, 0)


def pid_of(pidfd: int) -> int:
    """The process id, in this process's pid namespace, that a pidfd refers to.

    Raises:
        ProcessLookupError: the process has been reaped, or is not visible from here.
    """
    with open(f"/proc/self/fdinfo/{pidfd}", "rb") as file:
        for line in file:
            if line.startswith(b"Pid:"):
                pid = int(line.split()[1])
                if pid > 0:
                    return pid
    raise ProcessLookupError(3, "no such process", "fdinfo of a pidfd")


def getfd(pidfd: int, fd: int) -> int:
    """A duplicate, close-on-exec, of another process's descriptor (pidfd_getfd(2), Linux 5.6).

    Needs the right to trace that process.
    """
    return libc.syscall("pidfd_getfd", pidfd, fd, 0)


def take_fd(pid: int, fd: int) -> int:
    """``getfd`` for a single descriptor, by process id."""
    pidfd = pidfd_open(pid)
    try:
        return getfd(pidfd, fd)
    finally:
        os.close(pidfd)


def send_signal(pidfd: int, signal: int) -> None:
    """Send a signal to just the process that the pidfd refers to."""
    libc.syscall("pidfd_send_signal", pidfd, signal, 0, 0)


def kcmp(pid1: int, pid2: int, kind: int, index1: int = 0, index2: int = 0) -> int:
    """0 where both tasks refer to the same kernel object, else 1 or 2 as a total order tells (kcmp(2))."""
    return libc.syscall("kcmp", pid1, pid2, kind, index1, index2)


def compare_epoll_target(pid: int, epoll_pid: int, epoll_fd: int, target_fd: int, nth: int, candidate: int) -> int:
    """How ``candidate`` of ``pid`` compares to the open file that an epoll instance watches, as ``kcmp`` tells it.

    Args:
        target_fd: the number under which the file was added.
        nth: which of several files added under that same number.
    """
    slot = ctypes.create_string_buffer(struct.pack("III", epoll_fd, target_fd, nth))
    return kcmp(pid, epoll_pid, KCMP_EPOLL_TFD, candidate, ctypes.addressof(slot))
