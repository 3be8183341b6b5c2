"""Jobs that are killed whole by SIGKILL, at random moments, end as if nothing had happened; of every MPI and job, see
test_matrix.py."""
from __future__ import annotations

import random
from pathlib import Path

import pytest
from heatrun import Answer, HeatRun
from mpis import Mpi
from wholejob import NewJob, interrupt_and_resume

pytestmark = pytest.mark.shared

EVERY = ("--every", "2", "-v")


def test_killed_before_the_first_checkpoint(mpi: Mpi, heat_c: Path, crhpc: NewJob, tmp_path: Path) -> None:
    run = HeatRun(mpi, (str(heat_c),), size=256, steps=300, report=20, pause=10000)
    expected = run.uninterrupted(tmp_path)
    job = crhpc(run.argv, mpi.environment)
    running = job.run("--every", "0")
    job.wait_for_output(running, 200)
    running.kill_all()
    (job.place / "log").unlink()
    running = job.run("--every", "0")   # what the killed MPI left in temporary directories must not be met
    assert running.wait() == 0, running.said()
    assert expected.differences(Answer.read(job.place, job.stdout)) == []


def test_output_that_is_appended(short_run: HeatRun, short_answer: Answer, crhpc: NewJob,
                                 chance: random.Random) -> None:
    job = crhpc(short_run.argv, short_run.mpi.environment)
    job.stdout.write_bytes(b"of a run before\n")
    code, _ = interrupt_and_resume(job, chance, *EVERY, kills=1, append=True, spread=1.0)
    assert job.stdout.read_bytes() == b"of a run before\n" + short_answer.stdout
    assert code == 0


def test_what_is_cut_off_is_kept(short_run: HeatRun, short_answer: Answer, crhpc: NewJob) -> None:
    job = crhpc(short_run.argv, short_run.mpi.environment)
    running = job.run("--every", "0", append=True)
    job.wait_for_output(running, 500)
    assert job.ask("checkpoint", str(job.directory)).returncode == 0
    saved = job.stdout.stat().st_size
    job.wait_for_output(running, saved + 500)
    running.kill_all()
    written = job.stdout.read_bytes()
    assert job.run("--every", "0", append=True).wait() == 0
    assert job.stdout.read_bytes() == short_answer.stdout
    kept = [path.read_bytes() for path in job.directory.rglob("*") if path.is_file()]
    assert any(len(content) > 500 and written.endswith(content) for content in kept)


def test_the_exit_code_is_that_of_the_command(short_run: HeatRun, short_answer: Answer, crhpc: NewJob,
                                              chance: random.Random) -> None:
    job = crhpc(["sh", "-c", '"$@"; exit $(($? + 7))', "sh", *short_run.argv], short_run.mpi.environment)
    code, _ = interrupt_and_resume(job, chance, *EVERY, kills=1, spread=1.0)
    assert short_answer.differences(Answer.read(job.place, job.stdout)) == []
    assert code == 7


def test_a_finished_job_starts_afresh(short_run: HeatRun, short_answer: Answer, crhpc: NewJob) -> None:
    job = crhpc(short_run.argv, short_run.mpi.environment)
    for _ in range(2):
        (job.place / "log").unlink(missing_ok=True)
        running = job.run(*EVERY)
        assert running.wait() == 0, running.said()
        assert not running.resumed
        assert short_answer.differences(Answer.read(job.place, job.stdout)) == []
    assert job.newest() > 0
