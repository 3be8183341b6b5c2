"""Arithmetic of runs, against sets of page numbers."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crhpc.image.runs import NONE, Pages, cut, intersect, numbers, of_numbers, subtract

NUMBERS = st.sets(st.integers(0, 60))


@st.composite
def run_sets(draw: st.DrawFn) -> Pages:
    """Runs, some of which touch."""
    gaps_and_counts = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 7)), max_size=12))
    found, at = [], 0
    for gap, count in gaps_and_counts:
        found.append((at + gap, count))
        at += gap + count
    return np.array(found, np.int64).reshape(-1, 2)


def pages(runs: Pages) -> list[int]:
    return [first + i for first, count in runs.tolist() for i in range(count)]


@given(NUMBERS)
def test_numbers_and_back(wanted):
    runs = of_numbers(np.array(sorted(wanted), np.int64))
    assert pages(runs) == sorted(wanted) == numbers(runs).tolist()
    assert all(a + n < b for (a, n), (b, _) in zip(runs.tolist(), runs.tolist()[1:], strict=False)), "some touch"


@given(run_sets(), run_sets())
def test_intersect(a, b):
    common, of_a, of_b = intersect(a, b)
    assert pages(common) == sorted(set(pages(a)) & set(pages(b)))
    for run, i, k in zip(common.tolist(), of_a.tolist(), of_b.tolist(), strict=True):
        assert all(whole[0] <= run[0] and sum(run) <= sum(whole) for whole in (a[i].tolist(), b[k].tolist()))


@given(run_sets(), run_sets())
def test_subtract(a, b):
    assert pages(subtract(a, b)) == sorted(set(pages(a)) - set(pages(b)))


@given(run_sets(), st.integers(1, 9))
def test_cut(runs, at_most):
    groups = list(cut(runs, at_most))
    assert [page for group in groups for page in pages(group)] == pages(runs)
    sizes = [len(pages(group)) for group in groups]
    assert all(size == at_most for size in sizes[:-1])
    assert not sizes or 0 < sizes[-1] <= at_most


@pytest.mark.parametrize("number", [0, 2**51])
def test_the_ends_of_what_there_is(number):
    runs = np.array([[number, 5]], np.int64)
    assert subtract(runs, NONE).tolist() == intersect(runs, runs)[0].tolist() == runs.tolist()
    assert subtract(runs, runs).tolist() == intersect(runs, NONE)[0].tolist() == list(cut(NONE, 3)) == []
