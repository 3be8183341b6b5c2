"""What becomes of a buffer: pages of zeros are left out, the rest is compressed, where that pays.

Work for several threads, each with a compressor of its own.
"""
from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from crhpc.image.format import CHUNK, CHUNK_ROWS
from crhpc.image.pages import PageBuffer, allowed_cores
from crhpc.image.records import Bytes


@dataclass(frozen=True, slots=True)
class Packed:
    """What a compressing thread made of a buffer; ``size`` bytes at the buffer's start are the chunk."""

    kept: npt.NDArray[np.bool_]
    rows: int
    size: int
    crc32: int

    @property
    def raw(self) -> bool:
        return self.size == CHUNK


def pack(buffer: PageBuffer, rows: int, compressor: zstandard.ZstdCompressor) -> Packed:
    """Make the chunk of the first ``rows`` pages in the buffer, in their place; of nothing where all are zeros."""
    kept = nonzero_rows(buffer.array[:rows])
    count = int(np.count_nonzero(kept))
    if not count:
        return Packed(kept, 0, 0, 0)
    if count < rows:
        buffer.array[:count] = buffer.array[:rows][kept]
    if count < CHUNK_ROWS:
        buffer.array[count:] = 0
    compressed = compressor.compress(buffer.bytes())
    size = min(len(compressed), CHUNK)
    if size < CHUNK:   # otherwise it does not pay: stored as it is; unlike a memoryview's, numpy's copy needs no GIL
        np.copyto(buffer.array.reshape(-1)[:size], np.frombuffer(compressed, np.uint8))
    return Packed(kept, count, size, zlib.crc32(buffer.bytes()[:size]))


def nonzero_rows(rows: Bytes) -> npt.NDArray[np.bool_]:
    """Which of the pages (shape (n, 4096), C-contiguous) hold anything but zeros: shape (n,)."""
    words = rows.view(np.uint64)
    # Most pages that are not zero show it in a few words: looking at all of them costs ten times as much.
    kept: Any = words[:, ::73].any(axis=1)
    rest = np.flatnonzero(~kept)
    if 2 * rest.size > len(kept):
        kept = words.max(axis=1) != 0
    elif rest.size:
        kept[rest] = words[rest].max(axis=1) != 0
    result: npt.NDArray[np.bool_] = kept
    return result


def compressor(level: int) -> zstandard.ZstdCompressor:
    """One that makes frames as the format prescribes; for one thread."""
    return zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)


def share(memory: int, threads: int | None, level: int) -> tuple[int, int]:
    """(compressing threads, buffers) that fit into ``memory`` bytes; by default a thread per allowed core.

    A thread needs its compressor's tables, the compressed chunk, and the rows it moves. One chunk more is
    what HDF5 may hold while writing.

    Raises:
        ValueError: not even two buffers fit.
    """
    if threads is None:
        threads = min(allowed_cores(), 16)
    probe = compressor(level)
    probe.compress(bytes(CHUNK))                                # its tables grow at the first use
    each = probe.memory_size() + 2 * CHUNK + CHUNK // 128
    threads = max(1, min(threads, (memory // 2 - CHUNK) // each))
    count = (memory - CHUNK - threads * each) // CHUNK
    if count < 2:
        raise ValueError(f"{memory} bytes are too little for pages in flight")
    return threads, count
