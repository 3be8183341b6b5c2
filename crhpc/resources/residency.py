"""Shared mappings as a way to what they show: which pages there are, asked of the task that maps them (mincore(2))."""
from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from crhpc.kernel import vm
from crhpc.kernel.libc import PAGE
from crhpc.kernel.proc import Mapping
from crhpc.resources.context import Task

_AT_ONCE = 16384
_MREMAP_MAYMOVE = 1


def resident(task: Task, mapping: Mapping) -> list[tuple[int, int]]:
    """The pages that the object behind a shared mapping has, as (address, count).

    Where a part is swapped out all pages count: mincore does not see those.
    """
    if mapping.swap:
        return [(mapping.start, mapping.size // PAGE)]
    found: list[tuple[int, int]] = []
    at_once = min(_AT_ONCE, task.area.room)
    for address in range(mapping.start, mapping.end, at_once * PAGE):
        count = min(at_once, (mapping.end - address) // PAGE)
        task.call("mincore", address, count * PAGE, task.area.data)
        there = np.frombuffer(task.leader.read(task.area.data, count), np.uint8) & 1
        found += [(address + first * PAGE, n) for first, n in vm.runs(there != 0)]
    return found


@contextmanager
def without_guards(task: Task, mapping: Mapping) -> Iterator[Mapping]:
    """A shared mapping itself, or where it has guard regions a second one of the same for the moment.

    What lies under a guard is still there, for who maps it elsewhere (madvise(2), MADV_GUARD_INSTALL).
    """
    pagemap = os.open(f"/proc/{task.host}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        guarded = len(vm.guards(pagemap, mapping.start, mapping.end))
    finally:
        os.close(pagemap)
    if not guarded:
        yield mapping
        return
    at = task.call("mremap", mapping.start, 0, mapping.size, _MREMAP_MAYMOVE)   # of length 0: one more (mremap(2))
    try:
        yield dataclasses.replace(mapping, start=at, end=at + mapping.size)
    finally:
        task.call("munmap", at, mapping.size)
