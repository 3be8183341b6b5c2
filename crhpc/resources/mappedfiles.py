"""Files that are mapped privately, programs and libraries above all: pages that the job has not changed are not in
the image but come from the file again, so it must be the one that it was.

An ELF file is known by its build id, any file by its length and by a digest of pieces of it. Both are read after the
thaw, and only once of a file that stays as it is.
"""
from __future__ import annotations

import contextlib
import hashlib
import os
import stat as modes
from collections.abc import Iterator
from dataclasses import dataclass, field

from crhpc.errors import FileGone, OtherBuild
from crhpc.kernel import vdso
from crhpc.resources import Chapter, Cut, Kind, Phase, at
from crhpc.resources.contents import written_by_mapping
from crhpc.resources.context import Dump, Restore
from crhpc.resources.space import FILE, Vma, backing_in, by_name

_HEAD, _PIECE, _PIECES = 16 << 10, 4 << 10, 16
"""The beginning, where an ELF file has its build id, and so many pieces of the rest."""
_SHOWN = 10
"""Digits of a build id that tell it apart."""


@dataclass(frozen=True, slots=True)
class MappedFile:
    """What a file was that is mapped by its name."""

    path: str = field(metadata={"path": True})
    size: int
    build_id: bytes = field(metadata={"doc": "of ELF's note NT_GNU_BUILD_ID; empty where it has none"})
    digest: bytes = field(metadata={"doc": "BLAKE2b (16 bytes) of pieces(size); empty where it could not be read"})
    pid: int
    program: str


@dataclass(frozen=True, slots=True)
class _Print:
    size: int
    build_id: bytes
    digest: bytes


class MappedFilesKind(Kind):
    name = "mappedfiles"
    records = (MappedFile,)
    chapter = Chapter.MEMORY
    saved = "of programs, libraries and other files that are mapped privately: length, build id, a digest of pieces"
    afterwards = ("the files must be there and be what they were, else a restart is refused (`--force` goes on): of "
                  "their pages only those are in the image that the job has changed, and all of those whose names are "
                  "gone")

    @at(Cut.CONTENT)
    def find(self, ctx: Dump) -> None:
        found = {}
        for task in ctx.tasks:
            for mapping in task.mappings:
                if (mapping.path not in found and mapping.path != "/dev/zero" and not mapping.deleted
                        and backing_in(ctx, mapping) == FILE):
                    found[mapping.path] = mapping.inode, task.pid, task.program
        # In the pod's own directories they are in the image themselves; what the job writes to is brought back.
        written = {shared.path for shared in ctx.objects.values() if written_by_mapping(shared)
                   or any(file.info.flags & os.O_ACCMODE for file in shared.files)}
        ctx.state["mapped files"] = {path: who for path, who in found.items()
                                     if path not in written and not ctx.pod.private(path)}

    @at(Cut.LATER)
    def dump(self, ctx: Dump) -> None:
        known: dict[tuple[object, ...], _Print] = ctx.memory.get("mapped files", {})
        kept: dict[tuple[object, ...], _Print] = {}
        for path, (inode, pid, program) in ctx.state.pop("mapped files").items():
            found = _Print(-1, b"", b"")
            with contextlib.suppress(OSError):
                fd = _open(ctx.pod.outside(path), path)
                try:
                    stat = os.fstat(fd)
                    if stat.st_ino == inode:   # else it was replaced just now
                        key = path, inode, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
                        found = kept[key] = known.get(key) or _read(fd, stat.st_size)
                finally:
                    os.close(fd)
            ctx.add(MappedFile(path, found.size, found.build_id, found.digest, pid, program))
        ctx.memory["mapped files"] = kept

    @at(Phase.CHECK)
    def check(self, ctx: Restore) -> None:
        rows = {row.path: row for row in ctx.rows(MappedFile)}
        for path in dict.fromkeys(row.path for row in ctx.rows(Vma) if by_name(row)):
            row = rows.get(path)
            if row is not None and not ctx.pod.private(path):
                _compare(ctx, row)


def pieces(size: int) -> Iterator[tuple[int, int]]:
    """What is read of a file to know it again, as (offset, length)."""
    yield 0, min(size, _HEAD)
    rest = size - _HEAD
    if rest <= _PIECE * _PIECES:
        if rest > 0:
            yield _HEAD, rest
        return
    for number in range(_PIECES):   # the last one is the file's end, where a linker puts its tables
        yield _HEAD + (rest - _PIECE) * number // (_PIECES - 1), _PIECE


def _open(*ways: str) -> int:
    """A file by the first way that leads to it: when a job has ended meanwhile, its pod's tree is gone."""
    for way in ways[:-1]:
        with contextlib.suppress(OSError):
            return _open(way)
    fd = os.open(ways[-1], os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not modes.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise IsADirectoryError(21, "is no regular file", ways[-1])
    return fd


def _read(fd: int, size: int) -> _Print:
    state, head = hashlib.blake2b(digest_size=16), b""
    for offset, length in pieces(size):
        content = os.pread(fd, length, offset)
        head = head or content
        state.update(content)
    return _Print(size, vdso.build_id(head), state.digest())


# -- restore --------------------------------------------------------------------------------------------
def _compare(ctx: Restore, row: MappedFile) -> None:
    """Refuse, or doubt, where it is not what it was."""
    path = ctx.pod.outside(row.path)
    try:
        if not modes.S_ISREG(os.stat(path).st_mode):   # before it is opened: a device does who knows what
            raise IsADirectoryError(21, "is no regular file")
        fd = _open(path)
    except OSError as error:
        why = error.strerror if isinstance(error, IsADirectoryError) else f"cannot be opened ({error.strerror})"
        ctx.problems.append(FileGone(image=ctx.image, path=row.path, why=why, pid=row.pid, program=row.program))
        return
    try:
        size = os.fstat(fd).st_size
        found = _read(fd, size)
    finally:
        os.close(fd)
    why = _difference(row, found)
    if why and row.digest:
        ctx.doubt(OtherBuild(image=ctx.image, path=row.path, why=why, pid=row.pid, program=row.program))
    elif not row.digest:
        ctx.warn(f"nobody can tell whether {row.path} is what it was: it was replaced during the checkpoint")


def _difference(row: MappedFile, found: _Print) -> str:
    if row.build_id != found.build_id:
        return f"is another build ({_name(found.build_id)}, it was {_name(row.build_id)})"
    if row.size != found.size:
        return f"is another file: it has {found.size} bytes, it had {row.size}"
    return "" if row.digest == found.digest else "is another file: it holds something else"


def _name(build_id: bytes) -> str:
    return f"build id {build_id.hex()[:_SHOWN]}" if build_id else "without a build id"
