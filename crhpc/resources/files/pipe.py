"""Pipes and fifos with what is in them.

The contents are read with tee(2), which takes nothing out. Ends are joined by inode. A pipe whose other end
is held by nobody in the job comes back with that end closed, as it was; one whose other end is held by a
process outside is refused.
"""
from __future__ import annotations

import contextlib
import fcntl
import os
import select
import stat as modes
import struct
import termios
from dataclasses import dataclass, field

from crhpc.kernel import libc
from crhpc.resources import Phase, at
from crhpc.resources.context import Dump, OpenFile, Restore
from crhpc.resources.files import File, FileKind

_SPLICE_F_NONBLOCK = 2
_F_SETPIPE_SZ, _F_GETPIPE_SZ = 1031, 1032
_O_DIRECT = os.O_DIRECT


@dataclass(frozen=True, slots=True)
class PipeEnd:
    """One open file description of a pipe."""

    id: int
    pipe: int = field(metadata={"ref": "pipe.inode"})


@dataclass(frozen=True, slots=True)
class Pipe:
    """A pipe (without a path) or a fifo."""

    inode: int
    path: str
    size: int = field(metadata={"doc": "F_GETPIPE_SZ, bytes"})
    contents: bytes


class PipeKind(FileKind):
    name = "pipe"
    records = (PipeEnd, Pipe)
    saved = "pipes and fifos with contents, size, packet mode, and which ends are closed"
    refused = "a pipe to a process outside the job; a packet-mode pipe that is not empty"

    def matches(self, file: OpenFile, ctx: Dump) -> bool:
        return modes.S_ISFIFO(file.stat.st_mode)

    def refusal(self, file: OpenFile, ctx: Dump) -> tuple[str, str] | None:
        accesses = [_access(other) for other in ctx.open_files.values() if other.stat.st_ino == file.stat.st_ino
                    and other.stat.st_dev == file.stat.st_dev]
        copy = ctx.take(file.task, file.fd)
        if file.link.startswith("pipe:") and os.O_RDWR not in accesses:
            if os.O_WRONLY not in accesses and not _hung_up(copy, select.POLLIN, select.POLLHUP):
                return "a pipe that is written by a process outside the job", "give the job a file as its input"
            if os.O_RDONLY not in accesses and not _hung_up(copy, select.POLLOUT, select.POLLERR):
                return "a pipe that is read by a process outside the job", "let the job write to a file"
        if file.info.flags & _O_DIRECT and _access(file) == os.O_RDONLY and _filled(copy):
            return "a packet-mode pipe that is not empty", "try again a moment later"
        return None

    def dump(self, file: OpenFile, ctx: Dump) -> PipeEnd:
        done = {row.inode for row in ctx.rows.get(Pipe, [])}
        if file.stat.st_ino not in done:
            ctx.add(_pipe(file, ctx))
        return PipeEnd(file.id, file.stat.st_ino)

    def restore(self, record: PipeEnd, file: File, ctx: Restore) -> int:
        pipe = next(row for row in ctx.rows(Pipe) if row.inode == record.pipe)
        both = _make(ctx, pipe)
        access = file.flags & os.O_ACCMODE
        end = both[0] if access == os.O_RDONLY else both[1]
        return os.open(f"/proc/self/fd/{end}", access | os.O_NONBLOCK | os.O_CLOEXEC | file.flags & _O_DIRECT)

    @at(Phase.INSTALL)
    def let_go(self, ctx: Restore) -> None:
        """The ends that only the making needed; who holds the others now holds them alone."""
        for ends in ctx.state.pop("pipes", {}).values():
            for fd in ends:
                os.close(fd)


def _access(file: OpenFile) -> int:
    return file.info.flags & os.O_ACCMODE


def _hung_up(fd: int, wanted: int, sign: int) -> bool:
    poll = select.poll()
    poll.register(fd, wanted)
    return any(events & sign for _, events in poll.poll(0))


def _filled(fd: int) -> int:
    (count,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))
    return int(count)


def _pipe(file: OpenFile, ctx: Dump) -> Pipe:
    """Read through any description of the pipe: opening it anew for reading takes nothing."""
    path = "" if file.link.startswith("pipe:") else file.link
    fd = os.open(f"/proc/{file.task.host}/fd/{file.fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        size, count = fcntl.fcntl(fd, _F_GETPIPE_SZ), _filled(fd)
        return Pipe(file.stat.st_ino, path, size, _peek(fd, size, count))
    finally:
        os.close(fd)


def _peek(fd: int, size: int, count: int) -> bytes:
    if not count:
        return b""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.fcntl(writer, _F_SETPIPE_SZ, size)
        libc.syscall("tee", fd, writer, count, _SPLICE_F_NONBLOCK)
        parts: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while sum(map(len, parts)) < count:
                parts.append(os.read(reader, count))
        return b"".join(parts)
    finally:
        os.close(reader)
        os.close(writer)


def _make(ctx: Restore, pipe: Pipe) -> tuple[int, int]:
    made: dict[int, tuple[int, int]] = ctx.state.setdefault("pipes", {})
    if pipe.inode not in made:
        if pipe.path:
            reader = os.open(ctx.pod.outside(pipe.path), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            made[pipe.inode] = (reader, os.dup(reader))
        else:
            made[pipe.inode] = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        writer = made[pipe.inode][1]
        with contextlib.suppress(PermissionError):   # above pipe-max-size; contents still fit
            fcntl.fcntl(writer, _F_SETPIPE_SZ, pipe.size)
        if pipe.contents:
            os.write(writer, pipe.contents)
    return made[pipe.inode]


