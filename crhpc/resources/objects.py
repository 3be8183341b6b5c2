"""Shared memory and files whose contents belong to the job alone, each once, whoever maps or opens it.

These go into the image with their contents: memfds, shared anonymous memory, files whose name is gone,
files in the pod's private /dev/shm and in its directory for temporary files, and other files that the job
maps shared and writable. Contents are read through a descriptor where one can be had (holes are skipped),
else through a task that maps the object. Rebuilt by the agent in the pod's own mounts before any task
exists; tasks get descriptors passed. Seals and modes come when all is mapped and open. A file of the user's
is written to as late as can be.
"""
from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import stat as modes
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from crhpc.errors import CheckpointFailed, FileGone
from crhpc.kernel import directories, proc
from crhpc.kernel.libc import PAGE
from crhpc.resources import Cut, Kind, Phase, at
from crhpc.resources.context import Dump, Restore, SharedObject, Task
from crhpc.resources.residency import resident

_F_GET_SEALS, _F_ADD_SEALS = 1034, 1033
MEMFD, ANONYMOUS, UNLINKED, PRIVATE, TRANSIENT, PLAIN = (
    "memfd", "anonymous", "unlinked", "private", "transient", "plain")


@dataclass(frozen=True, slots=True)
class SharedFile:
    """An inode whose contents are in the image."""

    id: int
    place: str = field(metadata={"doc": "memfd, anonymous, unlinked, private (in the pod's own directories), transient "
                                             "(in /tmp) or plain"})
    path: str
    mode: int
    uid: int
    gid: int
    size: int
    seals: int
    mtime: int = field(metadata={"doc": "nanoseconds"})
    pages: int = field(metadata={"doc": "page object; -1 where the contents are not in the image"})


def place_of(ctx: Dump, shared: SharedObject) -> str:
    """What sort of object it is; decides how it comes back."""
    if shared.path.startswith("/memfd:"):
        return MEMFD
    if shared.deleted:
        return ANONYMOUS if shared.path == "/dev/zero" else UNLINKED
    if shared.openers and ctx.pod.transient(shared.path):
        return TRANSIENT
    return PRIVATE if ctx.pod.private(shared.path) else PLAIN


class ObjectsKind(Kind):
    name = "objects"
    records = (SharedFile,)
    saved = ("shared memory of every backing with its contents: anonymous, memfd with seals, /dev/shm, mapped files, "
             "files whose name is gone")
    refused = ""

    @at(Cut.CONTENT)
    def dump(self, ctx: Dump) -> None:
        for shared in list(ctx.objects.values()):
            ctx.add(_dump(ctx, shared))

    @at(Phase.CHECK)
    def check(self, ctx: Restore) -> None:
        for row in ctx.rows(SharedFile):
            if row.place == PLAIN:
                _check_plain(ctx, row)

    @at(Phase.OBJECTS)
    def restore(self, ctx: Restore) -> None:
        # Unlinked files first: a file of today may have the name that they had.
        rows = sorted(ctx.rows(SharedFile), key=lambda row: row.place != UNLINKED)
        for row in rows:
            ctx.hold(row.id, _create(ctx, row))
        _fill(ctx, [row for row in rows if row.place != PLAIN])

    @at(Phase.INSTALL)
    def finish(self, ctx: Restore) -> None:
        """When all mappings are made and all is open: modes and seals would stand in the way."""
        for row in ctx.rows(SharedFile):
            if row.place != PLAIN:
                _finish(ctx.held[row.id], row)

    @at(Phase.LAST)
    def bring_back(self, ctx: Restore) -> None:
        """As late as can be: a restart that fails must leave the user's files alone."""
        plain = [row for row in ctx.rows(SharedFile) if row.place == PLAIN and row.pages >= 0]
        for row in plain:
            if os.fstat(ctx.held[row.id]).st_size < row.size:
                os.ftruncate(ctx.held[row.id], row.size)
        _fill(ctx, plain)


# -- dump -----------------------------------------------------------------------------------------------
def _dump(ctx: Dump, shared: SharedObject) -> SharedFile:
    place = place_of(ctx, shared)
    with contextlib.ExitStack() as stack:
        fd = _open(ctx, shared)
        if fd < 0:
            return _dump_mapped(ctx, shared, place)
        stack.callback(os.close, fd)
        stat = os.fstat(fd)
        pages = -1
        if place != PLAIN or any(m.shared and "mw" in m.flags for _, m in shared.mappers):
            pages = ctx.save_memory(shared.path, _reader(fd), _data_pages(fd, stat.st_size))
        seals = 0
        if place == MEMFD:
            seals = fcntl.fcntl(fd, _F_GET_SEALS)
        return SharedFile(shared.id, place, shared.path, modes.S_IMODE(stat.st_mode), stat.st_uid, stat.st_gid,
                          stat.st_size, seals, stat.st_mtime_ns, pages)


def _open(ctx: Dump, shared: SharedObject) -> int:
    """A descriptor of the object for reading, -1 where there is no way to one (map_files is for root)."""
    ways = [f"/proc/{task.host}/fd/{number}" for task, number in shared.openers]
    if not shared.deleted:
        ways.append(ctx.pod.outside(shared.path))
    ways += [f"/proc/{task.host}/map_files/{mapping.start:x}-{mapping.end:x}" for task, mapping in shared.mappers]
    for way in ways:
        try:
            fd = directories.open_closed(way, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            continue
        stat = os.fstat(fd)
        if stat.st_ino == shared.inode and modes.S_ISREG(stat.st_mode):
            return fd
        os.close(fd)
    return -1


def _reader(fd: int) -> Callable[[int, list[tuple[int, int]]], None]:
    """Fill memory from pages of a file; what lies behind its end reads as zeros."""
    def read(local: int, group: list[tuple[int, int]]) -> None:
        for first, count in group:
            size = count * PAGE
            view = memoryview((ctypes.c_char * size).from_address(local)).cast("B")
            done = 0
            while done < size:
                got = os.preadv(fd, [view[done:]], first * PAGE + done)
                if got == 0:
                    ctypes.memset(local + done, 0, size - done)
                    break
                done += got
            local += size
    return read


def _data_pages(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The pages of a file that are no hole (lseek(2), SEEK_DATA), as (first page, count)."""
    offset = 0
    while offset < size:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == 6:   # ENXIO: only a hole is left
                return
            raise
        offset = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        first = start // PAGE
        yield (first, -(-offset // PAGE) - first)


def _dump_mapped(ctx: Dump, shared: SharedObject, place: str) -> SharedFile:
    """Read an object through the tasks that map it: nobody has it open and its name is gone."""
    if not shared.mappers:
        raise CheckpointFailed(why=f"{shared.path} cannot be read", cure="give it back to the user who runs the job")
    pages = ctx.writer.object(shared.path)
    done: list[tuple[int, int]] = []
    for task, mapping in sorted(shared.mappers, key=lambda mapper: -mapper[1].size):
        start, end = mapping.offset, mapping.offset + mapping.size
        if not any(low <= start and end <= high for low, high in done):
            done.append((start, end))
            _dump_mapping(ctx, task, mapping, pages)
    size = max(end for _, end in done)
    task = shared.mappers[0][0]
    return SharedFile(shared.id, place, shared.path, 0o600, os.stat(f"/proc/{task.host}").st_uid,
                      os.stat(f"/proc/{task.host}").st_gid, size, 0, 0, pages)


def _dump_mapping(ctx: Dump, task: Task, mapping: proc.Mapping, pages: int) -> None:
    base = mapping.start - mapping.offset
    pieces = [((address - base) // PAGE, count) for address, count in resident(task, mapping)]
    ctx.save_task_memory("", task.host, pieces, base=base, page_object=pages, readable=mapping.read)


# -- restore --------------------------------------------------------------------------------------------
def _check_plain(ctx: Restore, row: SharedFile) -> None:
    """A mapped file that is not in the image must be what it was; one that is must be there."""
    try:
        stat = os.stat(ctx.pod.outside(row.path))
    except OSError as error:
        raise FileGone(image=ctx.image, path=row.path, why=f"cannot be read ({error.strerror})", pid=0,
                       program="a shared mapping") from None
    if row.pages < 0 and (stat.st_size, stat.st_mtime_ns) != (row.size, row.mtime):
        raise FileGone(image=ctx.image, path=row.path, why="has changed", pid=0, program="a shared mapping")


def _create(ctx: Restore, row: SharedFile) -> int:
    if row.place in (MEMFD, ANONYMOUS):
        name = row.path.removeprefix("/memfd:") if row.place == MEMFD else "dev-zero"
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    elif row.place == UNLINKED:
        fd = _create_unlinked(ctx, row)
    elif row.place == TRANSIENT:
        fd = _create_transient(ctx, row)
    else:
        access = os.O_RDWR if row.pages >= 0 else os.O_RDONLY
        fd = os.open(ctx.pod.outside(row.path), access | os.O_CLOEXEC | os.O_NOFOLLOW)
    if row.pages >= 0 and row.place != PLAIN:
        os.ftruncate(fd, row.size)
    return fd


def _create_transient(ctx: Restore, row: SharedFile) -> int:
    """A file in /tmp: as it was, whether it is still there or not; never another user's, never through a link."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        path = ctx.pod.outside(row.path)
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        try:
            fd = os.open(path, flags, 0o600)
        except PermissionError:
            os.unlink(path)   # its mode is closed; in /tmp only one's own can be removed
            fd = os.open(path, flags | os.O_EXCL, 0o600)
    except OSError as error:
        raise FileGone(image=ctx.image, path=row.path, why=f"cannot be made again ({error.strerror})", pid=0,
                       program="an open file") from None
    if os.fstat(fd).st_uid != os.getuid():
        os.close(fd)
        raise FileGone(image=ctx.image, path=row.path, why="belongs to another user by now", pid=0,
                       program="an open file")
    os.ftruncate(fd, 0)
    return fd


def _create_unlinked(ctx: Restore, row: SharedFile) -> int:
    """Where it was, else where the pod can always write. It can be given a name again if it could before."""
    path = ctx.pod.outside(row.path)
    for folder in (os.path.dirname(path), ctx.pod.outside(ctx.pod.temporary)):
        with contextlib.suppress(OSError):
            return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        name = os.path.join(folder, f"{os.path.basename(path)[:200]}.crhpc-{row.id}")
        with contextlib.suppress(OSError):
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.unlink(name)
            return fd
    raise FileGone(image=ctx.image, path=os.path.dirname(row.path), why="takes no file", pid=0,
                   program="an unlinked file")


def _fill(ctx: Restore, rows: list[SharedFile]) -> None:
    by_pages = {row.pages: row for row in rows if row.pages >= 0}
    if not by_pages:
        return
    for number, first, data in ctx.shard.walk(set(by_pages)):
        row = by_pages[number]
        offset = first * PAGE
        view = memoryview(data)[:max(row.size - offset, 0)]
        while view:
            done = os.pwrite(ctx.held[row.id], view, offset)
            view, offset = view[done:], offset + done


def _finish(fd: int, row: SharedFile) -> None:
    """Of a private file only the time: its name and mode are made by places.py."""
    if row.place != PRIVATE:
        with contextlib.suppress(PermissionError):
            os.fchown(fd, row.uid, row.gid)
        os.fchmod(fd, row.mode)
    if row.mtime:
        os.utime(fd, ns=(row.mtime, row.mtime))
    if row.seals:
        fcntl.fcntl(fd, _F_ADD_SEALS, row.seals)
