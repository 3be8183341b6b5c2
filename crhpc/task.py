"""What a supervisor is told: what to run or restart, and how."""
from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from crhpc.channel import Message
from crhpc.filepolicy import FilePolicy
from crhpc.jobdir import JobState
from crhpc.launch import ALONE, Launch
from crhpc.signals import ignored


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


def order(task: Task, options: Options, path: Path) -> Message:
    """What the agents are told to do, and how; they may be bound to other cores than the user's (``cpus``).

    Args:
        path: the job's directory.
    """
    directory = str(path)
    common = {**asdict(options), "directory": directory, "umask": _umask(), "ignored": ignored(),
              "cpus": sorted(os.sched_getaffinity(0)), "hosts": list(options.launch.hosts)}
    for name in ("keep", "policy", "dry_run", "launch"):   # the agents only add images; a start brings nothing back
        del common[name]
    if task.image is not None:
        return {"op": "restart", "image": str(task.image), "policy": options.policy.to_message(),
                "dry_run": options.dry_run, **common}
    state = task.state
    what: Message = {"argv": list(state.argv), "cwd": state.cwd}
    job = {"id": state.id, "directory": directory, "started": state.started, **what}
    return {"op": "start", "env": task.environment or {}, "job": job, **what, **common}


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
