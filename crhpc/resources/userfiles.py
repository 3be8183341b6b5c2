"""Files of the user's that the job has open by their paths or maps shared: what they held at the checkpoint.

A restart compares, and ``--files`` says what becomes of a file that has changed (filepolicy.py). What has only
been added to is cut back, with the tail kept beside the image. What has been rewritten, cut or removed is brought
back where the image has its contents: small files, and larger ones that are not only written to at their end, up
to a limit. Of all others a digest of samples tells whether they hold what they did. It is done as late as can be:
a restart that fails leaves the user's files alone.
"""
from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat as modes
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum

from crhpc.errors import FileChanged, FileGone, ImageDamaged
from crhpc.filepolicy import Files
from crhpc.kernel import directories, libc
from crhpc.resources import Chapter, Cut, Kind, Phase, aside, at
from crhpc.resources.contents import PLAIN, data_ranges, fill, holds, open_object, place_of, save, written_by_mapping
from crhpc.resources.context import Dump, OpenFile, Restore, SharedObject

_SMALL, _LARGE, _TOGETHER = 4 << 20, 64 << 20, 256 << 20
"""Up to here a file that is written to goes into the image; up to here if it is not only written to at its end, or
lies in /tmp (then also one that is only read); and so much of all files of a pod, the smallest first."""
_KEEP_SIZE, _PUNCH_HOLE, _CLEARED = 1, 2, 1 << 20
_WHOLE, _PIECE = 64 << 10, 4 << 10
"""A file of no more than this is compared whole, a larger one by its ends and pieces between them."""


@dataclass(frozen=True, slots=True)
class UserFile:
    """A file that a restart finds where it was, or not."""

    id: int
    path: str = field(metadata={"path": True})
    size: int
    mtime: int = field(metadata={"doc": "nanoseconds"})
    mode: int
    uid: int
    gid: int
    written: bool = field(metadata={"doc": "open for writing, or mapped shared and writable"})
    mapped: bool = field(metadata={"doc": "mapped shared"})
    transient: bool = field(metadata={"doc": "in /tmp, where such files come and go"})
    writer: int = field(metadata={"ref": "file.id", "doc": "an open file that can write to it; -1: none"})
    pages: int = field(metadata={"doc": "page object of the contents; -1 where they are not in the image"})
    samples: bytes = field(metadata={"doc": "BLAKE2b (16 bytes) of what stands at samples(size); empty where the "
                                            "contents are in the image or it could not be read"})
    pid: int
    program: str


class UserFilesKind(Kind):
    name = "userfiles"
    chapter = Chapter.FILES
    records = (UserFile,)
    saved = ("of the user's files that the job has open by their paths or maps shared: length, time and a digest of "
             "samples, by which a restart knows whether they have changed. With their contents: all that the job "
             "maps shared and writable; files that it has open for writing, up to 4 MiB each, and up to 64 MiB where "
             "not only their end is written to; in `/tmp` and `/var/tmp` up to 64 MiB each, also those that are only "
             "read; 256 MiB together, the smallest first")
    refused = (
        ("a mapping of a file that can't be reached", "keep the file where it is"),
    )
    afterwards = ("`--files` says what becomes of a file that has changed ([cli.md](cli.md#files)): it is cut back "
                  "or brought back, stays, or the restart is refused. Files that were not open at the checkpoint are "
                  "not looked at")

    @at(Cut.CONTENT)
    def dump(self, ctx: Dump) -> None:
        found = {shared.id: shared for shared in ctx.objects.values() if place_of(ctx, shared) == PLAIN}
        rows = {number: _row(ctx, shared) for number, shared in found.items()}
        chosen = _chosen(rows, found)
        for number, row in rows.items():
            fd = open_object(ctx, found[number], force=row.transient or row.mapped)
            if fd < 0:
                ctx.add(row)
                continue
            file = io.FileIO(fd)   # closes itself where the checkpoint is given up
            if number in chosen:
                with file:
                    ctx.add(replace(row, pages=save(ctx, row.path, fd, row.size)))
                continue
            samples = _Samples(file, row.size)
            if row.written:
                samples.read(os.RWF_NOWAIT)   # what is in memory; what is not has not been written to just now
            ctx.state.setdefault("samples", []).append((row, samples))

    @at(Cut.LATER)
    def read_samples(self, ctx: Dump) -> None:
        """The job may write to these files again, but what it writes to in place was read when it stood still."""
        for row, samples in ctx.state.pop("samples", []):
            with samples.file:
                samples.read()
                ctx.add(replace(row, samples=samples.digest()))

    @at(Phase.CHECK)
    def check(self, ctx: Restore) -> None:
        states: dict[int, _State] = ctx.state.setdefault("user files", {})
        for row in ctx.rows(UserFile):
            if row.size < 0:
                raise ImageDamaged(image=ctx.image, what=f"{row.path} has a length of {row.size}")
            states[row.id] = _compare(ctx, row)
            _judge(ctx, row, states[row.id])

    @at(Phase.POD)
    def make_again(self, ctx: Restore) -> None:
        made: dict[int, int] = ctx.state.setdefault("files made again", {})
        gone = [row for row in ctx.rows(UserFile) if _state(ctx, row).change is Change.GONE]
        for row in gone:
            made[row.id] = _create(ctx, row)
        fill(ctx, {row.pages: (made[row.id], row.size) for row in gone})

    @at(Phase.LAST)
    def mend(self, ctx: Restore) -> None:
        """As late as can be: a restart that fails must leave the user's files alone."""
        made: dict[int, int] = ctx.state["files made again"]
        for row in ctx.rows(UserFile):
            if row.id in made:
                _finish(made[row.id], row)
            elif ctx.policy.files is Files.ROLLBACK and row.written:
                _mend(ctx, row, _state(ctx, row).change)


# -- dump -----------------------------------------------------------------------------------------------
def _row(ctx: Dump, shared: SharedObject) -> UserFile:
    task = shared.files[0].bearer if shared.files else shared.mappers[0][0]
    try:
        stat = shared.files[0].stat if shared.files else ctx.pod.stat(shared.path)
    except OSError:
        raise ctx.refuse(f"the mapping of {shared.path}, which cannot be reached", task,
                         "keep the file where it is") from None
    writers = _writers(shared)
    transient = ctx.pod.transient(shared.path) and stat.st_size <= _LARGE and stat.st_uid == os.getuid()
    return UserFile(
        id=shared.id, path=shared.path, size=stat.st_size, mtime=stat.st_mtime_ns, mode=modes.S_IMODE(stat.st_mode),
        uid=stat.st_uid, gid=stat.st_gid, written=bool(writers) or written_by_mapping(shared),
        mapped=bool(shared.mappers), transient=transient, writer=writers[0].id if writers else -1, pages=-1,
        samples=b"", pid=task.pid, program=task.program)


def _writers(shared: SharedObject) -> list[OpenFile]:
    return [file for file in shared.files if file.info.flags & os.O_ACCMODE]


def _chosen(rows: dict[int, UserFile], found: dict[int, SharedObject]) -> set[int]:
    """Those whose contents go into the image."""
    chosen = {number for number, shared in found.items() if written_by_mapping(shared)}
    together = 0
    for row in sorted(rows.values(), key=lambda row: row.size):
        at_end = all(file.info.flags & os.O_APPEND or file.info.position >= row.size
                     for file in _writers(found[row.id]))
        limit = _LARGE if row.transient or not at_end else _SMALL
        wanted = (row.written or row.transient) and row.size <= limit
        if wanted and row.id not in chosen and together + row.size <= _TOGETHER:
            chosen.add(row.id)
            together += row.size
    return chosen


# -- samples --------------------------------------------------------------------------------------------
def samples(size: int) -> Iterator[tuple[int, int]]:
    """The pieces of a file by which it is known again, as (offset, length)."""
    if size <= _WHOLE:
        yield 0, size
        return
    edge = 4 * _PIECE
    yield 0, edge
    for n in range(1, 15):
        yield edge + (size - 2 * edge - _PIECE) * n // 15 // _PIECE * _PIECE, _PIECE
    yield size - edge, edge


class _Samples:
    """The samples of one file, which may be read bit by bit."""

    def __init__(self, file: io.FileIO, size: int) -> None:
        self.file = file
        self._wanted = list(samples(size))
        self._read: dict[int, bytes] = {}

    def read(self, flags: int = 0) -> None:
        """Those that are not read yet; with RWF_NOWAIT those that take no time (preadv(2))."""
        for offset, length in self._wanted:
            if offset not in self._read:
                room = bytearray(length)
                with contextlib.suppress(OSError):
                    got = os.preadv(self.file.fileno(), [room], offset, flags)
                    if got == length or not flags:
                        self._read[offset] = bytes(room[:got])

    def digest(self) -> bytes:
        state = hashlib.blake2b(digest_size=16)
        for offset, _length in self._wanted:
            state.update(self._read.get(offset, b""))
        return state.digest()


# -- restore --------------------------------------------------------------------------------------------
class Change(Enum):
    """What has become of a file since the checkpoint."""

    NONE = "nothing"
    LONGER = "it was added to"
    OTHER = "what it held is changed or cut off"
    UNKNOWN = "it was written to and can't be read"
    GONE = "it is gone"
    IN_THE_WAY = "something else has its name"


@dataclass(frozen=True, slots=True)
class _State:
    change: Change
    why: str = ""


def _state(ctx: Restore, row: UserFile) -> _State:
    state: _State = ctx.state["user files"][row.id]
    return state


def _compare(ctx: Restore, row: UserFile) -> _State:
    try:
        stat = ctx.pod.stat(row.path, follow=not row.transient)
    except OSError as error:
        return _State(Change.GONE, f"cannot be found ({error.strerror})")
    if not modes.S_ISREG(stat.st_mode) or (row.transient and stat.st_uid != row.uid):
        return _State(Change.IN_THE_WAY, "is no regular file of yours any more")
    lengths = f"has {stat.st_size} bytes, it had {row.size}"
    if stat.st_size < row.size:
        return _State(Change.OTHER, lengths)
    same = _begins_as_before(ctx, row)
    if same is False:
        return _State(Change.OTHER, "holds something else than at the checkpoint")
    if stat.st_size > row.size:
        return _State(Change.LONGER, lengths)
    known = same or stat.st_mtime_ns == row.mtime
    return _State(Change.NONE) if known else _State(Change.UNKNOWN, "has been written to and can't be read")


def _begins_as_before(ctx: Restore, row: UserFile) -> bool | None:
    """None where nobody can tell."""
    if row.pages < 0 and not row.samples:
        return None
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_NOFOLLOW if row.transient else 0)
    path = ctx.pod.outside(row.path)
    try:
        file = io.FileIO(directories.open_closed(path, flags) if row.transient else os.open(path, flags))
    except OSError:
        return None
    with file:
        if row.pages >= 0:
            return holds(ctx, row.pages, file.fileno(), row.size)
        found = _Samples(file, row.size)
        found.read()
        return found.digest() == row.samples


def _judge(ctx: Restore, row: UserFile, state: _State) -> None:
    """What the restart will do about it."""
    policy, change = ctx.policy.files, state.change
    if change is Change.NONE:
        return
    if change in (Change.GONE, Change.IN_THE_WAY):
        if change is Change.GONE and policy is not Files.STRICT and row.pages >= 0 and _has_room(ctx, row):
            ctx.plans.append(f"{row.path} is gone; it is made again with the {row.size} bytes that it held")
            return
        ctx.problems.append(FileGone(image=ctx.image, path=row.path, why=state.why, pid=row.pid, program=row.program))
    elif policy is Files.STRICT:
        _refuse(ctx, row, state, "restart with --files rollback")
    elif policy is Files.KEEP:
        if change is not Change.LONGER or not row.written:
            ctx.warn(f"{row.path} {state.why}; it stays as it is (--files keep)")
    elif not row.written and not (row.mapped and change is Change.OTHER):   # the user's business
        ctx.warn(f"{row.path}, which the job reads, has changed since the checkpoint: it {state.why}")
    else:
        _judge_rollback(ctx, row, state)


def _judge_rollback(ctx: Restore, row: UserFile, state: _State) -> None:
    if state.change is Change.LONGER:
        ctx.plans.append(f"{row.path} {state.why}; it is cut back, and the end is kept beside the image")
    elif state.change is Change.UNKNOWN:
        ctx.warn(f"{row.path} {state.why}: nobody can tell whether it holds what it did")
    elif row.pages >= 0:
        ctx.plans.append(f"{row.path} {state.why}; it is brought back, and what it holds is kept beside the image")
    else:
        _refuse(ctx, row, state, "restart with --files keep to go on with it as it is")


def _refuse(ctx: Restore, row: UserFile, state: _State, cure: str) -> None:
    cure = f"put it back as it was at the checkpoint, or {cure}"
    ctx.problems.append(FileChanged(image=ctx.image, path=row.path, why=state.why, pid=row.pid, program=row.program,
                                    cure=cure))


def _has_room(ctx: Restore, row: UserFile) -> bool:
    """Whether its directory is there: where that is gone too, the file has moved with it."""
    return row.transient or os.path.isdir(ctx.pod.outside(os.path.dirname(row.path)))


def _create(ctx: Restore, row: UserFile) -> int:
    path = ctx.pod.outside(row.path)
    try:
        if row.transient:
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        ctx.closing.callback(os.close, fd)
        ctx.undo.callback(_remove, path, os.fstat(fd).st_ino)
        os.ftruncate(fd, row.size)
        return fd
    except OSError as error:
        raise FileGone(image=ctx.image, path=row.path, why=f"cannot be made again ({error.strerror})", pid=row.pid,
                       program=row.program) from None


def _remove(path: str, inode: int) -> None:
    """The restart has failed: away with what it made, unless somebody has put something in its place."""
    if os.lstat(path).st_ino == inode:
        os.unlink(path)


def _finish(fd: int, row: UserFile) -> None:
    with contextlib.suppress(PermissionError):
        os.fchown(fd, row.uid, row.gid)
    os.fchmod(fd, row.mode)
    os.utime(fd, ns=(row.mtime, row.mtime))


def _mend(ctx: Restore, row: UserFile, change: Change) -> None:
    if change not in (Change.LONGER, Change.OTHER):
        return
    try:
        with _writable(ctx, row) as fd:
            if change is Change.LONGER:
                aside.keep(ctx, fd, row.size, aside.TAIL, row.path)
            else:
                aside.keep(ctx, fd, 0, aside.WAS, row.path)
                _clear(fd)
            os.ftruncate(fd, row.size)
            if change is Change.OTHER:
                fill(ctx, {row.pages: (fd, row.size)})
            os.utime(fd, ns=(os.fstat(fd).st_atime_ns, row.mtime))
    except OSError as error:
        why = f"cannot be brought back ({f'{error.filename}: ' if error.filename else ''}{error.strerror})"
        raise FileChanged(image=ctx.image, path=row.path, why=why, pid=row.pid, program=row.program,
                          cure="see to that, or restart with --files keep to go on with it as it is") from None


def _clear(fd: int) -> None:
    """Make it all zeros. Not by cutting it: that takes own pages from private mappings too (mm/truncate.c)."""
    size = os.fstat(fd).st_size
    try:
        libc.syscall("fallocate", fd, _PUNCH_HOLE | _KEEP_SIZE, 0, max(size, 1))
    except OSError:   # a file system without holes
        for start, end in data_ranges(fd, 0, size):
            for offset in range(start, end, _CLEARED):
                os.pwrite(fd, bytes(min(_CLEARED, end - offset)), offset)


@contextlib.contextmanager
def _writable(ctx: Restore, row: UserFile) -> Iterator[int]:
    """A descriptor of it; where the job has one its mode does not matter."""
    fd = ctx.open_files.get(row.writer, -1)
    if fd < 0 and row.mapped and row.written:
        fd = ctx.held[row.id]
    if fd >= 0:
        with aside.written_anywhere(fd):
            yield fd
        return
    fd = directories.open_closed(ctx.pod.outside(row.path), os.O_RDWR | os.O_NOFOLLOW)
    try:
        yield fd
    finally:
        os.close(fd)
