"""Shared memory and files whose contents belong to the job alone, each once, whoever maps or opens it.

These go into the image with their contents: memfds, shared anonymous memory, files whose name is gone, and
files in the pod's private /dev/shm and in its directory for temporary files. Contents are read through a
descriptor where one can be had (holes are skipped), else through a task that maps the object. Rebuilt by the
agent in the pod's own mounts before any task exists; tasks get descriptors passed. Seals and modes come when
all is mapped and open. Files of the user's that are mapped shared are opened here; userfiles.py minds what
they hold.
"""
from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat as modes
import tempfile
from dataclasses import dataclass, field

from crhpc.errors import CheckpointFailed, FileGone
from crhpc.kernel import proc
from crhpc.kernel.libc import PAGE
from crhpc.resources import Chapter, Cut, Kind, Phase, at
from crhpc.resources.contents import (
    ANONYMOUS,
    MEMFD,
    PLAIN,
    PRIVATE,
    UNLINKED,
    fill,
    open_object,
    place_of,
    save,
    written_by_mapping,
)
from crhpc.resources.context import Dump, Restore, SharedObject, Task
from crhpc.resources.residency import resident, without_guards

_F_GET_SEALS, _F_ADD_SEALS = 1034, 1033
_F_SEAL_WRITE, _F_SEAL_EXEC, _MFD_NOEXEC_SEAL = 8, 0x20, 8
_EXECUTABLE = 0o111
_PLACE = ".crhpc-"
"""How the name of a directory begins in which a file was made that has no name any more."""


@dataclass(frozen=True, slots=True)
class SharedFile:
    """An inode whose contents are in the image, or a file of the user's that is mapped shared."""

    id: int
    place: str = field(metadata={"doc": "memfd, anonymous, unlinked, private (in the pod's own directories) or plain "
                                             "(a file of the user's)"})
    path: str = field(metadata={"path": True})
    mode: int
    uid: int
    gid: int
    size: int
    seals: int
    mtime: int = field(metadata={"doc": "nanoseconds"})
    writable: bool = field(metadata={"doc": "some mapping can write to it"})
    pages: int = field(metadata={"doc": "page object of the contents; -1 for a file of the user's"})


class ObjectsKind(Kind):
    name = "objects"
    chapter = Chapter.MEMORY
    records = (SharedFile,)
    saved = ("shared memory of every backing with its contents: anonymous, memfd with seals, `/dev/shm`, mapped "
             "files; files whose name is gone, open or mapped")
    afterwards = ("a file without a name is made again in the directory where it was, or in `$TMPDIR`; shared "
                  "anonymous memory and memfds have other inodes. Whether a file had a name once (O_TMPFILE) is not "
                  "told any more")

    @at(Cut.CONTENT)
    def dump(self, ctx: Dump) -> None:
        for shared in {shared.id: shared for shared in ctx.objects.values()}.values():
            if place_of(ctx, shared) != PLAIN:
                ctx.add(_dump(ctx, shared))
            elif shared.mappers:
                ctx.add(SharedFile(shared.id, PLAIN, shared.path, 0, 0, 0, 0, 0, 0, written_by_mapping(shared), -1))

    @at(Phase.OBJECTS)
    def restore(self, ctx: Restore) -> None:
        # Unlinked files first: a file of today may have the name that they had.
        rows = sorted(ctx.rows(SharedFile), key=lambda row: row.place != UNLINKED)
        for row in rows:
            ctx.hold(row.id, _open_plain(ctx, row) if row.place == PLAIN else _create(ctx, row))
        fill(ctx, {row.pages: (ctx.held[row.id], row.size) for row in rows if row.place != PLAIN})
        for row in rows:
            if row.seals & _F_SEAL_WRITE:   # before it is mapped: no mapping then counts as one that could write
                fcntl.fcntl(ctx.held[row.id], _F_ADD_SEALS, _F_SEAL_WRITE)

    @at(Phase.INSTALL)
    def finish(self, ctx: Restore) -> None:
        """When all mappings are made and all is open: modes and seals would stand in the way."""
        for row in ctx.rows(SharedFile):
            if row.place != PLAIN:
                _finish(ctx.held[row.id], row)


# -- dump -----------------------------------------------------------------------------------------------
def _dump(ctx: Dump, shared: SharedObject) -> SharedFile:
    place = place_of(ctx, shared)
    fd = open_object(ctx, shared, force=True)
    if fd < 0:
        return _dump_mapped(ctx, shared, place)
    try:
        stat = os.fstat(fd)
        pages = save(ctx, shared.path, fd, stat.st_size)
        seals = fcntl.fcntl(fd, _F_GET_SEALS) if place == MEMFD else 0
        return SharedFile(shared.id, place, shared.path, modes.S_IMODE(stat.st_mode), stat.st_uid, stat.st_gid,
                          stat.st_size, seals, stat.st_mtime_ns, written_by_mapping(shared), pages)
    finally:
        os.close(fd)


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
                      os.stat(f"/proc/{task.host}").st_gid, size, 0, 0, written_by_mapping(shared), pages)


def _dump_mapping(ctx: Dump, task: Task, mapping: proc.Mapping, pages: int) -> None:
    with without_guards(task, mapping) as shown:
        base = shown.start - shown.offset
        pieces = [((address - base) // PAGE, count) for address, count in resident(task, shown)]
        ctx.save_task_memory("", task.host, pieces, base=base, page_object=pages, readable=shown.read)


# -- restore --------------------------------------------------------------------------------------------
def _create(ctx: Restore, row: SharedFile) -> int:
    if row.place in (MEMFD, ANONYMOUS):
        name = row.path.removeprefix("/memfd:") if row.place == MEMFD else "dev-zero"
        executable = _MFD_NOEXEC_SEAL if row.seals & _F_SEAL_EXEC else 0
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | executable)
    elif row.place == UNLINKED:
        fd = _create_unlinked(ctx, row)
    else:
        fd = os.open(ctx.pod.outside(row.path), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    os.ftruncate(fd, row.size)
    return fd


def _open_plain(ctx: Restore, row: SharedFile) -> int:
    try:
        return os.open(ctx.pod.outside(row.path), (os.O_RDWR if row.writable else os.O_RDONLY) | os.O_CLOEXEC)
    except OSError as error:
        raise FileGone(image=ctx.image, path=row.path, why=f"cannot be opened ({error.strerror})", pid=0,
                       program="a shared mapping") from None


def _create_unlinked(ctx: Restore, row: SharedFile) -> int:
    """Where it was, else where the pod can always write. It can be given a name again if it could before."""
    path = ctx.pod.outside(row.path)
    for folder in (_without_place(os.path.dirname(path)), ctx.pod.outside(ctx.pod.temporary)):
        if row.mode & _EXECUTABLE:
            with contextlib.suppress(OSError):
                return _create_program(folder, os.path.basename(path))
            continue
        with contextlib.suppress(OSError):
            return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        name = os.path.join(folder, f"{os.path.basename(path)[:200]}.crhpc-{row.id}")
        with contextlib.suppress(OSError):
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.unlink(name)
            return fd
    if row.mode & _EXECUTABLE:
        return os.memfd_create(os.path.basename(path), os.MFD_CLOEXEC)
    raise FileGone(image=ctx.image, path=os.path.dirname(row.path), why="takes no file", pid=0,
                   program="an unlinked file")


def _create_program(folder: str, name: str) -> int:
    """In a directory of its own: of a program the link /proc/PID/exe still tells its name.

    Raises:
        OSError: it can't be made, or could not be executed there.
    """
    if os.statvfs(folder).f_flag & os.ST_NOEXEC:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
    place = tempfile.mkdtemp(prefix=_PLACE, dir=folder)
    try:
        fd = os.open(os.path.join(place, name), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.unlink(os.path.join(place, name))
        return fd
    finally:
        os.rmdir(place)


def _without_place(folder: str) -> str:
    """Where an earlier restart made a file in a directory of its own: what that was in."""
    return os.path.dirname(folder) if os.path.basename(folder).startswith(_PLACE) else folder


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
