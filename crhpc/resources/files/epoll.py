"""Event polls (epoll(7)), nested ones too.

Targets are read from fdinfo. The number that a file was added under may since have been closed or reused:
kcmp(2) tells which file it is. Added again by a remote epoll_ctl(2) once every task has its descriptors.
"""
from __future__ import annotations

import os
import re
import select
import struct
from dataclasses import dataclass, field

from crhpc.image.records import U64
from crhpc.kernel import descriptors, pidfd
from crhpc.resources import Phase, at
from crhpc.resources.context import Dump, OpenFile, Restore, Task
from crhpc.resources.files import Descriptor, File, FileKind

_EPOLL_CTL_ADD = 1
_F_DUPFD_CLOEXEC = 1030


@dataclass(frozen=True, slots=True)
class Epoll:
    """An epoll instance; what it watches stands in epoll_target."""

    id: int


@dataclass(frozen=True, slots=True)
class EpollTarget:
    """One file that an epoll instance watches."""

    epoll: int = field(metadata={"ref": "file.id"})
    fd: int = field(metadata={"doc": "the number that it was added under"})
    file: int = field(metadata={"ref": "file.id"})
    events: int
    data: U64


class EpollKind(FileKind):
    name = "epoll"
    records = (Epoll, EpollTarget)
    saved = "what is watched and how, nested instances, targets whose number was closed or reused"
    refused = "a target that no process of the job holds any more"

    def matches(self, file: OpenFile, ctx: Dump) -> bool:
        return file.link == "anon_inode:[eventpoll]"

    def dump(self, file: OpenFile, ctx: Dump) -> Epoll:
        counts: dict[int, int] = {}
        for line in file.info.all("tfd"):
            number, events, data = re.match(r"(\d+) events:\s*([0-9a-f]+) data:\s*([0-9a-f]+)", line).groups()  # type: ignore[union-attr]
            fd = int(number)
            nth = counts.get(fd, 0)
            counts[fd] = nth + 1
            ctx.add(EpollTarget(file.id, fd, _target(ctx, file, fd, nth), int(events, 16), U64(int(data, 16))))
        return Epoll(file.id)

    def restore(self, record: Epoll, file: File, ctx: Restore) -> int:
        epoll = select.epoll()
        fd = os.dup(epoll.fileno())
        epoll.close()
        return fd

    @at(Phase.WATCH)
    def watch(self, ctx: Restore) -> None:
        holders: dict[int, list[Descriptor]] = {}
        numbers: dict[tuple[int, int], int] = {}
        for row in ctx.rows(Descriptor):
            holders.setdefault(row.file, []).append(row)
            numbers[row.pid, row.fd] = row.file
        for target in ctx.rows(EpollTarget):
            _add(ctx, target, holders, numbers)


def _target(ctx: Dump, epoll: OpenFile, fd: int, nth: int) -> int:
    """The id of the file that was added under ``fd``: as a rule the one that still has that number."""
    def watched(file: OpenFile) -> bool:
        return pidfd.is_epoll_target(file.task.host, epoll.task.host, epoll.fd, fd, nth, file.fd)

    likely = [file for file in ctx.open_files.values() if any(number == fd for _, number in file.holders)]
    for file in [*likely, *ctx.open_files.values()]:
        if watched(file):
            return file.id
    raise ctx.refuse(f"descriptor {epoll.fd}: an epoll target ({fd}) that nobody holds any more", epoll.task,
                     "remove it from the epoll before it is closed")


def _add(ctx: Restore, target: EpollTarget, holders: dict[int, list[Descriptor]],
         numbers: dict[tuple[int, int], int]) -> None:
    """Add in a task that has both under their numbers; else lend the target its number for the moment."""
    owners = holders[target.epoll]
    for row in owners:
        if numbers.get((row.pid, target.fd)) == target.file:
            _control(ctx.tasks[row.pid], row.fd, target.fd, target)
            return
    row = next((row for row in owners if (row.pid, target.fd) not in numbers), owners[0])
    task = ctx.tasks[row.pid]
    occupied = (row.pid, target.fd) in numbers
    spare = -1
    if occupied:
        spare = task.call("fcntl", target.fd, _F_DUPFD_CLOEXEC, 0)
    (lent,) = descriptors.push(ctx.control, task.area, ctx.control_number, [ctx.open_files[target.file]])
    if lent != target.fd:
        task.call("dup3", lent, target.fd, 0)
        task.call("close", lent)
    _control(task, row.fd if row.fd != target.fd else spare, target.fd, target)
    if occupied:
        other = next(r for r in ctx.rows(Descriptor) if (r.pid, r.fd) == (row.pid, target.fd))
        flags = os.O_CLOEXEC if other.close_on_exec else 0
        task.call("dup3", spare, target.fd, flags)
        task.call("close", spare)
    else:
        task.call("close", target.fd)


def _control(task: Task, epoll: int, fd: int, target: EpollTarget) -> None:
    event = task.area.data
    task.leader.write(event, struct.pack("=IQ", target.events, target.data))
    task.call("epoll_ctl", epoll, _EPOLL_CTL_ADD, fd, event)
