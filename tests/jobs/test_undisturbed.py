"""Jobs that are checkpointed and never killed: they must not notice."""
from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
from heatrun import Answer, HeatRun
from wholejob import NewJob

pytestmark = pytest.mark.shared


def test_a_checkpoint_every_second(heat_run: HeatRun, answer: Answer, crhpc: NewJob) -> None:
    job = crhpc(heat_run.argv, heat_run.mpi.environment)
    running = job.run("--every", "1", "--keep", "2")
    code = running.wait()
    assert answer.differences(Answer.read(job.place, job.stdout)) == []
    assert code == 0
    images = job.images()
    assert images[-1]["number"] >= 4, "ten seconds, and so few checkpoints"
    assert {image["state"] for image in images} == {"ok"}
    # An old one goes when its successor has been verified, for which the end left no time.
    assert 2 <= len(images) <= 4


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_is_passed_through(crhpc: NewJob, code: int) -> None:
    job = crhpc(["sh", "-c", f"sleep 2.5; echo done; exit {code}"])
    assert job.run("--every", "1").wait() == code
    assert job.stdout.read_text() == "done\n"
    assert job.newest() >= 1


def test_a_signal_that_ends_the_job_becomes_128_and_its_number(crhpc: NewJob) -> None:
    job = crhpc(["sh", "-c", "kill -TERM $$"])
    assert job.run().wait() == 128 + signal.SIGTERM


def test_sigterm_reaches_the_job(crhpc: NewJob) -> None:
    job = crhpc(["sh", "-c", "trap 'echo asked; exit 5' TERM; echo ready; while :; do sleep 0.1; done"])
    running = job.run()
    job.wait_for_output(running, len("ready"))
    running.send(signal.SIGTERM)
    assert running.wait() == 5
    assert job.stdout.read_text() == "ready\nasked\n"


def test_sigusr1_takes_a_checkpoint(short_run: HeatRun, short_answer: Answer, crhpc: NewJob) -> None:
    job = crhpc(short_run.argv, short_run.mpi.environment)
    running = job.run("--every", "0")
    job.wait_for_output(running, 200)
    assert job.newest() == 0
    running.send(signal.SIGUSR1)
    job.wait_for_image(running)
    assert running.wait() == 0
    assert short_answer.differences(Answer.read(job.place, job.stdout)) == []


def test_a_job_directory_that_goes_away_does_not_harm_the_job(short_run: HeatRun, short_answer: Answer,
                                                              crhpc: NewJob, tmp_path: Path) -> None:
    job = crhpc(short_run.argv, short_run.mpi.environment)
    running = job.run("--every", "1")
    job.wait_for_image(running)
    subprocess.run(["mv", job.directory, tmp_path / "elsewhere"], check=True)
    code = running.wait()
    assert short_answer.differences(Answer.read(job.place, job.stdout)) == []
    assert code == 0
    assert "no checkpoint" in running.log or "cannot write" in running.log, running.said()
