"""The pod's private directories: its /dev/shm, and the job's directory for temporary files.

MPI libraries keep state there (segments, session directories, rendezvous files), open or not, so the trees
are saved whole and rebuilt as they were. Large files of the temporary directory stay where they are on
disk and are cut back to the length they had. Sockets are made again by whoever binds them.
"""
from __future__ import annotations

import contextlib
import os
import shutil
import stat as modes
from collections.abc import Iterator
from dataclasses import dataclass, field

from crhpc.errors import FileGone
from crhpc.resources import Cut, Kind, Phase, at
from crhpc.resources.context import Dump, Restore

LARGE = 64 << 20
"""Bytes from which on a file of the temporary directory is left on disk."""


@dataclass(frozen=True, slots=True)
class PrivateFile:
    """An entry of a private directory."""

    path: str
    type: str = field(metadata={"doc": "d directory, f file, l symbolic link, p fifo"})
    mode: int
    uid: int
    gid: int
    target: str = field(metadata={"doc": "of a symbolic link"})
    size: int
    shared_object: int = field(metadata={"ref": "shared_file.id", "doc": "-1: the contents are not in the image"})


class PlacesKind(Kind):
    name = "places"
    records = (PrivateFile,)
    saved = "the trees of the pod's /dev/shm and of the job's $TMPDIR: directories, files, links, fifos"
    refused = ""

    @at(Cut.COLLECT)
    def dump(self, ctx: Dump) -> None:
        for place in (ctx.pod.shm, ctx.pod.temporary):
            for path in _walk(ctx.pod.outside(place)):
                row = _entry(ctx, path.removeprefix(ctx.pod.root))
                if row is not None:
                    ctx.add(row)

    @at(Phase.POD)
    def restore(self, ctx: Restore) -> None:
        rows = ctx.rows(PrivateFile)
        stays = {row.path for row in rows if row.type == "f" and row.shared_object < 0}
        for place in (ctx.pod.shm, ctx.pod.temporary):
            _clear(ctx.pod.outside(place), {ctx.pod.outside(path) for path in stays})
        made: dict[int, str] = {}
        for row in rows:
            _make(ctx, row, made)


def _walk(top: str) -> Iterator[str]:
    """The entries below a directory, each directory before what it holds; links are not followed."""
    for folder, directories, files in os.walk(top):
        directories.sort()
        for name in [*directories, *sorted(files)]:
            yield os.path.join(folder, name)


def _entry(ctx: Dump, path: str) -> PrivateFile | None:
    outside = ctx.pod.outside(path)
    try:
        stat = os.lstat(outside)
    except FileNotFoundError:
        return None
    target, number, kind = "", -1, ""
    if modes.S_ISDIR(stat.st_mode):
        kind = "d"
    elif modes.S_ISLNK(stat.st_mode):
        kind, target = "l", os.readlink(outside)
    elif modes.S_ISFIFO(stat.st_mode):
        kind = "p"
    elif modes.S_ISREG(stat.st_mode):
        kind = "f"
        if stat.st_size < LARGE or path.startswith(ctx.pod.shm + "/") or (stat.st_dev, stat.st_ino) in ctx.objects:
            number = ctx.object(stat.st_dev, stat.st_ino, path, deleted=False).id
    if not kind:
        return None
    return PrivateFile(path, kind, modes.S_IMODE(stat.st_mode), stat.st_uid, stat.st_gid, target, stat.st_size, number)


def _clear(top: str, keep: set[str]) -> None:
    """Empty a directory, but for the files that stay and the directories that they lie in."""
    for folder, directories, files in os.walk(top, topdown=False):
        for name in files:
            path = os.path.join(folder, name)
            if path not in keep:
                os.unlink(path)
        for name in directories:
            path = os.path.join(folder, name)
            if os.path.islink(path):
                os.unlink(path)
            elif not any(kept.startswith(path + "/") for kept in keep):
                shutil.rmtree(path, ignore_errors=True)


def _make(ctx: Restore, row: PrivateFile, made: dict[int, str]) -> None:
    if not ctx.pod.private(os.path.normpath(row.path)) or os.path.normpath(row.path) != row.path:
        raise FileGone(image=ctx.image, path=row.path, why="is not a private path", pid=0, program="the image")
    path = ctx.pod.outside(row.path)
    if row.type == "l":
        os.symlink(row.target, path)
        return
    if row.type == "d":
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)
    elif row.type == "p":
        os.mkfifo(path)
    elif row.shared_object < 0:
        _cut_back(ctx, row, path)
    elif row.shared_object in made:
        os.link(made[row.shared_object], path)
        return
    else:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        made[row.shared_object] = path
    os.chmod(path, row.mode)
    with contextlib.suppress(PermissionError):
        os.chown(path, row.uid, row.gid)


def _cut_back(ctx: Restore, row: PrivateFile, path: str) -> None:
    try:
        if os.path.getsize(path) < row.size:
            raise FileGone(image=ctx.image, path=row.path, why="is shorter than it was", pid=0, program="the job's $TMPDIR")
        os.truncate(path, row.size)
    except FileNotFoundError:
        raise FileGone(image=ctx.image, path=row.path, why="is gone", pid=0, program="the job's $TMPDIR") from None
