"""How long a checkpoint takes, beside zstd -1 alone on the same pages and the same cores in the same run.

Run it on a quiet machine, with the checkout or an installed crhpc on the path::

    python jobs/bench/checkpoint.py [--dir /dev/shm] [--repeat 5] [--memory 256] [CASE ...]

A case is MIB[xPROCESSES][:KIND]; held.py lists the kinds. A checkpoint is all from opening the shard to the committed
image; the pod stands still for a part of it. The limit is 1.3 times what zstd takes for the pages that are in the
image, in frames of 1 MiB with a thread for each core, and 100 ms. Both are done in turns, and the best of each counts.
"""
from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import zstandard
from held import MIB, PAGE, Held, Pages, Times, held, options


def compressing(stored: Pages) -> Times:
    """zstd alone."""
    local = threading.local()

    def one(at: int) -> int:
        if not hasattr(local, "compressor"):
            local.compressor = zstandard.ZstdCompressor(level=1)
        return len(local.compressor.compress(memoryview(stored[at:at + MIB])))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        start = Times.now()
        sum(pool.map(one, range(0, len(stored), MIB)))
        return start.until_now({})


def measure(pod: Held, repeat: int) -> tuple[Pages, list[Times], list[Times], list[float]]:
    """Checkpoints and zstd in turns; the pages, and how long the pod stood still."""
    taken, zstd, frozen = [], [], []
    for _ in range(repeat):
        each, still = pod.checkpoint()
        taken.append(each)
        frozen.append(still)
        stored = pod.stored()
        pod.forget_image()
        zstd.append(compressing(stored))
    return stored, taken, zstd, frozen


def main() -> None:
    told = options(__doc__)
    print(f"load {os.getloadavg()[0]:.1f}; ms")
    print("MiB x procs     pages  zstd  checkpoint  limit  checkpoint/limit  CPU/zstd's  frozen   steps above 5 ms")
    for case in told.cases:
        with held(case, told.dir, memory=told.memory << 20, huge=told.huge) as pod:
            stored, taken, zstd, frozen = measure(pod, told.repeat)
        best, least = min(taken), min(zstd)
        limit = 1.3 * least.whole + 0.1
        print(f"{case!s:13} {len(stored) // PAGE:7} {least.whole * 1e3:5.0f} {best.whole * 1e3:11.0f} "
              f"{limit * 1e3:6.0f} {best.whole / limit:17.2f} {min(t.cpu for t in taken) / least.cpu:11.2f} "
              f"{min(frozen) * 1e3:7.0f}   {best.long_steps()}", flush=True)


if __name__ == "__main__":
    main()
