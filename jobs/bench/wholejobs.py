"""What a user waits for: `crhpc run`, `crhpc checkpoint` and `crhpc restart`, from exec to what was asked for.

Run it on a quiet machine, with the checkout or an installed crhpc on the path::

    python jobs/bench/wholejobs.py [--mpi mpich] [--size 2048] [--repeat 5]

The job is jobs/heat.c on four ranks. A start ends when the command has been started, a restart when the job goes on
(the image has been verified by then), a checkpoint when `crhpc checkpoint` has ended. The limits are those of
checkpoint.py and restart.py for the pages of this job's image; the best of the repeats counts.
"""
from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from checkpoint import compressing
from held import PAGE, stored_in
from mpis import ALL, JOBS
from restart import copying
from wholejob import Job, Running


class _Job(Job):
    """One whose images are in memory, so that the disk does not count."""

    @property
    def directory(self) -> Path:
        return Path("/dev/shm") / self.place.parent.name / self.place.name


def until_said(running: Running, word: str) -> float:
    """Seconds from the exec to a line of crhpc's."""
    while word not in running.log:
        if running.poll() is not None or time.monotonic() > running.begun + 120:
            raise RuntimeError(f"no {word!r}: {running.said()}")
        time.sleep(0.002)
    return time.monotonic() - running.begun


def starting(place: Path) -> float:
    """`crhpc run -- true`, to its end."""
    place.mkdir()
    running = _Job(["true"], place).run("--every", "0")
    until_said(running, "started")
    running.wait()
    return time.monotonic() - running.begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mpi", default="mpich", choices=sorted(ALL))
    parser.add_argument("--size", type=int, default=2048, help="rows of the plate")
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    mpi = ALL[options.mpi]()
    print(f"load {os.getloadavg()[0]:.1f}, {options.mpi}, 4 ranks; ms")
    with tempfile.TemporaryDirectory(prefix="crhpc-bench-", dir="/var/tmp") as name:
        place = Path(name)
        heat = mpi.compile(JOBS / "heat.c", place / "heat")
        trivial = min(starting(place / f"true{i}") for i in range(options.repeat))
        (place / "job").mkdir()
        argv = mpi.command(4, heat, "--size", str(options.size), "--steps", "100000000", "--report", "1000000",
                           "--pause", "1000", "--output", "plate", "--log", "log")
        job = _Job(argv, place / "job", mpi.environment)
        try:
            running = job.run("--every", "0")
            until_said(running, "started")
            time.sleep(3)
            taken, zstd, copies, restarts = [], [], [], []
            for _ in range(options.repeat):
                start = time.monotonic()
                done = job.ask("checkpoint", str(job.directory))
                taken.append(time.monotonic() - start)
                if done.returncode:
                    raise RuntimeError(done.stderr)
                stored = stored_in(max(job.directory.glob("ckpt-*")))
                zstd.append(compressing(stored).whole)
            for _ in range(options.repeat):
                time.sleep(1)
                running.kill_all()
                running = job.restart("--every", "0")
                restarts.append(until_said(running, "resumed from"))
                copies.append(copying(stored, huge=False).whole)
        finally:
            job.clean_up()
            shutil.rmtree(job.directory.parent)
    print(f"crhpc run -- true, to its end          {trivial * 1e3:6.0f}")
    for what, best, limit in (("crhpc checkpoint", min(taken), 1.3 * min(zstd) + 0.1),
                              ("crhpc restart, to the release", min(restarts), 1.5 * min(copies) + 0.3)):
        print(f"{what:38} {best * 1e3:6.0f}  of {len(stored) // PAGE} pages; limit {limit * 1e3:.0f}, "
              f"ratio {best / limit:.2f}")


if __name__ == "__main__":
    main()
