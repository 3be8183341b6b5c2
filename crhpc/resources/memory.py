"""Address spaces: mappings with their attributes, brk, auxv, the program's link, and the vdso where it was.

Read from ``smaps``, ``stat`` and ``auxv``; what only the process itself can ask is asked in its name. Rebuilt inside
a stub (space.py): the mappings are made with their final protection; what they hold comes after (pages.py).
"""
from __future__ import annotations

import contextlib
import os
import struct
from dataclasses import dataclass, field, replace

from crhpc.errors import ImageDamaged
from crhpc.image.records import U64
from crhpc.kernel import descriptors, proc, vdso
from crhpc.resources import Chapter, Cut, Kind, Phase, at, bridge
from crhpc.resources.bridge import Vdso
from crhpc.resources.context import Dump, Restore, Task
from crhpc.resources.space import (
    CONTENTS,
    FILE,
    SHARED,
    SYSV,
    Vma,
    backing,
    bridges,
    by_name,
    file_without_name,
    kernel_pages,
    map_all,
    vacate,
)

_PR_SET_MM, _PR_SET_MM_MAP = 35, 14
_MCL_FUTURE, _MCL_ONFAULT = 2, 4
_PROT_EXEC = 4
_GONE = " (deleted)"

_DEVICES = ("/[aio]", "anon_inode:", "/dev/infiniband", "/dev/nvidia", "/dev/dri", "/dev/kfd")
_DEVICE = "memory of a device", "keep the MPI off it (UCX_TLS=tcp,sm,self; OMPI_MCA_btl=self,sm,tcp; no GPU)"
_WATCHED = "memory watched by userfaultfd", "turn that feature of the program off"
_FLAGS = {
    "pf": _DEVICE, "io": _DEVICE, "mm": _DEVICE, "um": _WATCHED, "uw": _WATCHED, "ui": _WATCHED,
    "ht": ("huge pages of hugetlbfs", "use transparent huge pages instead (MAP_HUGETLB off)"),
    "ss": ("a shadow stack", "start the job with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off"),
}
"""VmFlags of what can't be saved, and the cure."""


@dataclass(frozen=True, slots=True)
class AddressSpace:
    """The memory of one process; most are the numbers of struct prctl_mm_map (prctl(2), PR_SET_MM)."""

    pid: int
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
    exe_object: int = field(metadata={"doc": "id in the table shared_file of a program whose file is gone; else -1"})
    lock_future: int = field(metadata={"doc": "MCL_FUTURE and MCL_ONFAULT, where all to come is locked (mlockall)"})


class MemoryKind(Kind):
    name = "memory"
    chapter = Chapter.MEMORY
    records = (AddressSpace, Vma, Vdso)
    saved = ("mappings at their addresses with protection, madvise and mlock settings, seals and names; locking of "
             "all memory to come; the heap's end, the auxiliary vector, where arguments and environment "
             "are; the vdso where it was; `/proc/PID/exe`, also of a program whose file is gone")
    refused = (
        ("memory of a device (InfiniBand and other fabrics, GPUs)",
         "keep the MPI off it (UCX_TLS=tcp,sm,self; OMPI_MCA_btl=self,sm,tcp; no GPU)"),
        ("a mapping of a device, or of the rings of io_uring and Linux AIO",
         "run without asynchronous I/O rings, GPUs and InfiniBand"),
        ("a shared mapping of another device", "run without what maps it"),
        ("huge pages of hugetlbfs", "use transparent huge pages instead (MAP_HUGETLB off)"),
        ("memory watched by userfaultfd; memory under a protection key (pkey_mprotect)",
         "turn that feature of the program off"),
        ("secret memory (memfd_secret)", "turn off what keeps secrets in it"),
        ("a shadow stack", "start the job with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off"),
        ("a process that may have no more memory, for the 64 KiB that a checkpoint borrows",
         "raise its limits of memory (ulimit -v, ulimit -d)"),
    )
    afterwards = ("neighbouring mappings that are alike may be shown as one or as several, and the flags for "
                  "accounted and softly dirty memory (`ac`, `sd` in smaps) depend on what was written first. A "
                  "private mapping of a file whose name is gone may be anonymous memory with the same contents. What "
                  "may not be locked here is not, with a warning. On a kernel with another vdso the old one's code "
                  "stays where it was, as plain memory, and leads to the new one's, which is mapped elsewhere; a "
                  "restart is refused where a thread was just inside it and needs the old kernel's data")

    @at(Cut.INSPECT)
    def inspect(self, ctx: Dump) -> None:
        for task in ctx.tasks:
            for mapping in task.mappings:
                what, cure = ("", "") if mapping.special else _refusal(ctx, mapping)
                if what:
                    raise ctx.refuse(f"{what} ({mapping.path or 'anonymous'} at {mapping.start:#x})", task, cure)

    @at(Cut.COLLECT)
    def dump(self, ctx: Dump) -> None:
        for task in ctx.tasks:
            for mapping in task.mappings:
                ctx.add(_vma(ctx, task, mapping))
            ctx.add(_address_space(ctx, task))
        ctx.add(Vdso(vdso.own()))

    @at(Cut.CONTENT)
    def find_files_without_names(self, ctx: Dump) -> None:
        """By now it is known which of them are in the image with their contents."""
        mappings = {(task.pid, mapping.start): mapping for task in ctx.tasks for mapping in task.mappings}
        rows: list[Vma] = ctx.rows.get(Vma, [])
        for i, row in enumerate(rows):
            if row.backing == CONTENTS:
                number = file_without_name(ctx, mappings[row.pid, row.start])
                rows[i] = row if number < 0 else replace(row, backing=FILE, shared_object=number)

    @at(Phase.CHECK)
    def check(self, ctx: Restore) -> None:
        bridge.check(ctx, {pid: kernel_pages(vmas) for pid, vmas in _by_pid(ctx).items()})

    @at(Phase.SPACE)
    def restore_space(self, ctx: Restore) -> None:
        by_pid = _by_pid(ctx)
        spaces = {row.pid: row for row in ctx.rows(AddressSpace)}
        _refuse_other_than_files(ctx, {row.path for row in ctx.rows(Vma) if by_name(row)} | {
            row.exe for row in spaces.values() if row.exe_object < 0 and not row.exe.endswith(_GONE)})
        for pid, task in ctx.tasks.items():
            vmas = by_pid[pid]
            vacate(ctx, task, vmas)
            _set_mm(ctx, task, spaces[pid])   # while nothing is mapped that could be the stub's own program: EBUSY
            map_all(ctx, task, vmas)
            if pid in bridges(ctx):
                bridge.build(ctx, task, bridges(ctx)[pid])

    @at(Phase.STATE)
    def open_bridges(self, ctx: Restore) -> None:
        for pid, made in bridges(ctx).items():
            bridge.open_it(ctx, ctx.tasks[pid], made)

    @at(Phase.STATE)
    def restore_future(self, ctx: Restore) -> None:
        """What holds for all mappings to come, when those from before are made."""
        for row in ctx.rows(AddressSpace):
            if row.lock_future:
                try:
                    ctx.tasks[row.pid].call("mlockall", row.lock_future)
                except OSError as error:
                    ctx.warn(f"memory that pid {row.pid} will map cannot be locked here ({error.strerror})")


# -- dump -----------------------------------------------------------------------------------------------
def _refusal(ctx: Dump, mapping: proc.Mapping) -> tuple[str, str]:
    """Why a mapping can't be saved and the cure; empty where it can."""
    for flag in sorted(mapping.flags & _FLAGS.keys()):
        if not (flag == "mm" and mapping.inode == 0):
            return _FLAGS[flag]
    if mapping.name.startswith(_DEVICES):
        return "a mapping of a device", "run without asynchronous I/O rings, GPUs and InfiniBand"
    if mapping.name.startswith("/secretmem"):
        return "secret memory (memfd_secret)", "turn off what keeps secrets in it"
    if mapping.protection_key and mapping.protection != _PROT_EXEC:   # of these the kernel has chosen the key
        return "memory under a protection key (pkey_mprotect)", "turn that feature of the program off"
    if backing(mapping) == SHARED and not mapping.deleted and not ctx.pod.is_regular(mapping.path):
        return "a shared mapping of a device", "run without what maps it"
    return "", ""


def _vma(ctx: Dump, task: Task, mapping: proc.Mapping) -> Vma:
    kind = backing(mapping)
    number = -1
    if kind == SHARED:
        nameless = mapping.name.startswith("[")   # shared anonymous memory with a name (PR_SET_VMA)
        path, deleted = ("/dev/zero", True) if nameless else (mapping.path, mapping.deleted)
        shared = ctx.object(mapping.device, mapping.inode, path, deleted=deleted)
        shared.mappers.append((task, mapping))
        number = shared.id
    elif kind == CONTENTS:
        _add_way(ctx, mapping.device, mapping.inode, mapping.path,
                 f"/proc/{task.host}/map_files/{mapping.start:x}-{mapping.end:x}")
    elif kind == SYSV:
        number = mapping.inode
    return Vma(task.pid, U64(mapping.start), U64(mapping.end), mapping.protection, kind, number,
               U64(mapping.offset), mapping.path, " ".join(sorted(mapping.flags)))


def _add_way(ctx: Dump, device: int, inode: int, path: str, way: str) -> int:
    """Have a file without a name saved if it can be opened this way; its object, or -1."""
    with contextlib.suppress(OSError):
        os.close(os.open(way, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        shared = ctx.object(device, inode, path, deleted=True)
        shared.links.append(way)
        return shared.id
    return -1


def _address_space(ctx: Dump, task: Task) -> AddressSpace:
    stat = proc.stat(task.host)
    words = {name: U64(getattr(stat, name)) for name in (
        "start_code", "end_code", "start_data", "end_data", "start_brk", "start_stack", "arg_start", "arg_end",
        "env_start", "env_end")}
    exe = os.readlink(f"/proc/{task.host}/exe")
    number = -1
    if exe.endswith(_GONE):
        file = os.stat(f"/proc/{task.host}/exe")
        number = _add_way(ctx, file.st_dev, file.st_ino, exe.removesuffix(_GONE), f"/proc/{task.host}/exe")
    return AddressSpace(pid=task.pid, brk=U64(task.call("brk", 0)), auxv=proc.auxv(task.host), exe=exe,
                        exe_object=number, lock_future=_lock_future(task), **words)


def _lock_future(task: Task) -> int:
    """Whether new memory is locked: our scratch area is the newest that there is."""
    locked = sum(mapping.size for mapping in task.mappings if "lo" in mapping.flags)
    if proc.status(task.host).number("VmLck") * 1024 < locked + task.area.size:
        return 0
    flags = next(m.flags for m in proc.smaps(task.host) if m.start <= task.area.address < m.end)
    return _MCL_FUTURE | (_MCL_ONFAULT if "lf" in flags else 0) if "lo" in flags else 0


# -- restore --------------------------------------------------------------------------------------------
def _refuse_other_than_files(ctx: Restore, paths: set[str]) -> None:
    """Whatever a stub is to open must be a file: a fifo would make it wait, a device do who knows what.

    Raises:
        ImageDamaged: an image of ours names nothing else.
    """
    for path in paths:
        if path != "/dev/zero" and (not path.startswith("/") or not ctx.pod.is_regular(path)):
            raise ImageDamaged(image=ctx.image, what=f"{path!r} can't be mapped, it is no regular file")


def _by_pid(ctx: Restore) -> dict[int, list[Vma]]:
    found: dict[int, list[Vma]] = {}
    for row in ctx.rows(Vma):
        found.setdefault(row.pid, []).append(row)
    return found


def _set_mm(ctx: Restore, task: Task, row: AddressSpace) -> None:
    """PR_SET_MM_MAP with all fields; the exe link too, unless it is the stub's own program already."""
    exe_fd = -1
    if row.exe_object >= 0:
        (exe_fd,) = descriptors.push(ctx.control, task.area, ctx.control_number, [_program_file(ctx, row.exe_object)])
    elif not row.exe.endswith(_GONE) and not _same_file(f"/proc/{task.host}/exe", row.exe):
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


def _program_file(ctx: Restore, number: int) -> int:
    """A file of the image's, open so that it can be a program: executable, and for nobody to write."""
    held = ctx.held[number]
    reading = ctx.readonly(number)
    os.fchmod(reading, 0o700)
    os.dup2(reading, held, inheritable=False)   # the last that could write (execve(2), ETXTBSY)
    return reading


def _same_file(link: str, path: str) -> bool:
    try:
        return os.path.samefile(link, path)
    except OSError:
        return False
