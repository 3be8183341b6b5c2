"""The page log: buffers, zero pages, and the runs that say which rows count.

Pages are appended to the log as rows, 256 to a chunk, in the order in which they are put. A *run* maps
consecutive pages of an object to consecutive rows (or to zeros). A page may be put again; the later one
counts. Only when the log is closed are the runs resolved, so that no two overlap.
"""
from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import zstandard

from crhpc.image.format import CHUNK, CHUNK_ROWS, MAX_PAGES, PAGE, Span
from crhpc.image.records import Bytes, Table
from crhpc.image.runs import Pages, intersect

Piece = tuple[int, int, int]
"""(object, first page number, number of pages)."""
Pieces = npt.NDArray[np.int64]
"""The same, shape (n, 3)."""

ROW, ZERO = 0, 1
_ABSENT = 2
"""Only while writing: pages that are no longer there."""

CHUNKS = np.dtype([("offset", "<u8"), ("size", "<u4"), ("rows", "<u2"), ("raw", "u1"), ("crc32", "<u4")])
"""One row per chunk of the log: where its stored bytes lie in the file, how many rows of it are in use."""
RUNS = np.dtype([("object", "<u4"), ("kind", h5py.enum_dtype({"row": ROW, "zero": ZERO}, basetype="u1")),
                 ("page", "<u8"), ("npages", "<u8"), ("row", "<u8")])
"""``npages`` pages of ``object`` from ``page`` on are the log's rows from ``row`` on, or zeros."""
_MAX_WINDOW = 8 << 20
_local = threading.local()
_DRAFT = np.dtype([("object", "i8"), ("kind", "u1"), ("page", "i8"), ("npages", "i8"), ("row", "i8")])


@dataclass(frozen=True, slots=True)
class PageObject:
    """Things that have pages: address spaces, shared memory, contents of files."""

    id: int
    name: str = field(metadata={"doc": "for people"})
    rows: int = field(metadata={"doc": "pages stored in the log"})
    zeros: int = field(metadata={"doc": "pages that are zero and not stored"})


class PageBuffer:
    """1 MiB to read pages into: ``array`` has shape (256, 4096), ``address`` is that of its first byte."""

    __slots__ = ("address", "array")

    def __init__(self, array: Bytes) -> None:
        self.array = array
        self.address = int(array.__array_interface__["data"][0])

    def bytes(self) -> memoryview:
        """The same memory as a flat view of 1 MiB."""
        whole: Any = self.array
        return memoryview(whole).cast("B")


def buffers(count: int) -> list[PageBuffer]:
    """Page-aligned buffers out of one mapping; memory is used as they are first touched."""
    arena = mmap.mmap(-1, count * CHUNK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        arena.madvise(mmap.MADV_HUGEPAGE)
    pages = np.frombuffer(arena, dtype=np.uint8).reshape(count, CHUNK_ROWS, PAGE)
    return [PageBuffer(pages[i]) for i in range(count)]


def check_pieces(pieces: Sequence[Piece] | Pieces, objects: int, pages: int = MAX_PAGES) -> Pieces:
    """Pieces as an array of shape (n, 3).

    Raises:
        ValueError: an object that is not below ``objects``, no pages, more than ``pages`` in all, or page
            numbers beyond 2**52.
    """
    try:
        array = np.array(pieces, dtype=np.int64).reshape(len(pieces), 3)
    except OverflowError as error:
        raise ValueError(f"a piece of impossible numbers: {error}") from None
    if len(array):
        objs, first, count = array.T
        if objs.min() < 0 or objs.max() >= objects:
            raise ValueError("a piece of an unknown object")
        if count.min() < 1 or first.min() < 0 or (first > MAX_PAGES - np.minimum(count, MAX_PAGES)).any():
            raise ValueError("a piece of impossible page numbers")
        if int(count.sum()) > pages:
            raise ValueError(f"more than {pages} pages")
    return array


class Journal:
    """Everything put so far, as draft runs in the order of putting. Made for one thread.

    Puts are turned into runs a batch at a time: what numpy costs per call is then spread over many chunks.
    """

    _BATCH = 64

    def __init__(self) -> None:
        self._waiting: list[tuple[Pieces, npt.NDArray[np.bool_], int]] = []
        self._drafts: list[Table] = []
        self._same: list[tuple[int, Pages, int]] = []

    def put(self, pieces: Pieces, kept: npt.NDArray[np.bool_], first_row: int) -> None:
        """Note pages of which those ``kept`` (shape (sum of pages,)) went to rows from ``first_row`` on."""
        self._waiting.append((pieces, kept, first_row))
        if len(self._waiting) >= self._BATCH:
            self._flush()

    def zero(self, pieces: Pieces) -> None:
        """Note pages that are zero by now."""
        self._note(pieces, ZERO)

    def forget(self, pieces: Pieces) -> None:
        """Note pages that are gone by now."""
        self._note(pieces, _ABSENT)

    def same(self, number: int, pages: Pages, other: int) -> None:
        """Note pages of an object, (n, 2), that are in the end what those of another are by then."""
        self._same.append((number, pages, other))

    def _note(self, pieces: Pieces, kind: int) -> None:
        self._flush()
        draft = np.zeros(len(pieces), dtype=_DRAFT)
        draft["object"], draft["page"], draft["npages"] = pieces.T
        draft["kind"] = kind
        self._drafts.append(draft)

    def _flush(self) -> None:
        if self._waiting:
            pieces, kept, first_rows = zip(*self._waiting, strict=True)
            self._waiting.clear()
            self._drafts.append(_draft(pieces, kept, first_rows))

    def resolve(self) -> Table:
        """The final runs, dtype `RUNS`: sorted by object and page, none overlapping, none mergeable."""
        self._flush()
        drafts = np.concatenate([np.zeros(0, dtype=_DRAFT), *self._drafts])
        found = resolve(drafts)
        for number, pages, other in self._same:
            found = _with_same(found, number, pages, other)
        return found


def _draft(pieces: Sequence[Pieces], kept: Sequence[npt.NDArray[np.bool_]],
           first_rows: Sequence[int]) -> Table:
    """Draft runs of several puts at once, page by page first, then joined."""
    lengths = np.array([len(k) for k in kept])
    stays = np.concatenate(kept)
    parts = np.concatenate(pieces)
    count = parts[:, 2]
    pages = np.zeros(len(stays), dtype=_DRAFT)
    pages["object"] = np.repeat(parts[:, 0], count)
    pages["page"] = np.repeat(parts[:, 1] - (np.cumsum(count) - count), count) + np.arange(len(stays))
    pages["npages"] = 1
    pages["kind"] = np.where(stays, ROW, ZERO)
    before: Any = np.cumsum(stays) - stays                      # rows kept before this page, in all puts
    base = np.array(first_rows) - before[np.cumsum(lengths) - lengths]
    pages["row"] = np.where(stays, before + np.repeat(base, lengths), 0)
    return _join(pages)


def _join(runs: Table) -> Table:
    """Join neighbours that continue each other; neighbours in the array, so precedence is kept."""
    if len(runs) < 2:
        return runs
    a, b = runs[:-1], runs[1:]
    goes_on = ((a["object"] == b["object"]) & (a["kind"] == b["kind"])
               & (a["page"] + a["npages"] == b["page"])
               & ((a["kind"] != ROW) | (a["row"] + a["npages"] == b["row"])))
    starts = np.flatnonzero(np.concatenate(([True], ~goes_on)))
    joined: Table = runs[starts].copy()
    joined["npages"] = np.add.reduceat(runs["npages"], starts)
    return joined


def _with_same(found: Table, number: int, pages: Pages, other: int) -> Table:
    """Final runs with pages of one object added that are those of another."""
    theirs = found[found["object"] == other]
    borders = np.stack((theirs["page"], theirs["npages"]), axis=1).astype(np.int64)
    common, _, of = intersect(pages, borders)
    added = theirs[of]
    added["object"] = number
    added["row"] += np.where(added["kind"] == ROW, common[:, 0] - borders[of, 0], 0).astype(np.uint64)
    added["page"], added["npages"] = common.T
    joined = np.concatenate((found, added))
    return joined[np.lexsort((joined["page"], joined["object"]))]


def live_rows(found: Table) -> int:
    """How many rows of the log final runs name; rows that several name count once."""
    stored = found[found["kind"] == ROW]
    stored = stored[np.argsort(stored["row"], kind="stable")]
    start, end = stored["row"].astype(np.int64), (stored["row"] + stored["npages"]).astype(np.int64)
    reached = np.maximum.accumulate(np.concatenate(([0], end)))[:-1]   # by those before
    return int(np.maximum(end - np.maximum(start, reached), 0).sum())


def resolve(drafts: Table) -> Table:
    """Let later runs supersede earlier ones where they overlap; returns `RUNS`, see `Journal.resolve`."""
    drafts = drafts[drafts["npages"] > 0]
    order = np.lexsort((drafts["page"], drafts["object"]))
    runs = drafts[order]
    a, b = runs[:-1], runs[1:]
    if np.any((a["object"] == b["object"]) & (a["page"] + a["npages"] > b["page"])):
        runs = _paint(drafts)
    runs = _join(runs[runs["kind"] != _ABSENT])
    final = np.zeros(len(runs), dtype=RUNS)
    for name in RUNS.names or ():
        final[name] = runs[name]
    return final


def _paint(drafts: Table) -> Table:
    """Non-overlapping runs, the last put uppermost.

    All run ends cut the pages into elementary intervals. Run i covers intervals lo[i] to hi[i] and is written
    as two overlapping blocks of a power-of-two length; from the longest to the shortest length, each block
    then hands its winner down to its two halves. n runs take log2(2n) vectorised passes.
    """
    n = len(drafts)
    objects = np.concatenate((drafts["object"], drafts["object"]))
    edges = np.concatenate((drafts["page"], drafts["page"] + drafts["npages"]))
    order = np.lexsort((edges, objects))
    objects, edges = objects[order], edges[order]
    new = np.concatenate(([True], (objects[1:] != objects[:-1]) | (edges[1:] != edges[:-1])))
    rank = np.empty(2 * n, dtype=np.int64)
    rank[order] = np.cumsum(new) - 1
    objects, edges = objects[new], edges[new]
    lo, hi = rank[:n], rank[n:]

    level = np.frexp(hi - lo)[1] - 1                         # floor(log2) of the number of intervals
    top = np.full(len(edges), -1, dtype=np.int64)
    for k in range(int(level.max()), -1, -1):
        chosen = np.flatnonzero(level == k)
        np.maximum.at(top, lo[chosen], chosen)
        np.maximum.at(top, hi[chosen] - (1 << k), chosen)
        if k:
            half = 1 << (k - 1)
            lower = top.copy()
            np.maximum(lower[half:], top[:-half], out=lower[half:])
            top = lower

    # An interval that no run covers (between two runs, or after an object's last edge) has no winner.
    covered = np.flatnonzero(top >= 0)
    winner = top[covered]
    painted: Table = drafts[winner].copy()
    painted["npages"] = edges[covered + 1] - edges[covered]
    painted["row"] += np.where(painted["kind"] == ROW, edges[covered] - painted["page"], 0)
    painted["page"] = edges[covered]
    return painted


def check_runs(runs: Table, chunks: Table, objects: npt.NDArray[Any]) -> None:
    """Raise ValueError unless the runs are as `resolve` makes them and name rows in use only.

    Args:
        runs: dtype `RUNS`.
        chunks: dtype `CHUNKS`.
        objects: ids of the page objects there are, shape (n,).
    """
    count, page, row = runs["npages"], runs["page"], runs["row"]
    if np.any(runs["kind"] > ZERO):
        raise ValueError("a run of an unknown kind")
    if not np.isin(runs["object"], objects).all():
        raise ValueError("a run of an unknown object")
    if np.any(count < 1) or np.any(count > MAX_PAGES) or np.any(page > MAX_PAGES - count):
        raise ValueError("a run of impossible page numbers")
    same = runs["object"][1:] == runs["object"][:-1]
    if np.any(runs["object"][1:] < runs["object"][:-1]) or np.any(same & (page[1:] < (page + count)[:-1])):
        raise ValueError("runs overlap or are not in order")
    total = np.uint64(len(chunks) * CHUNK_ROWS)
    stored = runs["kind"] == ROW
    if np.any(row[~stored] != 0):
        raise ValueError("a run of zeros with rows")
    row, count = row[stored], count[stored]
    if np.any(count > total) or np.any(row > total - np.minimum(count, total)):
        raise ValueError("a run of rows beyond the log")
    # Rows in use before each chunk: a run is sound if as many rows are in use as it has pages.
    used = np.concatenate(([0], np.cumsum(chunks["rows"], dtype=np.int64)))

    def before(rows: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        chunk, within = rows // CHUNK_ROWS, rows % CHUNK_ROWS
        here = np.concatenate((chunks["rows"], [0])).astype(np.int64)[chunk]
        result: npt.NDArray[np.int64] = used[chunk] + np.minimum(within, here)
        return result
    row, count = row.astype(np.int64), count.astype(np.int64)
    if np.any(before(row + count) - before(row) != count):
        raise ValueError("a run of rows that are not in use")


def log_order(runs: Table) -> Table:
    """The stored runs cut at the chunks' borders and sorted by row: dtype `RUNS`."""
    runs = runs[runs["kind"] == ROW]
    first = runs["row"].astype(np.int64)
    end = first + runs["npages"].astype(np.int64)
    count = (end - 1) // CHUNK_ROWS - first // CHUNK_ROWS + 1
    pieces: Table = np.repeat(runs, count)
    nth = np.arange(len(pieces)) - np.repeat(np.cumsum(count) - count, count)
    first, end = np.repeat(first, count), np.repeat(end, count)
    border = (first // CHUNK_ROWS + nth) * CHUNK_ROWS           # where the piece's chunk starts
    start = np.maximum(first, border)
    pieces["page"] += (start - first).astype(np.uint64)
    pieces["row"], pieces["npages"] = start, np.minimum(end, border + CHUNK_ROWS) - start
    return pieces[np.argsort(pieces["row"], kind="stable")]


def allowed_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def inflate(data: bytes) -> bytes:
    """Decompress one chunk to its 1 MiB.

    Raises:
        ValueError: it is not one zstd frame of 1 MiB with a checksum, or the checksum does not match.
    """
    try:
        pages: bytes = _decompressor(data).decompress(data, max_output_size=CHUNK, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None
    if len(pages) != CHUNK:
        raise ValueError("a chunk of another length")
    return pages


def inflate_into(data: memoryview, target: memoryview) -> None:
    """The same into memory of 1 MiB that is used again and again, which spares the kernel half of the work.

    Raises:
        ValueError: as ``inflate``; a frame that ends within its checksum is not noticed.
    """
    try:
        with _decompressor(data).stream_reader(data, read_across_frames=False) as reader:
            done = 0
            while done < CHUNK and (got := reader.readinto(target[done:])):
                done += got
            if done != CHUNK or reader.read(1):   # only at the frame's end is its checksum compared
                raise ValueError("a chunk of another length")
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None


def _decompressor(data: bytes | memoryview) -> zstandard.ZstdDecompressor:
    """This thread's, for a frame as the format prescribes.

    A frame says how much it holds and the library allocates that much: look before it does.
    """
    frame = zstandard.get_frame_parameters(data)
    if frame.content_size != CHUNK or not frame.has_checksum or frame.dict_id:
        raise ValueError("not a zstd frame as prescribed")
    decompressor = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    return decompressor


def page_objects(names: Sequence[str], runs: Table) -> list[PageObject]:
    """The objects of these names, ids from 0 on, with what the final runs hold of each."""
    counts = [np.bincount(runs["object"][runs["kind"] == kind], minlength=len(names),
                          weights=runs["npages"][runs["kind"] == kind]).astype(np.int64).tolist()
              for kind in (ROW, ZERO)]
    return [PageObject(i, name, rows, zeros)
            for i, (name, rows, zeros) in enumerate(zip(names, *counts, strict=True))]


def covered(chunks: Table) -> tuple[Span, ...]:
    """The bytes of the file that the chunks take up, ascending, joined where they touch.

    Raises:
        ValueError: chunks overlap or lie beyond 2**63.
    """
    if not len(chunks):
        return ()
    order = np.argsort(chunks["offset"])
    start, size = chunks["offset"][order], chunks["size"][order].astype(np.uint64)
    if start[-1] >= 1 << 62 or np.any(start[:-1] + size[:-1] > start[1:]):
        raise ValueError("chunks overlap")
    first = np.flatnonzero(np.concatenate(([True], start[:-1] + size[:-1] < start[1:])))
    return tuple(zip(start[first].tolist(), np.add.reduceat(size, first).tolist(), strict=True))
