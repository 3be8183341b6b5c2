"""System V semaphores with their ids, and what is undone of them when a process ends (semop(2), SEM_UNDO).

Values are read by the pod's first process. Adjustments no call tells. But one that would leave their range
(-32768 to 32767) is an error, and a semop(2) is done whole or not at all: a process is made to do operations that
cancel each other out and have its adjustment touch the end of the range on the way. Where that ends without an error
for all that lies within, the distance is known, and nothing has changed but who was last. It is only asked of those
who have a list of adjustments at all (kcmp(2)), about semaphores that somebody has used.

Who waits has left its call when it was stopped: nobody can be woken by this.
"""
from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations

from crhpc.kernel import pidfd
from crhpc.resources import Chapter, Cut, Kind, Phase, at
from crhpc.resources.context import Dump, Restore, Task
from crhpc.resources.inside import (
    IPC_CREAT,
    IPC_EXCL,
    IPC_NOWAIT,
    IPC_PERM,
    IPC_STAT,
    Room,
    call_inside,
    calls_inside,
    create_inside,
    numbers_inside,
)

_GETPID, _GETALL, _SETVAL = 11, 13, 16
_SEM_UNDO = 0x1000
_LEAST, _MOST = -32768, 32767
"""Of an adjustment; the same number is the most of a value and of one operation."""
_TOGETHER = 20
"""Semaphores that one call asks about: it may have 500 operations (kernel.sem)."""
_SEMID_DS = struct.Struct(f"{IPC_PERM.size}x4qQ16x")
"""struct semid64_ds behind the permissions: two times, each with a spare word, and how many."""

Operation = tuple[int, int]
"""What is added, and flags."""


@dataclass(frozen=True, slots=True)
class SysvSemaphores:
    """A set of semaphores of the pod."""

    id: int
    key: int
    mode: int
    uid: int
    gid: int
    values: tuple[int, ...]
    last: tuple[int, ...] = field(metadata={"doc": "of each the process that changed it last; 0: nobody"})
    used: bool = field(metadata={"doc": "whether there has been a semop(2), as sem_otime shows"})


@dataclass(frozen=True, slots=True)
class SemaphoreAdjustment:
    """What is added to a semaphore when a process ends (SEM_UNDO)."""

    pid: int
    set: int = field(metadata={"ref": "sysv_semaphores.id"})
    number: int = field(metadata={"doc": "of the semaphore in its set"})
    added: int


class SysvSemaphoresKind(Kind):
    name = "sysvsem"
    chapter = Chapter.IPC
    records = (SysvSemaphores, SemaphoreAdjustment)
    saved = ("System V semaphores under their ids, with keys, owners, modes, values, who changed them last, and what "
             "is undone when a process ends (SEM_UNDO); calls that wait for one")
    refused = (
        ("adjustments of semaphores (SEM_UNDO) that processes share, or that a thread has of its own",
         "make processes and threads with fork and pthread_create"),
    )
    afterwards = ("times are those of the restart. Where the last to change one has ended, another process is told "
                  "instead (GETPID), and so it may be after a checkpoint. Of several that wait for the same semaphore "
                  "another one may get it")

    @at(Cut.INSPECT)
    def inspect(self, ctx: Dump) -> None:
        ctx.state["semaphores"] = numbers_inside(ctx.init, "sem")
        if not ctx.state["semaphores"]:
            return
        adjusting = ctx.state["processes with adjustments"] = [
            task for task in ctx.tasks if not _same_adjustments(task.host, ctx.pod.init)]
        apart = [task for task in ctx.tasks
                 if any(not _same_adjustments(task.host, thread.tid) for thread in task.threads.values())]
        shared = [a for a, b in combinations(adjusting, 2) if _same_adjustments(a.host, b.host)]
        for task in (*apart, *shared):
            raise ctx.refuse("adjustments of semaphores that are not one process's", task,
                             "make processes and threads with fork and pthread_create")

    @at(Cut.COLLECT)
    def dump(self, ctx: Dump) -> None:
        for number in ctx.state["semaphores"]:
            row = _read(ctx, number)
            ctx.add(row)
            if row.used:   # else nobody can have an adjustment
                for task in ctx.state["processes with adjustments"]:
                    for i, added in _adjustments(task, row):
                        ctx.add(SemaphoreAdjustment(task.pid, number, i, added))
                now = _last(ctx, number, len(row.values))
                for i in (i for i, pid in enumerate(row.last) if pid != now[i]):
                    if task_of := ctx.task(row.last[i]):
                        _operate(task_of, number, [(i, operation) for operation in _touch(row.values[i])])

    @at(Phase.OBJECTS)
    def create(self, ctx: Restore) -> None:
        for row in ctx.rows(SysvSemaphores):
            create = "semget", (row.key, len(row.values), IPC_CREAT | IPC_EXCL | row.mode)
            create_inside(ctx.init, "sem", row.id, create, (row.uid, row.gid))

    @at(Phase.OPEN)
    def set_values(self, ctx: Restore) -> None:
        """When all processes are there, each does what it was the last to do."""
        adjustments = ctx.rows(SemaphoreAdjustment)
        for row in ctx.rows(SysvSemaphores):
            for i, (value, pid) in enumerate(zip(row.values, row.last, strict=True)):
                if pid in ctx.tasks:
                    ctx.tasks[pid].call("semctl", row.id, i, _SETVAL, value)
                elif value:
                    call_inside(ctx.init, "semctl", row.id, i, _SETVAL, value)
            adjusted = [adjustment for adjustment in adjustments if adjustment.set == row.id]
            for adjustment in adjusted:
                operations = _around(row.values[adjustment.number], _shift(adjustment.added))
                task = ctx.tasks[adjustment.pid]
                _operate(task, row.id, [(adjustment.number, operation) for operation in operations])
            used = [i for i, pid in enumerate(row.last) if pid][:1] if row.used else []
            for i in {*used, *(adjustment.number for adjustment in adjusted)}:
                operations = _touch(row.values[i])
                if row.last[i] in ctx.tasks:
                    _operate(ctx.tasks[row.last[i]], row.id, [(i, operation) for operation in operations])
                elif not adjusted:
                    packed = _packed([(i, operation) for operation in operations])
                    call_inside(ctx.init, "semop", row.id, packed, len(operations))


# -- dump -----------------------------------------------------------------------------------------------
def _same_adjustments(host: int, other: int) -> bool:
    """Whether two threads have the same list; none at all is the same, too, and the pod's first process has none."""
    return pidfd.kcmp(host, other, pidfd.KCMP_SYSVSEM) == 0


def _read(ctx: Dump, number: int) -> SysvSemaphores:
    _, (raw,) = call_inside(ctx.init, "semctl", number, 0, IPC_STAT, Room(_SEMID_DS.size))
    key, uid, gid, _cuid, _cgid, mode = IPC_PERM.unpack_from(raw)
    used, _, _changed, _, count = _SEMID_DS.unpack(raw)
    _, (values,) = call_inside(ctx.init, "semctl", number, 0, _GETALL, Room(2 * count))
    return SysvSemaphores(number, key, mode & 0o777, uid, gid, struct.unpack(f"{count}H", values),
                          _last(ctx, number, count), used != 0)


def _last(ctx: Dump, number: int, count: int) -> tuple[int, ...]:
    return tuple(pid for pid, _ in calls_inside(ctx.init, (("semctl", (number, i, _GETPID, 0)) for i in range(count))))


def _adjustments(task: Task, row: SysvSemaphores) -> Iterator[tuple[int, int]]:
    """A process's adjustments that are not 0, with the numbers of their semaphores."""
    candidates = [i for i, pid in enumerate(row.last) if pid]
    for start in range(0, len(candidates), _TOGETHER):
        part = candidates[start:start + _TOGETHER]
        within = [(i, operation) for i in part for operation in _around(row.values[i], [*_there_and_back(_MOST),
                                                                                        *_there_and_back(_LEAST)])]
        if _operate(task, row.id, within):
            continue
        for i in part:
            if added := _adjustment(task, row, i):
                yield i, added


def _adjustment(task: Task, row: SysvSemaphores, number: int) -> int:
    def fits(change: int) -> bool:
        operations = _around(row.values[number], _there_and_back(change))
        return _operate(task, row.id, [(number, operation) for operation in operations])

    for end in (_MOST, _LEAST):
        if not fits(end):
            most, too_much = 0, abs(end)   # how far it can be moved to this end
            while too_much - most > 1:
                middle = (most + too_much) // 2
                most, too_much = (middle, too_much) if fits(middle if end > 0 else -middle) else (most, middle)
            return end - most if end > 0 else end + most
    return 0


# -- operations -----------------------------------------------------------------------------------------
def _shift(change: int) -> list[Operation]:
    """What changes an adjustment and nothing else, from the value 0 on; an adjustment is what undoes an operation."""
    operations: list[Operation] = []
    while change:
        step = max(min(change, _MOST), -_MOST)
        change -= step
        operations += [(step, 0), (-step, _SEM_UNDO)] if step > 0 else [(-step, _SEM_UNDO), (step, 0)]
    return operations


def _there_and_back(change: int) -> list[Operation]:
    return [*_shift(change), *_shift(-change)]


def _around(value: int, operations: list[Operation]) -> list[Operation]:
    """Operations at the value 0, which is there for no one to see."""
    return [(-value, 0), *operations, (value, 0)] if value else operations


def _touch(value: int) -> list[Operation]:
    """What changes nothing but who was last."""
    return [(1, 0), (-1, 0)] if value < _MOST else [(-1, 0), (1, 0)]


def _packed(operations: list[tuple[int, Operation]]) -> bytes:
    """An array of struct sembuf."""
    return b"".join(struct.pack("Hhh", number, change, flags | IPC_NOWAIT) for number, (change, flags) in operations)


def _operate(task: Task, number: int, operations: list[tuple[int, Operation]]) -> bool:
    """Have a task make operations on a set; whether no adjustment left its range.

    A task that has no right to the set any more is taken for one that has no adjustment of it.
    """
    task.leader.write(task.area.data, _packed(operations))
    try:
        task.call("semop", number, task.area.data, len(operations))
    except PermissionError:
        return True
    except OSError as error:
        if error.errno == errno.ERANGE:
            return False
        raise
    return True
