"""Another process's memory: reading, writing, and which pages are there.

``process_vm_readv`` is the fast way; ``/proc/PID/mem`` also reaches pages that the process itself may not
read or write (ptrace(2), proc(5)). Addresses are the other process's.
"""
from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from crhpc.kernel import libc
from crhpc.kernel.libc import PAGE

IOV_MAX = 1024
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

    def write(self, address: int, view: memoryview | bytes) -> None:
        """Write ``view`` to ``address``; a private mapping of a file gets pages of its own."""
        done = 0
        while done < len(view):
            done += os.pwrite(self.fd, view[done:], address + done)


Runs = list[tuple[int, int]]
"""Runs of pages as (address, number of pages), ascending."""


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
            if error.errno not in (22, 25):   # EINVAL, ENOTTY: before Linux 6.7
                raise
        if not _guard_is_known:
            return _populated_by_reading(pagemap, start, end, private_file)
        _guard_is_known = 0   # before Linux 6.15


_guard_is_known = _PAGE_IS_GUARD


def scan(pagemap: int, start: int, end: int, *, private_file: bool, guard: int = 0) -> tuple[Runs, Runs]:
    """``populated`` by ioctl PAGEMAP_SCAN: walks page tables, so that large empty reservations cost nothing."""
    regions = (ctypes.c_uint64 * (3 * _REGIONS))()
    wanted = _PAGE_IS_PRESENT | _PAGE_IS_SWAPPED
    without = _PAGE_IS_PFNZERO | (_PAGE_IS_FILE if private_file else 0)
    own: Runs = []
    guards: Runs = []
    while start < end:
        # size flags start end walk_end vec vec_len max_pages category_{inverted,mask,anyof_mask} return_mask
        # An inverted bit in the mask demands that the category be absent.
        arg = (ctypes.c_uint64 * 12)(96, 0, start, end, 0, ctypes.addressof(regions), _REGIONS, 0,
                                     without, without, wanted, guard)
        try:
            count = libc.syscall("ioctl", pagemap, PAGEMAP_SCAN, ctypes.addressof(arg))
        except OSError as error:
            raise OSError(error.errno, error.strerror, "PAGEMAP_SCAN") from None
        for i in range(count):
            first, last, categories = regions[3 * i:3 * i + 3]
            found = guards if categories & guard else own
            if found and found[-1][0] + found[-1][1] * PAGE == first:
                first = found.pop()[0]
            found.append((first, (last - first) // PAGE))
        # where the vector is full at the very end, walk_end may lie before the last region (seen on Linux 6.18)
        start = max(arg[4], regions[3 * count - 2] if count else 0)
    return own, guards


def _populated_by_reading(pagemap: int, start: int, end: int, private_file: bool) -> tuple[Runs, Runs]:
    own: Runs = []
    guards: Runs = []
    for first in range(start // PAGE, end // PAGE, _PAGEMAP_AT_ONCE):
        count = min(_PAGEMAP_AT_ONCE, end // PAGE - first)
        entries = np.frombuffer(os.pread(pagemap, count * 8, first * 8), dtype=np.uint64)
        guard = (entries & _GUARD) != 0
        there = ((entries & (_PRESENT | _SWAPPED)) != 0) & ~guard
        if private_file:
            there &= (entries & _FILE) == 0
        own += [((first + a) * PAGE, n) for a, n in runs(there)]
        guards += [((first + a) * PAGE, n) for a, n in runs(guard)]
    return own, guards


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
