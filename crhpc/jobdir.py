"""The directory of a job: who works in it, what its last job came to, and how to reach the one that runs.

::

    lock         held with flock(2) by the supervisor as long as it lives; never removed
    run.json     of the running supervisor: host, pid, name of its socket; removed at the end
    state.json   the last job: id, command, how it ended; replaced as a whole
    ckpt-...     the images (crhpc.image)
"""
from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
import time
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from crhpc import errors

DEFAULT = "checkpoints"
_ATTEMPTS = 5


class Status(StrEnum):
    """What became of a job."""

    RUNNING = "running"     # or its supervisor was killed: unfinished
    FINISHED = "finished"   # ended with exit code 0
    FAILED = "failed"       # ended with another code, or was lost
    STOPPED = "stopped"     # checkpointed and ended on request


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """The last job of a directory, as state.json has it."""

    id: str
    argv: tuple[str, ...]
    cwd: str
    status: Status
    exit_code: int | None = None
    started: float
    ended: float | None = None
    superseded: tuple[int, ...] = ()
    """Images that are not to be resumed by themselves: of jobs before this one, or newer than the one
    that was restarted on purpose."""

    @property
    def finished(self) -> bool:
        """Nothing is left to do."""
        return self.status is Status.FINISHED


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """The supervisor that works in a directory, as run.json has it."""

    host: str
    pid: int
    socket: str
    job: str
    started: float


class JobDirectory:
    """A job directory held by this process, from `take` to `release`; a context manager."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def take(cls, path: Path) -> JobDirectory:
        """Make the directory if need be, and hold it.

        Raises:
            errors.DirectoryBusy: a running job has it.
            errors.OpenToAll: everybody may write there.
            errors.Unwritable: it can't be made or written.
        """
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = path.resolve(strict=True)
            mode = path.stat().st_mode
            if mode & stat.S_IWOTH:
                raise errors.OpenToAll(directory=path)
            lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise unwritable(path, error) from error
        try:
            _hold(lock, path)
            (path / "run.json").unlink(missing_ok=True)   # of a supervisor that was killed
        except BaseException:
            os.close(lock)
            raise
        return cls(path, lock)

    def __enter__(self) -> JobDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let others take the directory."""
        if self._lock >= 0:
            (self.path / "run.json").unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1

    def announce(self, name: str, job: str) -> None:
        """Say where this supervisor can be reached.

        Raises:
            errors.Unwritable: the directory is full or gone.
        """
        running = Running(host=socket.gethostname(), pid=os.getpid(), socket=name, job=job,
                          started=time.time())
        self._replace("run.json", asdict(running))

    def write_state(self, state: JobState) -> None:
        """Record what the last job came to.

        Raises:
            errors.Unwritable: the directory is full or gone.
        """
        self._replace("state.json", asdict(state))

    def read_state(self) -> JobState | None:
        """The last job; None if there was none, or the record is unreadable (then the images decide)."""
        return read_state(self.path)

    def _replace(self, name: str, content: dict[str, Any]) -> None:
        new = self.path / f".{name}.new"
        try:
            new.unlink(missing_ok=True)
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "w", encoding="ascii") as file:
                json.dump(content, file, indent=1)
                file.write("\n")
                file.flush()
                os.fsync(fd)
            os.replace(new, self.path / name)
            directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise unwritable(self.path / name, error) from error


def _hold(lock: int, path: Path) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            # `status` looks at the lock for a moment, and a killed supervisor may still be on its way out.
            if attempt + 1 < _ATTEMPTS:
                time.sleep(0.05)
        except OSError as error:
            raise unwritable(path, error) from error
    holder = read_running(path)
    raise errors.DirectoryBusy(directory=path, pid=holder.pid if holder else "unknown",
                               host=holder.host if holder else "an unknown host")


def unwritable(path: Path, error: OSError) -> errors.Unwritable:
    """The error for a directory that can't be used."""
    return errors.Unwritable(path=path, why=error.strerror or error,
                             cure="free space there, or take another --dir")


def read_running(path: Path) -> Running | None:
    """The supervisor that is working in ``path``, or was when it was killed; None if there is none."""
    found = _read(path / "run.json")
    try:
        return Running(**found) if found else None
    except TypeError:
        return None


def read_state(path: Path) -> JobState | None:
    """The last job of ``path``; None if there was none, or the record is unreadable."""
    found = _read(path / "state.json")
    if not found:
        return None
    try:
        state = JobState(**found)
        return replace(state, status=Status(state.status), argv=tuple(state.argv),
                       superseded=tuple(int(number) for number in state.superseded))
    except (TypeError, ValueError):
        return None


def is_locked(path: Path) -> bool:
    """Whether a supervisor, on whatever host, holds ``path``."""
    try:
        fd = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
