"""Which pages a shared mapping has, asked of the task that maps it (mincore(2))."""
from __future__ import annotations

import numpy as np

from crhpc.kernel import vm
from crhpc.kernel.libc import PAGE
from crhpc.kernel.proc import Mapping
from crhpc.resources.context import Task

_AT_ONCE = 16384


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
