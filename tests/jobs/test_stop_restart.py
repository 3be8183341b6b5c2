"""Jobs that are checkpointed and ended on request, and go on later: after a reboot, or more than once."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from heatrun import Answer, HeatRun
from need import need
from wholejob import Job, NewJob

STOPPED = 85
DAY = 86400

# Ten seconds in which the monotonic clock may make no step that is large or too small.
CLOCK = """
import time
last, worst = time.monotonic(), 0.0
print("ready", flush=True)
for n in range(100):
    time.sleep(0.1)   # until a moment of that clock: one that is days off never comes, or is past
    now = time.monotonic()
    worst = max(worst, now - last)
    assert now - last >= 0.09, f"step {n} took {now - last} s"
    last = now
print("steady" if worst < 30 else f"a step of {worst} s")
"""

pytestmark = pytest.mark.shared


def other_boot(days: int) -> list[str]:
    """A command under which the clocks that start at boot say something else, as after a reboot."""
    user = [] if os.getuid() == 0 else ["-U", "--map-current-user"]
    command = ["unshare", *user, "--time", "--monotonic", str(days * DAY), "--boottime", str(days * DAY)]
    own = float(Path("/proc/uptime").read_text().split()[0])
    found = subprocess.run([*command, "cat", "/proc/uptime"], capture_output=True, text=True, check=False)
    other = found.returncode == 0 and float(found.stdout.split()[0]) > own + (days - 1) * DAY
    need(other, "no new time namespace is allowed here, or exec does not enter it (Linux before 6.1)")
    return command


def stop(job: Job, *, under: list[str] | None = None) -> None:
    """Run it, and stop it after two seconds and a checkpoint."""
    running = job.run("--every", "2", under=under or ())
    job.wait_for_image(running)
    done = job.ask("checkpoint", str(job.directory), "--stop")
    assert done.returncode == 0, done.stderr
    assert "checkpoint" in done.stdout
    assert running.wait(30) == STOPPED, running.said()
    assert not running.tree()


def test_stopped_and_restarted(heat_run: HeatRun, answer: Answer, crhpc: NewJob) -> None:
    job = crhpc(heat_run.argv, heat_run.mpi.environment)
    stop(job)
    code = job.restart("--every", "2").wait()
    assert answer.differences(Answer.read(job.place, job.stdout)) == []
    assert code == 0


def test_sigusr2_stops_and_the_same_command_line_resumes(short_run: HeatRun, short_answer: Answer,
                                                         crhpc: NewJob) -> None:
    job = crhpc(short_run.argv, short_run.mpi.environment)
    running = job.run("--every", "0")
    job.wait_for_output(running, 200)
    running.send(signal.SIGUSR2)
    assert running.wait(30) == STOPPED, running.said()
    running = job.run("--every", "0", "--resume", "require")
    code = running.wait()
    assert code == 0, running.said()
    assert short_answer.differences(Answer.read(job.place, job.stdout)) == []


def test_one_image_can_be_restarted_twice(short_run: HeatRun, short_answer: Answer, crhpc: NewJob) -> None:
    job = crhpc(short_run.argv, short_run.mpi.environment)
    stop(job)
    image = Path(job.images()[-1]["path"])
    for _ in range(2):
        running = job.restart("--every", "0", image=image)
        assert running.wait() == 0, running.said()
        assert short_answer.differences(Answer.read(job.place, job.stdout)) == []


@pytest.mark.parametrize("before", [True, False], ids=["to an earlier clock", "to a later clock"])
@pytest.mark.parametrize("what", ["heat", "clock"])
def test_restarted_as_after_a_reboot(short_run: HeatRun, short_answer: Answer, crhpc: NewJob, before: bool,
                                     what: str) -> None:
    first, second = (other_boot(10), []) if before else ([], other_boot(10))
    job = (crhpc(short_run.argv, short_run.mpi.environment) if what == "heat"
           else crhpc([sys.executable, "-c", CLOCK]))
    stop(job, under=first)
    running = job.restart("--every", "2", under=second)
    code = running.wait(60)
    assert code == 0, running.said()
    if what == "clock":
        assert job.stdout.read_text() == "ready\nsteady\n"
    else:
        assert short_answer.differences(Answer.read(job.place, job.stdout)) == []


def test_nothing_to_restart(crhpc: NewJob, tmp_path: Path) -> None:
    job = crhpc(["true"])
    assert job.restart().wait() == 75
    job = crhpc(["true"])
    assert job.run("--resume", "require").wait() == 75
    assert job.ask("checkpoint", str(tmp_path)).returncode != 0
