"""Regular files, directories, and the devices that have no state.

Opened again by path, by a task that had it open. A file that the job writes is cut back at restart to its
length at the checkpoint, the tail kept beside the image. A file whose contents belong to the job alone
(no name any more, or in the pod's private directories, or a small one in /tmp) comes from the image, see
objects.py. A place in a listing is kept as the number of entries passed where the directory is made anew.
"""
from __future__ import annotations

import os
import shutil
import stat as modes
from dataclasses import dataclass, field

from crhpc.errors import FileGone
from crhpc.kernel import descriptors, directories
from crhpc.resources import Phase, at
from crhpc.resources.context import Dump, OpenFile, Restore
from crhpc.resources.files import Descriptor, File, FileKind, holder

_CREATION = os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_NOCTTY | os.O_TMPFILE & ~os.O_DIRECTORY
_DEVICES = {(1, 3): "null", (1, 5): "zero", (1, 7): "full", (1, 8): "random", (1, 9): "urandom"}
_GONE = " (deleted)"
_LARGE = 64 << 20
"""Bytes from which on an open file in /tmp is not put into the image but cut back like others."""
_REFUSED = {
    directories.MQUEUE: "a POSIX message queue", directories.HUGETLBFS: "a file of huge pages",
    directories.SECRETMEM: "secret memory (memfd_secret)", directories.DMA_BUF: "a buffer of a device",
    directories.BPF: "a BPF object", directories.SYSFS: "a file of /sys that is open for writing",
    directories.DEBUGFS: "a file of debugfs", directories.TRACEFS: "a file of tracefs",
}


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
    entries: int = field(metadata={"doc": "of a directory of the pod's own: entries before the position; else -1"})


class RegularKind(FileKind):
    name = "regular"
    records = (RegularFile,)
    saved = ("path, offset and flags of files, directories and simple devices; written files are cut back to their "
             "length at the checkpoint, with the tail kept; unlinked files and memfds with their contents")
    refused = ("devices other than null, zero, full, random, urandom and terminals; POSIX message queues; removed "
               "directories; a file whose name is gone while it has another one elsewhere")

    def matches(self, file: OpenFile, ctx: Dump) -> bool:
        mode = file.stat.st_mode
        return file.link.startswith("/") and (
            modes.S_ISREG(mode) or modes.S_ISDIR(mode) or (modes.S_ISCHR(mode) and _is_simple(file.stat.st_rdev)))

    def refusal(self, file: OpenFile, ctx: Dump) -> tuple[str, str] | None:
        number = directories.file_system(f"/proc/{file.task.host}/fd/{file.fd}")
        if number in _REFUSED and (number != directories.SYSFS or file.info.flags & os.O_ACCMODE):
            return f"{_REFUSED[number]} ({file.link})", "close it, or turn off what opens it"
        if file.link.startswith("/memfd:"):
            return None
        _path, deleted = _name(file, ctx)
        if deleted and not modes.S_ISREG(file.stat.st_mode):
            return f"{file.link}", "keep it as long as it is open"
        if deleted and file.stat.st_nlink > 0:
            return f"{file.link}, which has another name somewhere", "keep the name under which it was opened"
        return None

    def dump(self, file: OpenFile, ctx: Dump) -> RegularFile:
        mode, number, entries = file.stat.st_mode, -1, -1
        path, deleted = _name(file, ctx)
        private = ctx.pod.private(path)
        if modes.S_ISREG(mode) and (deleted or private or _is_transient(file, path, ctx)):
            shared = ctx.object(file.stat.st_dev, file.stat.st_ino, path, deleted=deleted)
            shared.openers.append((file.task, file.fd))
            number = shared.id
        if modes.S_ISDIR(mode) and private and file.info.position:
            entries = _with_own(f"/proc/{file.task.host}/fd/{file.fd}", file.info.position, directories.entries_before)
        kind = "d" if modes.S_ISDIR(mode) else "c" if modes.S_ISCHR(mode) else "f"
        writable = bool(file.info.flags & os.O_ACCMODE)
        return RegularFile(file.id, path, kind, file.stat.st_size, file.stat.st_mtime_ns, writable, number, entries)

    @at(Phase.CHECK)
    def check(self, ctx: Restore) -> None:
        holders = {row.file: row.pid for row in ctx.rows(Descriptor)}
        for record in ctx.rows(RegularFile):
            if record.type == "f" and record.shared_object < 0:
                _check(ctx, record, holders.get(record.id, 0))

    def restore(self, record: RegularFile, file: File, ctx: Restore) -> int:
        flags = file.flags & ~_CREATION | os.O_NOCTTY
        if record.shared_object >= 0:
            fd = descriptors.reopen(ctx.held[record.shared_object], flags & ~(os.O_NOFOLLOW | os.O_DIRECTORY))
        else:
            fd = _open_in_task(ctx, record, flags if record.type == "d" else flags & ~os.O_DIRECTORY)
        position = file.position
        if record.entries >= 0:
            position = _with_own(f"/proc/self/fd/{fd}", record.entries, directories.position_after)
        if record.type != "c":
            os.lseek(fd, position, os.SEEK_SET)
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


def _is_transient(file: OpenFile, path: str, ctx: Dump) -> bool:
    return ctx.pod.transient(path) and file.stat.st_size <= _LARGE and file.stat.st_uid == os.getuid()


def _name(file: OpenFile, ctx: Dump) -> tuple[str, bool]:
    """The path of a file, and whether the file is without any name that is known.

    One whose first name is gone is looked for where another one is likely, by its inode.
    """
    names: dict[int, tuple[str, bool]] = ctx.state.setdefault("names of files", {})
    if file.id not in names:
        path = file.link.removesuffix(_GONE)
        if _leads_to(ctx, file.link, file):
            names[file.id] = file.link, False
        elif file.stat.st_nlink and modes.S_ISREG(file.stat.st_mode) and (other := _other_name(ctx, path, file)):
            names[file.id] = other, False
        else:
            names[file.id] = path, True
    return names[file.id]


def _leads_to(ctx: Dump, path: str, file: OpenFile) -> bool:
    try:
        stat = os.stat(ctx.pod.outside(path))
    except OSError:
        return False
    return (stat.st_dev, stat.st_ino, stat.st_rdev) == (file.stat.st_dev, file.stat.st_ino, file.stat.st_rdev)


def _other_name(ctx: Dump, path: str, file: OpenFile) -> str | None:
    if ctx.pod.private(path):
        places = (ctx.pod.shm, ctx.pod.temporary)
        folders = [folder for place in places for folder, _, _ in os.walk(ctx.pod.outside(place))]
    else:
        folders = [ctx.pod.outside(os.path.dirname(path)),
                   ctx.pod.outside(os.readlink(f"/proc/{file.bearer.host}/cwd"))]
    for folder in folders:
        try:
            with os.scandir(folder) as listing:
                for entry in listing:
                    if (entry.inode() == file.stat.st_ino
                            and entry.stat(follow_symlinks=False).st_dev == file.stat.st_dev):
                        return entry.path.removeprefix(ctx.pod.root)
        except OSError:
            continue
    return None


def _with_own(path: str, number: int, work) -> int:  # type: ignore[no-untyped-def]
    """Read a directory through a description of its own."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return int(work(fd, number))
    finally:
        os.close(fd)


def _open_in_task(ctx: Restore, record: RegularFile, flags: int) -> int:
    task = holder(ctx, record.id)
    task.leader.write(task.area.data, os.fsencode(record.path) + b"\0")
    try:
        number = task.call("open", task.area.data, flags & ~os.O_NONBLOCK if record.type == "f" else flags, 0)
    except OSError as error:
        raise FileGone(image=ctx.image, path=record.path, why=f"cannot be opened ({error.strerror})", pid=task.pid,
                       program="a descriptor") from None
    return ctx.take(task, number)


def _check(ctx: Restore, record: RegularFile, pid: int) -> None:
    """Is the file there, and long enough? A file that was only read and has changed is worth a warning."""
    try:
        stat = os.stat(ctx.pod.outside(record.path))
    except OSError as error:
        raise FileGone(image=ctx.image, path=record.path, why=f"cannot be read ({error.strerror})", pid=pid,
                       program="an open file") from None
    if record.writable and stat.st_size < record.size:
        raise FileGone(image=ctx.image, path=record.path, why=f"has {stat.st_size} bytes, it had {record.size}",
                       pid=pid, program="an open file")
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
