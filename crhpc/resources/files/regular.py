"""Regular files, directories, and the devices that have no state; files of the kernel's own (/proc, /sys).

Opened again by path, by a task that had it open; userfiles.py minds what is in files of the user's. A file whose
contents belong to the job alone (no name any more, or in the pod's private directories) comes from the image, see
objects.py. A place in a listing is kept as the number of entries passed where the directory is made anew or has
moved. A file of /proc shows after a restart what is so by then.
"""
from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat as modes
import struct
from dataclasses import dataclass, field

from crhpc.errors import FileGone
from crhpc.kernel import descriptors, directories
from crhpc.resources import Chapter, Phase, at
from crhpc.resources.context import Dump, OpenFile, Restore
from crhpc.resources.files import Descriptor, File, FileKind, copied, holder

_CREATION = os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_NOCTTY | os.O_TMPFILE & ~os.O_DIRECTORY
_DEVICES = {(1, 3): "null", (1, 5): "zero", (1, 7): "full", (1, 8): "random", (1, 9): "urandom"}
_KMSG = (1, 11)
_GONE = " (deleted)"
_F_GETOWN_EX, _F_GET_RW_HINT, _F_SET_RW_HINT = 16, 1035, 1036
_REFUSED = {
    directories.HUGETLBFS: "a file of huge pages",
    directories.SECRETMEM: "secret memory (memfd_secret)", directories.DMA_BUF: "a buffer of a device",
    directories.BPF: "a BPF object", directories.SYSFS: "a file of /sys that is open for writing",
    directories.DEBUGFS: "a file of debugfs", directories.TRACEFS: "a file of tracefs",
}
_KERNELS = {directories.PROC, directories.SYSFS, directories.CGROUP, directories.CGROUP2}
_OF_PROCESS = re.compile(r"/proc/\d+(/|$)", re.ASCII)


@dataclass(frozen=True, slots=True)
class RegularFile:
    """A file, directory or device that was opened by its path."""

    id: int
    path: str = field(metadata={"path": True})
    type: str = field(metadata={"doc": "f file, d directory, c device, k file or directory of the kernel's own"})
    device: int = field(metadata={"doc": "number of a device; else 0"})
    shared_object: int = field(metadata={"ref": "shared_file.id", "doc": "-1: opened by its path"})
    entries: int = field(metadata={"doc": "of a directory: entries before the position; else -1"})
    hint: int = field(metadata={"doc": "how long what is written is expected to live (F_GET_RW_HINT)"})


class RegularKind(FileKind):
    name = "regular"
    chapter = Chapter.FILES
    records = (RegularFile,)
    saved = ("files, directories and the devices null, zero, full, random, urandom and (for writing) kmsg: path, "
             "offset, flags, write hints; a place in a listing of a directory; files in `/dev/shm` and `$TMPDIR`, "
             "memfds and files whose name is gone with their contents; files of `/proc`, `/sys` and cgroups, which "
             "tell what is so after the restart")
    refused = (
        ("huge pages (hugetlbfs), secret memory, a buffer of a device, a BPF object; files of debugfs and tracefs; "
         "files of `/sys` that are open for writing", "close it, or turn off what opens it"),
        ("a directory that is watched with F_NOTIFY (dnotify)", "watch it with inotify"),
        ("a file of `/proc` of a process that has ended", "close it"),
        ("a directory or device that has been removed", "keep it as long as it is open"),
        ("a file whose name is gone while it has another one in a place that nobody knows",
         "keep the name under which it was opened"),
    )
    afterwards = ("an entry of a listing that was read before the checkpoint may come again where the directory has "
                  "changed since. A restart is refused where a path leads nowhere or to something of another sort; a "
                  "missing file is made again where its contents are in the image, see [userfiles](#userfiles)")

    def matches(self, file: OpenFile, ctx: Dump) -> bool:
        mode = file.stat.st_mode
        return file.link.startswith("/") and (modes.S_ISREG(mode) or modes.S_ISDIR(mode)
                                              or (modes.S_ISCHR(mode) and _is_simple(file)))

    def refusal(self, file: OpenFile, ctx: Dump) -> tuple[str, str] | None:
        number = _file_system(file, ctx)
        if number in _REFUSED and (number != directories.SYSFS or file.info.flags & os.O_ACCMODE):
            return f"{_REFUSED[number]} ({file.link})", "close it, or turn off what opens it"
        if modes.S_ISDIR(file.stat.st_mode) and _has_owner(file):
            return f"{file.link}, a directory that is watched with F_NOTIFY (dnotify)", "watch it with inotify"
        if file.link.startswith("/memfd:") or not _name(file, ctx)[1]:
            return None
        if number in _KERNELS:
            return f"{file.link}, of what has ended", "close it"
        if not modes.S_ISREG(file.stat.st_mode):
            return f"{file.link}", "keep it as long as it is open"
        gone = file.stat.st_nlink == 0
        return None if gone else (f"{file.link}, which has another name somewhere", "keep the name under which it was "
                                                                                    "opened")

    def dump(self, file: OpenFile, ctx: Dump) -> RegularFile:
        mode, number, entries, hint = file.stat.st_mode, -1, -1, 0
        path, deleted = _name(file, ctx)
        kernels = _file_system(file, ctx) in _KERNELS
        kind = "k" if kernels else "d" if modes.S_ISDIR(mode) else "c" if modes.S_ISCHR(mode) else "f"
        if kind == "f":
            shared = ctx.object(file.stat.st_dev, file.stat.st_ino, path, deleted=deleted)
            shared.files.append(file)
            number = shared.id if deleted or ctx.pod.private(path) else -1
            hint = _hint(file) if file.info.flags & os.O_ACCMODE else 0
        if kind == "d" and file.info.position:
            entries = _with_own(f"/proc/{file.task.host}/fd/{file.fd}", file.info.position, directories.entries_before)
        device = file.stat.st_rdev if kind == "c" else 0
        return RegularFile(file.id, path, kind, device, number, entries, hint)

    @at(Phase.CHECK)
    def check(self, ctx: Restore) -> None:
        """Files are looked at by userfiles.py."""
        holders = {row.file: row.pid for row in ctx.rows(Descriptor)}
        for record in ctx.rows(RegularFile):
            problem = _problem(ctx, record)
            if problem:
                ctx.problems.append(FileGone(image=ctx.image, path=record.path, why=problem,
                                             pid=holders.get(record.id, 0), program="a descriptor"))

    def restore(self, record: RegularFile, file: File, ctx: Restore) -> int:
        flags = file.flags & ~_CREATION | os.O_NOCTTY
        if record.shared_object >= 0:
            fd = descriptors.reopen(ctx.held[record.shared_object], flags & ~(os.O_NOFOLLOW | os.O_DIRECTORY))
        else:
            fd = _open_in_task(ctx, record, flags & ~os.O_DIRECTORY if record.type in "fc" else flags)
        position = file.position
        if record.entries >= 0 and (ctx.pod.private(record.path) or record.path != file.link):
            position = _with_own(f"/proc/self/fd/{fd}", record.entries, directories.position_after)
        if record.type != "c" and position:
            os.lseek(fd, position, os.SEEK_SET)
        if record.hint:
            with contextlib.suppress(OSError):   # another file system, perhaps, and it is only a hint
                fcntl.fcntl(fd, _F_SET_RW_HINT, struct.pack("Q", record.hint))
        return fd


def _is_simple(file: OpenFile) -> bool:
    """A device without a state, or one that is only written to."""
    number = os.major(file.stat.st_rdev), os.minor(file.stat.st_rdev)
    return number in _DEVICES or (number == _KMSG and file.info.flags & os.O_ACCMODE == os.O_WRONLY)


def _file_system(file: OpenFile, ctx: Dump) -> int:
    known: dict[int, int] = ctx.state.setdefault("file systems", {})
    if file.stat.st_dev not in known:
        known[file.stat.st_dev] = directories.file_system(f"/proc/{file.task.host}/fd/{file.fd}")
    return known[file.stat.st_dev]


def _has_owner(file: OpenFile) -> bool:
    """F_NOTIFY makes its caller the owner; nothing else has a use for one of a directory (fs/notify/dnotify)."""
    with copied(file) as fd:
        return any(fcntl.fcntl(fd, _F_GETOWN_EX, bytes(8))[4:])


def _hint(file: OpenFile) -> int:
    with copied(file) as fd, contextlib.suppress(OSError):
        return int(struct.unpack("Q", fcntl.fcntl(fd, _F_GET_RW_HINT, bytes(8)))[0])
    return 0


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
        stat = ctx.pod.stat(path)
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


def _problem(ctx: Restore, record: RegularFile) -> str:
    """What is wrong with the place that a directory, a device or a file of the kernel's had; empty: nothing."""
    if record.type == "f" or ctx.pod.private(record.path) or (
            record.type == "k" and _OF_PROCESS.match(record.path)):
        return ""
    try:
        stat = ctx.pod.stat(record.path)
    except OSError as error:
        return f"cannot be found ({error.strerror})"
    if record.type == "d" and not modes.S_ISDIR(stat.st_mode):
        return "is no directory any more"
    if record.type == "c" and (not modes.S_ISCHR(stat.st_mode) or stat.st_rdev != record.device):
        return "is another device, or none"
    return ""
