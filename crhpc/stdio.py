"""The job's standard streams across a restart, where they are regular files.

Standard output that goes to a file shall hold, at the end, exactly what an uninterrupted run writes. So
a checkpoint keeps the length of the file and, up to a limit, what it held; and before a restarted job
runs, the file that the new supervisor was given is brought back to that length. It may be the old file
with more at its end (``>>``), the old file cut to nothing (the same command line with ``>``), or another
one. What is cut off is kept beside the image. Standard library only; nothing here knows images or jobs.
"""
from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

CONTENTS_LIMIT = 64 << 20
"""Up to this length a checkpoint keeps what a file holds, so that a file cut by the shell comes back."""

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class SavedStream:
    """What a checkpoint keeps of one standard stream that is a regular file."""

    path: str
    device: int
    inode: int
    length: int
    position: int
    append: bool
    """Opened with O_APPEND: every write goes to the end, whatever the position."""
    writable: bool
    modified_ns: int
    contents: bytes | None = None
    """The first ``length`` bytes; None for input, for a file that is too long, or one that can't be read."""
    digest: str | None = None
    """SHA-256 (hexadecimal) of the first ``length`` bytes where they are too many to be kept."""


def save(fd: int, limit: int = CONTENTS_LIMIT) -> SavedStream | None:
    """What to keep of the stream ``fd``; None if it is no regular file.

    Raises:
        OSError: from fstat(2), lseek(2) or read(2).
    """
    marked = mark(fd)
    return None if marked is None else fill(fd, marked, limit)


def mark(fd: int) -> SavedStream | None:
    """The quick part of `save`, for while the job stands still: lengths and positions, no contents.

    Raises:
        OSError: from fstat(2) or lseek(2).
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return None
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    append = bool(flags & os.O_APPEND)
    return SavedStream(
        path=os.readlink(f"/proc/self/fd/{fd}"), device=status.st_dev, inode=status.st_ino,
        length=status.st_size, position=status.st_size if append else os.lseek(fd, 0, os.SEEK_CUR),
        append=append, writable=flags & os.O_ACCMODE != os.O_RDONLY, modified_ns=status.st_mtime_ns)


def fill(fd: int, marked: SavedStream, limit: int = CONTENTS_LIMIT) -> SavedStream:
    """The slow part of `save`, which may run after the thaw: a job adds to its output, the start stays.

    Raises:
        OSError: from read(2).
    """
    if not marked.writable:
        return marked
    with _readable(fd) as reader:
        if reader is None:
            return marked
        if marked.length > limit:
            return replace(marked, digest=_digest(reader, marked.length))
        contents = b"".join(_blocks(reader, 0, marked.length))
    if len(contents) < marked.length:   # cut off meanwhile: no start to rely on
        return marked
    return replace(marked, contents=contents)


def reconcile(fd: int, saved: SavedStream, tail_to: Path) -> str | None:
    """Bring the file behind ``fd`` to where it was at the checkpoint; the job goes on writing there.

    A file that begins as it did at the checkpoint is cut to the saved length, and what stood behind it
    is moved to ``tail_to`` (a number is added where that exists). One that was cut by the shell is
    written again from what was saved. Any other is left as it is, and the job adds to its end. Input is
    set to the saved position. What is no regular file is left alone.

    Returns: None, or one line for the user: what could not be brought back, and the cure.

    Raises:
        OSError: the file or the tail can't be written; then nothing has been cut off.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return None
    path = os.readlink(f"/proc/self/fd/{fd}")
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        return _reposition_input(fd, saved, status, path)
    if not saved.writable:
        os.lseek(fd, 0, os.SEEK_END)
        return None
    with _readable(fd) as reader:
        return _bring_back(fd, reader, saved, _Now(status, path), tail_to)


def difference(fd: int, saved: SavedStream) -> str | None:
    """Why `reconcile` would do more than go to the right place; nothing is changed.

    Raises:
        OSError: from fstat(2) or read(2).
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return None
    lengths = f"has {status.st_size} bytes, it had {saved.length}"
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY or not saved.writable:
        return lengths if status.st_size != saved.length and not saved.writable else None
    now = _Now(status, os.readlink(f"/proc/self/fd/{fd}"))
    with _readable(fd) as reader:
        if now.size >= saved.length and _begins_as_saved(reader, saved, now):
            return lengths if now.size > saved.length else None
    return lengths if now.size < saved.length else "does not begin with what the job had written by the checkpoint"


def go_on_at_end(fd: int) -> None:
    """Leave a file as it is; what comes is added. Input stays where it is."""
    if stat.S_ISREG(os.fstat(fd).st_mode) and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
        os.lseek(fd, 0, os.SEEK_END)


@dataclass(frozen=True, slots=True)
class _Now:
    """The file as the new supervisor got it."""

    status: os.stat_result
    path: str

    @property
    def size(self) -> int:
        return self.status.st_size

    def is_the_one(self, saved: SavedStream) -> bool:
        same = (self.status.st_dev, self.status.st_ino) == (saved.device, saved.inode)
        return same or self.path == saved.path


def _bring_back(fd: int, reader: int | None, saved: SavedStream, now: _Now, tail_to: Path) -> str | None:
    if now.size >= saved.length:
        if saved.length == 0 and not now.is_the_one(saved):
            os.lseek(fd, 0, os.SEEK_END)   # a file of somebody else: an empty start proves nothing
            return None
        if _begins_as_saved(reader, saved, now):
            return _cut(fd, reader, saved, now, tail_to)
    elif saved.contents is not None and _is_start_of(reader, saved.contents, now.size):
        _write_all(fd, saved.contents[now.size:], now.size)
        _seek(fd, saved)
        return None
    os.lseek(fd, 0, os.SEEK_END)
    if now.size < saved.length and saved.contents is None:
        return (f"{now.path} was cut to {now.size} bytes since the checkpoint, and the {saved.length} bytes "
                "that it held were too many to be kept: they are missing. Cure: redirect output with >>")
    return (f"{now.path} does not begin with what the job had written to {saved.path} by the checkpoint: "
            "the job adds to its end. Cure: redirect output to the same file as before")


def _cut(fd: int, reader: int | None, saved: SavedStream, now: _Now, tail_to: Path) -> str | None:
    if now.size > saved.length:
        if reader is None:
            os.lseek(fd, 0, os.SEEK_END)
            return (f"{now.path} can't be read, so what was written to it since the checkpoint stays and "
                    "will stand there twice. Cure: make it readable for you")
        _keep_tail(reader, saved.length, tail_to)
        os.ftruncate(fd, saved.length)
    _seek(fd, saved)
    return None


def _seek(fd: int, saved: SavedStream) -> None:
    os.lseek(fd, saved.length if saved.append else saved.position, os.SEEK_SET)


def _begins_as_saved(reader: int | None, saved: SavedStream, now: _Now) -> bool:
    if saved.length == 0:
        return True
    if reader is None or (saved.contents is None and saved.digest is None):
        return now.is_the_one(saved)   # nothing to compare with
    if saved.contents is not None:
        return _is_start_of(reader, saved.contents, saved.length)
    return _digest(reader, saved.length) == saved.digest


def _is_start_of(reader: int | None, contents: bytes, length: int) -> bool:
    """Whether the first ``length`` bytes of the file are those of ``contents``."""
    if length == 0:
        return True
    if reader is None:
        return False
    at = 0
    for block in _blocks(reader, 0, length):
        if block != contents[at: at + len(block)]:
            return False
        at += len(block)
    return at == length


def _reposition_input(fd: int, saved: SavedStream, status: os.stat_result, path: str) -> str | None:
    if saved.writable:
        return None
    os.lseek(fd, saved.position, os.SEEK_SET)
    if status.st_size != saved.length or (path == saved.path and status.st_mtime_ns != saved.modified_ns):
        return (f"standard input, {path}, has changed since the checkpoint; the job reads on at byte "
                f"{saved.position}. Cure: give it the file that it had")
    return None


# -- bytes ------------------------------------------------------------------------------------------
@contextmanager
def _readable(fd: int) -> Iterator[int | None]:
    """A descriptor on the same file that can be read, or None where reading is not permitted."""
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY:
        yield fd
        return
    reader: int | None = None
    with suppress(PermissionError):
        # Not by the file's name: it may be gone, or name another file by now.
        reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield reader
    finally:
        if reader is not None:
            os.close(reader)


def _blocks(reader: int, start: int, end: int) -> Iterator[bytes]:
    while start < end and (block := os.pread(reader, min(_CHUNK, end - start), start)):
        yield block
        start += len(block)


def _digest(reader: int, length: int) -> str:
    digest = hashlib.sha256()
    for block in _blocks(reader, 0, length):
        digest.update(block)
    return digest.hexdigest()


def _write_all(fd: int, data: bytes, at: int) -> None:
    os.lseek(fd, at, os.SEEK_SET)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


def _keep_tail(reader: int, start: int, tail_to: Path) -> None:
    tail = _new_file(tail_to)
    try:
        at = 0
        for block in _blocks(reader, start, os.fstat(reader).st_size):
            _write_all(tail, block, at)
            at += len(block)
        os.fsync(tail)   # before the file is cut: a crash between the two must not lose it
    finally:
        os.close(tail)


def _new_file(path: Path) -> int:
    """``path`` made new, or the first of ``path.2``, ``path.3``... that does not exist."""
    number, name = 1, str(path)
    while True:
        try:
            return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            number += 1
            name = f"{path}.{number}"
