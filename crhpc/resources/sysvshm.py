"""System V shared memory: segments with their ids, also those that are marked for removal (shmctl(2)).

Listed from ``/proc/sysvipc/shm``, read through a task that has the whole segment attached, else one attaches it
for the moment. Ids are kept (kernel.shm_next_id), as programs pass them on.
"""
from __future__ import annotations

import contextlib
import resource
import struct
from dataclasses import dataclass, field

from crhpc.kernel import proc
from crhpc.kernel.libc import PAGE
from crhpc.resources import Chapter, Cut, Kind, Phase, at
from crhpc.resources.context import Dump, Restore, Task
from crhpc.resources.filling import fill_memory
from crhpc.resources.inside import IPC_CREAT, IPC_EXCL, IPC_RMID, IPC_STAT, create_inside, numbers_inside
from crhpc.resources.residency import resident, without_guards

_SHM_LOCK = 11
_SHM_DEST, _SHM_LOCKED, _SHM_RDONLY = 0o1000, 0o2000, 0o10000
_SHMID_DS = struct.Struct("iIIIIIHH4x2Q QqqqiiQ2Q")
"""struct shmid64_ds: key uid gid cuid cgid mode seq ..., size, three times, two pids, attached, two spare."""


@dataclass(frozen=True, slots=True)
class SysvSegment:
    """A shared memory segment of the pod."""

    id: int
    key: int
    mode: int
    uid: int
    gid: int
    size: int
    removed: bool = field(metadata={"doc": "marked for removal: it goes with its last attachment"})
    locked: bool = field(metadata={"doc": "its pages stay in memory (shmctl(2), SHM_LOCK)"})
    pages: int = field(metadata={"doc": "page object"})


class SysvSegmentsKind(Kind):
    name = "sysvshm"
    chapter = Chapter.IPC
    records = (SysvSegment,)
    saved = "System V shared memory under its ids, with keys, owners, modes, contents, locks and the mark for removal"
    refused = (
        ("a segment that none of its users may read", "give it mode 600"),
        ("a segment of huge pages", "make it without SHM_HUGETLB"),
    )
    afterwards = ("times, and the processes that made and attached it last, are those of the restart. What may not "
                  "be locked here is not, with a warning")

    @at(Cut.CONTENT)
    def dump(self, ctx: Dump) -> None:
        for number in numbers_inside(ctx.init, "shm"):
            task, raw = _stat(ctx, number)
            words = _SHMID_DS.unpack(raw)
            key, uid, gid, mode, size = words[0], words[1], words[2], words[5], words[10]
            ctx.add(SysvSegment(number, key, mode & 0o777, uid, gid, size, bool(mode & _SHM_DEST),
                                bool(mode & _SHM_LOCKED), _save(ctx, task, number, size)))

    @at(Phase.OBJECTS)
    def create(self, ctx: Restore) -> None:
        for row in ctx.rows(SysvSegment):
            create = "shmget", (0 if row.removed else row.key, row.size, IPC_CREAT | IPC_EXCL | row.mode)
            create_inside(ctx.init, "shm", row.id, create, (row.uid, row.gid))

    @at(Phase.PAGES)
    def fill(self, ctx: Restore) -> None:
        """Through a task that attaches each for the moment, wherever it is attached for good."""
        rows = {row.pages: row for row in ctx.rows(SysvSegment)}
        if not rows:
            return
        task = next(iter(ctx.tasks.values()))
        addresses = {number: task.call("shmat", row.id, 0, 0) for number, row in rows.items()}
        fill_memory(ctx, {number: (task.host, address) for number, address in addresses.items()})
        for address in addresses.values():
            task.call("shmdt", address)

    @at(Phase.OPEN)
    def mark(self, ctx: Restore) -> None:
        """Once everybody has attached it."""
        for row in ctx.rows(SysvSegment):
            task = next(iter(ctx.tasks.values()))
            if row.locked:
                _lock(ctx, task, row)
            if row.removed:
                task.call("shmctl", row.id, IPC_RMID, 0)


def _stat(ctx: Dump, number: int) -> tuple[Task, bytes]:
    """IPC_STAT of a segment, and a task that may do it: those that have attached it first."""
    for task in sorted(ctx.tasks, key=lambda task: not any(_shows(m, number) for m in task.mappings)):
        with contextlib.suppress(PermissionError):
            task.call("shmctl", number, IPC_STAT, task.area.data)
            return task, task.leader.read(task.area.data, _SHMID_DS.size)
    raise ctx.refuse(f"System V segment {number}, which none of its users may read", ctx.tasks[0], "give it mode 600")


def _shows(mapping: proc.Mapping, number: int) -> bool:
    return mapping.shared and mapping.inode == number and mapping.name.startswith("/SYSV")


def _save(ctx: Dump, task: Task, number: int, size: int) -> int:
    """Save the pages of a segment, through a mapping of the whole or one that is made for the moment."""
    whole = next((m for m in task.mappings if _shows(m, number) and m.read and m.size >= size), None)
    if whole is not None:
        return _save_mapping(ctx, task, number, whole)
    address = task.call("shmat", number, 0, _SHM_RDONLY)
    try:
        mapping = next(m for m in proc.smaps(task.host) if m.start == address)
        if "ht" in mapping.flags:
            raise ctx.refuse(f"System V segment {number} of huge pages", task, "make it without SHM_HUGETLB")
        return _save_mapping(ctx, task, number, mapping)
    finally:
        task.call("shmdt", address)


def _save_mapping(ctx: Dump, task: Task, number: int, mapping: proc.Mapping) -> int:
    with without_guards(task, mapping) as shown:
        pieces = [((address - shown.start) // PAGE, count) for address, count in resident(task, shown)]
        return ctx.save_task_memory(f"sysv {number}", task.host, pieces, base=shown.start)


def _lock(ctx: Restore, task: Task, row: SysvSegment) -> None:
    """Up to the hard limit of locked memory; the soft one follows later, with the other limits."""
    _soft, hard = resource.prlimit(task.host, resource.RLIMIT_MEMLOCK)
    resource.prlimit(task.host, resource.RLIMIT_MEMLOCK, (hard, hard))
    try:
        task.call("shmctl", row.id, _SHM_LOCK, 0)
    except OSError as error:
        ctx.warn(f"System V segment {row.id} cannot be locked here ({error.strerror}); `ulimit -l` is {hard} bytes")
