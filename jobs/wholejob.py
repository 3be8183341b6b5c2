"""Running whole jobs under crhpc, and ending them in every bad way: for the demo, the soak and the tests."""
from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import MARK, Process, family, kill_family

_CRHPC = Path(sys.executable).with_name("crhpc")
_STARTED, _RESUMED = "crhpc: started", "crhpc: resumed from"
COMMAND = [str(_CRHPC)] if _CRHPC.exists() else [sys.executable, "-m", "crhpc"]


class Failed(Exception):
    """A job did not do what it should have; the text says what, and what crhpc said."""


class Running:
    """A supervisor in the foreground of nobody, with its output in files."""

    def __init__(self, command: Sequence[str], mark: str, environment: Mapping[str, str], cwd: Path,
                 stdout: Path, *, append: bool = False) -> None:
        self.stdout = stdout
        self.stderr = stdout.with_suffix(".err")
        self._mark = mark
        self.killed = False
        """By `kill_all`: nobody was left to tidy up."""
        self.begun = time.monotonic()
        mode = "ab" if append else "wb"
        with stdout.open(mode) as out, self.stderr.open(mode) as err:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                             cwd=cwd, env={**environment, MARK: mark})

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit code (negative: a signal), or None while it lives."""
        return self._process.poll()

    def wait(self, seconds: float = 120.0) -> int:
        """Its exit code (negative: a signal).

        Raises:
            Failed: it does not end.
        """
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"crhpc did not end within {seconds:.0f} s; {self.said()}") from None

    def send(self, number: int) -> None:
        """A signal for the supervisor."""
        self._process.send_signal(number)

    def tree(self) -> dict[int, Process]:
        """Supervisor, agents, pods and all that was ever started in them, by pid."""
        return family([self.pid] if self.poll() is None else [], self._mark)

    def kill_all(self, order: random.Random | None = None) -> list[Process]:
        """End them all with SIGKILL, and wait until none is left. Returns: those that were killed."""
        self.killed = True
        roots = [self.pid] if self.poll() is None else []
        killed = kill_family(roots, self._mark, order)
        self._process.wait()
        return killed

    @property
    def log(self) -> str:
        """What it, and the job, have written to standard error; of a resumed job, all that is not rolled back."""
        return self.stderr.read_text(errors="replace").strip()

    @property
    def news(self) -> list[str]:
        """What crhpc has said of this run alone: from the line that says how it began."""
        lines = [line for line in self.log.splitlines() if line.startswith("crhpc: ")]
        begun = [number for number, line in enumerate(lines) if line.startswith((_STARTED, _RESUMED))]
        return lines[begun[-1]:] if begun else lines

    @property
    def resumed(self) -> bool:
        """Whether it went on from an image."""
        return any(line.startswith(_RESUMED) for line in self.news[:1])

    def said(self) -> str:
        """The log as a part of an error message."""
        return f"it said: {self.log}" if self.log else "it said nothing"


@dataclass(slots=True)
class Job:
    """A command, the directory of its checkpoints, and every supervisor that was started for it."""

    argv: list[str]
    place: Path
    """An empty directory: the job's working directory, and where its checkpoints and its output go."""
    environment: Mapping[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    runs: list[Running] = field(default_factory=list)

    @property
    def directory(self) -> Path:
        return self.place / "checkpoints"

    @property
    def stdout(self) -> Path:
        return self.place / "job.out"

    def run(self, *options: str, append: bool = False, under: Sequence[str] = ()) -> Running:
        """``crhpc run`` with this job's command line.

        Args:
            append: redirect output with ``>>`` rather than with ``>``.
            under: a command to start crhpc with, as unshare(1).
        """
        command = [*COMMAND, "run", "--dir", str(self.directory), *options, "--", *self.argv]
        return self._start([*under, *command], append)

    def restart(self, *options: str, image: Path | None = None, append: bool = False,
                under: Sequence[str] = ()) -> Running:
        """``crhpc restart``, of the newest image or of that one."""
        return self._start([*under, *COMMAND, "restart", str(image or self.directory), *options], append)

    def _start(self, command: Sequence[str], append: bool) -> Running:
        running = Running(command, self.mark, self._environment(), self.place, self.stdout, append=append)
        self.runs.append(running)
        return running

    def _environment(self) -> dict[str, str]:
        of_a_user = ("CRHPC_DIR", "CRHPC_EVERY", "CRHPC_KEEP")
        kept = {name: value for name, value in os.environ.items() if name not in of_a_user}
        return kept | dict(self.environment)

    def ask(self, *words: str, seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Another crhpc command, run to its end."""
        return subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=seconds,
                              check=False, cwd=self.place, env=self._environment())

    def images(self) -> list[dict[str, Any]]:
        """The images as ``crhpc list --json`` has them, oldest first.

        Raises:
            Failed: the command fails.
        """
        done = self.ask("list", str(self.directory), "--json")
        if done.returncode:
            raise Failed(f"crhpc list ended with {done.returncode}: {done.stderr.strip()}")
        return sorted(json.loads(done.stdout), key=lambda image: image["number"])

    def newest(self) -> int:
        """The number of the newest committed image, by its name; 0 if there is none yet."""
        # Not through `crhpc list`: asked many times a second, it would take the job's cores.
        names = (path.name for path in self.directory.glob("ckpt-*"))   # beside them lies what was cut off
        return max((int(name[5:]) for name in names if name[5:].isdigit()), default=0)

    def wait_for_image(self, running: Running, after: int = 0, seconds: float = 60.0) -> int:
        """Wait until an image newer than ``after`` is committed. Returns: its number.

        Raises:
            Failed: the job ends first, or there is none in time.
        """
        wait_until(lambda: self.newest() > after or running.poll() is not None, seconds,
                   lambda: f"no checkpoint after number {after}; {running.said()}")
        if self.newest() <= after:
            raise Failed(f"the job ended with {running.poll()} before a checkpoint; {running.said()}")
        return self.newest()

    def wait_for_output(self, running: Running, size: int, seconds: float = 60.0) -> None:
        """Wait until the job has written more than so many bytes to standard output.

        Raises:
            Failed: the job ends first, or does not in time.
        """
        wait_until(lambda: self.stdout.stat().st_size > size or running.poll() is not None, seconds,
                   lambda: f"no {size} bytes of output; {running.said()}")
        if self.stdout.stat().st_size <= size:
            raise Failed(f"the job ended with {running.poll()} before its output; {running.said()}")

    def clean_up(self) -> list[Process]:
        """End what is left. Returns: what was."""
        left = kill_family([run.pid for run in self.runs if run.poll() is None], self.mark)
        for run in self.runs:
            run.wait()
        return left


NewJob = Callable[..., Job]
"""What makes jobs from a command and an environment, and cleans up after them."""


def wait_until(condition: Callable[[], object], seconds: float, why: Callable[[], str]) -> None:
    """Look again and again until the condition holds.

    Raises:
        Failed: it does not in time; with ``why``.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"{why()} (after {seconds:.0f} s)")
        time.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Killing:
    """One violent end."""

    image: int
    """The newest image at that moment."""
    seconds: float
    """Since the supervisor was started."""
    processes: int


def interrupt_and_resume(job: Job, chance: random.Random, *options: str, kills: int = 2, append: bool = False,
                         spread: float = 3.0) -> tuple[int, list[Killing]]:
    """Run a job to its end, killing all of it on the way, each time after another checkpoint.

    Each kill comes up to ``spread`` seconds after a commit: while the job computes, while the next image is
    copied or written, or between two.

    Returns: the exit code of the last run, and the kills.

    Raises:
        Failed: it does not go on.
    """
    killings: list[Killing] = []
    newest = 0
    for number in range(kills):
        before = job.stdout.stat().st_size if job.stdout.exists() else 0
        running = job.run(*options, append=append)
        if number == 0:   # a file that the job opens only after the checkpoint is nobody's to roll back
            job.wait_for_output(running, before if append else 0)
            newest = job.newest() + 1
        newest = job.wait_for_image(running, newest)
        time.sleep(chance.uniform(0.0, spread))
        if running.poll() is not None:
            raise Failed(f"the job ended with {running.poll()} before it could be killed; {running.said()}")
        moment = time.monotonic() - running.begun
        killed = running.kill_all(chance)
        newest = job.newest()   # by now: one may have been committed at the last moment
        killings.append(Killing(newest, moment, len(killed)))
    running = job.run(*options, append=append)
    code = running.wait()
    if not running.resumed:
        raise Failed(f"the job started afresh though image {newest} was there; {running.said()}")
    return code, killings
