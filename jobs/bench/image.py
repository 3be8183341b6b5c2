"""How fast pages become an image and come back, beside zstd alone on the same pages and threads.

Run it on a quiet machine, with the checkout or an installed crhpc on the path::

    python jobs/bench/image.py [--mib 1024] [--threads N] [--level 1] [--dir /dev/shm] [--repeat 3]

Each kind of data is measured in turns (zstd alone, put, walk) within one run; the best of the repeats counts.
``put`` includes close, that is tables, fsync and hash.
"""
from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from crhpc.image.check import check_image
from crhpc.image.format import CHUNK, CHUNK_ROWS, PAGE, image_name, new_temporary, remove_image
from crhpc.image.reader import Image
from crhpc.image.writer import ShardWriter, commit

Pages = np.ndarray[Any, np.dtype[np.uint8]]


def floats(rng: np.random.Generator, size: int) -> Pages:
    """Doubles of a smooth field with noise in the low bits: what a simulation holds."""
    x = np.arange(size // 8) / 1e4
    return (np.sin(x) + 1e-6 * np.round(rng.normal(size=x.size), 2)).view(np.uint8)


def text(rng: np.random.Generator, size: int) -> Pages:
    """Small whole numbers: compresses well."""
    return rng.integers(0, 1000, size // 8).view(np.uint8)


def noise(rng: np.random.Generator, size: int) -> Pages:
    """Cannot be compressed."""
    return rng.integers(0, 256, size, dtype=np.uint8)


def half_zero(rng: np.random.Generator, size: int) -> Pages:
    """Every other page zero, the rest doubles."""
    pages = floats(rng, size).reshape(-1, PAGE).copy()
    pages[::2] = 0
    return pages.reshape(-1)


def compress(data: Pages, level: int, threads: int) -> None:
    """zstd alone: every 1 MiB a frame with checksum, in a pool of threads."""
    import threading
    local = threading.local()

    def one(i: int) -> int:
        if not hasattr(local, "c"):
            local.c = zstandard.ZstdCompressor(level=level, write_checksum=True)
        return len(local.c.compress(memoryview(data[i:i + CHUNK])))
    with ThreadPoolExecutor(threads) as pool:
        sum(pool.map(one, range(0, len(data), CHUNK)))


def put(data: Pages, directory: Path, level: int, threads: int) -> Path:
    """The same through a ShardWriter, committed. Filling the buffers (a copy) is part of the time."""
    temporary = new_temporary(directory, 1)
    with ShardWriter(temporary, 0, level=level, threads=threads) as writer:
        pages = data.reshape(-1, CHUNK_ROWS, PAGE)
        thing = writer.object("memory")
        for i in range(len(pages)):
            buffer = writer.take()
            buffer.array[:] = pages[i]
            writer.put(buffer, [(thing, i * CHUNK_ROWS, CHUNK_ROWS)])
        summary = writer.close()
    return commit(temporary, directory / image_name(1), number=1, job={}, shards=[summary], stats={})


def walk(path: Path, threads: int) -> None:
    """Everything stored, as restore reads it."""
    with Image(path) as image:
        for _object, _page, pages in image.nodes[0].walk(threads=threads):
            len(pages)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(data: Pages, directory: Path, options: argparse.Namespace) -> tuple[float, dict[str, float]]:
    """Compression ratio, and GB/s of each step at its best."""
    path = directory / image_name(1)
    steps: dict[str, Callable[[], object]] = {
        "zstd": lambda: compress(data, options.level, options.threads),
        "put": lambda: put(data, directory, options.level, options.threads),
        "walk": lambda: walk(path, options.threads),
        "quick": lambda: check_image(path),
        "full": lambda: check_image(path, full=True)}
    best = dict.fromkeys(steps, 1e9)
    for _ in range(options.repeat):
        for what, work in steps.items():
            best[what] = min(best[what], seconds(work))
        with Image(path) as image:
            ratio = len(data) / max(1, image.nodes[0].summary.stored)
        remove_image(path)
    return ratio, {what: len(data) / taken / 1e9 for what, taken in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--level", type=int, default=1)
    parser.add_argument("--dir", default="/dev/shm")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    rng = np.random.default_rng(1)
    print(f"{options.mib} MiB, {options.threads} threads, zstd {options.level}, {options.dir}; GB/s of pages")
    print("data        ratio   zstd    put  put/zstd   walk  quick   full")
    for make in (floats, text, noise, half_zero):
        data = make(rng, options.mib << 20)
        with tempfile.TemporaryDirectory(dir=options.dir) as name:
            ratio, speed = measure(data, Path(name), options)
        print(f"{make.__name__:10} {ratio:6.2f} {speed['zstd']:6.2f} {speed['put']:6.2f} "
              f"{speed['put'] / speed['zstd']:9.2f} {speed['walk']:6.2f} {speed['quick']:6.2f} "
              f"{speed['full']:6.2f}", flush=True)


if __name__ == "__main__":
    main()
