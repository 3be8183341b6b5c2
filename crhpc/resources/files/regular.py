"""Regular files, directories, and the devices that have no state.

Opened again by path, by a task that had it open. A file that the job writes is cut back at restart to its
length at the checkpoint, the tail kept beside the image. A file whose contents belong to the job alone
(no name any more, or in the pod's private directories) comes from the image, see objects.py.
"""
from __future__ import annotations

import os
import shutil
import stat as modes
from dataclasses import dataclass, field

from crhpc.errors import FileGone
from crhpc.kernel import descriptors
from crhpc.resources import Phase, at
from crhpc.resources.context import Dump, OpenFile, Restore
from crhpc.resources.files import O_PATH, Descriptor, File, FileKind

_CREATION = os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_NOCTTY
_DEVICES = {(1, 3): "null", (1, 5): "zero", (1, 7): "full", (1, 8): "random", (1, 9): "urandom"}


@dataclass(frozen=True, slots=True)
class RegularFile:
    """A file, directory or device that was opened by its path."""

    id: int
    path: str
    type: str = field(metadata={"doc": "f file, d directory, c device"})
    size: int
    mtime: int = field(metadata={"doc": "nanoseconds"})
    writable: bool
    shared_object: int = field(metadata={"ref": "shared_file.id", "doc": "-1: opened by its path"})


class RegularKind(FileKind):
    name = "regular"
    records = (RegularFile,)
    saved = ("path, offset and flags of files, directories and simple devices; written files are cut back to their length "
             "at the checkpoint, with the tail kept; unlinked files with their contents")
    refused = "devices other than null, zero, full, random, urandom and terminals"

    def matches(self, file: OpenFile, ctx: Dump) -> bool:
        mode = file.stat.st_mode
        return modes.S_ISREG(mode) or modes.S_ISDIR(mode) or modes.S_ISCHR(mode) and _is_simple(file.stat.st_rdev)

    def refusal(self, file: OpenFile, ctx: Dump) -> tuple[str, str] | None:
        if modes.S_ISDIR(file.stat.st_mode) and file.link.endswith(" (deleted)"):
            return f"the directory {file.link}", "keep the directory"
        if file.link.startswith("/proc/") or file.link.startswith("/sys/"):
            return (f"{file.link}", "close it") if file.info.flags & os.O_ACCMODE else None
        return None

    def dump(self, file: OpenFile, ctx: Dump) -> RegularFile:
        mode, number = file.stat.st_mode, -1
        deleted = file.link.endswith(" (deleted)") and not os.path.exists(ctx.pod.outside(file.link))
        path = file.link.removesuffix(" (deleted)") if deleted else file.link
        if modes.S_ISREG(mode) and (deleted or ctx.pod.private(path)):
            shared = ctx.object(file.stat.st_dev, file.stat.st_ino, path, deleted=deleted)
            shared.openers.append((file.task, file.fd))
            number = shared.id
        kind = "d" if modes.S_ISDIR(mode) else "c" if modes.S_ISCHR(mode) else "f"
        writable = bool(file.info.flags & os.O_ACCMODE) and not file.info.flags & O_PATH
        return RegularFile(file.id, path, kind, file.stat.st_size, file.stat.st_mtime_ns, writable, number)

    @at(Phase.CHECK)
    def check(self, ctx: Restore) -> None:
        holders = {row.file: row.pid for row in ctx.rows(Descriptor)}
        for record in ctx.rows(RegularFile):
            if record.type == "f" and record.shared_object < 0:
                _check(ctx, record, holders[record.id])

    def restore(self, record: RegularFile, file: File, ctx: Restore) -> int:
        flags = file.flags & ~_CREATION | os.O_NOCTTY
        if record.shared_object >= 0 and file.link.endswith(" (deleted)"):
            fd = descriptors.reopen(ctx.held[record.shared_object], flags & ~os.O_NOFOLLOW)
        else:
            fd = _open_in_task(ctx, record, flags)
        if record.type == "f" and not file.flags & O_PATH:
            os.lseek(fd, file.position, os.SEEK_SET)
        elif record.type == "d" and file.position:
            os.lseek(fd, file.position, os.SEEK_SET)
        return fd

    @at(Phase.LAST)
    def cut_back(self, ctx: Restore) -> None:
        """As late as can be: a restart that fails must leave the user's files alone."""
        done: set[str] = set()
        for record in ctx.rows(RegularFile):
            if record.type == "f" and record.shared_object < 0 and record.writable and record.path not in done:
                done.add(record.path)
                _cut_back(ctx, record)


def _is_simple(rdev: int) -> bool:
    return (os.major(rdev), os.minor(rdev)) in _DEVICES


def _open_in_task(ctx: Restore, record: RegularFile, flags: int) -> int:
    holder = next(row.pid for row in ctx.rows(Descriptor) if row.file == record.id)
    task = ctx.tasks[holder]
    raw = os.fsencode(record.path) + b"\0"
    task.leader.write(task.area.data, raw)
    try:
        number = task.call("open", task.area.data, flags & ~os.O_NONBLOCK if record.type == "f" else flags, 0)
    except OSError as error:
        raise FileGone(image=ctx.image, path=record.path, why=f"cannot be opened ({error.strerror})", pid=holder,
                       program=f"descriptor of {holder}") from None
    return ctx.take(task, number)


def _check(ctx: Restore, record: RegularFile, pid: int) -> None:
    """Is the file there, and long enough? A file that was only read and has changed is worth a warning."""
    try:
        stat = os.stat(ctx.pod.outside(record.path))
    except OSError as error:
        raise FileGone(image=ctx.image, path=record.path, why=f"cannot be read ({error.strerror})", pid=pid,
                       program="an open file") from None
    if record.writable and stat.st_size < record.size:
        raise FileGone(image=ctx.image, path=record.path, why=f"has {stat.st_size} bytes, it had {record.size}", pid=pid,
                       program="an open file")
    if not record.writable and (stat.st_size, stat.st_mtime_ns) != (record.size, record.mtime):
        ctx.warn(f"{record.path}, which the job reads, has changed since the checkpoint")


def _cut_back(ctx: Restore, record: RegularFile) -> None:
    path = ctx.pod.outside(record.path)
    if os.path.getsize(path) <= record.size:
        return
    tail = ctx.image.parent / f"{ctx.image.name}.tail-{os.path.basename(record.path)}"
    number = 1
    while tail.exists():
        number += 1
        tail = ctx.image.parent / f"{ctx.image.name}.tail-{os.path.basename(record.path)}.{number}"
    with open(path, "rb") as source, open(tail, "xb") as target:
        source.seek(record.size)
        shutil.copyfileobj(source, target, 1 << 20)
        target.flush()
        os.fsync(target.fileno())
    os.truncate(path, record.size)
