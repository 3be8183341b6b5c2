"""Timers as descriptors (timerfd_create(2)). Read from fdinfo; started again last, with the time that was left."""
from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import struct
from dataclasses import dataclass, field

from crhpc.image.records import U64
from crhpc.kernel import libc
from crhpc.resources import Phase, at
from crhpc.resources.context import Dump, OpenFile, Restore
from crhpc.resources.files import File, FileKind

_NS = 10**9
_TFD_IOC_SET_TICKS = 0x40085400


@dataclass(frozen=True, slots=True)
class Timerfd:
    """A timer; times in nanoseconds."""

    id: int
    clock: int
    settime_flags: int
    interval: int
    left: int = field(metadata={"doc": "until it fires; 0: not armed"})
    ticks: U64 = field(metadata={"doc": "expirations not read yet"})


class TimerfdKind(FileKind):
    name = "timerfd"
    records = (Timerfd,)
    saved = "timers with interval, time left, and expirations not read yet"

    def matches(self, file: OpenFile, ctx: Dump) -> bool:
        return file.link == "anon_inode:[timerfd]"

    def dump(self, file: OpenFile, ctx: Dump) -> Timerfd:
        def number(name: str, base: int = 10) -> int:
            return int(file.info.field(name) or "0", base)

        return Timerfd(file.id, number("clockid"), number("settime flags", 8), _time(file, "it_interval"),
                       _time(file, "it_value"), U64(number("ticks")))

    def restore(self, record: Timerfd, file: File, ctx: Restore) -> int:
        return libc.syscall("timerfd_create", record.clock, os.O_CLOEXEC)

    @at(Phase.TIMERS)
    def start(self, ctx: Restore) -> None:
        for record in ctx.rows(Timerfd):
            fd = ctx.open_files[record.id]
            left = record.left or (1 if record.interval and not record.ticks else 0)
            if left or record.interval:
                spec = ctypes.create_string_buffer(
                    struct.pack("4q", *divmod(record.interval, _NS), *divmod(left or record.interval, _NS)), 32)
                libc.syscall("timerfd_settime", fd, 0, spec, None)
            if record.ticks:
                with contextlib.suppress(OSError):   # needs CONFIG_CHECKPOINT_RESTORE
                    fcntl.ioctl(fd, _TFD_IOC_SET_TICKS, struct.pack("Q", record.ticks))


def _time(file: OpenFile, name: str) -> int:
    """fdinfo shows ``(seconds, nanoseconds)``."""
    seconds, nanoseconds = re.findall(r"\d+", file.info.field(name) or "0 0")
    return int(seconds) * _NS + int(nanoseconds)
