"""Interval timers and POSIX timers.

Read by one table of remote calls a process, the POSIX ones' rest from ``/proc/PID/timers``. All start again as the last
thing before the release, for the moment when they would have fired by the job's clock. Those whose signal waits
fire at once: the kernel's own signal then takes the place of the one that waited, as only it counts overruns.
"""
from __future__ import annotations

import contextlib
import struct
import time
from dataclasses import dataclass, field

from crhpc.kernel import proc, ptrace
from crhpc.kernel.tracee import Batch
from crhpc.resources import Chapter, Cut, Kind, Phase, at
from crhpc.resources.context import Dump, Restore, Task

_ITIMER_REAL, _ITIMER_VIRTUAL, _ITIMER_PROF = 0, 1, 2
_ITIMERS = (_ITIMER_REAL, _ITIMER_VIRTUAL, _ITIMER_PROF)
_PR_TIMER_CREATE_RESTORE_IDS = 77
_MOST_IDS = 1 << 16
_NOTIFY = {"signal": 0, "none": 1, "thread": 2, "signal/tid": 4}
_TIMER_ABSTIME = 1
_US, _NS = 10**6, 10**9
_CLOCKS = {time.CLOCK_MONOTONIC: "monotonic", time.CLOCK_BOOTTIME: "boottime"}
"""Clocks that go on over a restart where they were."""
_THREAD_CLOCK = -2
"""How ``/proc/PID/timers`` shows the processor time of the thread that made a timer, whichever that was."""
_NEVER = -1
_LOOKS, _AT_ONCE, _EACH = 10, 200_000, 5_000
"""How often, and up to how many nanoseconds, together and for each timer."""
_TIMES = struct.Struct("4q")
"""struct itimerval and itimerspec: interval and time left, in two parts each."""


@dataclass(frozen=True, slots=True)
class IntervalTimer:
    """setitimer(2)."""

    pid: int
    which: int = field(metadata={"doc": "0 real, 1 virtual, 2 profiling"})
    interval: int = field(metadata={"doc": "microseconds"})
    value: int = field(metadata={"doc": "microseconds left; 0 of a real one: its signal waits"})
    until: int = field(metadata={"doc": "of a real one when it fires, by the job's CLOCK_MONOTONIC in nanoseconds"})


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
    until: int = field(metadata={"doc": "when it fires, or fired if its signal waits, by the job's monotonic or "
                                        "boot-time clock; -1: not armed"})
    waiting: int = field(metadata={"doc": "0, or the place of its signal among those of timers that wait"})


@dataclass(slots=True)
class _Read:
    """What is read of a task's POSIX timers, in this order."""

    timers: list[proc.PosixTimer]
    waiting: dict[int, int] = field(default_factory=dict)
    """Of those whose signal waits, by id: their places."""
    clocks: dict[int, int] = field(default_factory=dict)
    """The job's clocks at that time."""
    times: list[tuple[int, int]] = field(default_factory=list)
    """Interval and time left of each, some time later."""
    later: dict[int, int] = field(default_factory=dict)
    """The clocks at that time."""


class TimersKind(Kind):
    name = "timers"
    chapter = Chapter.EVENTS
    records = (IntervalTimer, PosixTimer)
    saved = ("interval timers (setitimer) and POSIX timers of all clocks with their ids, what they tell whom, and "
             "the moment when they fire by the job's own clock; of processor time and of relative ones of "
             "CLOCK_REALTIME the time left")
    refused = (
        ("a POSIX timer for a thread that has ended", "delete the timer"),
        ("a POSIX timer on the processor time of one of several threads",
         "let it tell the thread itself (SIGEV_THREAD_ID), or take the clock of pthread_getcpuclockid"),
    )
    afterwards = ("a timer fires meanwhile if it is due while the restart makes ready: its signal then waits. "
                  "Processors' clocks begin at 0 again; how often a timer fired while its signal waited "
                  "(timer_getoverrun), also at the end of the cut, is lost")

    @at(Cut.INSPECT)
    def inspect(self, ctx: Dump) -> None:
        found: dict[int, _Read] = {}
        for task in ctx.tasks:
            with contextlib.suppress(FileNotFoundError):   # a kernel without CONFIG_CHECKPOINT_RESTORE
                timers = proc.parse_timers(proc.read(f"/proc/{task.host}/timers"))
                for timer in timers:
                    _check(ctx, task, timer)
                if timers:
                    found[task.pid] = _Read(timers)
        ctx.state["posix timers"] = found

    @at(Cut.REGISTERS)
    def look(self, ctx: Dump) -> None:
        for task in ctx.tasks:
            if read := ctx.state["posix timers"].get(task.pid):
                read.waiting = _waiting(task)
                read.clocks = {clock: time.clock_gettime_ns(clock) + ctx.pod.clock_ahead(name)
                               for clock, name in _CLOCKS.items()}

    @at(Cut.COLLECT)
    def read(self, ctx: Dump) -> None:
        for task in ctx.tasks:
            read: _Read = ctx.state["posix timers"].get(task.pid) or _Read([])
            interval_timers, read.times, read.later = _read_at_once(task, [timer.id for timer in read.timers])
            for which, (interval, value) in zip(_ITIMERS, interval_timers, strict=True):
                if interval or value:
                    real = value and which == _ITIMER_REAL
                    until = read.later[time.CLOCK_MONOTONIC] + value * 1000 if real else _NEVER
                    ctx.add(IntervalTimer(task.pid, which, interval, value, until))

    @at(Cut.CONTENT)
    def dump(self, ctx: Dump) -> None:
        for task in ctx.tasks:
            if read := ctx.state["posix timers"].get(task.pid):
                waiting = _waiting(task)
                for timer, (interval, left) in zip(read.timers, read.times, strict=True):
                    until = _first(read, timer, interval, left, waiting)
                    ctx.add(PosixTimer(task.pid, timer.id, timer.clock, _NOTIFY[timer.notify], timer.signal,
                                       timer.value, _target(task, timer), interval, left, until,
                                       waiting.get(timer.id, 0)))

    @at(Phase.STATE)
    def create(self, ctx: Restore) -> None:
        timers = sorted(ctx.rows(PosixTimer), key=lambda row: row.id)
        for pid in dict.fromkeys(row.pid for row in timers):
            _create_all(ctx.tasks[pid], [row for row in timers if row.pid == pid])
        ctx.state["timers"] = {(row.pid, row.id) for row in timers}

    @at(Phase.TIMERS)
    def arm(self, ctx: Restore) -> None:
        ahead = {name: ctx.pod.clock_ahead(name) for name in _CLOCKS.values()}
        for row in ctx.rows(IntervalTimer):
            if row.which == _ITIMER_REAL:
                _set_real_timer(ctx.tasks[row.pid], row, ahead["monotonic"])
            else:
                _set_processor_timer(ctx.tasks[row.pid], row)
        for timer in sorted(ctx.rows(PosixTimer), key=lambda row: row.waiting):
            with ctx.tasks[timer.pid].area.batch() as batch:
                _set_timer(batch, timer, ahead)


# -- dump -----------------------------------------------------------------------------------------------
def _check(ctx: Dump, task: Task, timer: proc.PosixTimer) -> None:
    if not task.threads:   # a survey
        return
    if timer.notify.endswith("/tid"):
        if not _target(task, timer):
            raise ctx.refuse(f"POSIX timer {timer.id} for a thread that has ended", task, "delete the timer")
    elif timer.clock == _THREAD_CLOCK and len(task.threads) > 1:
        raise ctx.refuse(f"POSIX timer {timer.id} on the processor time of one of several threads", task,
                         "let it tell the thread itself (SIGEV_THREAD_ID), or take the clock of pthread_getcpuclockid")


def _target(task: Task, timer: proc.PosixTimer) -> int:
    if not timer.notify.endswith("/tid"):
        return 0
    return next((tid for tid, tracee in task.threads.items() if timer.target in (tid, tracee.tid)), 0)


def _waiting(task: Task) -> dict[int, int]:
    """The timers whose signals wait, and their places among these."""
    found: dict[int, int] = {}
    for tid, tracee in task.threads.items():
        infos = ptrace.pending_signals(tracee.tid, shared=False)
        if tid == task.pid:
            infos = ptrace.pending_signals(task.host, shared=True) + infos
        for info in infos:
            if (timer := ptrace.timer_of(info)) is not None:
                found.setdefault(timer, len(found) + 1)
    return found


def _first(read: _Read, timer: proc.PosixTimer, interval: int, left: int, waiting: dict[int, int]) -> int:
    """When a timer fires next, or fired first of what nobody has seen yet.

    Args:
        waiting: as ``_waiting`` tells after the times were read.
    """
    clock = timer.clock if timer.clock in _CLOCKS else time.CLOCK_MONOTONIC
    if not left:
        return read.clocks[clock] if timer.id in waiting else _NEVER
    until = read.later[clock] + left
    if not interval or timer.clock < 0 or timer.id not in waiting:
        return until
    if left <= interval:   # it may have fired between the first look and the reading: the first time that it can have
        until -= (until - 1 - read.clocks[clock]) // interval * interval
    return until - interval if timer.id in read.waiting else until


def _read_at_once(task: Task, timers: list[int]) -> tuple[list[tuple[int, int]], list[tuple[int, int]], dict[int, int]]:
    """(interval, left) of interval timers and of POSIX timers, and the clocks as the task sees them right then.

    A task that was kept waiting in between looks again.
    """
    best: tuple[int, list[tuple[int, int, int, int]]] | None = None
    for _attempt in range(_LOOKS):
        found = _read(task, timers)
        begin, end = (found[i][0] * _NS + found[i][1] for i in (0, -len(_CLOCKS)))
        if best is None or end - begin < best[0]:
            best = end - begin, found
        if best[0] < _AT_ONCE + _EACH * len(timers):
            break
    assert best is not None
    _begin, *times = best[1]
    behind = len(_ITIMERS) + len(timers)
    return ([(a * _US + b, c * _US + d) for a, b, c, d in times[:len(_ITIMERS)]],
            [(a * _NS + b, c * _NS + d) for a, b, c, d in times[len(_ITIMERS):behind]],
            {clock: a * _NS + b for clock, (a, b, _c, _d) in zip(_CLOCKS, times[behind:], strict=True)})


def _read(task: Task, timers: list[int]) -> list[tuple[int, int, int, int]]:
    """CLOCK_MONOTONIC, the interval timers, the POSIX timers, and the clocks: all in one go."""
    calls = [("clock_gettime", time.CLOCK_MONOTONIC), *(("getitimer", which) for which in _ITIMERS),
             *(("timer_gettime", timer) for timer in timers), *(("clock_gettime", clock) for clock in _CLOCKS)]
    found: list[tuple[int, int, int, int]] = []
    room = task.area.data
    most = task.area.room // _TIMES.size
    for start in range(0, len(calls), most):
        part = calls[start:start + most]
        task.area.run([(name, (what, room + _TIMES.size * i)) for i, (name, what) in enumerate(part)])
        found += _TIMES.iter_unpack(task.leader.read(room, _TIMES.size * len(part)))
    return found


# -- restore --------------------------------------------------------------------------------------------
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
    maker = task.threads[row.target] if row.clock == _THREAD_CLOCK and row.target else task.leader
    for _attempt in range(_MOST_IDS):
        event = struct.pack("Qiii44x", row.value, row.signal, row.notify, row.target)
        task.leader.write(room, struct.pack("i4x", row.id) + event)
        maker.call("timer_create", row.clock, room + 8, room)
        (got,) = struct.unpack("i", task.leader.read(room, 4))
        if got == row.id:
            return
        task.call("timer_delete", got)
    raise OSError(16, f"no timer got the id {row.id}", "timer_create")


def _set_real_timer(task: Task, row: IntervalTimer, ahead: int) -> None:
    # With the signal waiting the kernel shows no time left: it starts anew when the signal is taken.
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + ahead
    value = max((row.until - now) // 1000, 1) if row.until >= 0 else 1
    with task.area.batch() as batch:
        batch.call("setitimer", row.which, batch.put(_interval_times(row, value)), 0)


def _set_processor_timer(task: Task, row: IntervalTimer) -> None:
    """The kernel adds a tick of its clock each time that one is set (kernel/time/itimer.c): it must not add up."""
    room = task.area.data
    value = row.value
    for _attempt in range(2):
        task.leader.write(room, _interval_times(row, value))
        task.call("setitimer", row.which, room, 0)
        task.call("getitimer", row.which, room)
        _seconds, _rest, left, left_rest = _TIMES.unpack(task.leader.read(room, _TIMES.size))
        if not 0 < (more := left * _US + left_rest - row.value) < row.value:
            return
        value = row.value - more


def _interval_times(row: IntervalTimer, value: int) -> bytes:
    return _TIMES.pack(*divmod(row.interval, _US), *divmod(value, _US))


def _set_timer(batch: Batch, row: PosixTimer, ahead: dict[str, int]) -> None:
    if row.until < 0:
        return
    flags = 0
    if row.clock in _CLOCKS:
        flags, value = _TIMER_ABSTIME, row.until
    elif row.clock >= 0:
        value = row.until - (time.clock_gettime_ns(time.CLOCK_MONOTONIC) + ahead["monotonic"])
    else:   # a processor's time, which has not gone on
        value = 1 if row.waiting else row.left
    content = _TIMES.pack(*divmod(row.interval, _NS), *divmod(max(value, 1), _NS))
    batch.call("timer_settime", row.id, flags, batch.put(content), 0)
