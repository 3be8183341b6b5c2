"""The namespaces of a pod: ids, mounts, clocks, names (namespaces(7), user_namespaces(7), time_namespaces(7)).

Everything here acts on the calling process, which must have one thread.
"""
from __future__ import annotations

import ctypes
import os
import time

from crhpc.kernel import libc
from crhpc.kernel.libc import prctl

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_SLAVE = 2, 4, 8, 4096, 16384, 1 << 19
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 1, 4, 36


def map_own_ids(uid: int, gid: int) -> None:
    """In a fresh user namespace: map one user and one group to themselves, and only them.

    Mapping to the same number, not to 0, lets a job keep the uid that it knows; the capabilities in the
    namespace are the same. ``uid`` and ``gid`` are those from before the unshare.

    Raises:
        OSError: EPERM where the system forbids it.
    """
    for name, content in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        write_file(f"/proc/self/{name}", content)


def write_file(path: str, content: str) -> None:
    """Write a file of /proc in one call, so that the kernel's refusal is seen at once.

    Raises:
        OSError: naming the file.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, content.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2).

    Raises:
        OSError: naming the target.
    """
    buffers = [ctypes.create_string_buffer(os.fsencode(text)) if text else None for text in (source, target, kind)]
    data = ctypes.create_string_buffer(os.fsencode(options)) if options else None
    try:
        libc.syscall("mount", buffers[0], buffers[1], buffers[2], flags, data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"mount of {kind or source} on {target}") from None


def set_clock_offsets(monotonic: float, boottime: float) -> None:
    """After unshare(CLONE_NEWTIME) and before the first child: make its clocks read these values, in seconds.

    The kernel takes offsets from the first time namespace; an own one that is not the first counts too.

    Raises:
        OSError: ERANGE where a clock would become negative.
    """
    now = {"monotonic": time.clock_gettime_ns(time.CLOCK_MONOTONIC),
           "boottime": time.clock_gettime_ns(time.CLOCK_BOOTTIME)}
    wanted = {"monotonic": round(monotonic * 1e9), "boottime": round(boottime * 1e9)}
    lines = []
    for name, already in clock_offsets().items():
        offset = already + wanted[name] - now[name]
        lines.append(f"{name} {offset // 10**9} {offset % 10**9}\n")
    write_file("/proc/self/timens_offsets", "".join(lines))


def clock_offsets(pid: int | None = None) -> dict[str, int]:
    """Nanoseconds that the clocks of a process's children are ahead of the first time namespace's."""
    found = {"monotonic": 0, "boottime": 0}
    with open(f"/proc/{pid or 'self'}/timens_offsets", encoding="ascii") as file:
        for line in file:
            name, seconds, nanoseconds = line.split()
            found[name] = int(seconds) * 10**9 + int(nanoseconds)
    return found


def set_hostname(name: str) -> None:
    """sethostname(2) in the own UTS namespace."""
    raw = os.fsencode(name)
    libc.syscall("sethostname", ctypes.create_string_buffer(raw), len(raw))


def die_with_parent(signal: int = 9) -> None:
    """Get ``signal`` when the thread that made this process ends (PR_SET_PDEATHSIG)."""
    prctl(PR_SET_PDEATHSIG, signal)
