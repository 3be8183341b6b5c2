"""Locks of files: flock(2), POSIX record locks and those of open files (fcntl(2), F_SETLK and F_OFD_SETLK).

Read from fdinfo, which shows under a descriptor the locks that were taken by it. Taken again at restart by who had
them, when no descriptor is closed any more (closing any descriptor of a file drops a process's POSIX locks), and
without waiting: locks that were held side by side can be taken in any order. A call that waits for a lock is made
again like every other.
"""
from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from crhpc.errors import FileLocked
from crhpc.kernel import proc
from crhpc.resources import Chapter, Cut, Kind, Phase, at
from crhpc.resources.context import Dump, OpenFile, Restore, Task
from crhpc.resources.sharing import sharers

FLOCK, POSIX, OFD = "flock", "posix", "ofd"
_TYPES = {"FLOCK": FLOCK, "POSIX": POSIX, "OFDLCK": OFD}
_F_SETLK, _F_OFD_SETLK = 6, 37
_FLOCK_STRUCT = struct.Struct("=hh4xqqi4x")


@dataclass(frozen=True, slots=True)
class FileLock:
    """A lock of a file, or of a range of it."""

    type: str = field(metadata={"doc": "flock, posix (a process's) or ofd (an open file's)"})
    file: int = field(metadata={"ref": "file.id", "doc": "the open file that it was taken by"})
    pid: int = field(metadata={"doc": "the process that takes it again; 0: none has the file, it is in a message"})
    fd: int = field(metadata={"doc": "its descriptor of the file"})
    exclusive: bool
    start: int
    length: int = field(metadata={"doc": "0: to the end, wherever that is"})


class LocksKind(Kind):
    name = "locks"
    chapter = Chapter.FILES
    records = (FileLock,)
    saved = ("flock, POSIX and open-file-description locks with their ranges, and calls that wait for one; on "
             "network file systems as far as the server lets them be taken again")
    refused = (
        ("a lease of a file (F_SETLEASE)", "turn off leases, or what asks for them"),
    )
    afterwards = ("who waits for the same lock may get it in another order. A lock of an open file that was taken by "
                  "a process that has closed it, or has ended, shows as that of another one that has it. A restart "
                  "is refused where another program has taken a lock meanwhile")

    @at(Cut.INSPECT)
    def inspect(self, ctx: Dump) -> None:
        for file in ctx.open_files.values():
            for task, fd, line in file.locks:
                if line.split()[1] not in _TYPES:
                    raise ctx.refuse(f"descriptor {fd}: a lease of {file.link} (F_SETLEASE)", task,
                                     "turn off leases, or what asks for them")

    @at(Cut.COLLECT)
    def dump(self, ctx: Dump) -> None:
        for file in ctx.open_files.values():
            for row in dict.fromkeys(_rows(ctx, file)):
                ctx.add(row)

    @at(Phase.STATE)
    def restore(self, ctx: Restore) -> None:
        by_pid: dict[int, list[FileLock]] = {}
        for row in ctx.rows(FileLock):
            by_pid.setdefault(row.pid, []).append(row)
        for row in by_pid.pop(0, []):
            _take_here(ctx, row)
        for pid, rows in by_pid.items():
            _take_in_task(ctx, pid, rows)


# -- dump -----------------------------------------------------------------------------------------------
def _rows(ctx: Dump, file: OpenFile) -> Iterator[FileLock]:
    """A lock shows under every descriptor of its open file; of a process's own locks, in that process."""
    for task, _fd, line in file.locks:
        _number, name, _advisory, access, owner, _inode, start, end = line.split()
        kind = _TYPES[name]
        if kind == POSIX:
            pid = _taker(ctx, task, int(owner))
            number = min(other for holder, other in file.holders if holder is task)
        else:
            pid, number = _bearer(ctx, file, int(owner))
        length = 0 if end == "EOF" else int(end) - int(start) + 1
        yield FileLock(kind, file.id, pid, number, access == "WRITE", int(start), length)


def _taker(ctx: Dump, task: Task, owner: int) -> int:
    """Of the processes that share a descriptor table, to which the lock belongs, the one that has taken it."""
    if owner != task.host and ctx.pod_pid(owner) and sharers(ctx, "files").get(owner) is task:
        return ctx.pod_pid(owner)
    return task.pid


def _bearer(ctx: Dump, file: OpenFile, owner: int) -> tuple[int, int]:
    """Who takes a lock of an open file again: who took it first, if he still has the file."""
    holders = {task.pid: fd for task, fd in reversed(file.holders)}
    pid = ctx.pod_pid(owner) if owner > 0 else 0
    if pid not in holders:
        pid = min(holders, default=0)
    return pid, holders.get(pid, -1)


# -- restore --------------------------------------------------------------------------------------------
def _operation(row: FileLock) -> int:
    return (fcntl.LOCK_EX if row.exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB


def _structure(row: FileLock) -> bytes:
    return _FLOCK_STRUCT.pack(fcntl.F_WRLCK if row.exclusive else fcntl.F_RDLCK, os.SEEK_SET, row.start, row.length, 0)


def _take_here(ctx: Restore, row: FileLock) -> None:
    """By the agent's copy of the open file, to which the lock belongs."""
    fd = ctx.open_files[row.file]
    try:
        if row.type == FLOCK:
            fcntl.flock(fd, _operation(row))
        else:
            fcntl.fcntl(fd, _F_OFD_SETLK, _structure(row))
    except OSError as error:
        raise _refused(ctx, row, error) from None


def _take_in_task(ctx: Restore, pid: int, rows: list[FileLock]) -> None:
    area = ctx.tasks[pid].area
    try:
        with area.batch() as batch:
            for row in rows:
                if row.type == FLOCK:
                    batch.call("flock", row.fd, _operation(row))
                else:
                    command = _F_SETLK if row.type == POSIX else _F_OFD_SETLK
                    batch.call("fcntl", row.fd, command, batch.put(_structure(row)))
    except OSError as error:
        if len(rows) == 1:
            raise _refused(ctx, rows[0], error) from None
        for row in rows:   # one by one, to learn which; a lock that one has can be taken again
            _take_in_task(ctx, pid, [row])
        raise


def _refused(ctx: Restore, row: FileLock, error: OSError) -> FileLocked:
    fd = ctx.open_files[row.file]
    path = os.readlink(f"/proc/self/fd/{fd}")
    if error.errno not in (errno.EAGAIN, errno.EACCES):
        return FileLocked(image=ctx.image, path=path, why=f"can't be locked ({error.strerror})",
                          cure="see whether its file system takes locks (NFS: is its lock service up?)")
    return FileLocked(image=ctx.image, path=path, why=f"is locked by {_holder(os.fstat(fd))}",
                      cure="end that, or wait until it lets go")


def _holder(stat: os.stat_result) -> str:
    """Who has locks of a file, as /proc/locks knows it."""
    inode = f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}:{stat.st_ino}"
    for line in proc.read("/proc/locks").decode().splitlines():
        words = line.split()
        if words[1] != "->" and words[5] == inode and int(words[4]) > 0:
            return f"process {words[4]} ({proc.program(int(words[4]))})"
    return "another process (one on another machine, where this is a network file system)"
