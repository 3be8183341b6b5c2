"""One task's mappings: their record, and making them again in an empty stub.

Everything of the stub's own goes but for a scratch area, the vdso moves to where the image has it, then each
mapping is made with its final protection. Memory and files that tasks share are passed to the stub, or, of
System V, attached.
"""
from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import struct
from dataclasses import dataclass, field

from crhpc.image.records import U64
from crhpc.kernel import advice, descriptors, proc, ptrace
from crhpc.kernel.libc import PAGE
from crhpc.kernel.tracee import Area, Batch
from crhpc.resources import bridge
from crhpc.resources.bridge import Bridge, Piece
from crhpc.resources.context import Dump, Restore, Task

_NOT_OURS = ("[vsyscall]", "[uprobes]")
"""Pages of the kernel's that no restart makes: at a fixed address, or of whoever traces with uprobes."""
TASK_SIZE = 0x7FFFFFFFF000
_AREA_SIZE = 1 << 20
_KERNEL_PAGES_ROOM = 1 << 20
_PROT_WRITE = 2
_MAP_SHARED, _MAP_PRIVATE, _MAP_ANONYMOUS = 1, 2, 0x20
_MAP_GROWSDOWN, _MAP_NORESERVE, _MAP_FIXED_NOREPLACE = 0x100, 0x4000, 0x100000
_MREMAP_MOVE_FIXED = 3
_PR_SET_VMA, _PR_SET_VMA_ANON_NAME = 0x53564D41, 0
_MLOCK_ONFAULT = 1
_MAP_DROPPABLE = 8
_AT_ONCE = 1 << 30
"""Larger mappings are made in pieces, which the kernel joins: it gives less than there is memory in one go
(Documentation/mm/overcommit-accounting.rst)."""
_F_GET_SEALS, _F_SEAL_WRITE = 1034, 8
_IPC_STAT, _SHM_RDONLY, _SHM_EXEC = 2, 0o10000, 0o100000
_SEGMENT_SIZE_AT = 48
"""Of shm_segsz in struct shmid64_ds."""

_ADVICE = {"dd": 16, "dc": 10, "wf": 18, "mg": 12, "hg": 14, "nh": 15, "sr": 2, "rr": 1}
"""VmFlags and the madvise(2) that sets each."""

ANONYMOUS, FILE, CONTENTS, SHARED, SYSV, KERNEL = "anonymous", "file", "contents", "shared", "sysv", "kernel"
"""What backs a mapping. ``contents``: a private mapping of a file whose name is gone, saved whole."""


def backing(mapping: proc.Mapping) -> str:
    """What backs a mapping, as far as it tells itself."""
    if mapping.special:
        return KERNEL
    if mapping.name.startswith("/SYSV") and mapping.shared:
        return SYSV
    if mapping.shared:
        return SHARED
    if mapping.inode == 0:
        return ANONYMOUS
    return CONTENTS if mapping.deleted else FILE


def backing_in(ctx: Dump, mapping: proc.Mapping) -> str:
    """The same when all objects are known: a file without a name is mapped again where its contents are at hand."""
    kind = backing(mapping)
    return FILE if kind == CONTENTS and file_without_name(ctx, mapping) >= 0 else kind


def file_without_name(ctx: Dump, mapping: proc.Mapping) -> int:
    """The object of a file whose name is gone, where it can be opened; else -1."""
    shared = ctx.objects.get((mapping.device, mapping.inode))
    return shared.id if shared is not None and (shared.files or shared.links) else -1


@dataclass(frozen=True, slots=True)
class Vma:
    """One mapping: a line of ``maps``."""

    pid: int
    start: U64
    end: U64
    protection: int
    backing: str
    shared_object: int = field(metadata={"doc": "id in the table shared_file (of a private mapping: of a file without "
                                                 "a name), or the SysV id, or -1"})
    offset: U64
    path: str = field(metadata={"path": True})
    flags: str = field(metadata={"doc": "VmFlags of smaps"})


def by_name(row: Vma) -> bool:
    """Whether a restart maps the file that has the name then."""
    return row.backing == FILE and row.shared_object < 0


def _hole(taken: list[tuple[int, int]], size: int) -> int:
    """The lowest address from 256 MiB up at which ``size`` bytes are free, a page apart from everything."""
    at_least = 0x10000000
    for start, end in sorted(taken):
        if start - at_least >= size + 2 * PAGE:
            break
        at_least = max(at_least, end)
    return at_least + PAGE


def vacate(ctx: Restore, task: Task, vmas: list[Vma]) -> None:
    """Empty a stub's address space but for a scratch area; put the vdso where the image has it, or over a bridge."""
    own = proc.maps(task.host)
    old = {m.name: m for m in own if m.special and m.name not in _NOT_OURS}
    homes, extent = _homes(ctx, task, list(old.values()), vmas)
    _unregister_rseq(task)
    taken = [(m.start, m.end) for m in own if m.end <= TASK_SIZE] + [(row.start, row.end) for row in vmas] + extent
    start = _hole(taken, _AREA_SIZE + _KERNEL_PAGES_ROOM)
    task.call("mmap", start, _AREA_SIZE, 7, _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_FIXED_NOREPLACE, -1, 0)
    task.mapped_area = area = Area(task.leader, start, _AREA_SIZE)
    for tracee in task.threads.values():
        tracee.prepare(area.instruction)
    with area.batch() as batch:
        for low, high in ((0, ctx.control_number - 1), (ctx.control_number + 1, 0xFFFFFFFF)):
            batch.call("close_range", low, high, 0)
        waypoint = start + _AREA_SIZE
        moves = []
        for name, m in old.items():
            batch.call("mremap", m.start, m.size, m.size, _MREMAP_MOVE_FIXED, waypoint)
            moves.append(("mremap", waypoint, m.size, m.size, _MREMAP_MOVE_FIXED, homes[name]))
            waypoint += m.size
        batch.call("munmap", 0, start)
        batch.call("munmap", waypoint, TASK_SIZE - waypoint)
        for move in moves:
            batch.call(*move)


def kernel_pages(vmas: list[Vma]) -> list[Piece]:
    """What the kernel had mapped into one task of the image by itself."""
    return [Piece(row.path, row.start, row.end) for row in vmas if row.backing == KERNEL and row.path not in _NOT_OURS]


def _homes(ctx: Restore, task: Task, own: list[proc.Mapping],
           vmas: list[Vma]) -> tuple[dict[str, int], list[tuple[int, int]]]:
    """Where this kernel's pages come to lie; and what they take that was free in the image."""
    there = kernel_pages(vmas)
    if bridge.same_pages(ctx, [Piece(m.name, m.start, m.end) for m in own], there):
        return {piece.name: piece.start for piece in there}, []
    others = [(row.start, row.end, f"{row.flags} {row.path.strip('[]')}") for row in vmas if row.backing != KERNEL]
    made = bridge.plan(ctx, [Piece(m.name, m.start, m.end) for m in own], there, others)
    ctx.state.setdefault("bridges", {})[task.pid] = made
    return made.homes, [made.extent]


def bridges(ctx: Restore) -> dict[int, Bridge]:
    """The tasks whose calls have to be led to another vdso."""
    found: dict[int, Bridge] = ctx.state.get("bridges", {})
    return found


def _unregister_rseq(task: Task) -> None:
    """The stub's own area would be written to by the kernel after its memory has gone."""
    rseq = ptrace.rseq_configuration(task.host)
    if rseq.address:
        task.call("rseq", rseq.address, rseq.size, 1, rseq.signature)


def map_all(ctx: Restore, task: Task, vmas: list[Vma]) -> None:
    """Make all mappings, and say of each what madvise(2) knows of it; empty yet."""
    numbers = _receive_shared(ctx, task, vmas)
    free = next(n for n in range(len(numbers) + 2) if n not in numbers.values() and n != ctx.control_number)
    with task.area.batch() as batch:
        path = ""
        for row in vmas:
            named = by_name(row)
            if named and row.path != path:
                if path:
                    batch.call("close", free)
                batch.call("open", batch.string(row.path), os.O_RDONLY, 0)
                path = row.path
            _map(batch, row, free if named else numbers.get(_wanted(ctx, row), -1))
        if path:
            batch.call("close", free)
    _attach_all(task, vmas)
    with task.area.batch() as batch:
        for row in vmas:
            _advise(batch, row)
        for low, high in ((0, ctx.control_number - 1), (ctx.control_number + 1, 0xFFFFFFFF)):
            batch.call("close_range", low, high, 0)


def _wanted(ctx: Restore, row: Vma) -> tuple[int, bool]:
    """The object of a mapping, and whether a descriptor that can write to it made the mapping."""
    if row.backing != SHARED:
        return row.shared_object, False
    flags = row.flags.split()
    if "sh" in flags and "mw" not in flags:   # sealed before it was mapped (fcntl(2), F_SEAL_WRITE)?
        with contextlib.suppress(OSError):
            sealed = fcntl.fcntl(ctx.held[row.shared_object], _F_GET_SEALS)
            return row.shared_object, bool(sealed & _F_SEAL_WRITE)
    return row.shared_object, "mw" in flags


def _receive_shared(ctx: Restore, task: Task, vmas: list[Vma]) -> dict[tuple[int, bool], int]:
    """Give a stub the objects that it maps; (object, writable) to its number there."""
    wanted = sorted({_wanted(ctx, row) for row in vmas
                     if row.backing == SHARED or (row.backing == FILE and row.shared_object >= 0)})
    local = [ctx.held[number] if writable else ctx.readonly(number) for number, writable in wanted]
    there = descriptors.push(ctx.control, task.area, ctx.control_number, local)
    return dict(zip(wanted, there, strict=True))


def _map(batch: Batch, row: Vma, fd: int) -> None:
    if row.backing in (KERNEL, SYSV):
        return
    flags = row.flags.split()
    kind = _MAP_SHARED if row.backing == SHARED else _MAP_DROPPABLE if "dp" in flags else _MAP_PRIVATE
    extra = (_MAP_NORESERVE if "nr" in flags else 0) | (_MAP_GROWSDOWN if "gd" in flags else 0)
    if row.backing in (ANONYMOUS, CONTENTS):
        fd, offset, extra = -1, 0, extra | _MAP_ANONYMOUS
    else:
        offset = row.offset
    size = row.end - row.start
    at_once = _AT_ONCE if row.protection & _PROT_WRITE and not extra & (_MAP_NORESERVE | _MAP_GROWSDOWN) else size
    for done in range(0, size, at_once):
        batch.call("mmap", row.start + done, min(at_once, size - done), row.protection,
                   kind | _MAP_FIXED_NOREPLACE | extra, fd, 0 if fd < 0 else offset + done)


def _attach_all(task: Task, vmas: list[Vma]) -> None:
    """System V segments; what shows parts of one attachment, apart or with other protections, comes from one again."""
    attachments: dict[tuple[int, int, bool], list[Vma]] = {}
    for row in vmas:
        if row.backing == SYSV:
            key = row.shared_object, row.start - row.offset, "mw" in row.flags.split()
            attachments.setdefault(key, []).append(row)
    for (segment, _start, writable), rows in attachments.items():
        task.call("shmctl", segment, _IPC_STAT, task.area.data)
        (size,) = struct.unpack("Q", task.leader.read(task.area.data + _SEGMENT_SIZE_AT, 8))
        size = -(-size // PAGE) * PAGE
        area = task.area
        hole = _hole([(row.start, row.end) for row in vmas] + [(area.address, area.address + area.size)], size)
        code = 4 if any(row.protection & 4 for row in rows) else 0
        task.call("shmat", segment, hole, (0 if writable else _SHM_RDONLY) | (_SHM_EXEC if code else 0))
        with area.batch() as batch:
            for row in rows:
                part = row.end - row.start
                batch.call("mremap", hole + row.offset, part, part, _MREMAP_MOVE_FIXED, row.start)
                if row.protection != (3 if writable else 1) | code:
                    batch.call("mprotect", row.start, part, row.protection)
            batch.call("munmap", hole, size)


def _advise(batch: Batch, row: Vma) -> None:
    if row.backing == KERNEL:
        return
    for flag in row.flags.split():
        if flag in _ADVICE:
            batch.call("madvise", row.start, row.end - row.start, _ADVICE[flag])
    if row.path.startswith("[anon:") and advice.knows_names():   # of use to people only
        batch.call("prctl", _PR_SET_VMA, _PR_SET_VMA_ANON_NAME, row.start, row.end - row.start,
                   batch.string(row.path[len("[anon:"):-1]))


def lock(ctx: Restore, row: Vma) -> None:
    """mlock(2), up to the job's own hard limit; the soft one follows later, with the other limits."""
    task = ctx.tasks[row.pid]
    _soft, hard = resource.prlimit(task.host, resource.RLIMIT_MEMLOCK)
    resource.prlimit(task.host, resource.RLIMIT_MEMLOCK, (hard, hard))
    try:
        task.call("mlock2", row.start, row.end - row.start, _MLOCK_ONFAULT if "lf" in row.flags.split() else 0)
    except OSError as error:
        if not (error.errno == errno.ENOMEM and row.protection == 0):   # locked all the same, but not brought in
            ctx.warn(f"memory of pid {row.pid} cannot be locked here ({error.strerror}); `ulimit -l` is {hard} bytes")


def seal(task: Task, row: Vma) -> None:
    """mseal(2): nothing about the mapping can be changed after this."""
    task.call("mseal", row.start, row.end - row.start, 0)
