"""How threads are scheduled and where their memory comes from (sched(7), numa(7)): CPU affinity, policy, priority and
nice value, utilisation clamps, timer slack, I/O priority, NUMA memory policy; and the nice values of autogroups.

Read and set from outside, thread by thread, but for memory policies, which only the thread itself can tell and set.
Losing any of these is silent, and MPI ranks are often pinned.
"""
from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from crhpc.image.records import U64
from crhpc.kernel import libc, proc
from crhpc.kernel.namespaces import write_file
from crhpc.resources import Chapter, Cut, Kind, Phase, at
from crhpc.resources.context import Dump, Restore, Task
from crhpc.resources.questions import ROOM, Question, answer, ask

_IOPRIO_WHO_PROCESS = 1
_REAL_TIME, _SCHED_DEADLINE = (1, 2), 6
_SCHED_RESET_ON_FORK = 0x40000000
_ATTR = struct.Struct("IIQiIQQQII")
"""struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period, util_min, util_max"""
_KEEP_ALL, _UTIL_CLAMP = 0x18, 0x60
_NO_CLAMP = (0, 1024)
_MOST_NODES, _MASK_SIZE = 1024, 128
_MPOL_F_ADDR, _MPOL_MF_MOVE = 2, 2
_MEMORY_POLICY = Question("get_mempolicy", (ROOM, ROOM - 8, _MOST_NODES, 0, 0), 8 + _MASK_SIZE)


@dataclass(frozen=True, slots=True)
class Scheduling:
    """Of one thread."""

    pid: int
    tid: int
    cpus: tuple[int, ...]
    policy: int = field(metadata={"doc": "SCHED_ constant, with SCHED_RESET_ON_FORK"})
    priority: int
    nice: int
    clamps: tuple[int, ...] = field(metadata={"doc": "least and most utilisation, of 1024; none: not clamped"})
    timer_slack: int = field(metadata={"doc": "nanoseconds; -1: could not be read"})
    io_priority: int = field(metadata={"doc": "as ioprio_get(2) gives it"})


@dataclass(frozen=True, slots=True)
class MemoryPolicy:
    """Of one thread, or of a part of a process's memory; what has the default has no row."""

    pid: int
    tid: int = field(metadata={"doc": "0: of memory"})
    start: U64
    end: U64
    mode: int = field(metadata={"doc": "MPOL_ constant and flags"})
    nodes: bytes = field(metadata={"doc": "bit n of byte n / 8 is node n"})


@dataclass(frozen=True, slots=True)
class Autogroup:
    """The nice value of the group that a process is scheduled in; 0 has no row."""

    pid: int
    nice: int


class SchedulingKind(Kind):
    name = "scheduling"
    chapter = Chapter.PROCESSES
    records = (Scheduling, MemoryPolicy, Autogroup)
    saved = ("of every thread: CPU affinity, scheduling policy, priority and nice value, utilisation clamps, timer "
             "slack, I/O priority, NUMA memory policy; NUMA policy of mapped memory; nice values of autogroups")
    refused = (
        ("a thread with a deadline (SCHED_DEADLINE)", "use another scheduling policy"),
    )
    afterwards = ("CPUs and NUMA nodes that there are not, and what this user may not set any more, are left out, "
                  "with a warning")

    @at(Cut.INSPECT)
    def inspect(self, ctx: Dump) -> None:
        ask(ctx, _MEMORY_POLICY)
        seen = ctx.state["scheduling attributes"] = {}
        for task in ctx.tasks:
            for tid, tracee in (task.threads or {task.pid: task.leader}).items():
                seen[task.pid, tid] = attributes = _attributes(tracee.tid)
                if attributes[1] == _SCHED_DEADLINE:
                    raise ctx.refuse("a thread with a deadline (SCHED_DEADLINE)", task, "use another scheduling policy")

    @at(Cut.COLLECT)
    def dump(self, ctx: Dump) -> None:
        for task in ctx.tasks:
            for tid, tracee in task.threads.items():
                attributes = ctx.state["scheduling attributes"][task.pid, tid]
                ctx.add(_row(task.pid, tid, tracee.tid, attributes))
                mode, nodes = _policy(answer(ctx, task, tid, _MEMORY_POLICY)[1])
                if mode:
                    ctx.add(MemoryPolicy(task.pid, tid, U64(0), U64(0), mode, nodes))
            nice = _autogroup(task.host)
            if nice:
                ctx.add(Autogroup(task.pid, nice))
        if several_nodes():
            for task in ctx.tasks:
                for row in _of_memory(task):
                    ctx.add(row)

    @at(Phase.STATE)
    def restore(self, ctx: Restore) -> None:
        lost: set[int] = set()
        for row in ctx.rows(Scheduling):
            lost |= _set(ctx, ctx.tasks[row.pid].threads[row.tid].tid, row)
        if lost:
            here = len(os.sched_getaffinity(os.getpid()))
            ctx.warn(f"CPUs {sorted(lost)} of the job are not usable here; its threads may use {here} others")

    @at(Phase.STATE)
    def restore_memory_policies(self, ctx: Restore) -> None:
        for row in ctx.rows(MemoryPolicy):
            task = ctx.tasks[row.pid]
            area = task.area_of(row.tid or row.pid)
            try:
                with area.batch() as batch:
                    mask = batch.put(row.nodes.ljust(_MASK_SIZE, b"\0"))
                    if row.tid:
                        batch.call("set_mempolicy", row.mode, mask, _MOST_NODES)
                    else:   # pages are there already, where the agent was
                        batch.call("mbind", row.start, row.end - row.start, row.mode, mask, _MOST_NODES, _MPOL_MF_MOVE)
            except OSError as error:
                ctx.warn(f"a NUMA memory policy of pid {row.pid} cannot be set here ({error.strerror})")

    @at(Phase.STATE)
    def restore_autogroups(self, ctx: Restore) -> None:
        for row in ctx.rows(Autogroup):
            host = ctx.tasks[row.pid].host
            if _autogroup(host) != row.nice:
                _try(ctx, f"the nice value {row.nice} of the session of pid {row.pid}",
                     partial(_set_autogroup, host, row.nice))


# -- threads --------------------------------------------------------------------------------------------
def _attributes(host: int) -> tuple[int, ...]:
    """sched_getattr(2): more than the older calls tell, in one."""
    room = ctypes.create_string_buffer(_ATTR.size)
    libc.syscall("sched_getattr", host, room, _ATTR.size, 0)
    return _ATTR.unpack(room.raw)


def _row(pid: int, tid: int, host: int, attributes: tuple[int, ...]) -> Scheduling:
    _size, policy, flags, nice, priority, _runtime, _deadline, _period, *clamps = attributes
    if policy in _REAL_TIME:   # it is kept for later, and told only there
        nice = proc.stat(host).nice
    policy |= flags & 1 and _SCHED_RESET_ON_FORK
    return Scheduling(pid, tid, tuple(sorted(os.sched_getaffinity(host))), policy, priority, nice, _clamps(clamps),
                      _timer_slack(host), libc.syscall("ioprio_get", _IOPRIO_WHO_PROCESS, host))


def _clamps(values: list[int]) -> tuple[int, ...]:
    """None where the kernel has none (all zero) or the default."""
    return () if tuple(values) in ((0, 0), _NO_CLAMP) else tuple(values)


def _set(ctx: Restore, host: int, row: Scheduling) -> set[int]:
    """Schedule a thread as it was; the CPUs that there are not."""
    now = _row(row.pid, row.tid, host, _attributes(host))
    if (row.policy, row.priority) != (now.policy, now.priority):
        _try(ctx, f"scheduling policy {row.policy} of pid {row.pid}",
             lambda: os.sched_setscheduler(host, row.policy, os.sched_param(row.priority)))
    if row.nice != now.nice:
        _try(ctx, f"nice {row.nice} of pid {row.pid}", lambda: os.setpriority(os.PRIO_PROCESS, host, row.nice))
    if row.clamps and row.clamps != now.clamps:
        data = _ATTR.pack(_ATTR.size, 0, _KEEP_ALL | _UTIL_CLAMP, 0, 0, 0, 0, 0, *row.clamps)
        _try(ctx, f"utilisation clamps {row.clamps} of pid {row.pid}",
             lambda: libc.syscall("sched_setattr", host, ctypes.create_string_buffer(data, len(data)), 0))
    if row.io_priority != now.io_priority:
        _try(ctx, f"I/O priority {row.io_priority} of pid {row.pid}",
             lambda: libc.syscall("ioprio_set", _IOPRIO_WHO_PROCESS, host, row.io_priority))
    if row.timer_slack >= 0 and row.timer_slack != now.timer_slack:
        with contextlib.suppress(OSError):
            write_file(f"/proc/{host}/timerslack_ns", str(row.timer_slack))
    return _set_affinity(host, set(row.cpus))


def _timer_slack(host: int) -> int:
    try:
        return int(proc.read(f"/proc/{host}/timerslack_ns"))
    except OSError:
        return -1


def _set_affinity(host: int, wanted: set[int]) -> set[int]:
    """Pin a thread to what there is of its old CPUs; the CPUs that there are not."""
    try:
        os.sched_setaffinity(host, wanted)
    except OSError:
        return wanted
    return wanted - os.sched_getaffinity(host)


def _try(ctx: Restore, what: str, action: Callable[[], object]) -> None:
    try:
        action()
    except OSError as error:
        ctx.warn(f"{what} cannot be set here ({error.strerror})")


# -- memory ---------------------------------------------------------------------------------------------
def several_nodes() -> bool:
    """Whether it matters where memory comes from."""
    with contextlib.suppress(OSError):
        return Path("/sys/devices/system/node/online").read_text(encoding="ascii").strip() != "0"
    return False


def _policy(raw: bytes) -> tuple[int, bytes]:
    return struct.unpack_from("i", raw)[0], raw[8:].rstrip(b"\0")


def _of_memory(task: Task) -> Iterator[MemoryPolicy]:
    """Asked for mapping by mapping: /proc/PID/numa_maps would count all pages."""
    mappings = [mapping for mapping in task.mappings if not mapping.special]
    size = 8 + _MASK_SIZE
    at_once = min(task.area.entries, task.area.room // size)
    for first in range(0, len(mappings), at_once):
        group = mappings[first:first + at_once]
        task.leader.write(task.area.data, bytes(len(group) * size))
        task.area.run([("get_mempolicy", (task.area.data + i * size, task.area.data + i * size + 8, _MOST_NODES,
                                          mapping.start, _MPOL_F_ADDR)) for i, mapping in enumerate(group)])
        raw = task.leader.read(task.area.data, len(group) * size)
        for i, mapping in enumerate(group):
            mode, nodes = _policy(raw[i * size:(i + 1) * size])
            if mode:
                yield MemoryPolicy(task.pid, 0, U64(mapping.start), U64(mapping.end), mode, nodes)


# -- sessions -------------------------------------------------------------------------------------------
def _autogroup(host: int) -> int:
    """0 where the kernel has no autogroups (CONFIG_SCHED_AUTOGROUP)."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(proc.read(f"/proc/{host}/autogroup").split()[-1])
    return 0


def _set_autogroup(host: int, nice: int) -> None:
    """A plain user may do this once in a tenth of a second."""
    for _attempt in range(50):
        try:
            return write_file(f"/proc/{host}/autogroup", str(nice))
        except BlockingIOError:
            time.sleep(0.02)
    raise BlockingIOError(11, os.strerror(11))
