"""Another process's memory: reading, writing, and which pages are there.

``process_vm_readv`` is the fast way; ``/proc/PID/mem`` also reaches pages that the process itself may not
read or write (ptrace(2), proc(5)). Addresses are the other process's.
"""
from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from crhpc.kernel import libc
from crhpc.kernel.libc import PAGE

IOV_MAX = 1024
Iovecs = npt.NDArray[np.uint64]
"""Shape (n, 2): address and size of each piece, as struct iovec has them."""
_signature = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong,
              ctypes.c_ulong)
_readv = libc.function("process_vm_readv", *_signature)
_writev = libc.function("process_vm_writev", *_signature)

_PRESENT, _SWAPPED, _FILE, _GUARD = (np.uint64(1 << bit) for bit in (63, 62, 61, 58))
_PAGEMAP_AT_ONCE = 1 << 20

PAGEMAP_SCAN = 0xC0606610
_PAGE_IS_FILE, _PAGE_IS_PRESENT, _PAGE_IS_SWAPPED, _PAGE_IS_PFNZERO, _PAGE_IS_GUARD = 4, 8, 16, 32, 256
_REGIONS = 1 << 14


def read(pid: int, address: int, size: int) -> bytes:
    """``size`` bytes at ``address``.

    Raises:
        OSError: EFAULT where a part is not mapped or not readable, ESRCH, EPERM.
    """
    buffer = ctypes.create_string_buffer(size)
    read_into(pid, ctypes.addressof(buffer), [(address, size)])
    return buffer.raw


def read_into(pid: int, local: int, pieces: Sequence[tuple[int, int]]) -> None:
    """Copy (address, size) pieces of the process, one behind the other, to the local address."""
    _transfer(_readv, "process_vm_readv", pid, local, pieces)


def write(pid: int, address: int, content: bytes) -> None:
    """Write to memory that the process itself may write."""
    buffer = ctypes.create_string_buffer(content, len(content))
    _transfer(_writev, "process_vm_writev", pid, ctypes.addressof(buffer), [(address, len(content))])


def write_from(pid: int, local: int, pieces: Sequence[tuple[int, int]]) -> None:
    """Copy from the local address to (address, size) pieces of the process."""
    _transfer(_writev, "process_vm_writev", pid, local, pieces)


def _transfer(call: Any, name: str, pid: int, local: int, pieces: Sequence[tuple[int, int]]) -> None:
    for start in range(0, len(pieces), IOV_MAX):
        batch = pieces[start:start + IOV_MAX]
        local = _transfer_batch(call, name, pid, local, [list(piece) for piece in batch])


def _transfer_batch(call: Any, name: str, pid: int, local: int, batch: list[list[int]]) -> int:
    """One call, or more where the kernel stops early (it moves at most 2 GiB); the local address behind."""
    while batch:
        total = sum(size for _, size in batch)
        here = (ctypes.c_ulong * 2)(local, total)
        there = (ctypes.c_ulong * (2 * len(batch)))(*[word for piece in batch for word in piece])
        moved = call(pid, ctypes.addressof(here), 1, ctypes.addressof(there), len(batch), 0)
        if moved < 0:
            raise libc.os_error(f"{name} of {pid} at {batch[0][0]:#x}")
        if moved == 0:
            raise libc.os_error(f"{name} of {pid} at {batch[0][0]:#x}", 14)
        local += moved
        while batch and moved >= batch[0][1]:
            moved -= batch[0][1]
            batch.pop(0)
        if batch and moved:
            batch[0][0] += moved
            batch[0][1] -= moved
    return local


def gather(pid: int, local: int, remote: Iovecs) -> None:
    """Copy pieces of the process, at most IOV_MAX of them, one behind the other, to the local address.

    Args:
        remote: as for ``scatter``.
    """
    total = int(remote[:, 1].sum())
    here = (ctypes.c_ulong * 2)(local, total)
    there = np.ascontiguousarray(remote)
    moved = _readv(pid, ctypes.addressof(here), 1, there.ctypes.data, len(there), 0)
    if moved != total:   # more than the kernel moves at once, or an error: the long way names it
        read_into(pid, local, [(address, size) for address, size in remote.tolist()])


def scatter(pid: int, memory: Memory, local: Iovecs, remote: Iovecs) -> None:
    """Copy pieces of this process's memory to as many of the other's; also where that one may not write itself.

    Args:
        local, remote: (address, size) rows, ``uint64``, C-contiguous, of equal sizes and at most IOV_MAX of them.
    """
    done, total = 0, len(remote)
    while done < total:
        here, there = local[done:], remote[done:]
        moved = _writev(pid, here.ctypes.data, len(here), there.ctypes.data, len(there), 0)
        if moved < 0:
            if ctypes.get_errno() != errno.EFAULT:
                raise libc.os_error(f"process_vm_writev of {pid} at {int(there[0, 0]):#x}")
            moved = 0
        ends = np.cumsum(there[:, 1])
        done += int(np.searchsorted(ends, np.uint64(moved), side="right"))
        if done < total:   # a part of a piece may have been written: all of it again, the other way
            (source, size), (target, _) = local[done].tolist(), remote[done].tolist()
            memory.write(target, local_view(source, size))
            done += 1


class Memory:
    """``/proc/PID/mem``: reads and writes that don't ask for the mapping's own permissions."""

    def __init__(self, pid: int) -> None:
        self.fd = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self.fd)

    def read_into(self, view: memoryview, address: int) -> None:
        """Fill ``view`` from ``address``."""
        done = 0
        while done < len(view):
            got = os.preadv(self.fd, [view[done:]], address + done)
            if got == 0:
                raise libc.os_error(f"read of mem at {address + done:#x}", 5)
            done += got

    def read_to(self, local: int, address: int, size: int) -> None:
        """Copy to a local address, from pages that the process itself may not read too."""
        self.read_into(local_view(local, size), address)

    def read_pages(self, local: int, runs: npt.NDArray[np.int64]) -> None:
        """Copy (page number, count) runs, one behind the other, to a local address; shared pages stay shared."""
        for first, count in runs.tolist():
            self.read_to(local, first * PAGE, count * PAGE)
            local += count * PAGE

    def write(self, address: int, view: memoryview | bytes) -> None:
        """Write ``view`` to ``address``; a private mapping of a file gets pages of its own."""
        done = 0
        while done < len(view):
            done += os.pwrite(self.fd, view[done:], address + done)


Runs = npt.NDArray[np.uint64]
"""Runs of pages, shape (n, 2): address and number of pages; ascending, none touching the next."""
_NO_RUNS: Runs = np.zeros((0, 2), np.uint64)


def populated(pagemap: int, start: int, end: int, *, private_file: bool) -> tuple[Runs, Runs]:
    """The pages of a mapping that hold something of the process's own, and those that guard.

    A page counts when it is present or swapped out; in a private mapping of a file only when it is a
    copy of the process's own, no longer the file's. Pages of zeros that were only read don't count.
    Guards are pages whose every use is a fault (madvise(2), MADV_GUARD_INSTALL, Linux 6.13).

    Args:
        pagemap: an open descriptor of ``/proc/PID/pagemap``.
    """
    global _guard_is_known
    while True:
        try:
            return scan(pagemap, start, end, private_file=private_file, guard=_guard_is_known)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTTY):   # before Linux 6.7
                raise
        if not _guard_is_known:
            return _populated_by_reading(pagemap, start, end, private_file)
        _guard_is_known = 0   # before Linux 6.15


_guard_is_known = _PAGE_IS_GUARD


def guards(pagemap: int, start: int, end: int) -> Runs:
    """The guards of a mapping, whatever it is of; none where this kernel does not tell."""
    if not _guard_is_known:
        return _NO_RUNS
    try:
        return joined(_regions(pagemap, start, end, 0, _guard_is_known, 0))
    except OSError:
        return _NO_RUNS


def scan(pagemap: int, start: int, end: int, *, private_file: bool, guard: int = 0) -> tuple[Runs, Runs]:
    """``populated`` by ioctl PAGEMAP_SCAN: walks page tables, so that large empty reservations cost nothing."""
    # A page of zeros over a file is the process's own: the kernel has merged its copy with others (KSM).
    without = _PAGE_IS_FILE if private_file else _PAGE_IS_PFNZERO
    found = _regions(pagemap, start, end, without, _PAGE_IS_PRESENT | _PAGE_IS_SWAPPED, guard)
    guarding = (found[:, 2] & np.uint64(guard)) != 0
    return joined(found[~guarding]), joined(found[guarding])


def _regions(pagemap: int, start: int, end: int, without: int, wanted: int, told: int) -> npt.NDArray[np.uint64]:
    """Rows of start, end and categories: pages of any category in ``wanted`` and none in ``without``.

    Args:
        told: categories that are told; regions that differ in them come apart.
    """
    rows = np.zeros((_REGIONS, 3), np.uint64)
    found: list[npt.NDArray[np.uint64]] = [rows[:0]]
    while start < end:
        # size flags start end walk_end vec vec_len max_pages category_{inverted,mask,anyof_mask} return_mask
        # An inverted bit in the mask demands that the category be absent.
        arg = (ctypes.c_uint64 * 12)(96, 0, start, end, 0, rows.ctypes.data, _REGIONS, 0,
                                     without, without, wanted, told)
        try:
            count = libc.syscall("ioctl", pagemap, PAGEMAP_SCAN, ctypes.addressof(arg))
        except OSError as error:
            raise OSError(error.errno, error.strerror, "PAGEMAP_SCAN") from None
        found.append(rows[:count].copy())
        # where the vector is full at the very end, walk_end may lie before the last region (seen on Linux 6.18)
        start = max(arg[4], int(rows[count - 1, 1]) if count else 0)
    return np.concatenate(found)


def joined(regions: npt.NDArray[np.uint64]) -> Runs:
    """(start, end, ...) rows as runs: those that touch become one."""
    if not len(regions):
        return _NO_RUNS
    first = np.flatnonzero(np.concatenate(([True], regions[1:, 0] != regions[:-1, 1])))
    starts, ends = regions[first, 0], regions[np.concatenate((first[1:] - 1, [len(regions) - 1])), 1]
    return np.stack((starts, (ends - starts) // np.uint64(PAGE)), axis=1)


def _populated_by_reading(pagemap: int, start: int, end: int, private_file: bool) -> tuple[Runs, Runs]:
    found: tuple[list[npt.NDArray[np.uint64]], list[npt.NDArray[np.uint64]]] = [_NO_RUNS], [_NO_RUNS]
    for first in range(start // PAGE, end // PAGE, _PAGEMAP_AT_ONCE):
        entries = read_pagemap(pagemap, first, min(_PAGEMAP_AT_ONCE, end // PAGE - first))
        guard = (entries & _GUARD) != 0
        there = ((entries & (_PRESENT | _SWAPPED)) != 0) & ~guard
        if private_file:
            there &= (entries & _FILE) == 0
        for mask, runs_of in zip((there, guard), found, strict=True):
            edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0)) + first
            runs_of.append(edges.reshape(-1, 2).astype(np.uint64) * np.uint64(PAGE))
    return joined(np.concatenate(found[0])), joined(np.concatenate(found[1]))


def read_pagemap(pagemap: int, first: int, count: int) -> npt.NDArray[np.uint64]:
    """The entries of ``count`` pages (Documentation/admin-guide/mm/pagemap.rst)."""
    return np.frombuffer(os.pread(pagemap, count * 8, first * 8), dtype=np.uint64)


def runs(mask: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The runs of true values as (first index, length)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(np.int8), [0]))))
    return [(int(a), int(b - a)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def local_view(address: int, size: int) -> memoryview:
    """This process's own memory at an address, such as a page buffer's, to be read and written."""
    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")


def read_pointer(pid: int, address: int) -> int:
    """One 64-bit word."""
    (value,) = struct.unpack("Q", read(pid, address, 8))
    return int(value)
