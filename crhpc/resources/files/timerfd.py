"""Timers as descriptors (timerfd_create(2)). Started again last, for when they would have fired by the job's clock.

Read from fdinfo, after a timerfd_gettime(2) of the agent's: only then does the kernel count what a periodic timer has
fired since it was first due. What it would have fired during a restart is added to that count.
"""
from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from crhpc.image.records import U64
from crhpc.kernel import libc, proc
from crhpc.resources import Chapter, Phase, at
from crhpc.resources.context import Dump, OpenFile, Restore
from crhpc.resources.files import File, FileKind

_NS = 10**9
_TFD_TIMER_ABSTIME = 1
_TFD_IOC_SET_TICKS = 0x40085400
_REALTIME = (0, 8)   # CLOCK_REALTIME, CLOCK_REALTIME_ALARM
_CLOCKS = {1: "monotonic", 7: "boottime", 9: "boottime"}
_NEVER = -1
_LOOKS, _AT_ONCE = 10, 200_000
"""How often, and up to how many nanoseconds."""


@dataclass(frozen=True, slots=True)
class Timerfd:
    """A timer; times in nanoseconds."""

    id: int
    clock: int
    settime_flags: int = field(metadata={"doc": "TFD_TIMER_ flags"})
    interval: int
    until: int = field(metadata={"doc": "when it fires by its clock in the job, a relative one of CLOCK_REALTIME by "
                                        "the monotonic clock; -1: not armed"})
    ticks: U64 = field(metadata={"doc": "expirations not read yet"})


class TimerfdKind(FileKind):
    name = "timerfd"
    chapter = Chapter.EVENTS
    records = (Timerfd,)
    saved = ("timers with clock, interval and flags, expirations that are not read yet, and the moment when they "
             "fire by the job's own clock; absolute ones of CLOCK_REALTIME fire by the time of day")
    afterwards = ("expirations that fall into the time of the restart itself are counted; a change of the time of "
                  "day that was not read yet (TFD_TIMER_CANCEL_ON_SET) is lost")

    def matches(self, file: OpenFile, ctx: Dump) -> bool:
        return file.link == "anon_inode:[timerfd]"

    def dump(self, file: OpenFile, ctx: Dump) -> Timerfd:
        fd = ctx.take(file.task, file.fd)
        clock, flags = _number(file.info, "clockid"), _number(file.info, "settime flags", 8)
        ahead = _ahead(clock, flags, ctx.pod.clock_ahead)
        info, now = _read(file, fd, clock, flags)
        interval = _time(info, "it_interval")
        left = _time(info, "it_value") or (interval if _has_just_fired(info) else 0)
        return Timerfd(file.id, clock, flags, interval, now + ahead + left if left else _NEVER,
                       U64(_number(info, "ticks")))

    def restore(self, record: Timerfd, file: File, ctx: Restore) -> int:
        return libc.syscall("timerfd_create", record.clock, os.O_CLOEXEC)

    @at(Phase.TIMERS)
    def start(self, ctx: Restore) -> None:
        for record in ctx.rows(Timerfd):
            if record.until >= 0 or record.ticks or record.interval or record.settime_flags:
                until = record.until - _ahead(record.clock, record.settime_flags, ctx.pod.clock_ahead)
                _start(ctx.open_files[record.id], record, until)


def _read(file: OpenFile, fd: int, clock: int, flags: int) -> tuple[proc.FdInfo, int]:
    """What is told of a timer, and the time by its clock right then: who is kept waiting in between looks again."""
    best: tuple[bool, int, proc.FdInfo, int] | None = None
    times = ctypes.create_string_buffer(32)
    for _attempt in range(_LOOKS):
        libc.syscall("timerfd_gettime", fd, times)
        before = _now(clock, flags)
        info = proc.fdinfo(file.task.host, file.fd)
        after = _now(clock, flags)
        fired = _has_just_fired(info)
        if best is None or (fired, after - before) < best[:2]:
            best = fired, after - before, info, after
        if not fired and after - before < _AT_ONCE:
            break
    assert best is not None
    return best[2:]


def _has_just_fired(info: proc.FdInfo) -> bool:
    """Whether a periodic timer fired behind the timerfd_gettime(2): it stands until it is looked at again."""
    return _time(info, "it_value") == 0 and _time(info, "it_interval") > 0 and _number(info, "ticks") > 0


def _number(info: proc.FdInfo, name: str, base: int = 10) -> int:
    return int(info.field(name) or "0", base)


def _time(info: proc.FdInfo, name: str) -> int:
    """fdinfo shows ``(seconds, nanoseconds)``."""
    seconds, nanoseconds = re.findall(r"\d+", info.field(name) or "0 0")
    return int(seconds) * _NS + int(nanoseconds)


def _follows(clock: int, flags: int) -> int:
    """The clock that a timer follows: one of CLOCK_REALTIME that was set relatively does not follow its jumps."""
    if clock in _REALTIME:
        return time.CLOCK_REALTIME if flags & _TFD_TIMER_ABSTIME else time.CLOCK_MONOTONIC
    return time.CLOCK_BOOTTIME if _CLOCKS.get(clock) == "boottime" else time.CLOCK_MONOTONIC


def _now(clock: int, flags: int) -> int:
    return time.clock_gettime_ns(_follows(clock, flags))


def _ahead(clock: int, flags: int, of: Callable[[str], int]) -> int:
    """Nanoseconds that the clock is ahead in the pod."""
    names = {time.CLOCK_MONOTONIC: "monotonic", time.CLOCK_BOOTTIME: "boottime"}
    name = names.get(_follows(clock, flags))
    return of(name) if name else 0


def _start(fd: int, record: Timerfd, until: int) -> None:
    """Set a timer, with all that it has fired; again where it fired in between, but not for ever: some fire faster.

    Args:
        until: as the record's, by this process's clock.
    """
    clock, flags = record.clock, record.settime_flags
    for _attempt in range(_LOOKS):
        now, ticks, left = _now(clock, flags), record.ticks, 0
        if record.until >= 0:
            left = until - now
            if left <= 0:
                missed = 1 + -left // record.interval if record.interval else 1
                ticks, left = U64(ticks + missed), left + missed * record.interval if record.interval else 0
        value = now + left if left and flags & _TFD_TIMER_ABSTIME else left
        spec = struct.pack("4q", *divmod(record.interval, _NS), *divmod(value, _NS))
        libc.syscall("timerfd_settime", fd, flags, ctypes.create_string_buffer(spec, len(spec)), None)
        if not ticks:
            return
        with contextlib.suppress(OSError):   # needs CONFIG_CHECKPOINT_RESTORE
            fcntl.ioctl(fd, _TFD_IOC_SET_TICKS, struct.pack("Q", ticks))
        if not left or _now(clock, flags) < now + left:
            return
