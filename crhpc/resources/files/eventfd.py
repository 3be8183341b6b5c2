"""Event counters (eventfd(2)). Read from fdinfo, the semaphore mode since Linux 6.5; rebuilt with the same counter."""
from __future__ import annotations

import os
from dataclasses import dataclass

from crhpc.image.records import U64
from crhpc.resources import Chapter
from crhpc.resources.context import Dump, OpenFile, Restore
from crhpc.resources.files import File, FileKind

_EFD_SEMAPHORE = 1
_LARGEST_AT_ONCE = (1 << 64) - 2


@dataclass(frozen=True, slots=True)
class Eventfd:
    """An event counter."""

    id: int
    counter: U64
    semaphore: bool


class EventfdKind(FileKind):
    name = "eventfd"
    chapter = Chapter.EVENTS
    records = (Eventfd,)
    saved = "event counters with their value and semaphore mode"

    def matches(self, file: OpenFile, ctx: Dump) -> bool:
        return file.link == "anon_inode:[eventfd]"

    def dump(self, file: OpenFile, ctx: Dump) -> Eventfd:
        counter = int(file.info.field("eventfd-count") or "0", 16)
        return Eventfd(file.id, U64(counter), file.info.field("eventfd-semaphore") == "1")

    def restore(self, record: Eventfd, file: File, ctx: Restore) -> int:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | (_EFD_SEMAPHORE if record.semaphore else 0))
        if record.counter:
            os.eventfd_write(fd, min(record.counter, _LARGEST_AT_ONCE))
        return fd
