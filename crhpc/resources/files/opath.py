"""Descriptors that are only a place in the file tree (open(2), O_PATH), whatever is at that place.

Opened again by path, by a task that had it open, when all that is made anew has its name. The place must
have a name still.
"""
from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field

from crhpc.errors import FileGone
from crhpc.resources import Chapter, Phase, at
from crhpc.resources.context import Dump, OpenFile, Restore
from crhpc.resources.files import O_PATH, File, FileKind, holder


@dataclass(frozen=True, slots=True)
class Place:
    """A file, directory, link, socket or fifo that was opened with O_PATH."""

    id: int
    path: str = field(metadata={"path": True})


class PlaceKind(FileKind):
    name = "place"
    chapter = Chapter.FILES
    priority = 50
    records = (Place,)
    saved = "descriptors opened with O_PATH, of anything that has a name"
    refused = (
        ("an O_PATH descriptor of something that has no name any more", "keep it as long as it is open"),
    )
    afterwards = "a restart is refused where the path leads nowhere"

    def matches(self, file: OpenFile, ctx: Dump) -> bool:
        return bool(file.info.flags & O_PATH)

    def refusal(self, file: OpenFile, ctx: Dump) -> tuple[str, str] | None:
        try:
            stat = os.lstat(ctx.pod.outside(file.link)) if file.link.startswith("/") else None
        except OSError:
            stat = None
        if stat is None or (stat.st_dev, stat.st_ino) != (file.stat.st_dev, file.stat.st_ino):
            return f"{file.link}, opened with O_PATH", "keep it as long as it is open"
        return None

    def dump(self, file: OpenFile, ctx: Dump) -> Place:
        return Place(file.id, file.link)

    @at(Phase.CHECK)
    def check(self, ctx: Restore) -> None:
        """What may be made again by the restart itself, as sockets are, needs its directory only."""
        for record in ctx.rows(Place):
            folder = os.path.dirname(record.path)
            if not ctx.pod.private(record.path) and not folder.startswith("/proc") and not os.path.isdir(
                    ctx.pod.outside(folder)):
                ctx.problems.append(FileGone(image=ctx.image, path=record.path, why="cannot be found", pid=0,
                                             program="a descriptor"))

    def restore(self, record: Place, file: File, ctx: Restore) -> int:
        return -1   # opened in open_all(): it may be a socket of the job's

    @at(Phase.CONNECT)
    def open_all(self, ctx: Restore) -> None:
        flags = {file.id: file.flags for file in ctx.rows(File) if file.kind == self.name}
        for record in ctx.rows(Place):
            ctx.hold_file(record.id, _open(ctx, record, flags[record.id]))


def _open(ctx: Restore, record: Place, flags: int) -> int:
    task = holder(ctx, record.id)
    task.leader.write(task.area.data, os.fsencode(record.path) + b"\0")
    try:
        if not flags & os.O_NOFOLLOW and os.path.islink(ctx.pod.outside(record.path)):
            raise OSError(errno.ELOOP, "it is a symbolic link by now", record.path)
        number = task.call("open", task.area.data, flags, 0)
    except OSError as error:
        raise FileGone(image=ctx.image, path=record.path, why=f"cannot be opened ({error.strerror})", pid=task.pid,
                       program="a descriptor") from None
    return ctx.take(task, number)
