"""Whole jobs and the files that they have open: --files, --map, dry runs; what was lost and what is kept beside."""
from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from wholejob import Job, NewJob, Running

# Works on files of every sort, a step at a time; checks at each step that they are what it has made of them, and at
# the end leaves a sum of it all.
WORKING = """
import os, sys, time
steps = int(sys.argv[1])
log = open("log", "a")                        # only added to
state = open("state", "w+b", buffering=0)     # rewritten in place
table = open("table", "w+b", buffering=0)     # larger than what is saved of a file that is only added to
table.write(bytes(5 << 20))
table.seek(100)
with open("input", "rb") as given:
    for step in range(steps):
        print(step, flush=True)
        print("step", step, file=log, flush=True)
        assert os.pread(state.fileno(), 16, 0) == (b"%016d" % (step - 1) if step else b""), f"state at {step}"
        os.pwrite(state.fileno(), b"%016d" % step, 0)
        os.ftruncate(state.fileno(), 16 + step % 7)
        assert os.pread(table.fileno(), 8, 1 << 20) == (b"%08d" % (step - 1) if step else bytes(8)), f"table at {step}"
        os.pwrite(table.fileno(), b"%08d" % step, 1 << 20)
        assert given.read(1) == b"%d" % (step % 10), f"input at {step}"
        time.sleep(0.01)
print("done", flush=True)
"""

pytestmark = pytest.mark.shared


def working(crhpc: NewJob, steps: int = 300) -> Job:
    job = crhpc([sys.executable, "-c", WORKING, str(steps)])
    (job.place / "input").write_bytes(b"0123456789" * (steps // 10 + 1))
    return job


def stopped(job: Job) -> None:
    """Run it into a checkpoint, go on for a while, and kill it."""
    running = job.run("--every", "0")
    job.wait_for_output(running, 150)
    done = job.ask("checkpoint", str(job.directory))
    assert done.returncode == 0, done.stderr
    job.wait_for_output(running, job.stdout.stat().st_size + 100)
    running.kill_all()


def log_of(steps: int) -> str:
    return "".join(f"step {step}\n" for step in range(steps))


def output_of(steps: int) -> str:
    return "".join(f"{step}\n" for step in range(steps)) + "done\n"


def finished(job: Job, running: Running, steps: int = 300) -> None:
    assert running.wait() == 0, running.said()
    assert (job.place / "log").read_text() == log_of(steps)
    assert job.stdout.read_text() == output_of(steps)


def test_files_of_every_sort_are_brought_back(crhpc: NewJob) -> None:
    """Twice: once by the same command line, once as what is restarted explicitly."""
    job = working(crhpc)
    stopped(job)
    finished(job, job.run("--every", "0"))
    job = working(crhpc)
    stopped(job)
    finished(job, job.restart("--every", "0"))
    kept = sorted(path.name for path in job.directory.glob("ckpt-000001.*"))
    assert {"ckpt-000001.tail-log", "ckpt-000001.was-state", "ckpt-000001.was-table"} <= set(kept), kept


def harm_cut(job: Job) -> None:
    (job.place / "table").write_bytes(b"")


def harm_remove(job: Job) -> None:
    (job.place / "state").unlink()
    (job.place / "log").rename(job.place / "log.old")


def harm_replace(job: Job) -> None:
    (job.place / "state").rename(job.place / "other")
    (job.place / "state").write_bytes(b"another file")


@pytest.mark.parametrize("harm", [harm_cut, harm_remove, harm_replace])
def test_whatever_was_done_to_them(crhpc: NewJob, harm: Callable[[Job], None]) -> None:
    job = working(crhpc)
    stopped(job)
    harm(job)
    finished(job, job.restart("--every", "0"))


def test_strict_refuses_and_tells_all(crhpc: NewJob) -> None:
    job = working(crhpc)
    stopped(job)
    before = {path.name: path.read_bytes() for path in job.place.iterdir() if path.is_file()}
    running = job.restart("--every", "0", "--files", "strict", append=True)
    assert running.wait() == 75
    told = [line for line in running.log.splitlines() if line.startswith("crhpc: cannot restart ")]
    assert {Path(line.split(": ")[2].split()[0]).name for line in told} == {"log", "state", "table", "job.out"}, told
    after = {path.name: path.read_bytes() for path in job.place.iterdir() if path.is_file()}
    assert {name: after[name] for name in ("log", "state", "table", "job.out")} == {
        name: before[name] for name in ("log", "state", "table", "job.out")}
    finished(job, job.restart("--every", "0", append=True))


def test_strict_restarts_what_nobody_has_touched(crhpc: NewJob) -> None:
    job = working(crhpc)
    running = job.run("--every", "0")
    job.wait_for_output(running, 150)
    running.send(signal.SIGUSR2)
    assert running.wait() == 85
    finished(job, job.run("--every", "0", "--files", "strict", append=True))


def test_keep_leaves_all_as_it_is(crhpc: NewJob) -> None:
    """The job finds its files as it has left them, and here it minds."""
    job = working(crhpc)
    stopped(job)
    log, state = (job.place / "log").read_text(), (job.place / "state").read_bytes()
    running = job.restart("--every", "0", "--files", "keep", append=True)
    assert running.wait() == 1
    assert "AssertionError: state at" in running.log
    assert any(line.startswith(f"crhpc: {job.place}/state ") and "it stays as it is (--files keep)" in line
               for line in running.log.splitlines())
    assert (job.place / "log").read_text().startswith(log) and (job.place / "state").read_bytes() == state
    assert "done" not in job.stdout.read_text()
    assert not list(job.directory.glob("ckpt-000001.*"))


def test_a_dry_run(crhpc: NewJob) -> None:
    job = working(crhpc)
    stopped(job)
    before = {path.name: path.read_bytes() for path in job.place.rglob("*") if path.is_file()}
    done = job.ask("restart", str(job.directory), "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith(f"{job.place}/log has ") and "it is cut back" in line]
    assert [line for line in lines if line.startswith(f"{job.place}/state ") and "it is brought back" in line]
    assert lines[-1] == "ckpt-000001 can be restarted: 1 process"
    after = {path.name: path.read_bytes() for path in job.place.rglob("*") if path.is_file()}
    of_crhpc = ("run.json", "lock")   # these tell who is at work
    assert all(after[name] == before[name] for name in before if name not in of_crhpc)
    (job.place / "input").unlink()
    (job.place / "table").unlink()
    (job.place / "table").mkdir()
    done = job.ask("restart", str(job.directory), "--dry-run", "--files", "keep")
    assert done.returncode == 75 and done.stdout == ""
    told = [line for line in done.stderr.splitlines() if "cannot restart" in line]
    assert len(told) == 1 and "/table is no regular file" in told[0]   # the input is small and lies in /tmp
    assert job.restart("--every", "0").wait() == 75


def test_moved_elsewhere(crhpc: NewJob) -> None:
    """The whole working directory has moved: nothing is where it was."""
    job = working(crhpc)
    stopped(job)
    moved = job.place.with_name("moved")
    directory = job.place.with_name("checkpoints")
    job.directory.rename(directory)
    output = job.place / "job.out"
    for path in job.place.iterdir():
        if path not in (output, output.with_suffix(".err")):
            moved.mkdir(exist_ok=True)
            path.rename(moved / path.name)
    old = job.place.with_name("away")
    job.place.rename(old)
    job.place = old
    running = restart_of(job, directory)
    assert running.wait() == 75
    assert "--map OLD=NEW" in running.log
    running = restart_of(job, directory, "--map", f"{old.with_name('job0')}={moved}")
    assert running.wait() == 0, running.said()
    assert (moved / "log").read_text() == log_of(300)
    assert job.stdout.read_text() == output_of(300)


def restart_of(job: Job, directory: Path, *options: str) -> Running:
    return job.restart("--every", "0", *options, image=directory, append=True)


def test_the_wrong_way_to_say_it(crhpc: NewJob) -> None:
    job = crhpc(["true"])
    for words in (["--map", "/a"], ["--map", "a=b"], ["--map", "/a=/b", "--map", "/a=/c"], ["--files", "maybe"]):
        done = job.ask("restart", str(job.place), *words)
        assert done.returncode == 64, done.stderr
