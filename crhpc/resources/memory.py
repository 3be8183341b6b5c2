"""Address spaces: mappings with their attributes, private pages, brk, auxv, and the vdso where it was.

Read from ``smaps``, ``stat``, ``auxv`` and the page map. A page counts when it is the process's own; pages
that are still a file's are not saved, but the file is fingerprinted and a change is refused at restart.
Rebuilt inside a stub (space.py): the mappings are made with their final protection and filled through
``/proc/PID/mem``; guards, locks and seals come when they are full.
"""
from __future__ import annotations

import contextlib
import os
import struct
from dataclasses import dataclass, field

from crhpc.errors import FileGone
from crhpc.image.pages import ZERO
from crhpc.image.records import U64
from crhpc.kernel import proc, vm
from crhpc.kernel.libc import PAGE
from crhpc.resources import Cut, Kind, Phase, at
from crhpc.resources.context import Dump, Restore, Task
from crhpc.resources.space import (
    ANONYMOUS,
    CONTENTS,
    FILE,
    KERNEL,
    SHARED,
    SYSV,
    Vma,
    lock,
    map_all,
    seal,
    vacate,
)

_PR_SET_MM, _PR_SET_MM_MAP = 35, 14
_MADV_GUARD_INSTALL = 102

_DEVICES = ("/[aio]", "anon_inode:", "/dev/infiniband", "/dev/nvidia", "/dev/dri", "/dev/kfd")
_REFUSED = {"pf": "memory of a device", "io": "memory of a device", "mm": "memory of a device",
            "ht": "huge pages of hugetlbfs", "ss": "a shadow stack",
            "um": "memory watched by userfaultfd", "uw": "memory watched by userfaultfd"}
_CURES = {
    "memory of a device": "keep the MPI off it (UCX_TLS=tcp,sm,self; OMPI_MCA_btl=self,sm,tcp; no GPU)",
    "huge pages of hugetlbfs": "use transparent huge pages instead (MAP_HUGETLB off)",
    "a shadow stack": "start the job with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off",
    "memory watched by userfaultfd": "turn that feature of the program off",
}


@dataclass(frozen=True, slots=True)
class AddressSpace:
    """The memory of one process; the numbers of struct prctl_mm_map (prctl(2), PR_SET_MM)."""

    pid: int
    pages: int = field(metadata={"doc": "page object of the private pages; page numbers are addresses / 4096"})
    start_code: U64
    end_code: U64
    start_data: U64
    end_data: U64
    start_brk: U64
    brk: U64
    start_stack: U64
    arg_start: U64
    arg_end: U64
    env_start: U64
    env_end: U64
    auxv: bytes
    exe: str = field(metadata={"path": True})


@dataclass(frozen=True, slots=True)
class GuardRegion:
    """Pages of a mapping whose every use is a fault (madvise(2), MADV_GUARD_INSTALL)."""

    pid: int
    start: U64
    end: U64


@dataclass(frozen=True, slots=True)
class MappedFile:
    """A file that must be at restart what it was: code and read-only data are not in the image."""

    path: str = field(metadata={"path": True})
    size: int
    mtime: int = field(metadata={"doc": "nanoseconds"})
    user: int = field(metadata={"doc": "the pid of a process that maps it"})
    program: str


def backing(mapping: proc.Mapping) -> str:
    """What backs a mapping."""
    if mapping.special:
        return KERNEL
    if mapping.name.startswith("/SYSV") and mapping.shared:
        return SYSV
    if mapping.shared:
        return SHARED
    if mapping.inode == 0:
        return ANONYMOUS
    return CONTENTS if mapping.deleted else FILE


class MemoryKind(Kind):
    name = "memory"
    records = (AddressSpace, Vma, GuardRegion, MappedFile)
    saved = ("private memory with its protection, madvise and mlock settings, guard regions and names, the heap's end, "
             "auxv, /proc/PID/exe, the vdso at its address; of read-only file mappings a fingerprint")
    refused = "memory of devices, hugetlbfs, shadow stacks, memory under userfaultfd, io_uring and AIO rings"

    @at(Cut.INSPECT)
    def inspect(self, ctx: Dump) -> None:
        for task in ctx.tasks:
            for mapping in task.mappings:
                for flag in sorted(mapping.flags & _REFUSED.keys()):
                    if not mapping.special and not (flag == "mm" and mapping.inode == 0):
                        what = _REFUSED[flag]
                        raise ctx.refuse(f"{what} ({mapping.name or 'anonymous'} at {mapping.start:#x})", task,
                                         _CURES[what])
                if mapping.name.startswith(_DEVICES):
                    raise ctx.refuse(f"the mapping of {mapping.path}", task,
                                     "run without asynchronous I/O rings, GPUs and InfiniBand")

    @at(Cut.COLLECT)
    def dump(self, ctx: Dump) -> None:
        files: dict[str, MappedFile] = {}
        for task in ctx.tasks:
            for mapping in task.mappings:
                ctx.add(_vma(ctx, task, mapping))
                if backing(mapping) == FILE and mapping.path not in files:
                    files[mapping.path] = _fingerprint(ctx, task, mapping.path)
        for row in files.values():
            ctx.add(row)

    @at(Cut.CONTENT)
    def dump_pages(self, ctx: Dump) -> None:
        for task in ctx.tasks:
            number = ctx.writer.object(f"memory of {task.pid}")
            ctx.add(_address_space(ctx, task, number))
            _save_pages(ctx, task, number)

    @at(Phase.CHECK)
    def check(self, ctx: Restore) -> None:
        """Refuse when a mapped file is gone or has changed; those of private places come from the image."""
        for row in ctx.rows(MappedFile):
            if not ctx.pod.private(row.path):
                _check_file(ctx, row)

    @at(Phase.SPACE)
    def restore_space(self, ctx: Restore) -> None:
        by_pid: dict[int, list[Vma]] = {}
        for row in ctx.rows(Vma):
            by_pid.setdefault(row.pid, []).append(row)
        spaces = {row.pid: row for row in ctx.rows(AddressSpace)}
        for pid, task in ctx.tasks.items():
            vmas = by_pid[pid]
            vacate(ctx, task, vmas)
            map_all(ctx, task, vmas)
            _set_mm(task, spaces[pid])

    @at(Phase.PAGES)
    def restore_pages(self, ctx: Restore) -> None:
        owners = {row.pages: ctx.tasks[row.pid] for row in ctx.rows(AddressSpace)}
        memories = {number: vm.Memory(task.host) for number, task in owners.items()}
        try:
            for number, first, data in ctx.shard.walk(set(owners)):
                memories[number].write(first * PAGE, data)
            for row in ctx.rows(AddressSpace):
                _write_zeros(ctx, row, memories[row.pages])
        finally:
            for memory in memories.values():
                memory.close()
        for guard in ctx.rows(GuardRegion):
            ctx.tasks[guard.pid].call("madvise", guard.start, guard.end - guard.start, _MADV_GUARD_INSTALL)
        for vma in ctx.rows(Vma):
            if vma.backing != KERNEL and "lo" in vma.flags.split():
                lock(ctx, vma)
            if vma.backing != KERNEL and "sl" in vma.flags.split():
                seal(ctx.tasks[vma.pid], vma)


# -- dump -----------------------------------------------------------------------------------------------
def _vma(ctx: Dump, task: Task, mapping: proc.Mapping) -> Vma:
    kind = backing(mapping)
    number = -1
    if kind == SHARED:
        shared = ctx.object(mapping.device, mapping.inode, mapping.path, deleted=mapping.deleted)
        shared.mappers.append((task, mapping))
        number = shared.id
    elif kind == SYSV:
        number = mapping.inode
    return Vma(task.pid, U64(mapping.start), U64(mapping.end), mapping.protection, kind, number,
               U64(mapping.offset), mapping.path, " ".join(sorted(mapping.flags)))


def _fingerprint(ctx: Dump, task: Task, path: str) -> MappedFile:
    try:
        stat = os.stat(ctx.pod.outside(path))
    except OSError:
        raise ctx.refuse(f"the mapping of {path}, which cannot be reached", task, "keep the file where it is") from None
    return MappedFile(path, stat.st_size, stat.st_mtime_ns, task.pid, task.program)


def _address_space(ctx: Dump, task: Task, number: int) -> AddressSpace:
    stat = proc.stat(task.host)
    words = {name: U64(getattr(stat, name)) for name in (
        "start_code", "end_code", "start_data", "end_data", "start_brk", "start_stack", "arg_start", "arg_end",
        "env_start", "env_end")}
    return AddressSpace(pid=task.pid, pages=number, brk=U64(task.call("brk", 0)), auxv=proc.auxv(task.host),
                        exe=os.readlink(f"/proc/{task.host}/exe"), **words)


def _save_pages(ctx: Dump, task: Task, number: int) -> None:
    pieces: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    pagemap = os.open(f"/proc/{task.host}/pagemap", os.O_RDONLY)
    try:
        for mapping in task.mappings:
            kind = backing(mapping)
            if kind not in (ANONYMOUS, FILE, CONTENTS):
                continue
            own, guards = vm.populated(pagemap, mapping.start, mapping.end, private_file=kind == FILE)
            if kind == CONTENTS:
                own = _reachable(task, mapping, guards)
            pieces[mapping.read] += [(address // PAGE, count) for address, count in own]
            for address, count in guards:
                ctx.add(GuardRegion(task.pid, U64(address), U64(address + count * PAGE)))
    finally:
        os.close(pagemap)
    for readable in (True, False):
        ctx.save_task_memory("", task.host, pieces[readable], page_object=number, readable=readable)


def _reachable(task: Task, mapping: proc.Mapping, guards: vm.Runs) -> vm.Runs:
    """The pages of a mapping that hold anything: not those behind the file's end, nor guards, as (address, count)."""
    edges = [mapping.start, *(edge for at, count in guards for edge in (at, at + count * PAGE)), mapping.end]
    found = []
    with contextlib.closing(vm.Memory(task.host)) as memory:
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            low, high = 0, (end - start) // PAGE
            while low < high:
                middle = (low + high + 1) // 2
                try:
                    memory.read_into(memoryview(bytearray(1)), start + (middle - 1) * PAGE)
                    low = middle
                except OSError:
                    high = middle - 1
            found += [(start, low)] if low else []
    return found


# -- restore --------------------------------------------------------------------------------------------
def _check_file(ctx: Restore, row: MappedFile) -> None:
    try:
        stat = os.stat(ctx.pod.outside(row.path))
    except OSError as error:
        raise FileGone(image=ctx.image, path=row.path, why=f"cannot be read ({error.strerror})",
                       pid=row.user, program=row.program) from None
    if (stat.st_size, stat.st_mtime_ns) != (row.size, row.mtime):
        raise FileGone(image=ctx.image, path=row.path, why="has changed", pid=row.user, program=row.program)


def _set_mm(task: Task, row: AddressSpace) -> None:
    """PR_SET_MM_MAP with all fields; the exe link too, unless it is the stub's own program already."""
    exe_fd = -1
    if not row.exe.endswith(" (deleted)") and not _same_file(f"/proc/{task.host}/exe", row.exe):
        with task.area.batch() as batch:
            batch.call("open", batch.string(row.exe), os.O_RDONLY, 0)
        exe_fd = batch.results[0]
    with task.area.batch() as batch:
        auxv = batch.put(row.auxv)
        fields = struct.pack("12QIi", row.start_code, row.end_code, row.start_data, row.end_data, row.start_brk,
                             row.brk, row.start_stack, row.arg_start, row.arg_end, row.env_start, row.env_end, auxv,
                             len(row.auxv), exe_fd)
        batch.call("prctl", _PR_SET_MM, _PR_SET_MM_MAP, batch.put(fields), len(fields), 0)
        if exe_fd >= 0:
            batch.call("close", exe_fd)


def _same_file(link: str, path: str) -> bool:
    try:
        return os.path.samefile(link, path)
    except OSError:
        return False


def _write_zeros(ctx: Restore, row: AddressSpace, memory: vm.Memory) -> None:
    """Zero pages matter where a file lies beneath: the process's own copy was all zeros."""
    over_files = [(v.start // PAGE, v.end // PAGE) for v in ctx.rows(Vma) if v.pid == row.pid and v.backing == FILE]
    for first, count in _zero_runs(ctx, row.pages):
        for start, end in over_files:
            low, high = max(first, start), min(first + count, end)
            if low < high:
                memory.write(low * PAGE, bytes((high - low) * PAGE))


def _zero_runs(ctx: Restore, pages: int) -> list[tuple[int, int]]:
    runs = ctx.shard.runs(pages)
    zero = runs[runs["kind"] == ZERO]
    return list(zip(zero["page"].tolist(), zero["npages"].tolist(), strict=True))
