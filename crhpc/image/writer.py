"""Writing an image: one pod's shard, and the commit that makes shards an image.

Pages flow from the caller through a pool of compressing threads to one thread that owns the HDF5 file::

    take() ── the caller fills ── put() ──▶ drop zero rows, compress, crc32 ──▶ write the chunk ──▶ free again
                                            (pool; one compressor per thread)   (one thread, in order of put)

A buffer stays in use until its chunk is written, and the compressed bytes take the place of the pages in it;
so the buffers, and what each thread needs besides, are all the memory there is. Tables are kept until
`close`: HDF5 is touched by the writing thread alone while pages flow.
"""
from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from crhpc.image.backing import BackingFile, digest
from crhpc.image.commit import commit
from crhpc.image.format import (
    CHUNK,
    CHUNK_ROWS,
    FORMAT,
    LEVEL,
    LIBVER,
    MAX_OBJECTS,
    MAX_PAGES,
    PAGE,
    RESERVED_TABLES,
    TABLE_NAME,
    ZSTD_FILTER,
    ShardSummary,
    shard_name,
)
from crhpc.image.packing import Packed, compressor, pack, share
from crhpc.image.pages import (
    CHUNKS,
    ZERO,
    Journal,
    PageBuffer,
    PageObject,
    Piece,
    Pieces,
    buffers,
    check_pieces,
    covered,
    live_rows,
    page_objects,
)
from crhpc.image.records import Blob, Table, describe, encode, write_attributes, write_table
from crhpc.image.runs import Pages
from crhpc.image.tree import Tree
from crhpc.log import logger

if TYPE_CHECKING:
    from crhpc.image.records import Record

__all__ = ["PageBuffer", "ShardSummary", "ShardWriter", "commit"]

log = logger(__name__)

_GROW = 64
"""Chunks that the log is extended by at a time."""


class ShardWriter:
    """Writes ``shard-<node>.h5`` into a temporary directory. Pages may come from several threads.

    As a context manager it aborts unless it was closed. Every method but `abort` raises the error that the
    threads behind it have met, if any: an OSError as the system gave it (ENOSPC, EDQUOT, EIO).
    """

    def __init__(self, directory: Path, node: int, *, level: int = LEVEL, threads: int | None = None,
                 memory: int = 256 << 20) -> None:
        """Create the file.

        Args:
            level: of zstd; negative ones are faster.
            threads: that compress; by default as many as cores are allowed, at most 16. Fewer if memory is
                short.
            memory: bytes for pages in flight, at least 8 MiB. Runs (a few bytes per page in the worst case)
                and tables come on top.

        Raises:
            ValueError: ``memory`` is too small.
            OSError: the file cannot be created.
        """
        self.path = Path(directory) / shard_name(node)
        self.node = node
        self._level = level
        self._threads, count = share(memory, threads, level)
        self._free = buffers(count)
        self._count = count
        self._in_flight = self._waiting = 0
        self._change = threading.Condition()
        self._error: BaseException | None = None
        self._summary: ShardSummary | None = None

        self._order = threading.RLock()
        self._holding = False
        self._held: list[Callable[[], Any]] = []
        self._put = self._stored = self._rows = self._allocated = 0
        self._chunks: list[tuple[int, int, int, int]] = []      # size, rows, raw, crc32
        self._journal = Journal()
        self._objects: list[str] = []
        self._tables: dict[str, tuple[Table, dict[str, str]]] = {}
        self._blob = Blob()
        self._tree = Tree()

        self._local = threading.local()
        self._backing = BackingFile(self.path, create=True)
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="crhpc-zstd")
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="crhpc-write")
        self._file: Any = None
        self._log: Any = None
        try:
            self._create()
        except BaseException:
            self.abort()
            raise

    def _create(self) -> None:
        self._file = h5py.File(self._backing, "w", libver=LIBVER)
        self._log = self._file.create_dataset(
            f"nodes/{self.node}/pages/log", shape=(0, PAGE), maxshape=(None, PAGE), chunks=(CHUNK_ROWS, PAGE),
            dtype="u1", compression=ZSTD_FILTER, compression_opts=(max(1, self._level),), allow_unknown_filter=True)
        self._backing.check()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 traceback: TracebackType | None) -> None:
        if self._summary is None:
            self.abort()

    # -- pages --------------------------------------------------------------------------------------
    @property
    def capacity(self) -> int:
        """Bytes of all buffers: so much can be taken, after `drain`, without waiting."""
        return self._count * CHUNK

    def prepare(self, size: int) -> None:
        """Have the system give memory for so many bytes now rather than when there is no time."""
        for buffer in self._free[::-1][:-(-size // CHUNK)]:
            buffer.array[:, 0] = 0

    def object(self, name: str) -> int:
        """A new page object (an address space, shared memory, a file's contents); returns its id."""
        if "\0" in name:
            raise ValueError(f"a NUL in {name!r}")
        name.encode("utf-8", "surrogateescape")                 # UnicodeEncodeError here, not at the end
        if len(self._objects) >= MAX_OBJECTS:
            raise ValueError("too many page objects")
        self._objects.append(name)
        return len(self._objects) - 1

    def take(self) -> PageBuffer:
        """A free buffer of 256 pages; its contents are arbitrary. Waits while all are in flight.

        Raises:
            RuntimeError: the caller holds every buffer, so none will become free.
        """
        with self._change:
            self._waiting += 1          # from here on nobody holds anything back
        if not self._free:
            self._submit_held()
        with self._change:
            try:
                while not self._free:
                    self._check()
                    if not self._in_flight:
                        raise RuntimeError(f"all {self._count} buffers are taken and none was put")
                    self._change.wait()
                self._check()
                return self._free.pop()
            finally:
                self._waiting -= 1

    def release(self, buffer: PageBuffer) -> None:
        """Give a buffer back unused."""
        with self._change:
            self._free.append(buffer)
            self._change.notify_all()

    def put(self, buffer: PageBuffer, pieces: Sequence[Piece] | Pieces) -> None:
        """Append the pages in ``buffer`` to the log; the buffer must not be touched any more.

        Args:
            pieces: (object, first page number, number of pages); their pages lie in the buffer one after
                another from row 0 on. A page that was put before is superseded.

        Raises:
            ValueError: an unknown object, impossible page numbers, more than 256 pages. The buffer is still
                the caller's.
        """
        array = check_pieces(pieces, len(self._objects), CHUNK_ROWS)
        rows = int(array[:, 2].sum())
        with self._change:
            self._check()
            self._in_flight += 1
            self._put += rows * PAGE
        with self._order:
            self._in_order(partial(self._submit, buffer, array, rows))

    def _submit(self, buffer: PageBuffer, array: Pieces, rows: int) -> None:
        packed = self._pool.submit(self._pack, buffer, rows) if rows else None
        self._writing.submit(self._guarded, self._store, buffer, array, packed)

    def hold(self) -> None:
        """Only take pages from here on: leave the cores to the caller, as long as buffers are free."""
        self._holding = True

    def go(self) -> None:
        """Compress and write what was held, and what comes."""
        self._holding = False
        self._submit_held()

    def _in_order(self, work: Callable[[], Any]) -> None:
        self._held.append(work)
        if not self._holding or self._waiting:
            self._submit_held()

    def _submit_held(self) -> None:
        with self._order:
            held, self._held = self._held, []
            for work in held:
                work()

    def same(self, number: int, pages: Pages, other: int) -> None:
        """Note pages of an object that are the same as those of another, whatever these are in the end.

        Args:
            pages: runs, shape (n, 2), that were not put; ascending, none overlapping.
        """
        check_pieces(np.insert(pages, 0, number, axis=1), len(self._objects), MAX_PAGES)
        self._journal.same(number, pages, other)   # the writing thread looks at it when all is put

    def zero(self, pieces: Sequence[Piece] | Pieces) -> None:
        """Note pages that are zero by now, without a buffer; supersedes what was put before."""
        self._later(self._journal.zero, pieces)

    def forget(self, pieces: Sequence[Piece]) -> None:
        """Note pages that no longer exist (unmapped, cut off); supersedes what was put before."""
        self._later(self._journal.forget, pieces)

    def _later(self, note: Callable[[Pieces], None], pieces: Sequence[Piece] | Pieces) -> None:
        array = check_pieces(pieces, len(self._objects), 1 << 62)
        with self._change:
            self._check()
            self._in_flight += 1
        with self._order:
            self._in_order(partial(self._writing.submit, self._guarded, note, array))

    def drain(self) -> None:
        """Wait until all pages put are compressed and written (not yet fsynced)."""
        self.go()
        with self._change:
            while self._in_flight and self._error is None:
                self._change.wait()
            self._check()

    def progress(self) -> tuple[int, int]:
        """(bytes of pages put, bytes of chunks written) so far."""
        return self._put, self._stored

    def _check(self) -> None:
        """Raise what a thread has met. An OSError is made anew: a traceback is not to grow with each call."""
        error = self._error
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, error.filename) from error
        if error is not None:
            raise RuntimeError(f"{self.path} cannot be written: {error!r}") from error

    # -- in the threads -----------------------------------------------------------------------------
    def _pack(self, buffer: PageBuffer, rows: int) -> Packed:
        if self._error is not None:
            return Packed(np.zeros(rows, dtype=bool), 0, 0, 0)
        if not hasattr(self._local, "compressor"):
            self._local.compressor = compressor(self._level)
        return pack(buffer, rows, self._local.compressor)

    def _store(self, buffer: PageBuffer, pieces: Pieces, pending: Future[Packed] | None) -> None:
        try:
            if pending is not None:
                packed = pending.result()
                if self._error is None:
                    self._append(buffer, pieces, packed)
        finally:
            with self._change:
                self._free.append(buffer)

    def _append(self, buffer: PageBuffer, pieces: Pieces, packed: Packed) -> None:
        first = len(self._chunks) * CHUNK_ROWS
        if packed.size:
            if len(self._chunks) == self._allocated:
                self._allocated += _GROW
                self._log.resize(self._allocated * CHUNK_ROWS, axis=0)
            stored = buffer.bytes()[:packed.size]
            self._log.id.write_direct_chunk((first, 0), stored, filter_mask=int(packed.raw))
            self._backing.check()
            self._chunks.append((packed.size, packed.rows, packed.raw, packed.crc32))
            self._stored += packed.size
            self._rows += packed.rows
        self._journal.put(pieces, packed.kept, first)

    def _guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        """Run one step of the writing thread; the first error stays and ends the pipeline."""
        error: BaseException | None = None
        try:
            work(*arguments)
        except BaseException as caught:
            error = self._backing.failure or caught
        with self._change:
            self._error = self._error or error
            self._in_flight -= 1
            self._change.notify_all()

    # -- tables and the tree ------------------------------------------------------------------------
    def table(self, rows: Sequence[Record], record: type[Record], name: str) -> None:
        """Keep the records of one kind; they become the table ``/nodes/<n>/tables/<name>``.

        Raises:
            ValueError: the name is taken or impossible, or a value does not fit its column.
            TypeError: ``record`` has a field that a table cannot hold.
        """
        if name in self._tables or name in RESERVED_TABLES or not TABLE_NAME.fullmatch(name):
            raise ValueError(f"the table name {name!r} is taken or impossible")
        self._tables[name] = encode(rows, record, self._blob), describe(record)

    def tree_group(self, path: str, attributes: Mapping[str, str | int]) -> None:
        """A group for people, such as ``files/2``; its path is relative to ``/nodes/<n>``.

        Raises:
            ValueError: an impossible path, or one that is taken.
        """
        self._tree.group(path, attributes)

    def tree_link(self, path: str, target: str) -> None:
        """A soft link for people, as ``tree/1141/fds/1`` to ``files/2``; both relative to ``/nodes/<n>``.

        Raises:
            ValueError: an impossible path, or one that is taken.
        """
        self._tree.link(path, target)

    # -- the end ------------------------------------------------------------------------------------
    def close(self) -> ShardSummary:
        """Write the tables, close and fsync the file; returns what the manifest will say of it.

        After an error the file is removed.
        """
        if self._summary is not None:
            return self._summary
        try:
            self.drain()
            started = time.monotonic()
            # In the writing thread, like everything else that touches HDF5.
            self._summary = self._writing.submit(self._finish).result()
        except BaseException as error:
            # What HDF5 was not told of it may have stumbled over later: the first cause counts.
            self._error = self._error or self._backing.failure or error
            self.abort()
            if isinstance(error, Exception):
                self._check()
            raise
        self._stop_threads()
        self._backing.close()
        log.debug("%s: tables, fsync and hash took %.0f ms", self.path.name,
                  (time.monotonic() - started) * 1e3)
        return self._summary

    def _finish(self) -> ShardSummary:
        chunks, spans = self._chunk_table()
        runs = self._journal.resolve()
        self._backing.check()
        self._write_tables(chunks, runs)
        self._backing.check()
        self._log = None
        self._file.close()
        self._backing.check()
        self._backing.sync()
        size = self._backing.size
        live = live_rows(runs)
        return ShardSummary(
            node=self.node, file=self.path.name, size=size, chunks=len(chunks), rows=self._rows,
            dead_rows=self._rows - live, stored=self._stored, put=self._put,
            zero_pages=int(runs["npages"][runs["kind"] == ZERO].sum()), spans=spans,
            sha256=digest(self._backing.fd, size, spans))

    def _chunk_table(self) -> tuple[Table, tuple[tuple[int, int], ...]]:
        """The `CHUNKS`, and the file's bytes that they cover, joined where they touch."""
        chunks = np.zeros(len(self._chunks), dtype=CHUNKS)
        self._log.resize(len(chunks) * CHUNK_ROWS, axis=0)
        if len(chunks):
            for name, column in zip(("size", "rows", "raw", "crc32"), zip(*self._chunks, strict=True),
                                    strict=True):
                chunks[name] = column
            offsets: dict[int, int] = {}
            self._log.id.chunk_iter(
                lambda chunk: offsets.__setitem__(chunk.chunk_offset[0], chunk.byte_offset))
            chunks["offset"] = [offsets[i * CHUNK_ROWS] for i in range(len(chunks))]
        return chunks, covered(chunks)

    def _write_tables(self, chunks: Table, runs: Table) -> None:
        root = self._file[f"nodes/{self.node}"]
        write_attributes(root, {"format": FORMAT, "node": self.node})
        write_attributes(self._log, {"title": "Pages; which of them count, the runs say", "rows": self._rows})
        pages, objects = root["pages"], page_objects(self._objects, runs)
        write_table(pages, "chunks", chunks, {"title": "The log's chunks: stored bytes and rows in use"})
        write_table(pages, "runs", runs, {"title": "Consecutive pages of an object in the log's rows"})
        write_table(pages, "objects", encode(objects, PageObject, self._blob), describe(PageObject))
        tables = root.create_group("tables")
        for name, (table, attributes) in self._tables.items():
            write_table(tables, name, table, attributes)
            self._backing.check()
        write_table(tables, "blob", self._blob.array(), {"title": "What (offset, length) columns point to"})
        self._tree.write(root)

    def abort(self) -> None:
        """Stop the threads and remove the file. Never raises; again is harmless."""
        with self._change:
            self._error = self._error or OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            self._change.notify_all()
        self._backing.drop_writes()
        with suppress(Exception):
            self._stop_threads()
        with suppress(Exception):
            self._log = None
            if self._file is not None:
                self._file.close()
        with suppress(OSError):
            self._backing.close()
        with suppress(OSError):
            self.path.unlink()

    def _stop_threads(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=self._error is not None)
        self._writing.shutdown(wait=True, cancel_futures=self._error is not None)
        self._free.clear()   # whoever still knows the writer does not keep its memory
