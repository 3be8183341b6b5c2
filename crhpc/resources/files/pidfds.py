"""Descriptors that refer to a process or a thread (pidfd_open(2)), also to one that has ended or been reaped.

fdinfo tells whose they are. One of a process that is gone is made of a stand-in that ends in the same way.
"""
from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from dataclasses import dataclass, field

from crhpc.errors import ImageDamaged
from crhpc.kernel import libc, proc
from crhpc.resources import Chapter, stubs
from crhpc.resources.context import Dump, OpenFile, Restore, Task
from crhpc.resources.files import File, FileKind

_PIDFD_THREAD = os.O_EXCL
_GET_INFO = 0xC040FF0B
"""PIDFD_GET_INFO with the first size of struct pidfd_info: mask in front, exit code at its end."""
_INFO_EXIT = 8
_GONE = -1


@dataclass(frozen=True, slots=True)
class Pidfd:
    """A descriptor of a process, or of just a thread of it."""

    id: int
    pid: int = field(metadata={"doc": "0: it has ended and been waited for"})
    tid: int
    number: int = field(metadata={"doc": "the same for descriptors of the same process"})
    exit_status: int = field(metadata={"doc": "of one that is gone, as waitpid(2) gave it; 0 where no kernel tells"})


class PidfdKind(FileKind):
    name = "pidfd"
    chapter = Chapter.EVENTS
    records = (Pidfd,)
    saved = "descriptors of processes and threads (pidfd_open), also of those that have ended, with their exit status"
    refused = (
        ("a pidfd of a process that is not of the job", "close it"),
    )
    afterwards = "where no kernel tells how one ended that has been waited for (before Linux 6.15), its status is 0"

    def matches(self, file: OpenFile, ctx: Dump) -> bool:
        return file.link == "anon_inode:[pidfd]"

    def refusal(self, file: OpenFile, ctx: Dump) -> tuple[str, str] | None:
        host = int(file.info.field("Pid") or "0")
        if host == _GONE or _target(host, ctx) is not None:
            return None
        return f"a pidfd of process {host or ''}, which is not of the job", "close it"

    def dump(self, file: OpenFile, ctx: Dump) -> Pidfd:
        host = int(file.info.field("Pid") or "0")
        pid, tid = _target(host, ctx) or (0, 0)
        return Pidfd(file.id, pid, tid, file.stat.st_ino, 0 if pid else _exit_status(file, ctx))

    def restore(self, record: Pidfd, file: File, ctx: Restore) -> int:
        flags = file.flags & _PIDFD_THREAD
        if not record.pid:
            if file.id not in ctx.open_files:
                _open_all_of_one_gone(ctx, record.number)
            return -1
        if record.pid == 1:
            return libc.syscall("pidfd_open", ctx.pod.init, flags)
        task = ctx.tasks.get(record.pid)
        if task is None and record.pid not in ctx.zombies:
            raise ImageDamaged(image=ctx.image, what=f"a pidfd of process {record.pid}, which is not there")
        if task is None:
            return libc.syscall("pidfd_open", ctx.zombies[record.pid], flags)
        tracee = task.threads.get(record.tid)
        if tracee is None:
            raise ImageDamaged(image=ctx.image, what=f"a pidfd of thread {record.tid}, which is not there")
        return libc.syscall("pidfd_open", tracee.tid, flags)


def _target(host: int, ctx: Dump) -> tuple[int, int] | None:
    """The pod's numbers of a process or thread; zeros for a zombie that the pod's first process is about to reap."""
    pid = ctx.pod_pid(host) if host > 0 else 0
    if pid:
        return pid, pid
    for task in ctx.tasks:
        for tid, tracee in task.threads.items():
            if tracee.tid == host:
                return task.pid, tid
    with contextlib.suppress(OSError):
        stat = proc.stat(host)
        if host > 0 and stat.state == "Z" and stat.ppid == ctx.pod.init:
            return 0, 0
    return None


def _exit_status(file: OpenFile, ctx: Dump) -> int:
    if file.copy < 0:
        file.copy = ctx.take(file.task, file.fd)
    try:
        answer = fcntl.ioctl(file.copy, _GET_INFO, struct.pack("Q56x", _INFO_EXIT))
    except OSError:   # older kernels
        return 0
    mask, status = struct.unpack("Q52xi", answer)
    return int(status) if mask & _INFO_EXIT else 0


def _open_all_of_one_gone(ctx: Restore, number: int) -> None:
    """Let a stand-in end in the same way, when all have been opened that are to refer to it."""
    flags = {file.id: file.flags & _PIDFD_THREAD for file in ctx.rows(File)}
    task = _stand_in(ctx)
    for row in ctx.rows(Pidfd):
        if row.number == number and not row.pid:
            ctx.hold_file(row.id, libc.syscall("pidfd_open", task.host, flags[row.id]))
            status = row.exit_status & ~0x80   # no second core file
    stubs.end(task, status)
    stubs.await_reaping(task.host)


def _stand_in(ctx: Restore) -> Task:
    taken = {tid for task in ctx.tasks.values() for tid in task.threads} | {*ctx.zombies}
    for pid in range(2, max(taken, default=2) + 1000):
        if pid not in taken:
            with contextlib.suppress(FileExistsError):   # a group or a session has it
                return stubs.fork_stub(ctx, pid)
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), "clone3")
