"""What a supervisor is told: what to run or restart, and how."""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from crhpc.filepolicy import FilePolicy
from crhpc.jobdir import JobState
from crhpc.launch import ALONE, Launch


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says about a job's checkpoints."""

    every: float | None
    keep: int
    wait_all: bool
    memory: int
    level: int
    policy: FilePolicy = field(default_factory=FilePolicy)
    dry_run: bool = False
    """Only find out what a restart would do."""
    launch: Launch = ALONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What the agents shall do: start a command, or restart an image."""

    state: JobState
    """The record of the job, as it will be written once it runs."""
    image: Path | None
    environment: dict[str, str] | None = None
