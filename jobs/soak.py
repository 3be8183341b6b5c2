"""Kill and resume whole jobs again and again, and count: ``python jobs/soak.py -n 20`` (``make soak``).

Each round runs a job under ``crhpc run``, ends every process with SIGKILL at random moments, starts the same command
line again each time, and compares all that the job has written with what an uninterrupted run writes, which depends
on neither the MPI nor the transport. The rounds cover every MPI, with its own transports and over TCP only, and every
job. Prints a table; the exit code is 0 only if every round ended right.
"""
from __future__ import annotations

import argparse
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from heatrun import SIZES, Answer, HeatRun, prepared
from mpis import ALL, Mpi
from rich.console import Console
from rich.table import Table
from wholejob import Failed, Job, Killing, interrupt_and_resume


@dataclass(slots=True)
class Cell:
    """What became of one combination."""

    mpi: Mpi
    job: str
    rounds: int = 0
    right: int = 0
    killings: list[Killing] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.mpi.name} {self.job}"

    def cells(self) -> list[str]:
        times = f"{statistics.mean(self.seconds):.1f} s" if self.seconds else "-"
        moments = sorted(killing.seconds for killing in self.killings)
        when = f"{moments[0]:.1f} ... {moments[-1]:.1f} s" if moments else "-"
        return [self.mpi.name, self.job, f"{self.right} of {self.rounds}", str(len(self.killings)), when,
                str(sum(killing.processes for killing in self.killings)), times]


class Soak:
    """All rounds of all cells, several at a time."""

    def __init__(self, place: Path, options: argparse.Namespace, say: Callable[[str], None]) -> None:
        self.place = place
        self.options = options
        self.say = say
        self._answers: dict[str, Answer] = {}
        self._lock = threading.Lock()

    def run(self, cells: list[Cell]) -> None:
        with ThreadPoolExecutor(self.options.parallel) as pool:
            for future in [pool.submit(self._cell, cell) for cell in cells]:
                future.result()

    def _cell(self, cell: Cell) -> None:
        if not cell.mpi.installed:
            cell.troubles.append(f"{cell.mpi.name} is not installed ({cell.mpi.package})")
            return
        try:
            run = prepared(cell.mpi, cell.job, self._new_place(), steps=self.options.steps)
            expected = self._answer(cell.job)
        except (subprocess.SubprocessError, OSError) as trouble:
            cell.troubles.append(f"without crhpc: {trouble}")
            return
        for number in range(1, self.options.rounds + 1):
            self._round(cell, run, expected, number)
            self.say(f"{cell.name} round {number}: {cell.right} of {cell.rounds} right")

    def _answer(self, job: str) -> Answer:
        with self._lock:
            if job not in self._answers:
                run = prepared(ALL["mpich"](), job, self._new_place(), steps=self.options.steps)
                self._answers[job] = run.uninterrupted(self._new_place())
            return self._answers[job]

    def _round(self, cell: Cell, run: HeatRun, expected: Answer, number: int) -> None:
        where = self._new_place()
        seed, begun = f"{self.options.seed}/{cell.name}/{number}", time.monotonic()
        cell.rounds += 1
        try:
            cell.killings += self._play(run, expected, where, seed)
            cell.right += 1
            cell.seconds.append(time.monotonic() - begun)
            shutil.rmtree(where)
        except (Failed, subprocess.SubprocessError, OSError) as trouble:
            cell.troubles.append(f"round {number}, see {where}: {trouble}")

    def _play(self, run: HeatRun, expected: Answer, place: Path, seed: str) -> list[Killing]:
        """One job, killed and resumed.

        Raises:
            Failed: it ended otherwise than it should.
        """
        job = Job(run.argv, place, run.mpi.environment)
        try:
            code, killings = interrupt_and_resume(job, random.Random(seed), "--every", str(self.options.every), "-v",
                                                  kills=self.options.kills, spread=1.5 * self.options.every)
            if wrong := expected.differences(Answer.read(place, job.stdout)):
                raise Failed("; ".join(wrong))
            if code:
                raise Failed(f"exit code {code}; {job.runs[-1].said()}")
        finally:
            job.clean_up()
        return killings

    def _new_place(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.place))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Kill and resume whole jobs again and again, and count.")
    parser.add_argument("-n", "--rounds", type=int, default=20, help="of each combination (%(default)s)")
    parser.add_argument("--kills", type=int, default=2, help="in each round (%(default)s)")
    parser.add_argument("--every", type=float, default=1, help="seconds between checkpoints (%(default)s)")
    parser.add_argument("--steps", type=int, default=600, help="each takes 10 ms or more (%(default)s)")
    parser.add_argument("--parallel", type=int, default=2, help="jobs at a time (%(default)s)")
    parser.add_argument("--mpi", action="append", choices=list(ALL), help="one of them (all)")
    parser.add_argument("--transport", action="append", choices=["default", "tcp"], help="one of them (both)")
    parser.add_argument("--job", action="append", choices=list(SIZES), help="one of them (all)")
    parser.add_argument("--seed", default=str(random.SystemRandom().randrange(10**6)))
    return parser.parse_args()


def cells(options: argparse.Namespace) -> list[Cell]:
    mpis = [ALL[name]() for name in options.mpi or ALL]
    found = []
    for transport in options.transport or ("default", "tcp"):
        for mpi in mpis:
            found += [Cell(mpi.over_tcp() if transport == "tcp" else mpi, job) for job in options.job or SIZES]
    return found


def main() -> int:
    options, console = arguments(), Console()
    place = Path(tempfile.mkdtemp(prefix="crhpc-soak-", dir="/var/tmp"))
    console.print(f"seed {options.seed}, in {place}", highlight=False)
    rows = cells(options)
    Soak(place, options, lambda text: console.print(text, highlight=False)).run(rows)
    table = Table("MPI", "job", "right", "kills", "moments", "processes killed", "seconds a round")
    for row in rows:
        table.add_row(*row.cells())
    console.print(table)
    troubles = [f"{row.name}, {trouble}" for row in rows for trouble in row.troubles]
    for trouble in troubles:
        console.print(trouble, markup=False, highlight=False)
    if not troubles:
        shutil.rmtree(place)
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main())
