"""How threads are scheduled: CPU affinity, policy and priority, nice value, timer slack (sched(7)).

Read and set from outside, thread by thread. Losing any of these is silent, and MPI ranks are often pinned.
"""
from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field

from crhpc.kernel import proc
from crhpc.kernel.namespaces import write_file
from crhpc.resources import Cut, Kind, Phase, at
from crhpc.resources.context import Dump, Restore


@dataclass(frozen=True, slots=True)
class Scheduling:
    """Of one thread."""

    pid: int
    tid: int
    cpus: tuple[int, ...]
    policy: int = field(metadata={"doc": "SCHED_ constant, with SCHED_RESET_ON_FORK"})
    priority: int
    nice: int
    timer_slack: int = field(metadata={"doc": "nanoseconds; -1: could not be read"})


class SchedulingKind(Kind):
    name = "scheduling"
    records = (Scheduling,)
    saved = "CPU affinity, scheduling policy and priority, nice value, timer slack, of every thread"
    refused = "nothing; CPUs that this node lacks are left out, with a warning"

    @at(Cut.COLLECT)
    def dump(self, ctx: Dump) -> None:
        for task in ctx.tasks:
            for tid, tracee in task.threads.items():
                host = tracee.tid
                ctx.add(Scheduling(
                    task.pid, tid, tuple(sorted(os.sched_getaffinity(host))), os.sched_getscheduler(host),
                    os.sched_getparam(host).sched_priority, proc.stat(task.host, host).nice, _timer_slack(host)))

    @at(Phase.STATE)
    def restore(self, ctx: Restore) -> None:
        lost: set[int] = set()
        here = os.sched_getaffinity(os.getpid())
        for row in ctx.rows(Scheduling):
            host = ctx.tasks[row.pid].threads[row.tid].tid
            lost |= _set_affinity(host, set(row.cpus))
            if (row.policy, row.priority) != (os.sched_getscheduler(host), os.sched_getparam(host).sched_priority):
                _try(ctx, f"scheduling policy {row.policy} of pid {row.pid}",
                     lambda host=host, row=row: os.sched_setscheduler(host, row.policy, os.sched_param(row.priority)))
            if row.nice != proc.stat(host).nice:
                _try(ctx, f"nice {row.nice} of pid {row.pid}",
                     lambda host=host, row=row: os.setpriority(os.PRIO_PROCESS, host, row.nice))
            if row.timer_slack >= 0 and row.timer_slack != _timer_slack(host):
                with contextlib.suppress(OSError):
                    write_file(f"/proc/{host}/timerslack_ns", str(row.timer_slack))
        if lost:
            ctx.warn(f"CPUs {sorted(lost)} of the job are not usable here; its threads may use {len(here)} others")


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


def _try(ctx: Restore, what: str, action: object) -> None:
    try:
        action()  # type: ignore[operator]
    except PermissionError:
        ctx.warn(f"{what} may not be set here")
