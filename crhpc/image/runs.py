"""Arithmetic of runs of pages: arrays of shape (n, 2), first page and count, ascending, none overlapping."""
from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Pages = npt.NDArray[np.int64]
Indexes = npt.NDArray[np.int64]

NONE: Pages = np.zeros((0, 2), np.int64)
_END = 1 << 62


def intersect(a: Pages, b: Pages) -> tuple[Pages, Indexes, Indexes]:
    """What two sets of runs have in common, cut wherever one of them ends; and of which run of each it is."""
    ends_a, ends_b = a.sum(axis=1), b.sum(axis=1)
    low = np.searchsorted(ends_b, a[:, 0], side="right")
    count = np.maximum(np.searchsorted(b[:, 0], ends_a, side="left") - low, 0)
    of_a = np.repeat(np.arange(len(a)), count)
    of_b = low[of_a] + np.arange(len(of_a)) - np.repeat(np.cumsum(count) - count, count)
    first = np.maximum(a[of_a, 0], b[of_b, 0])
    end = np.minimum(ends_a[of_a], ends_b[of_b])
    return np.stack((first, end - first), axis=1), of_a, of_b


def subtract(a: Pages, b: Pages) -> Pages:
    """What of ``a`` is not in ``b``."""
    starts, ends = np.concatenate(([0], b.sum(axis=1))), np.concatenate((b[:, 0], [_END]))
    between = np.stack((starts, ends - starts), axis=1)[ends > starts]
    return intersect(a, between)[0]


def of_numbers(numbers: Indexes) -> Pages:
    """Runs of page numbers that ascend."""
    first = np.flatnonzero(np.diff(numbers, prepend=-2) != 1)
    return np.stack((numbers[first], np.diff(first, append=len(numbers))), axis=1)


def numbers(runs: Pages) -> Indexes:
    """The number of each page."""
    first, count = runs.T
    found: Indexes = np.repeat(first - (np.cumsum(count) - count), count) + np.arange(int(count.sum()))
    return found


def cut(runs: Pages, at_most: int) -> Iterator[Pages]:
    """Groups of runs with ``at_most`` pages together, the last one fewer; runs are cut for it."""
    first, count = runs.T
    ends = np.cumsum(count)
    starts = ends - count
    parts = np.where(count > 0, (ends - 1) // at_most - starts // at_most + 1, 0)
    of = np.repeat(np.arange(len(runs)), parts)
    nth = np.arange(len(of)) - np.repeat(np.cumsum(parts) - parts, parts)
    border = (starts[of] // at_most + nth) * at_most
    low, high = np.maximum(starts[of], border), np.minimum(ends[of], border + at_most)
    pieces = np.stack((first[of] + low - starts[of], high - low), axis=1)
    if len(pieces):
        yield from np.split(pieces, np.flatnonzero(np.diff(low // at_most)) + 1)
