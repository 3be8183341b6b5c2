"""What a freeze of an MPI job takes beside the copying of pages: every part of it, the longest first.

Run it on a quiet machine, with the checkout or an installed crhpc on the path::

    python jobs/bench/freeze.py [--mpi mpich] [--ranks 4] [--repeat 10] [--top 20]

The job is jobs/heat.c with little memory, so that copying hardly counts; the pod is driven through the engine's own
door. Times are medians of the repeats, in milliseconds; those of kinds are parts of the step that they stand under.
"""
from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from held import Held, settled
from mpis import ALL, JOBS


def timed(held: Held, times: dict[tuple[str, str], list[float]]) -> None:
    """Have every step of every kind note how long it takes."""
    for kind in held.node.kinds:
        found = kind.steps

        def steps(moment: Any, kind: Any = kind, found: Callable[..., Any] = found) -> list[Callable[..., None]]:
            def wrap(step: Callable[..., None]) -> Callable[..., None]:
                def run(context: Any) -> None:
                    start = time.monotonic()
                    step(context)
                    times[moment.value, kind.name].append(time.monotonic() - start)
                return run
            return [wrap(step) for step in found(moment)]
        kind.steps = steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mpi", default="mpich", choices=sorted(ALL))
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--top", type=int, default=20)
    parser.add_argument("--dir", default="/var/tmp", help="not below /dev/shm, which a pod has to itself")
    options = parser.parse_args()
    mpi = ALL[options.mpi]()
    with tempfile.TemporaryDirectory(prefix="crhpc-bench-", dir=options.dir) as name:
        place = Path(name)
        heat = mpi.compile(JOBS / "heat.c", place / "heat")
        argv = mpi.command(options.ranks, heat, "--size", "256", "--steps", "10000000", "--report", "1000", "--pause",
                           "1000", "--output", place / "plate", "--log", place / "log")
        held = Held(argv, place, memory=256 << 20, environment=mpi.environment)
        times: dict[tuple[str, str], list[float]] = defaultdict(list)
        try:
            settled(held, lambda: (place / "log").exists() and (place / "log").stat().st_size > 0)
            timed(held, times)
            steps: dict[str, list[float]] = defaultdict(list)
            for _ in range(options.repeat):
                taken, frozen = held.checkpoint()
                held.forget_image()
                for step, seconds in {"frozen": frozen, **taken.steps}.items():
                    steps[step].append(seconds)
        finally:
            held.close()
    middle = {step: statistics.median(each) * 1e3 for step, each in steps.items()}
    print(f"{options.mpi}, {options.ranks} ranks on {len(os.sched_getaffinity(0))} cores; ms")
    parts = ("freeze", "inspect", "registers", "collect", "content")
    print(f"frozen {middle['frozen']:.1f}: " + ", ".join(f"{step} {middle.get(step, 0):.1f}" for step in parts))
    longest = sorted(((sum(each) / options.repeat * 1e3, key) for key, each in times.items() if key[0] != "later"),
                     reverse=True)
    for each, (moment, kind) in longest[:options.top]:
        print(f"{each:8.2f}  {moment:10} {kind}")


if __name__ == "__main__":
    main()
