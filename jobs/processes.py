"""Finding all processes of a job, wherever they went, and ending them: for programs that test crhpc.

A job's processes are found in three ways at once, as each misses some: they descend from the one that was
started; or they live in a pid namespace in which such a one lives (a daemon whose parent ended is a
child of the pod's first process); or they carry the job's mark in their environment (what became an orphan).
Every pid goes with the moment of its start, so that one that was given away again is never signalled.
"""
from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

MARK = "CRHPC_JOB_MARK"
"""The environment variable that a job's processes inherit."""

_PROC = Path("/proc")
_DEAD = "ZX"   # whoever should reap it may be slow, or a container's first process that never does


@dataclass(frozen=True, slots=True)
class Process:
    """A process as it was when somebody looked; the same as any other look at it."""

    pid: int
    started: int
    parent: int = field(compare=False)
    name: str = field(compare=False)

    @property
    def command(self) -> list[str]:
        """Its arguments; empty if it is gone."""
        try:
            return os.fsdecode((_PROC / str(self.pid) / "cmdline").read_bytes()).split("\0")[:-1]
        except OSError:
            return []

    def __str__(self) -> str:
        return f"{self.pid} {' '.join(self.command)[:100] or self.name}"


def look(pid: int) -> Process | None:
    """The process, or None if it does not live."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    return None if fields[0] in _DEAD else Process(pid, int(fields[19]), int(fields[1]), name)


def living() -> dict[int, Process]:
    """All processes that live."""
    found = (look(int(entry)) for entry in os.listdir(_PROC) if entry.isdigit())
    return {process.pid: process for process in found if process is not None}


def descendants(roots: Iterable[int]) -> dict[int, Process]:
    """``roots`` and all that descend from them."""
    return _descendants(living(), roots)


def family(roots: Iterable[int], mark: str | None = None, spaces: Iterable[str] = ()) -> dict[int, Process]:
    """All processes of a job.

    Args:
        roots: those that were started.
        mark: the value of `MARK` in their environment, or how it begins.
        spaces: pid namespaces that are the job's, if known from before (`pid_spaces`).
    """
    everything = living()
    members = set(roots) & set(everything)
    if mark is not None:
        members |= {pid for pid in everything if has_mark(pid, mark)}
    members -= {os.getpid()}
    known = set(spaces)
    while True:
        members |= set(_descendants(everything, members))
        known |= pid_spaces(members)
        more = {pid for pid in everything if known and _pid_space(pid) in known} - members
        if not more:
            return {pid: everything[pid] for pid in members}
        members |= more


def has_mark(pid: int, mark: str) -> bool:
    """Whether the environment that the process was started with has the mark."""
    try:
        environment = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:   # another user's, or gone
        return False
    return f"\0{MARK}={mark}".encode() in b"\0" + environment


def pid_spaces(pids: Iterable[int]) -> set[str]:
    """The pid namespaces, other than ours, in which these processes live."""
    return {space for pid in pids if (space := _pid_space(pid))} - {_pid_space(os.getpid())}


def kill(processes: Iterable[Process], number: int = signal.SIGKILL) -> None:
    """Send a signal to each, as long as it is still the one that was seen."""
    targets: list[int] = []
    for process in processes:
        with suppress(ProcessLookupError):
            pidfd = os.pidfd_open(process.pid)
            now = look(process.pid)
            if now is not None and now.started == process.started:
                targets.append(pidfd)
            else:
                os.close(pidfd)
    # First all are held, then all are killed at once, as when the power goes.
    for pidfd in targets:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
        os.close(pidfd)


def kill_family(roots: Collection[int], mark: str | None, order: random.Random | None = None,
                seconds: float = 20.0) -> list[Process]:
    """End a job's every process with SIGKILL, and wait until none is left.

    Args:
        order: puts the processes in a random order; else the first that was started goes first.

    Returns: those that were killed.

    Raises:
        TimeoutError: some still live.
    """
    killed: set[Process] = set()
    deadline = time.monotonic() + seconds
    spaces: set[str] = set()
    while found := family(roots, mark, spaces):
        spaces |= pid_spaces(found)
        targets = sorted(found.values(), key=lambda process: (process.started, process.pid))
        if order is not None:
            order.shuffle(targets)
        kill(targets)
        killed |= set(targets)
        if time.monotonic() > deadline:
            raise TimeoutError("still alive after SIGKILL: " + "; ".join(map(str, targets)))
        time.sleep(0.02)
        roots = ()   # killed, and reaped by now perhaps: the pid may be somebody else's
    return list(killed)


def _descendants(everything: dict[int, Process], roots: Iterable[int]) -> dict[int, Process]:
    children: dict[int, list[int]] = {}
    for process in everything.values():
        children.setdefault(process.parent, []).append(process.pid)
    found: dict[int, Process] = {}
    waiting = [pid for pid in roots if pid in everything]
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found[pid] = everything[pid]
            waiting += children.get(pid, [])
    return found


def _pid_space(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""
