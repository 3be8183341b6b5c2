"""Relatives: processes that have forked and not executed anything since, and may share pages (copy on write).

The page map says of a page whether it is in one process only (pagemap(5), bit 56), and to root which frame it is. So
in a family only pages in several of them are looked at, and a plain user's are compared. Ranks that mpirun has
started are no relatives of each other: that costs nothing.

Pages in several processes must not be read with process_vm_readv(2): it pins them, and then the kernel gives each
process its own copy at once (mm/gup.c, gup_must_unshare), in the job, which goes on with twice the memory.
"""
from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing

import numpy as np
import numpy.typing as npt

from crhpc.image.runs import NONE, Pages, cut, intersect, numbers, of_numbers, subtract
from crhpc.kernel import proc, vm
from crhpc.kernel.libc import PAGE
from crhpc.resources.context import Task

_PRESENT, _EXCLUSIVE, _FRAME = np.uint64(1 << 63), np.uint64(1 << 56), np.uint64((1 << 55) - 1)
_LOOKED_AT, _COMPARED = 1 << 16, 256
"""Pages at once."""


def families(tasks: Iterable[Task]) -> dict[int, Family]:
    """The family of each task that has one, by its number on this node."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for task in tasks:
        stat = proc.stat(task.host)   # exec chooses these addresses at random, a fork keeps them
        alike.setdefault((stat.start_code, stat.start_stack, stat.start_brk, stat.arg_start), []).append(task.host)
    found: dict[int, Family] = {}
    for hosts in alike.values():
        if len(hosts) > 1:
            found |= dict.fromkeys(hosts, Family())
    return found


class Family:
    """Tells, one member after the other, what those before it have too."""

    def __init__(self) -> None:
        self._before: list[tuple[int, Pages]] = []

    def divide(self, host: int, pages: Pages) -> tuple[Pages, Pages, list[tuple[int, Pages]]]:
        """A member's pages that nobody else has, those in several processes, and those that one before it has too.

        Args:
            pages: of private memory that the member may read.

        Returns: the third with the number of that member on this node; the second without those.
        """
        several = _several(host, pages)
        left, found = several, []
        for relative, candidates in self._before:
            common = intersect(left, candidates)[0]
            same = _concatenated(_same(host, relative, common)) if len(common) else NONE
            if len(same):
                found.append((relative, same))
                left = subtract(left, same)
        self._before.append((host, several))
        return subtract(pages, several), left, found


def _several(host: int, pages: Pages) -> Pages:
    """Those of the pages that are in several processes."""
    def found() -> Iterator[Pages]:
        for group in cut(pages, _LOOKED_AT):
            entries = _entries(host, group)
            yield of_numbers(numbers(group)[(entries & _PRESENT != 0) & (entries & _EXCLUSIVE == 0)])
    return _concatenated(found())


def _entries(host: int, group: Pages) -> npt.NDArray[np.uint64]:
    """The page map's entries of some pages."""
    pagemap = os.open(f"/proc/{host}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        low, high = int(group[0, 0]), int(group[-1].sum())
        if high - low <= 4 * int(group[:, 1].sum()):
            return vm.read_pagemap(pagemap, low, high - low)[numbers(group) - low]
        return np.concatenate([vm.read_pagemap(pagemap, first, count) for first, count in group.tolist()])
    finally:
        os.close(pagemap)


def _same(one: int, other: int, common: Pages) -> Iterator[Pages]:
    """Those of the pages that are the same in two processes."""
    with closing(vm.Memory(one)) as memory, closing(vm.Memory(other)) as others_memory:
        for group in cut(common, _LOOKED_AT):
            frames, others = (_entries(host, group) & _FRAME for host in (one, other))
            if frames.any():   # root sees them
                yield of_numbers(numbers(group)[frames == others])
            else:
                for part in cut(group, _COMPARED):
                    yield of_numbers(numbers(part)[_equal(memory, others_memory, part)])


def _equal(one: vm.Memory, other: vm.Memory, part: Pages) -> npt.NDArray[np.bool_]:
    contents = np.empty((2, int(part[:, 1].sum()), PAGE // 8), np.uint64)
    for memory, room in zip((one, other), contents, strict=True):
        memory.read_pages(room.ctypes.data, part)
    equal: npt.NDArray[np.bool_] = (contents[0] == contents[1]).all(axis=1)
    return equal


def _concatenated(found: Iterable[Pages]) -> Pages:
    """One array; runs that touch at a border of two groups stay two."""
    return np.concatenate([NONE, *found])
