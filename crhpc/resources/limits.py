"""Resource limits and the out-of-memory score of processes (getrlimit(2), proc(5)). Read and set from outside."""
from __future__ import annotations

import contextlib
import resource
from dataclasses import dataclass

from crhpc.image.records import U64
from crhpc.kernel import proc
from crhpc.kernel.namespaces import write_file
from crhpc.resources import Cut, Kind, Phase, at
from crhpc.resources.context import Dump, Restore


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
    records = (ResourceLimit, OomScore)
    saved = "resource limits, oom_score_adj"
    refused = "nothing; a hard limit above this node's is lowered to it, with a warning"

    @at(Cut.COLLECT)
    def dump(self, ctx: Dump) -> None:
        for task in ctx.tasks:
            for number, (soft, hard) in enumerate(proc.limits(task.host)):
                ctx.add(ResourceLimit(task.pid, number, U64(soft), U64(hard)))
            ctx.add(OomScore(task.pid, int(proc.read(f"/proc/{task.host}/oom_score_adj"))))

    @at(Phase.STATE)
    def restore(self, ctx: Restore) -> None:
        for row in ctx.rows(ResourceLimit):
            host = ctx.tasks[row.pid].host
            now = tuple(_unsigned(value) for value in resource.prlimit(host, row.resource))
            if now == (row.soft, row.hard):
                continue
            try:
                resource.prlimit(host, row.resource, (_signed(row.soft), _signed(row.hard)))
            except (PermissionError, ValueError):
                hard = min(row.hard, now[1])
                resource.prlimit(host, row.resource, (_signed(min(row.soft, hard)), _signed(hard)))
                ctx.warn(f"limit {proc.LIMITS[row.resource]!r} of pid {row.pid} is {hard} here, it was {row.hard}")
        for score in ctx.rows(OomScore):
            with contextlib.suppress(PermissionError):
                write_file(f"/proc/{ctx.tasks[score.pid].host}/oom_score_adj", str(score.adjustment))


def _unsigned(value: int) -> int:
    return value & (1 << 64) - 1


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
