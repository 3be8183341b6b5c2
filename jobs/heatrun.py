"""One run of a whole job, and its answer: all that it writes, to be compared byte for byte.

The jobs heat.c, heat.py, ring.c and alltoall.c have the same options and write the same three things.
"""
from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, fields
from pathlib import Path

from mpis import JOBS, Mpi

SIZES = {"heat.c": 256, "heat.py": 256, "ring.c": 300000, "alltoall.c": 200000}
"""The jobs, and what ``--size`` is for each: rows of a plate, bytes of a message, numbers of a rank."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run has written."""

    stdout: bytes
    plate: bytes
    log: bytes

    @classmethod
    def read(cls, place: Path, stdout: Path) -> Answer:
        """From the working directory of the run; what is missing is empty."""
        paths = (stdout, place / "plate", place / "log")
        return cls(*(path.read_bytes() if path.exists() else b"" for path in paths))

    def differences(self, other: Answer) -> list[str]:
        """Where the other differs from this one, in words; empty if it is the same."""
        return [f"{field.name}: {_first_difference(getattr(self, field.name), getattr(other, field.name))}"
                for field in fields(self) if getattr(self, field.name) != getattr(other, field.name)]


@dataclass(frozen=True, slots=True)
class HeatRun:
    """A command line of one of the jobs."""

    mpi: Mpi
    program: tuple[str, ...]
    size: int
    steps: int
    report: int
    pause: int
    ranks: int = 4

    @property
    def argv(self) -> list[str]:
        return self._argv(self.pause)

    def uninterrupted(self, place: Path) -> Answer:
        """The answer of a run without crhpc, and without pauses, of which it does not depend.

        Raises:
            subprocess.SubprocessError: the job fails.
        """
        stdout = place / "job.out"
        with stdout.open("wb") as output:
            subprocess.run(self._argv(0), cwd=place, env=os.environ | self.mpi.environment, timeout=300,
                           stdin=subprocess.DEVNULL, stdout=output, check=True)
        return Answer.read(place, stdout)

    def _argv(self, pause: int) -> list[str]:
        return self.mpi.command(
            self.ranks, *self.program, "--size", str(self.size), "--steps", str(self.steps), "--report",
            str(self.report), "--pause", str(pause), "--output", "plate", "--log", "log")


def prepared(mpi: Mpi, job: str, place: Path, *, steps: int, pause: int = 10000) -> HeatRun:
    """One of the jobs, compiled into ``place`` where that is needed.

    Raises:
        subprocess.CalledProcessError: the compiler refuses.
    """
    program = (str(mpi.python), str(JOBS / job))
    if job.endswith(".c"):
        target = place / f"{job.removesuffix('.c')}-{mpi.mpicc.name}-{mpi.name.partition('-')[0]}"
        program = (str(target),) if target.exists() else (str(mpi.compile(JOBS / job, target)),)
    return HeatRun(mpi, program, size=SIZES[job], steps=steps, report=20, pause=pause)


def _first_difference(expected: bytes, found: bytes) -> str:
    at = next((n for n, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b),
              min(len(expected), len(found)))
    return (f"{len(found)} bytes instead of {len(expected)}, differs from byte {at} on, "
            f"expected {expected[at:at + 60]!r}, found {found[at:at + 60]!r}")
