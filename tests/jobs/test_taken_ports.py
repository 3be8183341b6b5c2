"""Jobs whose ports another program has taken when they restart."""
from __future__ import annotations

from pathlib import Path

import pytest
from conftest import installed
from mpis import ALL
from taken import listening, taken
from wholejob import NewJob, wait_until

RANKS = 3
STOPPED = 85


@pytest.mark.parametrize("name", ["openmpi", "openmpi4"])
def test_ranks_that_connect_late(name: str, crhpc: NewJob, tmp_path: Path) -> None:
    """mpirun's own port is taken, and those at which the ranks wait for each other; twice."""
    mpi = installed(ALL[name]()).over_tcp()
    program = mpi.compile(Path(__file__).with_name("late.c"), tmp_path / "late")
    job = crhpc(mpi.command(RANKS, program), mpi.environment)
    running = job.run("--every", "0")
    wait_until(lambda: len(list(job.place.glob("here.*"))) == RANKS, 60, lambda: f"not ready; {running.said()}")
    names = listening(running.tree())
    assert len(names) > RANKS
    assert job.ask("checkpoint", str(job.directory), "--stop").returncode == 0
    assert running.wait(30) == STOPPED, running.said()
    with taken(names):
        running = job.restart()
        wait_until(lambda: running.resumed, 60, lambda: f"not resumed; {running.said()}")
        assert "is in use" in running.log, running.said()
        more = listening(running.tree())
        assert job.ask("checkpoint", str(job.directory), "--stop").returncode == 0
        assert running.wait(30) == STOPPED, running.said()
        with taken(more):
            running = job.restart()
            wait_until(lambda: running.resumed, 60, lambda: f"not resumed; {running.said()}")
            (job.place / "go").touch()
            assert running.wait() == 0, running.said()
    assert job.stdout.read_text() == f"{RANKS * RANKS} right\n"
