"""Interval timers and POSIX timers.

Read by remote getitimer(2) and timer_gettime(2), the POSIX ones' rest from ``/proc/PID/timers``. All timers start
again as the last thing before the release, with the time that was left at the checkpoint.
"""
from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass, field

from crhpc.kernel import proc
from crhpc.resources import Cut, Kind, Phase, at
from crhpc.resources.context import Dump, Restore, Task

_ITIMERS = (0, 1, 2)   # ITIMER_REAL, VIRTUAL, PROF
_PR_TIMER_CREATE_RESTORE_IDS = 77
_MOST_IDS = 1 << 16
_NOTIFY = {"signal": 0, "none": 1, "thread": 2, "signal/tid": 4}
_US, _NS = 10**6, 10**9


@dataclass(frozen=True, slots=True)
class IntervalTimer:
    """setitimer(2)."""

    pid: int
    which: int = field(metadata={"doc": "0 real, 1 virtual, 2 profiling"})
    interval: int = field(metadata={"doc": "microseconds"})
    value: int = field(metadata={"doc": "microseconds left"})


@dataclass(frozen=True, slots=True)
class PosixTimer:
    """timer_create(2)."""

    pid: int
    id: int
    clock: int
    notify: int = field(metadata={"doc": "SIGEV_ constant"})
    signal: int
    value: int = field(metadata={"doc": "sigev_value"})
    target: int = field(metadata={"doc": "thread that the signal goes to, with SIGEV_THREAD_ID"})
    interval: int = field(metadata={"doc": "nanoseconds"})
    left: int = field(metadata={"doc": "nanoseconds; 0: not armed"})


class TimersKind(Kind):
    name = "timers"
    records = (IntervalTimer, PosixTimer)
    saved = "interval timers and POSIX timers with their ids and the time left"
    refused = "the overrun count of a POSIX timer is lost"

    @at(Cut.COLLECT)
    def dump(self, ctx: Dump) -> None:
        for task in ctx.tasks:
            room = task.area.data
            task.area.run([("getitimer", (which, room + 32 * which)) for which in _ITIMERS])
            raw = task.leader.read(room, 96)
            for which in _ITIMERS:
                words = struct.unpack_from("4q", raw, 32 * which)
                interval, value = words[0] * _US + words[1], words[2] * _US + words[3]
                if interval or value:
                    ctx.add(IntervalTimer(task.pid, which, interval, value))
            for timer in proc.parse_timers(proc.read(f"/proc/{task.host}/timers")):
                ctx.add(_posix(ctx, task, timer))

    @at(Phase.STATE)
    def create(self, ctx: Restore) -> None:
        for pid, task in ctx.tasks.items():
            rows = sorted((row for row in ctx.rows(PosixTimer) if row.pid == pid), key=lambda row: row.id)
            if rows:
                _create_all(task, rows)

    @at(Phase.TIMERS)
    def arm(self, ctx: Restore) -> None:
        for row in ctx.rows(IntervalTimer):
            # With the signal pending the kernel shows no time left: it starts anew when the signal is taken.
            left = row.value or 1
            content = struct.pack("4q", *divmod(row.interval, _US), *divmod(left, _US))
            with ctx.tasks[row.pid].area.batch() as batch:
                batch.call("setitimer", row.which, batch.put(content), 0)
        for timer in ctx.rows(PosixTimer):
            left = timer.left or (1 if timer.interval else 0)
            content = struct.pack("4q", *divmod(timer.interval, _NS), *divmod(left, _NS))
            with ctx.tasks[timer.pid].area.batch() as batch:
                batch.call("timer_settime", timer.id, 0, batch.put(content), 0)


def _posix(ctx: Dump, task: Task, timer: proc.PosixTimer) -> PosixTimer:
    task.call("timer_gettime", timer.id, task.area.data)
    words = struct.unpack("4q", task.leader.read(task.area.data, 32))
    target = 0
    if timer.notify.endswith("/tid"):
        target = next((tid for tid, tracee in task.threads.items() if timer.target in (tid, tracee.tid)), 0)
        if not target:
            raise ctx.refuse(f"POSIX timer {timer.id} for a thread that has ended", task, "delete the timer")
    return PosixTimer(task.pid, timer.id, timer.clock, _NOTIFY[timer.notify], timer.signal, timer.value, target,
                      words[0] * _NS + words[1], words[2] * _NS + words[3])


def _create_all(task: Task, rows: list[PosixTimer]) -> None:
    """Make timers under their old ids: asked for (Linux 6.15), else by making others in between."""
    with contextlib.suppress(OSError):
        task.call("prctl", _PR_TIMER_CREATE_RESTORE_IDS, 1, 0, 0, 0)
    try:
        for row in rows:
            _create(task, row)
    finally:
        with contextlib.suppress(OSError):
            task.call("prctl", _PR_TIMER_CREATE_RESTORE_IDS, 0, 0, 0, 0)


def _create(task: Task, row: PosixTimer) -> None:
    room = task.area.data
    for _attempt in range(_MOST_IDS):
        event = struct.pack("Qiii44x", row.value, row.signal, row.notify, row.target)
        task.leader.write(room, struct.pack("i4x", row.id) + event)
        task.call("timer_create", row.clock, room + 8, room)
        (got,) = struct.unpack("i", task.leader.read(room, 4))
        if got == row.id:
            return
        task.call("timer_delete", got)
    raise OSError(16, f"no timer got the id {row.id}", "timer_create")
