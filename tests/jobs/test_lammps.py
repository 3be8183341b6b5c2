"""A real program of others, LAMMPS as Debian packages it, loses nothing: bitwise the same after three violent ends."""
from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import installed
from mpis import JOBS, openmpi4
from need import need
from wholejob import NewJob, interrupt_and_resume

_OF_TIME = re.compile(r"Loop time|Performance:|.*(CPU use with|_atoms CPU)|Total wall time|"
                      r"(Pair|Neigh|Comm|Output|Modify|Other) +\|")
"""Lines of its log that tell how long things took."""


def results(place: Path) -> tuple[bytes, list[str]]:
    """The final dump, with 17 digits, and the log but for the times in it."""
    log = (place / "log.melt").read_text().splitlines()
    return (place / "dump.end").read_bytes(), [line for line in log if not _OF_TIME.match(line)]


@pytest.mark.skipif(os.environ.get("CRHPC_TEST_SHARE") == "root", reason="the plain user does it, at the same time")
def test_lammps_is_killed_at_three_moments(crhpc: NewJob, chance: random.Random, tmp_path: Path,
                                           repetition: int) -> None:
    need(shutil.which("lmp"), "LAMMPS is not installed (Debian's lammps)")
    mpi = installed(openmpi4())
    argv = mpi.command(4, "lmp", "-in", JOBS / "melt.lmp", "-var", "steps", "2000", "-log", "log.melt")
    alone = tmp_path / "uninterrupted"
    alone.mkdir()
    subprocess.run(argv, cwd=alone, env=os.environ | mpi.environment, check=True, timeout=300, capture_output=True)
    job = crhpc(argv, mpi.environment)
    code, killings = interrupt_and_resume(job, chance, "--every", "1", "-v", kills=3, spread=1.0)
    print(repetition, killings)
    assert code == 0
    (dump, log), (expected_dump, expected_log) = results(job.place), results(alone)
    assert dump == expected_dump
    assert log == expected_log
