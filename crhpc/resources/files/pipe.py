"""Pipes and fifos with what is in them.

The contents are copied with tee(2), which takes nothing out; in packet mode (O_DIRECT) buffer by buffer, as
each is a packet. A pipe whose other end is held by nobody in the job comes back with that end closed, as it was;
one whose other end is held by a process outside is refused. A fifo is opened by its path, and made again where
that is gone. A reader of a fifo that has never had a writer is told apart from one whose writers have left:
poll(2) shows a hang-up to the latter only (fifo(7), fs/pipe.c).
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

from crhpc.errors import FileGone, OtherMachine
from crhpc.kernel import libc, pidfd
from crhpc.resources import Chapter, Phase, at
from crhpc.resources.context import Dump, OpenFile, Restore
from crhpc.resources.files import Descriptor, File, FileKind

_SPLICE_F_NONBLOCK = 2
_F_SETPIPE_SZ, _F_GETPIPE_SZ = 1031, 1032
_O_LARGEFILE = 0o100000
"""The kernel's own: set by open(2), not by pipe2(2)."""
_GONE = " (deleted)"


@dataclass(frozen=True, slots=True)
class PipeEnd:
    """One open file description of a pipe."""

    id: int
    pipe: int = field(metadata={"ref": "pipe.id"})
    expectant: bool = field(metadata={"doc": "a reader of a fifo that has not had a writer since it was opened"})


@dataclass(frozen=True, slots=True)
class Pipe:
    """A pipe, or a fifo, which has a path."""

    id: int
    path: str = field(metadata={"path": True})
    deleted: bool
    mode: int
    size: int = field(metadata={"doc": "F_GETPIPE_SZ, bytes"})
    contents: bytes
    packets: tuple[int, ...] = field(metadata={"doc": "lengths of the buffers, those that are no packet negative; "
                                                      "empty where none is"})


class PipeKind(FileKind):
    name = "pipe"
    chapter = Chapter.CHANNELS
    records = (PipeEnd, Pipe)
    saved = ("pipes and fifos with what is in them, size, packet mode, and which ends are closed; whether a fifo has "
             "had a writer")
    refused = (
        ("a pipe that is written by a process outside the job", "give the job a file as its input"),
        ("a pipe that is read by a process outside the job", "let the job write to a file"),
    )
    afterwards = ("a fifo is made again where its path is gone. A restart is refused where something else has its "
                  "name, or a full pipe may not be so large here")

    def matches(self, file: OpenFile, ctx: Dump) -> bool:
        return modes.S_ISFIFO(file.stat.st_mode)

    def refusal(self, file: OpenFile, ctx: Dump) -> tuple[str, str] | None:
        accesses = [_access(other) for other in _ends(file, ctx)]
        if not file.link.startswith("pipe:") or os.O_RDWR in accesses:
            return None
        with _taken(file) as copy:
            if os.O_WRONLY not in accesses and not _hung_up(copy, select.POLLIN, select.POLLHUP):
                return "a pipe that is written by a process outside the job", "give the job a file as its input"
            if os.O_RDONLY not in accesses and not _hung_up(copy, select.POLLOUT, select.POLLERR):
                return "a pipe that is read by a process outside the job", "let the job write to a file"
        return None

    def dump(self, file: OpenFile, ctx: Dump) -> PipeEnd:
        numbers: dict[tuple[int, int], int] = ctx.state.setdefault("pipes", {})
        key = file.stat.st_dev, file.stat.st_ino
        if key not in numbers:
            numbers[key] = ctx.new_id()
            ctx.add(_pipe(numbers[key], file, ctx))
        expectant = False
        if not file.link.startswith("pipe:") and all(_access(end) == os.O_RDONLY for end in _ends(file, ctx)):
            with _taken(file) as copy:
                expectant = not _hung_up(copy, select.POLLIN, select.POLLHUP)
        return PipeEnd(file.id, numbers[key], expectant)

    def restore(self, record: PipeEnd, file: File, ctx: Restore) -> int:
        made: dict[int, dict[int, int]] = ctx.state.setdefault("pipes", {})
        if record.pipe not in made:
            made[record.pipe] = _make(ctx, next(row for row in ctx.rows(Pipe) if row.id == record.pipe))
        return made[record.pipe].pop(record.id)

    @at(Phase.CHECK)
    def check(self, ctx: Restore) -> None:
        holders = {row.file: row.pid for row in ctx.rows(Descriptor)}
        users = {row.pipe: holders.get(row.id, 0) for row in ctx.rows(PipeEnd)}
        for row in ctx.rows(Pipe):
            path = ctx.pod.outside(row.path)
            if row.path and not row.deleted and os.path.lexists(path) and not modes.S_ISFIFO(os.lstat(path).st_mode):
                raise FileGone(image=ctx.image, path=row.path, why="is no fifo any more", pid=users.get(row.id, 0),
                               program="an open file")


# -- dump -----------------------------------------------------------------------------------------------
def _access(file: OpenFile) -> int:
    return file.info.flags & os.O_ACCMODE


def _ends(file: OpenFile, ctx: Dump) -> list[OpenFile]:
    """Every description of the same pipe."""
    ends: dict[tuple[int, int], list[OpenFile]] | None = ctx.state.get("ends of pipes")
    if ends is None:
        ends = ctx.state["ends of pipes"] = {}
        for other in ctx.open_files.values():
            if modes.S_ISFIFO(other.stat.st_mode):
                ends.setdefault((other.stat.st_dev, other.stat.st_ino), []).append(other)
    return ends[file.stat.st_dev, file.stat.st_ino]


@contextlib.contextmanager
def _taken(file: OpenFile):  # type: ignore[no-untyped-def]
    """A descriptor of the job's own description: opening a fifo anew could wake who waits for its other end."""
    copy = pidfd.take_fd(file.task.host, file.fd)
    try:
        yield copy
    finally:
        os.close(copy)


def _hung_up(fd: int, wanted: int, sign: int) -> bool:
    poll = select.poll()
    poll.register(fd, wanted)
    return any(events & sign for _, events in poll.poll(0))


def _filled(fd: int) -> int:
    (count,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))
    return int(count)


def _pipe(number: int, file: OpenFile, ctx: Dump) -> Pipe:
    ends = _ends(file, ctx)
    path = "" if file.link.startswith("pipe:") else file.link.removesuffix(_GONE)
    reader = next((end for end in ends if _access(end) != os.O_WRONLY), None)
    with contextlib.ExitStack() as stack:
        fd = stack.enter_context(_taken(reader or file))
        size, count = fcntl.fcntl(fd, _F_GETPIPE_SZ), _filled(fd)
        if count and reader is None:
            fd = os.open(f"/proc/{file.task.host}/fd/{file.fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            stack.callback(os.close, fd)
        contents = b""
        packets: tuple[int, ...] = ()
        if count:
            writes_packets = any(end.info.flags & os.O_DIRECT and _access(end) != os.O_RDONLY for end in ends)
            contents, packets = _peek(fd, size, count, writes_packets)
    deleted = bool(path) and file.link != path
    return Pipe(number, path, deleted, modes.S_IMODE(file.stat.st_mode), size, contents, packets)


def _peek(fd: int, size: int, count: int, writes_packets: bool) -> tuple[bytes, tuple[int, ...]]:
    """What waits in a pipe, and its division into packets, if there are any."""
    with _copy_of(fd, size, count) as copy:
        contents = _read_all(copy, count)
    with _copy_of(fd, size, count) as copy:
        lengths = tuple(_buffers(copy, writes_packets))
    return contents, lengths if any(length > 0 for length in lengths) else ()


@contextlib.contextmanager
def _copy_of(fd: int, size: int, count: int):  # type: ignore[no-untyped-def]
    """The reading end of another pipe with the same buffers."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if size > fcntl.fcntl(writer, _F_GETPIPE_SZ):
            fcntl.fcntl(writer, _F_SETPIPE_SZ, size)
        if (done := libc.syscall("tee", fd, writer, count, _SPLICE_F_NONBLOCK)) != count:
            raise OSError(5, f"{done} of {count} bytes", "tee")
        yield reader
    finally:
        os.close(reader)
        os.close(writer)


def _read_all(fd: int, count: int) -> bytes:
    """More than one read(2) where there are packets: each ends behind one."""
    parts: list[bytes] = []
    while count:
        parts.append(os.read(fd, count))
        count -= len(parts[-1])
    return b"".join(parts)


def _buffers(fd: int, writes_packets: bool) -> list[int]:
    """The lengths of the buffers in a pipe, those that are no packet negative; they are taken out.

    A pipe of one page has room for one buffer: so much does tee(2) copy. Of a packet nothing is left once a part
    of it has been read; a packet of one byte ends a read(2) that asks for more.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.fcntl(writer, _F_SETPIPE_SZ, libc.PAGE)
        found: list[int] = []
        while left := _filled(fd):
            libc.syscall("tee", fd, writer, left, _SPLICE_F_NONBLOCK)
            length = _filled(reader)
            os.read(reader, 1)
            is_packet = _filled(reader) == 0
            if length == 1:
                is_packet = writes_packets if left == 1 else _ends_here(fd, left)
            os.read(fd, length)
            while _filled(reader):
                os.read(reader, length)
            found.append(length if is_packet else -length)
        return found
    finally:
        os.close(reader)
        os.close(writer)


def _ends_here(fd: int, left: int) -> bool:
    """Whether a read of two bytes gets the first buffer's one alone; tried on a copy."""
    with _copy_of(fd, fcntl.fcntl(fd, _F_GETPIPE_SZ), left) as copy:
        return len(os.read(copy, 2)) == 1


# -- restore --------------------------------------------------------------------------------------------
def _make(ctx: Restore, pipe: Pipe) -> dict[int, int]:
    """The pipe with all its ends, by the ids of their files."""
    expectant = {row.id for row in ctx.rows(PipeEnd) if row.pipe == pipe.id and row.expectant}
    numbers = {row.id for row in ctx.rows(PipeEnd) if row.pipe == pipe.id}
    files = [file for file in ctx.rows(File) if file.id in numbers]
    made = ctx.until_held({})
    with contextlib.ExitStack() as stack:
        if pipe.path:
            place = _fifo(ctx, pipe)
            stack.callback(os.close, place)
            both = os.open(f"/proc/self/fd/{place}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            originals = {os.O_RDWR: both}
        else:
            reader, both = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            place, originals = both, {os.O_RDONLY: reader, os.O_WRONLY: both}
        for fd in originals.values():
            stack.callback(os.close, fd)
        _fill(ctx, both, pipe)
        for file in files:
            access = file.flags & os.O_ACCMODE
            if not pipe.path and not file.flags & _O_LARGEFILE and access in originals:
                made[file.id] = os.dup(originals[access])
            elif file.id not in expectant:
                made[file.id] = _open_again(place, access)
        if expectant:
            stack.callback(os.close, _open_again(place, os.O_RDONLY))   # what is in it stays while one end is open
            nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, nothing)
            os.dup2(nothing, both, inheritable=False)   # no writer is left
            made |= {number: _open_again(place, os.O_RDONLY) for number in expectant}
    return made


def _open_again(place: int, access: int) -> int:
    return os.open(f"/proc/self/fd/{place}", access | os.O_NONBLOCK | os.O_CLOEXEC)


def _fifo(ctx: Restore, pipe: Pipe) -> int:
    """A handle to the fifo (O_PATH); it is made where it is gone, and goes again where its name had gone."""
    path = ctx.pod.outside(pipe.path)
    try:
        if not pipe.deleted:
            with contextlib.suppress(FileExistsError):
                _make_fifo(path, pipe.mode)
            return os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _make_fifo(path, pipe.mode)
        except OSError:   # another file has the name, or its directory is gone
            path = ctx.pod.outside(os.path.join(ctx.pod.temporary, f"crhpc-fifo-{pipe.id}"))
            _make_fifo(path, pipe.mode)
        try:
            return os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        finally:
            os.unlink(path)
    except OSError as error:
        raise FileGone(image=ctx.image, path=pipe.path, why=f"cannot be opened ({error.strerror})", pid=0,
                       program="an open fifo") from None


def _make_fifo(path: str, mode: int) -> None:
    os.mkfifo(path, 0o600)
    os.chmod(path, mode | 0o600 if mode & 0o600 != 0o600 else mode)


def _fill(ctx: Restore, writer: int, pipe: Pipe) -> None:
    with contextlib.suppress(PermissionError):   # above this system's limit
        fcntl.fcntl(writer, _F_SETPIPE_SZ, pipe.size)
    try:
        at = 0
        for length in pipe.packets or (-len(pipe.contents),):
            fcntl.fcntl(writer, fcntl.F_SETFL, os.O_NONBLOCK | (os.O_DIRECT if length > 0 else 0))
            part = pipe.contents[at:at + abs(length)]
            if os.write(writer, part) != len(part):
                raise BlockingIOError
            at += len(part)
    except BlockingIOError:
        raise OtherMachine(image=ctx.image, what=f"a pipe of {pipe.size} bytes is full, and may not be so large",
                           cure="raise fs.pipe-max-size and fs.pipe-user-pages-soft (sysctl)") from None
