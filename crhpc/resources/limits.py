"""Resource limits and the out-of-memory score of processes (getrlimit(2), proc(5)). Read and set from outside.

A limit may lie below what the process uses by now: limits come when all that they could stand in the way of is made.
"""
from __future__ import annotations

import resource
import struct
from dataclasses import dataclass

from crhpc.image.records import U64
from crhpc.kernel import proc
from crhpc.kernel.namespaces import write_file
from crhpc.resources import Chapter, Cut, Kind, Phase, at
from crhpc.resources.context import Dump, Restore

_SIGPENDING = 11


@dataclass(frozen=True, slots=True)
class ResourceLimit:
    """One limit of one process; 2**64-1 is unlimited."""

    pid: int
    resource: int
    soft: U64
    hard: U64


@dataclass(frozen=True, slots=True)
class OomScore:
    """``/proc/PID/oom_score_adj``."""

    pid: int
    adjustment: int


class LimitsKind(Kind):
    name = "limits"
    chapter = Chapter.PROCESSES
    records = (ResourceLimit, OomScore)
    saved = "resource limits and the out-of-memory score (oom_score_adj) of every process"
    afterwards = ("a hard limit above that of the restart is lowered to it, with a warning. What RLIMIT_CPU limits "
                  "is counted anew")

    @at(Cut.COLLECT)
    def dump(self, ctx: Dump) -> None:
        for task in ctx.tasks:
            for number, (soft, hard) in enumerate(proc.limits(task.host)):
                ctx.add(ResourceLimit(task.pid, number, U64(soft), U64(hard)))
            ctx.add(OomScore(task.pid, int(proc.read(f"/proc/{task.host}/oom_score_adj"))))

    @at(Phase.STATE)
    def restore(self, ctx: Restore) -> None:
        """While the tasks are this user's own: later only a privilege would do."""
        for row in ctx.rows(ResourceLimit):
            if row.resource != _SIGPENDING:
                _set(ctx, row)
        for score in ctx.rows(OomScore):
            path = f"/proc/{ctx.tasks[score.pid].host}/oom_score_adj"
            if int(proc.read(path)) != score.adjustment:
                try:
                    write_file(path, str(score.adjustment))
                except PermissionError:
                    ctx.warn(f"oom_score_adj {score.adjustment} of pid {score.pid} may not be set here")

    @at(Phase.LAST)
    def restore_last(self, ctx: Restore) -> None:
        """When all signals are queued and all timers made, which count. The task lowers it itself."""
        for row in ctx.rows(ResourceLimit):
            task = ctx.tasks[row.pid]
            if row.resource == _SIGPENDING:
                soft, hard = proc.limits(task.host)[row.resource]   # prlimit(2) would need a privilege by now
                if (row.soft, row.hard) != (soft, hard):
                    wanted = min(row.soft, hard), min(row.hard, hard)
                    task.leader.write(task.area.data, struct.pack("QQ", *wanted))
                    task.call("prlimit64", 0, row.resource, task.area.data, 0)
                    _tell(ctx, row, wanted[1])


def _set(ctx: Restore, row: ResourceLimit) -> None:
    host = ctx.tasks[row.pid].host
    now = _unsigned(resource.prlimit(host, row.resource))
    if now == (row.soft, row.hard):
        return
    try:
        resource.prlimit(host, row.resource, (_signed(row.soft), _signed(row.hard)))
    except (PermissionError, ValueError):
        hard = min(row.hard, now[1])
        resource.prlimit(host, row.resource, (_signed(min(row.soft, hard)), _signed(hard)))
        _tell(ctx, row, hard)


def _tell(ctx: Restore, row: ResourceLimit, hard: int) -> None:
    if hard != row.hard:
        ctx.warn(f"limit {proc.LIMITS[row.resource]!r} of pid {row.pid} is {hard} here, it was {row.hard}")


def _unsigned(limits: tuple[int, int]) -> tuple[int, int]:
    return limits[0] & (1 << 64) - 1, limits[1] & (1 << 64) - 1


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
