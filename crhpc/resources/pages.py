"""What private memory holds: the pages that are a process's own.

Which they are the page map tells (pagemap(5)). They are copied into the writer's buffers by two threads, 1 MiB at a
time; what a process still shares with a relative after a fork goes into the image once. Rebuilt when all mappings
are made, by several threads: each reads a chunk of the image, decompresses it and writes it to its addresses. Guards,
locks and seals come when all is full.
"""
from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from crhpc.errors import OtherMachine
from crhpc.image.format import CHUNK, CHUNK_ROWS
from crhpc.image.packing import nonzero_rows
from crhpc.image.pages import ZERO, PageBuffer, Pieces
from crhpc.image.records import U64, Bytes
from crhpc.image.runs import NONE, Pages, cut, intersect, numbers, of_numbers, subtract
from crhpc.image.writer import ShardWriter
from crhpc.kernel import advice, proc, vm
from crhpc.kernel.libc import PAGE
from crhpc.resources import Chapter, Cut, Kind, Phase, at
from crhpc.resources.context import Dump, Restore, Task
from crhpc.resources.families import families
from crhpc.resources.filling import fill_memory
from crhpc.resources.space import ANONYMOUS, CONTENTS, FILE, KERNEL, Vma, backing_in, lock, seal

_MADV_GUARD_INSTALL = 102
_COPIERS = 2
"""Threads that copy: more would only wait for memory."""


@dataclass(frozen=True, slots=True)
class PrivatePages:
    """The page object of a process's private memory; page numbers are addresses / 4096."""

    pid: int
    pages: int = field(metadata={"ref": "objects.id"})


@dataclass(frozen=True, slots=True)
class GuardRegion:
    """Pages of a mapping whose every use is a fault (madvise(2), MADV_GUARD_INSTALL)."""

    pid: int
    start: U64
    end: U64


class PagesKind(Kind):
    name = "pages"
    chapter = Chapter.MEMORY
    records = (PrivatePages, GuardRegion)
    saved = ("the contents of private memory, byte for byte, in the image once where relatives share them after a "
             "fork; guard regions (MADV_GUARD_INSTALL)")
    afterwards = ("pages that relatives shared copy-on-write are each one's own, so that their memory together may "
                  "be larger")

    @at(Cut.CONTENT)
    def dump(self, ctx: Dump) -> None:
        objects = {task.host: ctx.writer.object(f"memory of {task.pid}") for task in ctx.tasks}
        family_of = families(ctx.tasks)
        with ThreadPoolExecutor(_COPIERS, thread_name_prefix="crhpc-copy") as pool:
            for task in ctx.tasks:
                ctx.add(PrivatePages(task.pid, objects[task.host]))
                pages, closed = _own_pages(ctx, task)
                if task.host in family_of:
                    pages, several, same = family_of[task.host].divide(task.host, pages)
                    for relative, shared in same:
                        ctx.writer.same(objects[task.host], shared, objects[relative])
                    closed = np.concatenate((several, closed))
                copier = _Copier(ctx, pool, objects[task.host])
                copier.copy(pages, partial(_read, task.host))
                with contextlib.closing(vm.Memory(task.host)) as memory:
                    copier.copy(closed, memory.read_pages)

    @at(Phase.CHECK)
    def check(self, ctx: Restore) -> None:
        if ctx.rows(GuardRegion) and not advice.knows_guards():
            raise OtherMachine(image=ctx.image, what="this kernel has no guard regions (MADV_GUARD_INSTALL), which the "
                                                     "job uses", cure="restart on a node with a newer kernel")

    @at(Phase.PAGES)
    def restore(self, ctx: Restore) -> None:
        fill_memory(ctx, {row.pages: (ctx.tasks[row.pid].host, 0) for row in ctx.rows(PrivatePages)})
        for row in ctx.rows(PrivatePages):
            _write_zeros(ctx, row)
        for guard in ctx.rows(GuardRegion):
            ctx.tasks[guard.pid].call("madvise", guard.start, guard.end - guard.start, _MADV_GUARD_INSTALL)
        for vma in ctx.rows(Vma):
            flags = vma.flags.split()
            if vma.backing != KERNEL and "lo" in flags:
                lock(ctx, vma)
            if vma.backing != KERNEL and "sl" in flags:
                seal(ctx.tasks[vma.pid], vma)


# -- dump -----------------------------------------------------------------------------------------------
def _own_pages(ctx: Dump, task: Task) -> tuple[Pages, Pages]:
    """A task's own pages that it may read itself, and those that it may not; guards on the way."""
    own, guards = [NONE], [NONE]
    pagemap = os.open(f"/proc/{task.host}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for kind, group in itertools.groupby(task.mappings, lambda mapping: backing_in(ctx, mapping)):
            mappings = list(group)
            start, end = mappings[0].start, mappings[-1].end   # many mappings are looked at in one go
            if kind in (ANONYMOUS, FILE):
                found, guarding = vm.populated(pagemap, start, end, private_file=kind == FILE)
                own.append(_pages(found))
            elif kind == CONTENTS:
                for mapping in mappings:
                    _, guarding = vm.populated(pagemap, mapping.start, mapping.end, private_file=False)
                    own.append(_pages(_reachable(task, mapping, guarding)))
                guarding = vm.guards(pagemap, start, end)
            elif kind != KERNEL:
                guarding = vm.guards(pagemap, start, end)
            if kind != KERNEL:
                guards.append(_pages(guarding))
    finally:
        os.close(pagemap)
    for first, count in intersect(np.concatenate(guards), _extent(task.mappings))[0].tolist():
        ctx.add(GuardRegion(task.pid, U64(first * PAGE), U64((first + count) * PAGE)))
    closed = _extent([mapping for mapping in task.mappings if not mapping.read])
    pages = intersect(np.concatenate(own), _extent(task.mappings))[0]   # between them lies our scratch area
    return subtract(pages, closed), intersect(pages, closed)[0]


def _pages(runs: vm.Runs) -> Pages:
    return runs.astype(np.int64) // (PAGE, 1)


def _extent(mappings: list[proc.Mapping]) -> Pages:
    """The pages of mappings."""
    return np.array([(m.start // PAGE, m.size // PAGE) for m in mappings], np.int64).reshape(-1, 2)


def _reachable(task: Task, mapping: proc.Mapping, guards: vm.Runs) -> vm.Runs:
    """The pages of a mapping that hold anything: not those behind the file's end, nor guards."""
    edges = [mapping.start, *(edge for at, count in guards.tolist() for edge in (at, at + count * PAGE)), mapping.end]
    found = []
    with contextlib.closing(vm.Memory(task.host)) as memory:
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            low, high = 0, (end - start) // PAGE
            while low < high:
                middle = (low + high + 1) // 2
                try:
                    memory.read_into(memoryview(bytearray(1)), start + (middle - 1) * PAGE)
                    low = middle
                except OSError:
                    high = middle - 1
            found += [(start, low)] if low else []
    return np.array(found, np.uint64).reshape(-1, 2)


class _Copier:
    """Copies a task's pages into the log, those of zeros left out."""

    def __init__(self, ctx: Dump, pool: ThreadPoolExecutor, number: int) -> None:
        self.writer = ctx.writer
        self.pool = pool
        self.number = number
        self._turn = threading.Lock()
        self._zeros = [NONE]

    def copy(self, pages: Pages, read: Callable[[int, Pages], None]) -> None:
        """Copy pages.

        Args:
            read: fills a local address from runs, one behind the other; called in threads.
        """
        groups = cut(pages, CHUNK_ROWS)
        count = min(_COPIERS, self.writer.capacity // CHUNK, -(-int(pages[:, 1].sum()) // CHUNK_ROWS))
        done = [self.pool.submit(self._work, groups, read) for _ in range(count)]
        wait(done)
        for future in done:
            future.result()
        self.writer.zero(self._of_object(np.concatenate(self._zeros)))
        self._zeros = [NONE]

    def _work(self, groups: Iterator[Pages], read: Callable[[int, Pages], None]) -> None:
        """In a thread: groups until there are no more, into buffers of which one is open."""
        rows = np.empty((CHUNK_ROWS, PAGE), np.uint8)   # stays in the processor's cache
        gathered = _Gathered(self.writer)
        while (group := self._next(groups)) is not None:
            count = int(group[:, 1].sum())
            read(rows.ctypes.data, group)
            kept = nonzero_rows(rows[:count])
            if kept.all():
                gathered.add(self._of_object(group), rows[:count])
                continue
            each, wanted = numbers(group), np.flatnonzero(kept)
            self._zeros.append(of_numbers(each[~kept]))
            gathered.add(self._of_object(of_numbers(each[wanted])), rows, wanted)
        gathered.put()

    def _next(self, groups: Iterator[Pages]) -> Pages | None:
        with self._turn:
            return next(groups, None)

    def _of_object(self, pages: Pages) -> Pieces:
        return np.insert(pages, 0, self.number, axis=1)


class _Gathered:
    """A buffer that is filled with pages from several places."""

    def __init__(self, writer: ShardWriter) -> None:
        self._writer = writer
        self._buffer: PageBuffer | None = None
        self._pieces: list[Pieces] = []
        self._rows = 0

    def add(self, pieces: Pieces, rows: Bytes, wanted: npt.NDArray[np.int64] | None = None) -> None:
        """Add rows, those ``wanted`` if only some are; what fills the buffer is put."""
        count = len(rows) if wanted is None else len(wanted)
        first = min(count, CHUNK_ROWS - self._rows)
        for low, high in ((0, first), (first, count)):
            if low == high:
                continue
            if self._buffer is None:
                self._buffer = self._writer.take()
            target = self._buffer.array[self._rows:self._rows + high - low]
            if wanted is None:
                np.copyto(target, rows[low:high])
            else:
                np.take(rows, wanted[low:high], axis=0, out=target, mode="clip")   # "raise" would copy twice
            self._rows += high - low
            self._pieces.append(_part(pieces, low, high))
            if self._rows == CHUNK_ROWS:
                self.put()

    def put(self) -> None:
        """Hand over what there is."""
        if self._buffer is not None:
            self._writer.put(self._buffer, np.concatenate(self._pieces))
            self._buffer, self._pieces, self._rows = None, [], 0


def _part(pieces: Pieces, low: int, high: int) -> Pieces:
    """The pieces of some of their pages, counted through."""
    ends = np.cumsum(pieces[:, 2])
    if low == 0 and high == ends[-1]:
        return pieces
    starts = ends - pieces[:, 2]
    cut_low, cut_high = np.maximum(starts, low), np.minimum(ends, high)
    inside = cut_low < cut_high
    part: Pieces = pieces[inside]
    part[:, 1] += (cut_low - starts)[inside]
    part[:, 2] = (cut_high - cut_low)[inside]
    return part


def _read(host: int, local: int, group: Pages) -> None:
    """The fast way."""
    vm.gather(host, local, (group * PAGE).astype(np.uint64))


# -- restore --------------------------------------------------------------------------------------------
def _write_zeros(ctx: Restore, row: PrivatePages) -> None:
    """Zero pages matter where a file lies beneath: the process's own copy was all zeros."""
    files = [(v.start // PAGE, (v.end - v.start) // PAGE) for v in ctx.rows(Vma)
             if v.pid == row.pid and v.backing == FILE]
    runs = ctx.shard.runs(row.pages)
    zero = runs[runs["kind"] == ZERO]
    pages = np.stack((zero["page"], zero["npages"]), axis=1).astype(np.int64)
    over_files = intersect(pages, np.array(sorted(files), np.int64).reshape(-1, 2))[0]
    with contextlib.closing(vm.Memory(ctx.tasks[row.pid].host)) as memory:
        for group in cut(over_files, CHUNK_ROWS):
            for first, count in group.tolist():
                memory.write(first * PAGE, bytes(count * PAGE))
