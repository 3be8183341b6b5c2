"""What prctl(2) and a few files of /proc set for a process or a thread: dumpable, personality and others.

Read by remote prctl(2) calls and from ``/proc/PID``.
"""
from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from crhpc.errors import OtherMachine
from crhpc.image.records import U64
from crhpc.kernel import advice, libc, proc
from crhpc.kernel.namespaces import write_file
from crhpc.resources import Chapter, Cut, Kind, Phase, at
from crhpc.resources.context import Dump, Restore, Task
from crhpc.resources.questions import ROOM, Question, answer, ask, has_prctl

_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG = 1, 2
_PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 3, 4
_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37
_PR_SET_THP_DISABLE, _PR_GET_THP_DISABLE = 41, 42
_PR_SET_IO_FLUSHER = 57
_PR_SET_MDWE, _PR_GET_MDWE = 65, 66
_PR_SET_MEMORY_MERGE, _PR_GET_MEMORY_MERGE = 67, 68
_ARCH_GET_XCOMP_PERM, _ARCH_REQ_XCOMP_PERM = 0x1022, 0x1023
_AMX_TILE_DATA = 18
_PF_LOCAL_THROTTLE = 0x00100000
"""Of the flags in ``stat``: set by PR_SET_IO_FLUSHER alone (include/linux/sched.h)."""
_PARENT_DEATH = Question("prctl", (_PR_GET_PDEATHSIG, ROOM), 4)
_PERSONALITY = Question("personality", (0xFFFFFFFF,))
_NAMESPACES = {"cgroup": "cgroup", "ipc": "IPC", "mnt": "mount", "net": "network", "pid": "pid", "time": "time",
               "uts": "UTS", "pid_for_children": "pid", "time_for_children": "time", "user": "user"}
"""In /proc/PID/ns, and what people call them; users last: who has one of those has it for the sake of another."""
_OF_THREADS = ("mnt", "net")
"""Those that threads of one process may really differ in."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """Of one process."""

    pid: int
    dumpable: int
    subreaper: bool
    thp_disabled: int
    merging: bool = field(metadata={"doc": "all its memory may be merged with equal pages (PR_SET_MEMORY_MERGE)"})
    write_or_execute: int = field(metadata={"doc": "PR_MDWE_ flags: no memory becomes executable"})
    coredump_filter: int
    extended_state: U64 = field(metadata={"doc": "XSAVE features that the process may use beyond the default (AMX)"})


@dataclass(frozen=True, slots=True)
class ThreadAttributes:
    """Of one thread."""

    pid: int
    tid: int
    parent_death_signal: int
    personality: U64
    io_flusher: bool


class AttributesKind(Kind):
    name = "attributes"
    chapter = Chapter.PROCESSES
    records = (Attributes, ThreadAttributes)
    saved = ("of every process: dumpable, child subreaper, transparent huge pages off, merging of equal memory, "
             "MDWE, coredump filter, AMX permission; of every thread: parent-death signal, personality, I/O flusher")
    refused = (
        ("a process that may not be looked into", "run it without prctl(PR_SET_DUMPABLE, 0)"),
        ("a namespace of its own", "run it without unshare(1) and containers, or crhpc inside of the container"),
    )
    afterwards = "PR_SET_PTRACER and core scheduling cookies are lost; the cgroup is that of the restart"

    @at(Cut.INSPECT)
    def inspect(self, ctx: Dump) -> None:
        ask(ctx, _PARENT_DEATH)
        ask(ctx, _PERSONALITY)
        ours = {name: _namespace(ctx.pod.init, name) for name in _NAMESPACES}
        for task in ctx.tasks:
            if os.getuid() not in (0, os.stat(f"/proc/{task.host}/fd").st_uid):   # proc(5), /proc/PID
                raise ctx.refuse("a process that may not be looked into", task,
                                 "run it without prctl(PR_SET_DUMPABLE, 0)")
            for host, names in _places(task):
                for name in names:
                    if _namespace(host, name) != ours[name.removesuffix("_for_children")]:
                        raise ctx.refuse(f"a {_NAMESPACES[name]} namespace of its own", task,
                                         "run it without unshare(1) and containers, or crhpc inside of the container")

    @at(Cut.COLLECT)
    def dump(self, ctx: Dump) -> None:
        for task in ctx.tasks:
            ctx.add(_process(ctx, task))
            for tid, tracee in task.threads.items():
                (death,) = struct.unpack("i", answer(ctx, task, tid, _PARENT_DEATH)[1])
                personality = answer(ctx, task, tid, _PERSONALITY)[0]
                # who may not set it is spared the look
                flusher = os.getuid() == 0 and bool(proc.stat(task.host, tracee.tid).flags & _PF_LOCAL_THROTTLE)
                ctx.add(ThreadAttributes(task.pid, tid, death, U64(personality), flusher))

    @at(Phase.CHECK)
    def check(self, ctx: Restore) -> None:
        if any(row.merging for row in ctx.rows(Attributes)) and not advice.knows_merging():
            raise OtherMachine(image=ctx.image, what="this kernel does not merge pages (PR_SET_MEMORY_MERGE), as the "
                                                     "job asked for", cure="restart on a node with a newer kernel")

    @at(Phase.SPACE)
    def set_huge_pages(self, ctx: Restore) -> None:
        """Before any page comes. What was told is 1 and flags: PR_THP_DISABLE_EXCEPT_ADVISED (Linux 6.18)."""
        for row in ctx.rows(Attributes):
            if row.thp_disabled != libc.prctl(_PR_GET_THP_DISABLE):   # stubs have the agent's
                on = row.thp_disabled & 1
                ctx.tasks[row.pid].call("prctl", _PR_SET_THP_DISABLE, on, row.thp_disabled - on, 0, 0)

    @at(Phase.SPACE)
    def permit_tiles(self, ctx: Restore) -> None:
        """The permission belongs to the process and sizes the signal frames of its threads."""
        for row in ctx.rows(Attributes):
            if row.extended_state >> _AMX_TILE_DATA & 1:
                ctx.tasks[row.pid].call("arch_prctl", _ARCH_REQ_XCOMP_PERM, _AMX_TILE_DATA)

    @at(Phase.STATE)
    def restore(self, ctx: Restore) -> None:
        for row in ctx.rows(Attributes):
            task = ctx.tasks[row.pid]
            with task.area.batch() as batch:
                batch.call("prctl", _PR_SET_CHILD_SUBREAPER, row.subreaper)
                if row.merging:
                    batch.call("prctl", _PR_SET_MEMORY_MERGE, 1, 0, 0, 0)
            with contextlib.suppress(OSError):
                write_file(f"/proc/{task.host}/coredump_filter", hex(row.coredump_filter))
        for thread in ctx.rows(ThreadAttributes):
            tracee = ctx.tasks[thread.pid].threads[thread.tid]
            if thread.personality != libc.syscall("personality", 0xFFFFFFFF):   # stubs have the agent's
                tracee.call("personality", thread.personality)
            if thread.io_flusher:
                try:
                    tracee.call("prctl", _PR_SET_IO_FLUSHER, 1, 0, 0, 0)
                except PermissionError:
                    ctx.warn(f"thread {thread.tid} may not be marked as an I/O flusher here")

    @at(Phase.LAST)
    def restore_after_credentials(self, ctx: Restore) -> None:
        """What a change of credentials would reset, and what our own memory would not be allowed under."""
        for row in ctx.rows(Attributes):
            task = ctx.tasks[row.pid]
            task.call("prctl", _PR_SET_DUMPABLE, row.dumpable & 1)   # 2 can only come from an exec
            if row.write_or_execute:
                task.call("prctl", _PR_SET_MDWE, row.write_or_execute, 0, 0, 0)
        for thread in ctx.rows(ThreadAttributes):
            if thread.parent_death_signal:
                tracee = ctx.tasks[thread.pid].threads[thread.tid]
                tracee.call("prctl", _PR_SET_PDEATHSIG, thread.parent_death_signal)


# -- dump -----------------------------------------------------------------------------------------------
def _places(task: Task) -> Iterator[tuple[int, Iterator[str] | tuple[str, ...]]]:
    """Whose namespaces to look at, and which."""
    yield task.host, tuple(_NAMESPACES)
    for tracee in task.threads.values():
        if tracee.tid != task.host:
            yield tracee.tid, _OF_THREADS


def _namespace(host: int, name: str) -> tuple[int, int]:
    try:
        stat = os.stat(f"/proc/{host}/ns/{name}")
    except FileNotFoundError:   # a kernel without them; or none of this sort for children yet
        return 0, 0
    return stat.st_dev, stat.st_ino


def _process(ctx: Dump, task: Task) -> Attributes:
    room = task.area.data
    task.leader.write(room, bytes(24))
    options = [_PR_GET_DUMPABLE, _PR_GET_THP_DISABLE, *filter(has_prctl, (_PR_GET_MDWE, _PR_GET_MEMORY_MERGE))]
    results = task.area.run([("prctl", (_PR_GET_CHILD_SUBREAPER, room)),
                             *(("prctl", (option, 0, 0, 0, 0)) for option in options)])
    got = dict(zip(options, results[1:], strict=True))
    with contextlib.suppress(OSError):   # a CPU without AMX
        task.call("arch_prctl", _ARCH_GET_XCOMP_PERM, room + 8)
    reaper, permitted = struct.unpack("ixxxxQ", task.leader.read(room, 16))
    return Attributes(
        task.pid, got[_PR_GET_DUMPABLE], bool(reaper), got[_PR_GET_THP_DISABLE], bool(got.get(_PR_GET_MEMORY_MERGE)),
        got.get(_PR_GET_MDWE, 0), int(proc.read(f"/proc/{task.host}/coredump_filter") or b"0", 16), U64(permitted))
