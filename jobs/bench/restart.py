"""How long a restart takes, beside copying the image's pages into fresh memory in the same run.

Run it on a quiet machine, with the checkout or an installed crhpc on the path::

    python jobs/bench/restart.py [--dir /dev/shm] [--repeat 5] [--huge] [CASE ...]

A case is MIB[xPROCESSES][:KIND]; held.py lists the kinds. A restart is all from reading the manifest to the release of
the pod (wholejobs.py has what comes before). The limit is 1.5 times the copy (one thread, memory that nobody has
touched, of the same kind: huge pages or not) and 300 ms. Both are done in turns, and the best of each counts.
"""
from __future__ import annotations

import os

import numpy as np
from held import PAGE, Pages, Times, fresh, held, options


def copying(stored: Pages, *, huge: bool) -> Times:
    """The same pages, copied into fresh memory."""
    target = fresh(max(len(stored), PAGE), huge=huge)[:len(stored)]
    start = Times.now()
    np.copyto(target, stored)
    return start.until_now({})


def main() -> None:
    told = options(__doc__)
    print(f"load {os.getloadavg()[0]:.1f}; ms")
    print("MiB x procs     pages   copy  restart  limit  restart/limit   steps above 5 ms")
    for case in told.cases:
        with held(case, told.dir, memory=told.memory << 20, huge=told.huge) as pod:
            pod.checkpoint()
            stored = pod.stored()
            taken, copies = [], []
            for _ in range(told.repeat):
                taken.append(pod.restart())
                copies.append(copying(stored, huge=told.huge))
        best, copy = min(taken), min(copies)
        limit = 1.5 * copy.whole + 0.3
        print(f"{case!s:13} {len(stored) // PAGE:7} {copy.whole * 1e3:6.0f} {best.whole * 1e3:8.0f} "
              f"{limit * 1e3:6.0f} {best.whole / limit:14.2f}   {best.long_steps()}", flush=True)


if __name__ == "__main__":
    main()
