"""The pod's private directories: its /dev/shm, and the job's directory for temporary files.

MPI libraries keep state there (segments, session directories, rendezvous files), open or not, so the trees
are saved whole, whatever modes they have, and rebuilt as they were, the order of each listing too where the
file system keeps one. Modes and times come late: until then all is open to the agent. Sockets are made again by
whoever is bound to them; those that nobody is bound to any more are left over, and come back as that.
"""
from __future__ import annotations

import contextlib
import os
import stat as modes
from collections.abc import Iterator
from dataclasses import dataclass, field

from crhpc.errors import FileGone
from crhpc.kernel import directories
from crhpc.resources import Chapter, Cut, Kind, Phase, at
from crhpc.resources.context import Dump, Restore


@dataclass(frozen=True, slots=True)
class PrivateFile:
    """An entry of a private directory; rows are in the order in which the entries are made again."""

    path: str = field(metadata={"path": True})
    type: str = field(metadata={"doc": "d directory, f file, l symbolic link, p fifo, s socket, c or b device"})
    device: int = field(metadata={"doc": "number of a device; else 0"})
    mode: int
    uid: int
    gid: int
    target: str = field(metadata={"doc": "of a symbolic link"})
    size: int
    mtime: int = field(metadata={"doc": "nanoseconds"})
    shared_object: int = field(metadata={"ref": "shared_file.id", "doc": "the contents; -1: no regular file"})


class PlacesKind(Kind):
    name = "places"
    chapter = Chapter.FILES
    records = (PrivateFile,)
    saved = ("all that is in the pod's `/dev/shm` and in the job's `$TMPDIR`, open or not: directories, files, "
             "links, hard links, fifos, sockets and devices, with modes, owners, times of modification and the order "
             "of listings")
    afterwards = "extended attributes and access control lists are lost"

    @at(Cut.COLLECT)
    def dump(self, ctx: Dump) -> None:
        for place in (ctx.pod.shm, ctx.pod.temporary):
            for path in _walk(ctx, ctx.pod.outside(place)):
                ctx.add(_entry(ctx, path.removeprefix(ctx.pod.root)))

    @at(Phase.POD)
    def restore(self, ctx: Restore) -> None:
        for place in (ctx.pod.shm, ctx.pod.temporary):
            directories.clear(ctx.pod.outside(place))
        made: dict[int, str] = {}
        for row in ctx.rows(PrivateFile):
            _make(ctx, row, made)

    @at(Phase.STATE)
    def set_modes(self, ctx: Restore) -> None:
        """What a directory holds before the directory, which may then be closed."""
        for row in reversed(ctx.rows(PrivateFile)):
            path = ctx.pod.outside(row.path)
            if row.type == "s" and not os.path.lexists(path):   # nobody has bound it by now
                os.mknod(path, modes.S_IFSOCK | 0o600)
            with contextlib.suppress(PermissionError):
                os.chown(path, row.uid, row.gid, follow_symlinks=False)
            if row.type != "l":
                os.chmod(path, row.mode)
            if row.type != "f":   # whose time came with its contents
                os.utime(path, ns=(row.mtime, row.mtime), follow_symlinks=False)


def _walk(ctx: Dump, top: str) -> Iterator[str]:
    """The entries below a directory, each directory before what it holds; links are not followed.

    A listing of tmpfs shows the youngest first, so its end comes first here and is made first.
    """
    folders = [top]
    while folders:
        folder = folders.pop()
        mode = modes.S_IMODE(os.stat(folder).st_mode)
        if mode & 0o500 != 0o500 and os.geteuid() != 0:
            os.chmod(folder, mode | 0o700)
            ctx.closing.callback(os.chmod, folder, mode)
        with os.scandir(folder) as listing:
            entries = list(listing)
        for entry in reversed(entries):
            yield entry.path
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)


_TYPES = {modes.S_IFDIR: "d", modes.S_IFREG: "f", modes.S_IFLNK: "l", modes.S_IFIFO: "p", modes.S_IFSOCK: "s",
          modes.S_IFCHR: "c", modes.S_IFBLK: "b"}


def _entry(ctx: Dump, path: str) -> PrivateFile:
    outside = ctx.pod.outside(path)
    stat = os.lstat(outside)
    kind = _TYPES[modes.S_IFMT(stat.st_mode)]
    target = os.readlink(outside) if kind == "l" else ""
    number = ctx.object(stat.st_dev, stat.st_ino, path, deleted=False).id if kind == "f" else -1
    return PrivateFile(path, kind, stat.st_rdev, modes.S_IMODE(stat.st_mode), stat.st_uid, stat.st_gid, target,
                       stat.st_size, stat.st_mtime_ns, number)


def _make(ctx: Restore, row: PrivateFile, made: dict[int, str]) -> None:
    if not ctx.pod.private(os.path.normpath(row.path)) or os.path.normpath(row.path) != row.path:
        raise FileGone(image=ctx.image, path=row.path, why="is not a private path", pid=0, program="the image")
    path = ctx.pod.outside(row.path)
    if row.type == "l":
        os.symlink(row.target, path)
    elif row.type == "d":
        os.mkdir(path, 0o700)
    elif row.type == "p":
        os.mkfifo(path, 0o600)
    elif row.type in ("c", "b"):
        os.mknod(path, (modes.S_IFCHR if row.type == "c" else modes.S_IFBLK) | 0o600, row.device)
    elif row.type == "s":
        return
    elif row.shared_object in made:
        os.link(made[row.shared_object], path)
    else:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        made[row.shared_object] = path
