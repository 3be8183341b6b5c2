"""Reading an image. Needs numpy, h5py and zstandard only; nothing is believed that can be checked.

The manifest, lengths and hashes are checked when a file is opened, runs and chunks when they are first
asked for, each chunk when it is read. ``check`` looks at all of it beforehand, in a process of its own.
"""
from __future__ import annotations

import os
import threading
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from crhpc.errors import ImageDamaged
from crhpc.image.backing import pread
from crhpc.image.browse import Entry, describe, entries
from crhpc.image.format import CHUNK, CHUNK_ROWS, MASTER, PAGE, Manifest, ShardSummary, read_manifest
from crhpc.image.guard import Container, attributes, pick, reading
from crhpc.image.pages import (
    CHUNKS,
    RUNS,
    ZERO,
    PageObject,
    allowed_cores,
    check_runs,
    covered,
    inflate,
    inflate_into,
    live_rows,
    log_order,
)
from crhpc.image.records import Bytes, Table, decode

if TYPE_CHECKING:
    from crhpc.image.records import Record

__all__ = ["Image", "PageObject", "Shard"]

_CACHE = 4
"""Chunks that random access keeps."""
_AHEAD = 2
"""Chunks per thread that a walk reads ahead."""
T = TypeVar("T")


class Tables:
    """The tables of one HDF5 file of an image, opened when first used."""

    def __init__(self, image: Path, file: str, root: str, opener: Callable[[], Container]) -> None:
        self.image = image
        self.file = file
        self.root = root
        """Path of the group that holds ``tables``, without a slash at its end."""
        self._opener = opener
        self._container: Container | None = None
        self._blob: Bytes | None = None
        self._names: list[str] | None = None

    @property
    def container(self) -> Container:
        """The open file.

        Raises:
            ImageDamaged: it is missing, or not as the manifest says.
        """
        if self._container is None:
            with reading(self.image, self.file):
                self._container = self._opener()
        return self._container

    def close(self) -> None:
        """Close the file; it is opened again when needed."""
        if self._container is not None:
            self._container.close()
        self._container = self._blob = self._names = None

    def tables(self) -> list[str]:
        """Names of the tables."""
        if self._names is None:
            with reading(self.image, self.file):
                self._names = sorted(name for name in self.container.at(f"{self.root}/tables") if name != "blob")
        return self._names

    def rows(self, name: str) -> Table:
        """A table as a structured array, shape (n,); columns of varying length are (offset, length).

        Raises:
            ImageDamaged: no such table, or it is wrong.
        """
        with reading(self.image, self.file):
            return self.container.table(f"{self.root}/tables/{name}")

    def table(self, record: type[Record], name: str) -> list[Record]:
        """A table as records. Columns that the record lacks are ignored.

        Raises:
            ImageDamaged: no such table, a column of the record is missing or of another type, or a value
                that no writer makes.
        """
        with reading(self.image, f"{self.file}: table {name}"):
            return decode(self.rows(name), record, self.blob)

    @property
    def blob(self) -> Bytes:
        """What (offset, length) columns point to, shape (n,)."""
        if self._blob is None:
            with reading(self.image, self.file):
                self._blob = self.container.blob(f"{self.root}/tables/blob")
        return self._blob

    def attributes(self, name: str) -> dict[str, str | int]:
        """Attributes of a table: ``title``, and ``kind.c``, ``ref.c``, ``doc.c`` of column c."""
        with reading(self.image, self.file):
            return attributes(self.container.at(f"{self.root}/tables/{name}"))


class Shard(Tables):
    """One node's part of an image."""

    def __init__(self, image: Path, summary: ShardSummary) -> None:
        self.summary = summary
        self.node = summary.node
        super().__init__(image, summary.file, f"/nodes/{summary.node}", lambda: Container(
            image / summary.file, summary.size, summary.sha256, summary.spans))
        self._chunks: Table | None = None
        self._runs: Table | None = None
        self._cache: dict[int, bytes] = {}

    def close(self) -> None:
        """Close the file; it is opened again when needed."""
        super().close()
        self._chunks = self._runs = None
        self._cache.clear()

    # -- the index ----------------------------------------------------------------------------------
    def chunks(self) -> Table:
        """The log's chunks, dtype `pages.CHUNKS`, in log order.

        Raises:
            ImageDamaged: they are not as the manifest says.
        """
        if self._chunks is None:
            with reading(self.image, f"{self.file}: chunks"):
                chunks = pick(self.container.table(f"{self.root}/pages/chunks"), CHUNKS)
                _check_chunks(chunks, self.summary)
                self.container.log(f"{self.root}/pages/log", len(chunks))
                self._chunks = chunks
        return self._chunks

    def objects(self) -> list[PageObject]:
        """The page objects: id, name, and how many pages each has."""
        with reading(self.image, f"{self.file}: objects"):
            table = self.container.table(f"{self.root}/pages/objects")
            return decode(table, PageObject, self.blob)

    def runs(self, object: int | None = None) -> Table:
        """The runs of one object (or all), dtype `pages.RUNS`, sorted by page; none overlap.

        ``npages`` pages from ``page`` on are the log's rows from ``row`` on (kind 0), or zero (kind 1).
        Pages in no run are not in the image.
        """
        if self._runs is None:
            with reading(self.image, f"{self.file}: runs"):
                runs = pick(self.container.table(f"{self.root}/pages/runs"), RUNS)
                check_runs(runs, self.chunks(), np.array([o.id for o in self.objects()], dtype=np.int64))
                live, zero = live_rows(runs), int(runs["npages"][runs["kind"] == ZERO].sum())
                if (live, zero) != (self.summary.rows - self.summary.dead_rows, self.summary.zero_pages):
                    raise ValueError("they hold other numbers of pages than the manifest says")
                self._runs = runs
        if object is None:
            return self._runs
        first, last = np.searchsorted(self._runs["object"], [object, object + 1])
        return self._runs[first:last]

    # -- pages --------------------------------------------------------------------------------------
    def chunk(self, index: int) -> bytes:
        """The 1 MiB of one chunk of the log. May be called by several threads once `chunks` was.

        Raises:
            ImageDamaged: a checksum does not match.
        """
        with reading(self.image, f"{self.file}: chunk {index}"):
            data, raw = self.stored(index)
            return data if raw else inflate(data)

    def stored(self, index: int) -> tuple[bytes, bool]:
        """A chunk's bytes as stored, and whether they are so uncompressed; checked against their crc32.

        Raises:
            ImageDamaged: they do not match.
        """
        with reading(self.image, f"{self.file}: chunk {index}"):
            offset, size, _rows, raw, crc32 = self.chunks()[index].item()
            data = pread(self.container.backing.fd, size, offset)
            if len(data) != size or zlib.crc32(data) != crc32:
                raise ValueError("its crc32 does not match")
            return data, bool(raw)

    def walk(self, objects: Collection[int] | None = None, threads: int | None = None,
             ) -> Iterator[tuple[int, int, memoryview]]:
        """Everything stored of the objects (all by default), in the order of the log.

        Yields:
            (object, first page number, the bytes of one or more whole pages). Zero pages are not among
            them; `runs` has them. Each chunk is read and decompressed once, in ``threads`` threads which
            are at most two chunks each ahead.

        Raises:
            ImageDamaged: a checksum does not match.
        """
        runs = self.runs()
        if objects is not None:
            runs = runs[np.isin(runs["object"], np.array(sorted(objects), dtype=np.int64))]
        pieces = log_order(runs)
        if not len(pieces):
            return
        rows = pieces["row"].astype(np.int64)
        indexes, starts = np.unique(rows // CHUNK_ROWS, return_index=True)
        ends = [*starts[1:].tolist(), len(pieces)]
        for data, start, end in zip(self._inflated(indexes.tolist(), threads), starts.tolist(), ends,
                                    strict=True):
            view = memoryview(data)
            for number, _kind, page, count, row in pieces[start:end].tolist():
                at = row % CHUNK_ROWS * PAGE
                yield number, page, view[at:at + count * PAGE]

    def _inflated(self, indexes: list[int], threads: int | None) -> Iterator[bytes]:
        """Chunks of these indexes in order, decompressed ahead in threads."""
        return ahead(self.chunk, indexes, threads)

    def spread(self, objects: Collection[int], take: Callable[[Bytes, Table], None],
               threads: int | None = None) -> None:
        """Hand everything stored of the objects to ``take``, in several threads, each chunk once, in no order.

        Args:
            take: called with the 1 MiB of a chunk, which is only lent, and what to take of it: dtype `pages.RUNS`,
                ``row`` being the row of the chunk.

        Raises:
            ImageDamaged: a checksum does not match.
        """
        runs = self.runs()
        pieces = log_order(runs[np.isin(runs["object"], np.array(sorted(objects), dtype=np.int64))])
        rows = pieces["row"].astype(np.int64)
        indexes, starts = np.unique(rows // CHUNK_ROWS, return_index=True)
        pieces["row"] %= CHUNK_ROWS
        parts = dict(zip(indexes.tolist(), np.split(pieces, starts[1:]), strict=True)) if len(indexes) else {}
        lent = threading.local()

        def one(index: int) -> None:
            if not hasattr(lent, "buffers"):
                lent.buffers = np.empty((2, CHUNK), dtype=np.uint8)
            take(self._chunk_in(index, lent.buffers), parts[index])
        for _ in ahead(one, list(parts), threads):
            pass

    def _chunk_in(self, index: int, buffers: Bytes) -> Bytes:
        """One chunk, in the second of two buffers of 1 MiB, or in the first where it was not compressed."""
        with reading(self.image, f"{self.file}: chunk {index}"):
            offset, size, _rows, raw, crc32 = self.chunks()[index].item()
            stored = memoryview(buffers[0])[:size]   # a compressed one has a checksum of its own
            done = 0
            while done < size and (got := os.preadv(self.container.backing.fd, [stored[done:]], offset + done)):
                done += got
            if done != size or (raw and zlib.crc32(stored) != crc32):
                raise ValueError("its crc32 does not match")
            if not raw:
                inflate_into(stored, memoryview(buffers[1]))
            inflated: Bytes = buffers[0 if raw else 1]
            return inflated

    def pages(self, object: int, first: int, count: int) -> bytes:
        """The contents of some pages. Zero pages and pages that the image does not have read as zeros."""
        found = bytearray(count * PAGE)
        runs = self.runs(object)
        ends = runs["page"] + runs["npages"]
        low = int(np.searchsorted(ends, first, side="right"))
        high = int(np.searchsorted(runs["page"], first + count, side="left"))
        for piece in log_order(runs[low:high]).tolist():
            _number, _kind, page, npages, row = piece
            start, end = max(page, first), min(page + npages, first + count)
            if start < end:
                at = (row % CHUNK_ROWS + start - page) * PAGE
                data = memoryview(self._cached(row // CHUNK_ROWS))
                found[(start - first) * PAGE:(end - first) * PAGE] = data[at:at + (end - start) * PAGE]
        return bytes(found)

    def _cached(self, index: int) -> bytes:
        data = self._cache.pop(index, None)
        if data is None:
            data = self.chunk(index)
        self._cache[index] = data                               # youngest last
        while len(self._cache) > _CACHE:
            del self._cache[next(iter(self._cache))]
        return data


class Image:
    """A committed checkpoint. A context manager; files are opened when first needed."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the manifest.

        Raises:
            NoImage: there is no image at ``path``, or one of a newer format.
            ImageDamaged: the manifest is wrong.
        """
        self.path = Path(path)
        self.manifest: Manifest = read_manifest(self.path)
        self.number = self.manifest.number
        self.job: dict[str, Any] = self.manifest.job
        self.nodes = [Shard(self.path, summary) for summary in self.manifest.shards]
        master = self.manifest.master
        self.master = Tables(self.path, MASTER, "", lambda: Container(
            self.path / MASTER, master.size, master.sha256))

    def __enter__(self) -> Image:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        self.master.close()
        for shard in self.nodes:
            shard.close()

    def node(self, number: int) -> Shard:
        """The shard of one node.

        Raises:
            ImageDamaged: the image has no such node.
        """
        for shard in self.nodes:
            if shard.node == number:
                return shard
        raise ImageDamaged(image=self.path, what=f"it has no node {number}")

    def connections(self, record: type[Record]) -> list[Record]:
        """The connections that `commit` was given, as records."""
        return self.master.table(record, "connections") if "connections" in self.master.tables() else []

    def entries(self, path: str = "/") -> list[Entry]:
        """What lies at a path of the image's tree, as people see it; see `browse.entries`."""
        return entries(self, path)

    def describe(self, path: str) -> list[dict[str, Any]]:
        """A table's rows, or a group's attributes, as plain dicts; see `browse.describe`."""
        return describe(self, path)


def ahead(work: Callable[[int], T], items: list[int], threads: int | None) -> Iterator[T]:
    """``work`` of each item in order, done ahead in threads, at most two items per thread."""
    if threads is None:
        threads = min(allowed_cores(), 16)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="crhpc-read")
    waiting: deque[Future[T]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > _AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _check_chunks(chunks: Table, summary: ShardSummary) -> None:
    """Raise ValueError unless the chunks are those that the manifest counts."""
    size, rows, raw = chunks["size"], chunks["rows"], chunks["raw"]
    if (len(chunks) != summary.chunks or int(rows.sum(dtype=np.int64)) != summary.rows
            or covered(chunks) != summary.spans):
        raise ValueError("they are not those of the manifest")
    if np.any((size < 1) | (size > CHUNK) | (rows < 1) | (rows > CHUNK_ROWS) | ((size == CHUNK) != (raw == 1))
              | (raw > 1)):
        raise ValueError("impossible lengths")
