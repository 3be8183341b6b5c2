"""Event polls (epoll(7)), nested ones too.

Targets are read from fdinfo. The number that a file was added under may since have been closed or reused:
kcmp(2) tells which file it is. Added again by a remote epoll_ctl(2) once every task has its descriptors. One that
was added for once (EPOLLONESHOT) and has fired is made to fire again, where the file is ready for anything: the
call that adds one always waits for errors and hang-ups too.
"""
from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import stat as modes
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cmp_to_key

from crhpc.image.records import U64
from crhpc.kernel import descriptors, pidfd, proc
from crhpc.kernel.tracee import Batch
from crhpc.resources import Chapter, Phase, at
from crhpc.resources.context import Dump, OpenFile, Restore, Task
from crhpc.resources.files import Descriptor, File, FileKind, copied, holder

_ADD, _MOD = 1, 3
_AT_ONCE = 200
"""Files that are lent to a task at once."""
_PRIVATE = 0xF0000000
"""EPOLLEXCLUSIVE, EPOLLWAKEUP, EPOLLONESHOT, EPOLLET: what is no event (fs/eventpoll.c, EP_PRIVATE_BITS)."""
_ANYTHING = 0x0FFF & ~(select.EPOLLERR | select.EPOLLHUP)
_GET_PARAMETERS, _SET_PARAMETERS = 0x80088A02, 0x40088A01
"""EPIOCGPARAMS, EPIOCSPARAMS of struct epoll_params, 8 bytes (ioctl_eventpoll(2), Linux 6.9)."""
_LINE = re.compile(r"(\d+) events:\s*([0-9a-f]+) data:\s*([0-9a-f]+)(?:.*? ino:([0-9a-f]+))?")


@dataclass(frozen=True, slots=True)
class Epoll:
    """An epoll instance; what it watches stands in epoll_target."""

    id: int
    busy_poll: bytes = field(metadata={"doc": "struct epoll_params; empty where nothing is set"})


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
    chapter = Chapter.EVENTS
    records = (Epoll, EpollTarget)
    saved = ("epoll instances, also nested: what is watched and how, targets whose number was closed or reused, busy "
             "polling")
    refused = (
        ("a target that nobody in the job holds any more", "remove it from the epoll before it is closed"),
    )
    afterwards = ("what is ready is told again, also what had been told by the edge (EPOLLET) before: no edge is "
                  "lost, one may be told twice. An EPOLLONESHOT that has fired may tell of a hang-up if its file was "
                  "ready for nothing at the restart. A signalfd in an instance that several processes share tells of "
                  "the signals of the first of them, whoever had added it: the kernel does not say that")

    def matches(self, file: OpenFile, ctx: Dump) -> bool:
        return file.link == "anon_inode:[eventpoll]"

    def refusal(self, file: OpenFile, ctx: Dump) -> tuple[str, str] | None:
        if "epoll targets" not in ctx.state:
            ctx.state["epoll targets"] = _Search(ctx)
        for target in ctx.state["epoll targets"].targets(file):
            if target.file < 0:
                return (f"an epoll target ({target.fd}) that nobody in the job holds any more",
                        "remove it from the epoll before it is closed")
        return None

    def dump(self, file: OpenFile, ctx: Dump) -> Epoll:
        for target in ctx.state["epoll targets"].targets(file):
            ctx.add(target)
        parameters = b""
        with copied(file) as fd, contextlib.suppress(OSError):   # ENOTTY before Linux 6.9
            parameters = fcntl.ioctl(fd, _GET_PARAMETERS, bytes(8))
        return Epoll(file.id, parameters if any(parameters) else b"")

    def restore(self, record: Epoll, file: File, ctx: Restore) -> int:
        with select.epoll() as epoll:
            fd = os.dup(epoll.fileno())
        if record.busy_poll:
            try:
                fcntl.ioctl(fd, _SET_PARAMETERS, record.busy_poll)
            except OSError as error:   # above 64 packets it takes CAP_NET_ADMIN
                ctx.warn(f"busy polling of an epoll instance cannot be set here ({error.strerror})")
        return fd

    @at(Phase.WATCH)
    def watch(self, ctx: Restore) -> None:
        targets: dict[int, list[EpollTarget]] = {}
        for target in ctx.rows(EpollTarget):
            targets.setdefault(target.epoll, []).append(target)
        adder = _Adder(ctx)
        for number, rows in targets.items():
            adder.add_all(number, [row for row in rows if _has_fired(row)])
            adder.add_all(number, [row for row in rows if not _has_fired(row)])


def _has_fired(target: EpollTarget) -> bool:
    return bool(target.events & select.EPOLLONESHOT) and not target.events & ~_PRIVATE


# -- dump -----------------------------------------------------------------------------------------------
class _Search:
    """Finds out which files the instances watch."""

    def __init__(self, ctx: Dump) -> None:
        self.by_number: dict[int, list[OpenFile]] = {}
        self.by_inode: dict[int, list[OpenFile]] = {}
        self.sorted: set[int] = set()
        self.known: dict[int, list[EpollTarget]] = {}
        for file in ctx.open_files.values():
            self.by_inode.setdefault(file.stat.st_ino, []).append(file)
            for number in {number for _, number in file.holders}:
                self.by_number.setdefault(number, []).append(file)

    def targets(self, epoll: OpenFile) -> list[EpollTarget]:
        """All of one instance; ``file`` is -1 where nobody has it."""
        if epoll.id not in self.known:
            self.known[epoll.id] = list(self._targets(epoll))
        return self.known[epoll.id]

    def _targets(self, epoll: OpenFile) -> Iterator[EpollTarget]:
        counts: dict[int, int] = {}
        for line in epoll.info.all("tfd"):
            match = _LINE.match(line)
            assert match is not None, line
            fd = int(match[1])
            nth = counts.get(fd, 0)
            counts[fd] = nth + 1
            file = self._find(epoll, fd, nth, int(match[4] or "0", 16))   # the inode is told since Linux 4.13
            yield EpollTarget(epoll.id, fd, file, int(match[2], 16), U64(int(match[3], 16)))

    def _find(self, epoll: OpenFile, fd: int, nth: int, inode: int) -> int:
        """As a rule it is the one that still has the number."""
        def order(file: OpenFile) -> int:
            return pidfd.compare_epoll_target(file.task.host, epoll.task.host, epoll.fd, fd, nth, file.fd)

        same = self.by_inode.get(inode, [])
        if len(same) == 1 and modes.S_ISSOCK(same[0].stat.st_mode):   # a socket has one open file; kcmp is slow
            return same[0].id
        for file in self.by_number.get(fd, ()):
            if inode in (0, file.stat.st_ino) and order(file) == 0:
                return file.id
        candidates = self._sorted(inode)
        low, high = 0, len(candidates)
        while low < high:
            middle = (low + high) // 2
            result = order(candidates[middle])
            if result == 0:
                return candidates[middle].id
            low, high = (middle + 1, high) if result == 1 else (low, middle)
        return -1

    def _sorted(self, inode: int) -> list[OpenFile]:
        """The files of an inode (anonymous ones share one) in the order of kcmp(2)."""
        def compare(a: OpenFile, b: OpenFile) -> int:
            return {0: 0, 1: -1, 2: 1}[pidfd.kcmp(a.task.host, b.task.host, pidfd.KCMP_FILE, a.fd, b.fd)]

        if inode not in self.sorted:
            self.sorted.add(inode)
            found = self.by_inode.get(inode, []) if inode else [f for files in self.by_inode.values() for f in files]
            self.by_inode[inode] = sorted(found, key=cmp_to_key(compare))
        return self.by_inode[inode]


# -- restore --------------------------------------------------------------------------------------------
class _Adder:
    """Adds targets where an instance and the target have their numbers; else lends a task what it lacks."""

    def __init__(self, ctx: Restore) -> None:
        self.ctx = ctx
        self.rows = {(row.pid, row.fd): row for row in ctx.rows(Descriptor)}
        self.owners: dict[int, list[Descriptor]] = {}
        for row in ctx.rows(Descriptor):
            self.owners.setdefault(row.file, []).append(row)

    def add_all(self, number: int, targets: list[EpollTarget]) -> None:
        by_owner: dict[tuple[int, int], list[EpollTarget]] = {}
        by_borrower: dict[int, list[EpollTarget]] = {}
        for target in targets:
            owner = next((row for row in self.owners.get(number, ()) if self._has(row.pid, target)), None)
            if owner is None:
                by_borrower.setdefault(self._borrower(target).pid, []).append(target)
            else:
                by_owner.setdefault((owner.pid, owner.fd), []).append(target)
        for (pid, fd), ours in by_owner.items():
            with self.ctx.tasks[pid].area.batch() as batch:
                for target in ours:
                    _control(batch, _ADD, fd, target)
        for pid, ours in by_borrower.items():
            self._lend(self.ctx.tasks[pid], ours)
        fired = [target for target in targets if _has_fired(target)]
        if fired:
            self._fire(number, fired)

    def _has(self, pid: int, target: EpollTarget) -> bool:
        row = self.rows.get((pid, target.fd))
        return row is not None and row.file == target.file

    def _borrower(self, target: EpollTarget) -> Task:
        """A task that has the instance, if there is one, and better one in which the number is free."""
        owners = self.owners.get(target.epoll, [])
        row = next((row for row in owners if (row.pid, target.fd) not in self.rows), owners[0] if owners else None)
        return self.ctx.tasks[row.pid] if row is not None else holder(self.ctx, target.epoll)

    def _lend(self, task: Task, targets: list[EpollTarget], operation: int = _ADD) -> None:
        """Give a task the targets of an instance, and that itself, under their numbers for the moment."""
        for start in range(0, len(targets), _AT_ONCE):
            part = targets[start:start + _AT_ONCE]
            left = self._lend_some(task, part, operation, instance_first=False)
            for target in left:   # another one was put at its number
                if self._lend_some(task, [target], operation, instance_first=False):
                    self._lend_some(task, [target], operation, instance_first=True)

    def _lend_some(self, task: Task, targets: list[EpollTarget], operation: int, *,
                   instance_first: bool) -> list[EpollTarget]:
        """Those come back whose number something else got that was lent."""
        files = [target.file for target in targets]
        files = [targets[0].epoll, *files] if instance_first else [*files, targets[0].epoll]
        numbers = descriptors.push(self.ctx.control, task.area, self.ctx.control_number,
                                   [self.ctx.open_files[number] for number in files])
        epoll, lent = (numbers[0], numbers[1:]) if instance_first else (numbers[-1], numbers[:-1])
        spare = next(n for n in range(1 << 30) if (task.pid, n) not in self.rows and n not in numbers
                     and n != self.ctx.control_number)
        left = []
        with task.area.batch() as batch:
            for target, number in zip(targets, lent, strict=True):
                if number != target.fd and target.fd in numbers:
                    left.append(target)
                    continue
                occupied = self.rows.get((task.pid, target.fd))
                if occupied:
                    batch.call("dup3", target.fd, spare, 0)
                if number != target.fd:
                    batch.call("dup3", number, target.fd, 0)
                _control(batch, operation, epoll, target)
                if occupied:
                    batch.call("dup3", spare, target.fd, os.O_CLOEXEC if occupied.close_on_exec else 0)
                    batch.call("close", spare)
                elif number != target.fd:
                    batch.call("close", target.fd)
            for number in numbers:
                batch.call("close", number)
        return left

    def _fire(self, number: int, fired: list[EpollTarget]) -> None:
        """Let those that are ready for anything fire, when nothing else is watched yet."""
        own = self.ctx.open_files[number]
        with select.epoll.fromfd(os.dup(own)) as epoll:
            while epoll.poll(0, len(fired)):
                pass
        info = proc.fdinfo(os.getpid(), own)
        armed = {(match[1], match[3]) for match in map(_LINE.match, info.all("tfd"))
                 if match is not None and int(match[2], 16) & ~_PRIVATE}
        for target in fired:
            if (f"{target.fd}", f"{target.data:x}") in armed:
                self._lend(self._borrower(target), [target], _MOD)


def _control(batch: Batch, operation: int, epoll: int, target: EpollTarget) -> None:
    events = target.events | (_ANYTHING if _has_fired(target) and operation == _ADD else 0)
    batch.call("epoll_ctl", epoll, operation, target.fd, batch.put(struct.pack("=IQ", events, target.data)))
