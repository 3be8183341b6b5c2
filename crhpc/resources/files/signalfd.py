"""Signals as descriptors (signalfd(2)). The mask is read from fdinfo; pending signals belong to the tasks."""
from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass

from crhpc.image.records import U64
from crhpc.kernel import libc
from crhpc.resources import Chapter
from crhpc.resources.context import Dump, OpenFile, Restore
from crhpc.resources.files import File, FileKind


@dataclass(frozen=True, slots=True)
class Signalfd:
    """The signals that it reports: bit n-1 is signal n."""

    id: int
    mask: U64


class SignalfdKind(FileKind):
    name = "signalfd"
    chapter = Chapter.EVENTS
    records = (Signalfd,)
    saved = "the set of signals that a signalfd reports"

    def matches(self, file: OpenFile, ctx: Dump) -> bool:
        return file.link == "anon_inode:[signalfd]"

    def dump(self, file: OpenFile, ctx: Dump) -> Signalfd:
        return Signalfd(file.id, U64(int(file.info.field("sigmask") or "0", 16)))

    def restore(self, record: Signalfd, file: File, ctx: Restore) -> int:
        mask = ctypes.create_string_buffer(struct.pack("Q", record.mask), 8)
        return libc.syscall("signalfd4", -1, mask, 8, os.O_CLOEXEC)
