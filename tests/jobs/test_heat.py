"""The heat equation by itself: it must be the same bytes in every run, or nothing can be learned from it."""
from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from mpis import Mpi

SIZE, STEPS = 96, 60
# Of this size, after so many steps, on 4 ranks; whatever the MPI, the language and the machine.
CHECKSUM = "c6de5285680d13ea"


def run(mpi: Mpi, heat: list[str], place: Path, *options: str, ranks: int = 4) -> str:
    argv = mpi.command(ranks, *heat, "--size", str(SIZE), "--steps", str(STEPS), "--report", "15", *options)
    done = subprocess.run(argv, cwd=place, env=os.environ | mpi.environment, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_is_the_same_in_every_run_and_in_both_languages(mpi: Mpi, heat: list[str], tmp_path: Path) -> None:
    first = run(mpi, heat, tmp_path)
    assert [line.split()[1] for line in first.splitlines()] == ["15", "30", "45", "60", "60", "60"]
    assert first.splitlines()[-1].endswith(f"checksum {CHECKSUM}")
    assert run(mpi, heat, tmp_path, "--pause", "1000") == first


@pytest.mark.parametrize("ranks", [1, 3])
def test_any_number_of_ranks_agrees(mpi: Mpi, heat: list[str], tmp_path: Path, ranks: int) -> None:
    assert run(mpi, heat, tmp_path, ranks=ranks).split()[-1] == CHECKSUM


def test_files(mpi: Mpi, heat: list[str], tmp_path: Path) -> None:
    (tmp_path / "log").write_text("before\n")
    output = run(mpi, heat, tmp_path, "--output", "plate", "--log", "log")
    assert (tmp_path / "plate").stat().st_size == SIZE * SIZE * 8
    lines = [line for line in output.splitlines() if line.startswith("step")]
    expected = [f"{' '.join(line.split()[:2])} checksum {line.split()[-1]}" for line in lines]
    assert (tmp_path / "log").read_text().splitlines() == ["before", *expected]


def test_refuses_what_makes_no_sense(mpi: Mpi, heat: list[str]) -> None:
    argv = mpi.command(1, *heat, "--steps", "many")
    done = subprocess.run(argv, env=os.environ | mpi.environment, stdin=subprocess.DEVNULL,
                          capture_output=True, timeout=60, check=False)
    assert done.returncode != 0
