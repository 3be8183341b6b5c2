"""Zero pages, runs and their precedence, against a model page by page."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from crhpc.image.format import CHUNK, MAX_PAGES
from crhpc.image.pages import (
    CHUNKS,
    ROW,
    RUNS,
    ZERO,
    Journal,
    PageObject,
    buffers,
    check_pieces,
    check_runs,
    covered,
    inflate,
    inflate_into,
    log_order,
    page_objects,
)

ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("put"),
            st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40), st.integers(1, 20)), min_size=1, max_size=6),
            st.integers(0, 2**60),
        ),
        st.tuples(
            st.sampled_from(["zero", "forget"]),
            st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40), st.integers(1, 20)), max_size=3),
            st.just(0),
        ),
    ),
    max_size=12,
)


def chunk_table(rows: list[int]) -> np.ndarray[Any, Any]:
    chunks = np.zeros(len(rows), dtype=CHUNKS)
    chunks["rows"], chunks["size"], chunks["offset"] = rows, 10, np.arange(len(rows)) * 10
    return chunks


def run_table(*runs: tuple[int, int, int, int, int]) -> np.ndarray[Any, Any]:
    """(object, kind, page, npages, row)."""
    return np.array(list(runs), dtype=RUNS)


# -- buffers ---------------------------------------------------------------------------------------
def test_buffers_are_apart_and_page_aligned() -> None:
    made = buffers(3)
    for number, buffer in enumerate(made):
        buffer.array[:] = number + 1
        assert buffer.array.shape == (256, 4096)
        assert buffer.array.flags.c_contiguous
        assert buffer.address % 4096 == 0
        assert buffer.address == buffer.array.ctypes.data
        assert len(buffer.bytes()) == CHUNK
    assert [int(buffer.array.min()) for buffer in made] == [1, 2, 3] == [int(b.array.max()) for b in made]


# -- pieces -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "piece",
    [
        (2, 0, 1),
        (-1, 0, 1),
        (0, -1, 1),
        (0, 0, 0),
        (0, 0, -1),
        (0, 0, 257),
        (0, MAX_PAGES, 1),
        (0, MAX_PAGES - 1, 2),
        (0, 2**64, 1),
        (0, 2**63 - 1, 2**63 - 1),
    ],
)
def test_impossible_pieces(piece: tuple[int, int, int]) -> None:
    assert check_pieces([(1, MAX_PAGES - 1, 1)], 2, 256).tolist() == [[1, MAX_PAGES - 1, 1]]
    with pytest.raises(ValueError):
        check_pieces([piece], 2, 256)
    with pytest.raises(ValueError):
        check_pieces([(0, 0, 256), (0, 256, 1)], 2, 256)


# -- runs -------------------------------------------------------------------------------------------
@settings(max_examples=500, deadline=None)
@given(ACTIONS)
def test_later_pages_supersede_earlier_ones(
    actions: list[tuple[str, list[tuple[int, int, int]], int]],
) -> None:
    journal, model = Journal(), {}
    next_row = 0
    for what, pieces, seed in actions:
        array = check_pieces(pieces, 3, 1 << 40)
        pages = [(number, first + i) for number, first, count in pieces for i in range(count)]
        if what == "put":
            kept = np.random.default_rng(seed).random(len(pages)) < 0.7
            journal.put(array, kept, next_row)
            row = next_row
            for page, stays in zip(pages, kept, strict=True):
                model[page] = (ROW, row) if stays else (ZERO, 0)
                row += int(stays)
            next_row += 256 if kept.any() else 0
        else:
            getattr(journal, what)(array)
            for page in pages:
                if what == "zero":
                    model[page] = (ZERO, 0)
                else:
                    model.pop(page, None)
    runs = journal.resolve()
    found = {}
    for number, kind, first, count, row in runs.tolist():
        for i in range(count):
            assert (number, first + i) not in found
            found[number, first + i] = (kind, row + i if kind == ROW else 0)
    assert found == model
    assert runs[["object", "page"]].tolist() == sorted(runs[["object", "page"]].tolist())
    for a, b in zip(runs[:-1].tolist(), runs[1:].tolist(), strict=True):
        joinable = a[0] == b[0] and a[1] == b[1] and a[2] + a[3] == b[2] and (a[1] == ZERO or a[4] + a[3] == b[4])
        assert not joinable, "neighbours that continue each other are one run"


def test_many_overlapping_runs_take_seconds_not_minutes() -> None:
    """A million pieces over the same addresses: the resolution is not quadratic, nor page by page."""
    rng = np.random.default_rng(1)
    journal, rows = Journal(), 0
    start = time.monotonic()
    for _ in range(4000):
        pieces = np.stack(
            (
                np.zeros(250, dtype=np.int64),
                rng.integers(0, 10**9, 250) // 4 * 4,
                np.ones(250, dtype=np.int64),
            ),
            axis=1,
        )
        journal.put(pieces, np.ones(250, dtype=bool), rows)
        rows += 256
    for _ in range(5):
        journal.zero(np.array([[0, 0, 10**9]]))
    journal.put(np.array([[0, 5, 1]]), np.ones(1, dtype=bool), rows)
    assert journal.resolve().tolist() == [
        (0, ZERO, 0, 5, 0),
        (0, ROW, 5, 1, rows),
        (0, ZERO, 6, 10**9 - 6, 0),
    ]
    assert time.monotonic() - start < 30


def test_consecutive_puts_make_one_run() -> None:
    journal = Journal()
    for i in range(200):
        journal.put(np.array([[0, 1000 + i * 256, 256]]), np.ones(256, dtype=bool), i * 256)
    assert journal.resolve().tolist() == [(0, ROW, 1000, 200 * 256, 0)]


# -- checks of what is read -------------------------------------------------------------------------
@pytest.mark.parametrize(
    "runs",
    [
        [(0, ROW, 0, 257, 0)],  # row 256 is not in use: chunk 0 has 10 of them
        [(0, ROW, 0, 11, 0)],
        [(0, ROW, 0, 1, 10)],
        [(0, ROW, 0, 1, 512)],
        [(0, ROW, 0, 1, 2**63)],
        [(0, ROW, 0, 2**52, 0)],
        [(0, ZERO, 2**52, 1, 0)],
        [(0, ZERO, 2**63, 2**63, 0)],
        [(0, ZERO, 0, 0, 0)],
        [(0, 2, 0, 1, 0)],
        [(2, ZERO, 0, 1, 0)],
        [(0, ZERO, 0, 5, 0), (0, ZERO, 4, 5, 0)],
        [(0, ZERO, 0, 5, 1)],
        [(1, ZERO, 0, 5, 0), (0, ZERO, 4, 5, 0)],
        [(0, ZERO, 9, 1, 0), (0, ZERO, 4, 1, 0)],
        [(0, ROW, 0, 1, 256 + 255)],
    ],
)
def test_impossible_runs(runs: list[tuple[int, int, int, int, int]]) -> None:
    chunks, objects = chunk_table([10, 255]), np.array([0, 1])
    check_runs(run_table((0, ROW, 0, 10, 0), (0, ROW, 10, 255, 256), (1, ZERO, 2**52 - 1, 1, 0)), chunks, objects)
    with pytest.raises(ValueError):
        check_runs(run_table(*runs), chunks, objects)


def test_a_run_may_span_full_chunks() -> None:
    check_runs(run_table((0, ROW, 5, 256 + 256 + 3, 0)), chunk_table([256, 256, 3]), np.array([0]))
    with pytest.raises(ValueError, match="not in use"):
        check_runs(run_table((0, ROW, 5, 256 + 256 + 3, 0)), chunk_table([256, 255, 4]), np.array([0]))
    check_runs(run_table(), chunk_table([]), np.array([]))


def test_log_order_cuts_at_chunks() -> None:
    runs = run_table((0, ROW, 100, 600, 200), (0, ZERO, 700, 5, 0), (1, ROW, 7, 3, 10))
    assert log_order(runs).tolist() == [
        (1, ROW, 7, 3, 10),
        (0, ROW, 100, 56, 200),
        (0, ROW, 156, 256, 256),
        (0, ROW, 412, 256, 512),
        (0, ROW, 668, 32, 768),
    ]
    assert len(log_order(run_table())) == 0


def test_covered_joins_and_refuses_overlaps() -> None:
    chunks = chunk_table([1, 1, 1, 1])
    chunks["offset"] = [30, 0, 10, 50]
    assert covered(chunks) == ((0, 20), (30, 10), (50, 10))
    assert covered(chunks[:0]) == ()
    for offset in (45, 2**64 - 5):
        chunks["offset"][0] = offset
        with pytest.raises(ValueError):
            covered(chunks)


def test_page_objects_counts() -> None:
    runs = run_table((0, ROW, 0, 3, 0), (0, ZERO, 3, 5, 0), (2, ROW, 0, 2, 3))
    assert page_objects(["a", "b", "c"], runs) == [
        PageObject(0, "a", 3, 5),
        PageObject(1, "b", 0, 0),
        PageObject(2, "c", 2, 0),
    ]
    assert page_objects([], run_table()) == []


# -- frames -----------------------------------------------------------------------------------------
def frame(size: int = CHUNK, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(**{"write_checksum": True, "write_content_size": True} | options).compress(
        bytes(size)
    )


def test_inflate() -> None:
    assert inflate(frame()) == bytes(CHUNK)


def test_inflate_into_memory_that_is_used_again() -> None:
    room = bytearray(b"x" * CHUNK)
    data = np.random.default_rng(1).integers(0, 9, CHUNK, dtype=np.uint8).tobytes()
    whole = zstandard.ZstdCompressor(level=1, write_checksum=True).compress(data)
    inflate_into(memoryview(whole), memoryview(room))
    assert room == data
    inflate_into(memoryview(frame()), memoryview(room))
    assert room == bytes(CHUNK)


BROKEN = {
    "empty": b"",
    "nonsense": b"nonsense",
    "cut": frame()[:-1],
    "tail": frame() + b"\0",
    "two": frame() + frame(),
    "short": frame(CHUNK - 1),
    "long": frame(CHUNK + 1),
    "bomb": frame(1 << 28),
    "no checksum": frame(write_checksum=False),
    "no size": frame(write_content_size=False),
    "second frame": frame(0) + frame(),
    "checksum": frame()[:-1] + bytes([frame()[-1] ^ 1]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_inflate_refuses(name: str) -> None:
    with pytest.raises(ValueError):
        inflate(BROKEN[name])


@pytest.mark.parametrize("name", BROKEN)
def test_inflate_into_refuses(name: str) -> None:
    """All but a frame whose checksum is cut: a crc32 covers that."""
    room = bytearray(CHUNK)
    if name == "cut":
        inflate_into(memoryview(BROKEN[name]), memoryview(room))
    else:
        with pytest.raises(ValueError):
            inflate_into(memoryview(BROKEN[name]), memoryview(room))
