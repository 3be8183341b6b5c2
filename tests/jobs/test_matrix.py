"""Every MPI, with its own transports and over TCP only, and every job: killed whole, twice, and resumed each time.

What a job writes depends on neither the MPI nor the transport, so one uninterrupted run tells it for all.
"""
from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from conftest import installed
from heatrun import SIZES, Answer, prepared
from mpis import ALL
from wholejob import NewJob, interrupt_and_resume

STEPS = 500
CELLS = [(name, transport, job) for name in ALL for transport in ("default", "tcp") for job in SIZES]
if (share := os.environ.get("CRHPC_TEST_SHARE")) is not None:   # root and a plain user run at the same time: some each
    CELLS = [cell for number, cell in enumerate(CELLS) if (number * 5 // 4 % 4 == 0) == (share == "root")]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the compiled jobs are."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def answers(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """What each job writes when nothing happens to it."""
    return {job: prepared(installed(ALL["mpich"]()), job, programs, steps=STEPS).uninterrupted(
        tmp_path_factory.mktemp("uninterrupted")) for job in SIZES}


@pytest.mark.parametrize(("name", "transport", "job_name"), CELLS)
def test_killed_twice_and_resumed(*, name: str, transport: str, job_name: str, programs: Path,
                                  answers: dict[str, Answer], crhpc: NewJob, chance: random.Random,
                                  repetition: int) -> None:
    mpi = installed(ALL[name]())
    run = prepared(mpi.over_tcp() if transport == "tcp" else mpi, job_name, programs, steps=STEPS)
    job = crhpc(run.argv, run.mpi.environment)
    code, killings = interrupt_and_resume(job, chance, "--every", "1", "-v", spread=1.0)
    print(repetition, killings)
    assert answers[job_name].differences(Answer.read(job.place, job.stdout)) == []
    assert code == 0
    # The ranks, and at least mpiexec, the agent and the supervisor; the ranks may not be back yet at the second time.
    assert killings[0].processes >= run.ranks + 3
    assert all(killing.processes >= 3 for killing in killings)
