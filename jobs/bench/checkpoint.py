"""How long a checkpoint takes, beside zstd -1 alone on the same pages and the same cores in the same run.

Run it on a quiet machine, with the checkout or an installed crhpc on the path::

    python jobs/bench/checkpoint.py [--dir /dev/shm] [--repeat 3] [--memory 256] [CASE ...]

A case is MIB or MIBxPROCESSES; by default 64, 512, 2048 and 256x4. A checkpoint is all from opening the shard to the
committed image; the pod stands still for a part of it. The limit is 1.3 times what zstd takes for the pages that are
not zero, in frames of 1 MiB with a thread for each core, and 100 ms. The best of the repeats counts.
"""
from __future__ import annotations

import argparse
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import zstandard
from held import PAGE, Times, best, fill, fresh, held

MIB = 1 << 20


def compressing(pages: int) -> Times:
    """zstd alone on as many pages."""
    data = fresh(3 * (pages * PAGE // MIB + 1) // 2 * MIB, huge=True)
    fill(data, 1)
    rows = data.reshape(-1, PAGE)
    stored = rows[rows.any(axis=1)][:pages].reshape(-1)
    local = threading.local()

    def one(at: int) -> int:
        if not hasattr(local, "compressor"):
            local.compressor = zstandard.ZstdCompressor(level=1)
        return len(local.compressor.compress(memoryview(stored[at:at + MIB])))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        start = time.monotonic()
        sum(pool.map(one, range(0, len(stored), MIB)))
        return Times(time.monotonic() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", default=["64", "512", "2048", "256x4"])
    parser.add_argument("--dir", default="/dev/shm")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--memory", type=int, default=256, help="MiB, as of crhpc run")
    parser.add_argument("--huge", action="store_true", help="the memory is of transparent huge pages")
    options = parser.parse_args()
    print("MiB x procs    pages  zstd ms  checkpoint ms  limit ms  checkpoint/limit  frozen ms   steps above 5 ms")
    for case in options.cases:
        size, _, processes = case.partition("x")
        with held(int(size) << 20, int(processes or 1), options.dir, memory=options.memory << 20,
                  huge=options.huge) as pod:
            frozen: list[float] = []
            pages: list[int] = []

            def checkpoint(pod=pod, frozen=frozen, pages=pages) -> Times:
                taken, still = pod.checkpoint()
                frozen.append(still)
                pages.append(pod.stored_pages())
                pod.forget_image()
                return taken

            taken = best(options.repeat, checkpoint)
        zstd = best(options.repeat, lambda pages=pages: compressing(pages[0]))
        limit = 1.3 * zstd.whole + 0.1
        steps = ", ".join(f"{name} {seconds * 1e3:.0f}" for name, seconds in taken.steps.items() if seconds > 0.005)
        print(f"{case:>11} {pages[0]:8} {zstd.whole * 1e3:8.0f} {taken.whole * 1e3:14.0f} {limit * 1e3:9.0f} "
              f"{taken.whole / limit:17.2f} {min(frozen) * 1e3:10.0f}   {steps}", flush=True)


if __name__ == "__main__":
    main()
