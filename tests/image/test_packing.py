"""From a buffer of pages to a chunk; what comes back is in test_writer.py."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from crhpc.image.format import CHUNK
from crhpc.image.packing import compressor, nonzero_rows, pack
from crhpc.image.pages import buffers, inflate


def test_a_buffer_becomes_a_chunk_of_what_is_not_zero() -> None:
    (buffer,) = buffers(1)
    buffer.array[:] = 7   # what another use has left
    buffer.array[:5] = np.arange(5)[:, None]
    packed = pack(buffer, 5, compressor(1))
    assert (packed.kept.tolist(), packed.rows, packed.raw) == ([False, True, True, True, True], 4, False)
    stored = bytes(buffer.bytes()[:packed.size])
    assert packed.crc32 == zlib.crc32(stored)
    pages = np.frombuffer(inflate(stored), dtype=np.uint8).reshape(-1, 4096)
    assert [int(page[0]) for page in pages[:5]] == [1, 2, 3, 4, 0]
    assert not pages[4:].any()


def test_a_buffer_that_can_not_be_compressed() -> None:
    (buffer,) = buffers(1)
    buffer.array[:] = np.random.default_rng(1).integers(0, 256, (256, 4096), dtype=np.uint8)
    before = bytes(buffer.bytes())
    packed = pack(buffer, 256, compressor(-1))
    assert packed.raw and packed.size == CHUNK
    assert bytes(buffer.bytes()) == before


def test_a_buffer_of_zeros() -> None:
    (buffer,) = buffers(1)
    packed = pack(buffer, 256, compressor(1))
    assert (packed.rows, packed.size, packed.kept.any()) == (0, 0, False)


@pytest.mark.parametrize("count", [1, 2, 255, 256])
@pytest.mark.parametrize("background", [0, 1])
def test_nonzero_rows_sees_every_byte(count: int, background: int) -> None:
    rng = np.random.default_rng(count)
    for _ in range(20):
        rows = np.zeros((count, 4096), dtype=np.uint8)
        expected = rng.random(count) < (0.9 if background else 0.1)
        for row in np.flatnonzero(expected):
            rows[row, rng.integers(4096)] = rng.integers(1, 256)
        assert nonzero_rows(rows).tolist() == expected.tolist()


def test_nonzero_rows_of_each_single_byte() -> None:
    rows = np.zeros((256, 4096), dtype=np.uint8)
    for first in range(0, 4096, 256):
        rows[:] = 0
        rows[np.arange(256), first + np.arange(256)] = 0x80
        assert nonzero_rows(rows).all()
