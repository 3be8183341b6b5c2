"""How long a restart takes, beside copying the image's pages into fresh memory in the same run.

Run it on a quiet machine, with the checkout or an installed crhpc on the path::

    python jobs/bench/restart.py [--dir /dev/shm] [--repeat 3] [--huge] [--verify] [CASE ...]

A case is MIB or MIBxPROCESSES; by default 64, 512, 2048 and 256x4. A restart is all from reading the manifest to the
release of the pod. The limit is 1.5 times the copy (one thread, memory that nobody has touched, of the same kind: huge
pages or not) and 300 ms. ``--verify`` adds what `crhpc restart` does before, in another process. The best of the
repeats counts.
"""
from __future__ import annotations

import argparse
import time

import numpy as np
from held import PAGE, Times, best, fill, fresh, held


def copying(pages: int, *, huge: bool) -> Times:
    """As many pages, copied into fresh memory."""
    source = fresh(pages * PAGE // (1 << 20) * (1 << 20), huge=True)
    fill(source, 1)
    target = fresh(len(source), huge=huge)
    start = time.monotonic()
    np.copyto(target, source)
    return Times(time.monotonic() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", default=["64", "512", "2048", "256x4"])
    parser.add_argument("--dir", default="/dev/shm")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--memory", type=int, default=256, help="MiB, as of crhpc run")
    parser.add_argument("--huge", action="store_true", help="the memory is of transparent huge pages")
    parser.add_argument("--verify", action="store_true", help="with what comes before, as in crhpc restart")
    options = parser.parse_args()
    print("MiB x procs    pages  copy ms  restart ms  limit ms  restart/limit   steps above 5 ms")
    for case in options.cases:
        size, _, processes = case.partition("x")
        with held(int(size) << 20, int(processes or 1), options.dir, memory=options.memory << 20,
                  huge=options.huge) as pod:
            pod.checkpoint()
            pages = pod.stored_pages()
            copy = best(options.repeat, lambda pages=pages: copying(pages, huge=options.huge))

            def restart(pod=pod) -> Times:
                start = time.monotonic()
                if options.verify:
                    from crhpc.verify import verify_apart
                    verify_apart(pod.image)
                before = time.monotonic() - start
                taken = pod.restart()
                return Times(taken.whole + before, {"verify": before, **taken.steps})

            taken = best(options.repeat, restart)
        limit = 1.5 * copy.whole + 0.3
        steps = ", ".join(f"{name} {seconds * 1e3:.0f}" for name, seconds in taken.steps.items() if seconds > 0.005)
        print(f"{case:>11} {pages:8} {copy.whole * 1e3:8.0f} {taken.whole * 1e3:11.0f} {limit * 1e3:9.0f} "
              f"{taken.whole / limit:14.2f}   {steps}", flush=True)


if __name__ == "__main__":
    main()
