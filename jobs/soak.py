"""Kill and resume whole jobs again and again, and count: ``python jobs/soak.py -n 10``.

Each round runs the heat equation under ``crhpc run``, ends every process with SIGKILL at random moments,
starts the same command line again each time, and compares all that the job has written with what an
uninterrupted run writes. Prints a table; the exit code is 0 only if every round ended right.
"""
from __future__ import annotations

import argparse
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from heatrun import Answer, HeatRun
from mpis import ALL, JOBS, Mpi
from rich.console import Console
from rich.table import Table
from wholejob import Failed, Job, Killing, interrupt_and_resume

PROGRAMS = ("heat.c", "heat.py")


@dataclass(slots=True)
class Row:
    """What became of one combination."""

    mpi: str
    program: str
    rounds: int = 0
    right: int = 0
    killings: list[Killing] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    def cells(self) -> list[str]:
        times = f"{statistics.mean(self.seconds):.1f} s" if self.seconds else "-"
        moments = sorted(killing.seconds for killing in self.killings)
        when = f"{moments[0]:.1f} ... {moments[-1]:.1f} s" if moments else "-"
        return [self.mpi, self.program, f"{self.right} of {self.rounds}", str(len(self.killings)), when,
                str(sum(killing.processes for killing in self.killings)), times]


def program_of(mpi: Mpi, program: str, place: Path) -> tuple[str, ...]:
    if program == "heat.py":
        return str(mpi.python), str(JOBS / program)
    return (str(mpi.compile(JOBS / program, place / f"heat-{mpi.name}")),)


def play(run: HeatRun, expected: Answer, place: Path, options: argparse.Namespace,
         seed: str) -> list[Killing]:
    """One job, killed and resumed.

    Raises:
        Failed: it ended otherwise than it should.
    """
    job = Job(run.argv, place, run.mpi.environment)
    try:
        code, killings = interrupt_and_resume(job, random.Random(seed), "--every", str(options.every), "-v",
                                              kills=options.kills)
        if wrong := expected.differences(Answer.read(place, job.stdout)):
            raise Failed("; ".join(wrong))
        if code:
            raise Failed(f"exit code {code}; {job.runs[-1].said()}")
    finally:
        job.clean_up()
    return killings


def soak(place: Path, options: argparse.Namespace, console: Console) -> Iterator[Row]:
    """All rounds of every combination."""
    for name, program in ((name, program) for name in options.mpi for program in options.program):
        mpi, row = ALL[name](), Row(name, program)
        if not mpi.installed:
            row.troubles.append(f"{name} is not installed in {mpi.bin}")
            yield row
            continue
        run = HeatRun(mpi, program_of(mpi, program, place), size=options.size, steps=options.steps, report=20,
                      pause=10000)
        where = Path(tempfile.mkdtemp(dir=place))
        expected = run.uninterrupted(where)
        for number in range(1, options.rounds + 1):
            where = Path(tempfile.mkdtemp(dir=place))
            seed, begun = f"{options.seed}/{name}/{program}/{number}", time.monotonic()
            row.rounds += 1
            try:
                row.killings += play(run, expected, where, options, seed)
                row.right += 1
                row.seconds.append(time.monotonic() - begun)
                shutil.rmtree(where)
            except (Failed, subprocess.SubprocessError, OSError) as trouble:
                row.troubles.append(f"round {number}, see {where}: {trouble}")
            said = f"{name} {program} round {number}: {row.right} of {row.rounds} right"
            console.print(said, highlight=False)
        yield row


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Kill and resume whole jobs again and again, and count.")
    parser.add_argument("-n", "--rounds", type=int, default=10, help="of each combination (%(default)s)")
    parser.add_argument("--kills", type=int, default=2, help="in each round (%(default)s)")
    parser.add_argument("--every", type=float, default=2, help="seconds between checkpoints (%(default)s)")
    parser.add_argument("--size", type=int, default=256, help="rows of the plate (%(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="each takes 10 ms or more (%(default)s)")
    parser.add_argument("--mpi", action="append", choices=list(ALL), help="one of them (all)")
    parser.add_argument("--program", action="append", choices=PROGRAMS, help="one of them (all)")
    parser.add_argument("--seed", default=str(random.SystemRandom().randrange(10**6)))
    options = parser.parse_args()
    options.mpi = options.mpi or list(ALL)
    options.program = options.program or list(PROGRAMS)
    return options


def main() -> int:
    options, console = arguments(), Console()
    place = Path(tempfile.mkdtemp(prefix="crhpc-soak-", dir="/var/tmp"))
    console.print(f"seed {options.seed}, in {place}", highlight=False)
    rows = list(soak(place, options, console))
    table = Table("MPI", "program", "right", "kills", "moments", "processes killed", "seconds a round")
    for row in rows:
        table.add_row(*row.cells())
    console.print(table)
    for row in rows:
        for trouble in row.troubles:
            console.print(f"{row.mpi} {row.program}, {trouble}", markup=False, highlight=False)
    if any(row.troubles for row in rows):
        return 1
    shutil.rmtree(place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
