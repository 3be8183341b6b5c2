"""What a test may leave behind on the machine: nothing. Taken before it and compared after it."""
from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from processes import Process, family

_SEGMENTS = Path("/proc/sysvipc/shm")
# Of shared memory; of crhpc; of both MPIs, which leave these when they are killed.
_FILES = [("/dev/shm", "*"), ("/tmp", "crhpc-*"), ("/tmp", "hydra_hwloc_xmlfile_*"), ("/tmp", "ompi.*")]
# They serve all tests of a session, and end with it.
_OF_PYTHON = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")


@dataclass(frozen=True, slots=True)
class Traces:
    """What there is of ours, by now."""

    processes: frozenset[Process]
    segments: frozenset[int]
    files: frozenset[Path]

    @classmethod
    def now(cls, mark: str) -> Traces:
        """Args:
            mark: in the environment of all that the tests start.
        """
        return cls(frozenset(_processes(mark)), frozenset(_segments()), frozenset(_files()))

    def since(self, before: Traces) -> list[str]:
        """What has come and is in nobody's use, in words."""
        processes = sorted(self.processes - before.processes, key=lambda process: process.pid)
        return ([f"process {process}" for process in processes]
                + [f"SysV shared memory segment {segment}" for segment in self.segments - before.segments]
                + [str(path) for path in self.new_files(before)])

    def new_files(self, before: Traces) -> list[Path]:
        """Files that have come and that no process uses."""
        files = sorted(self.files - before.files)
        used = _used() if files else frozenset()
        return [path for path in files if not any(str(path) in name for name in used)]


def find(before: Traces, mark: str, seconds: float = 3.0) -> list[str]:
    """What is there that was not there before; what goes away within ``seconds`` does not count."""
    deadline = time.monotonic() + seconds
    while (left := Traces.now(mark).since(before)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def sweep(before: Traces, mark: str) -> None:
    """Remove the files that programs ended by SIGKILL could not remove."""
    for path in Traces.now(mark).new_files(before):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _processes(mark: str) -> Iterator[Process]:
    for process in family([os.getpid()], mark).values():
        if not any(module in " ".join(process.command) for module in _OF_PYTHON):
            yield process


def _segments() -> Iterator[int]:
    """Those of ours to which nothing is attached; others may be at work on this machine."""
    if _SEGMENTS.exists():
        for line in _SEGMENTS.read_text().splitlines()[1:]:
            fields = line.split()
            if int(fields[7]) == os.getuid() and int(fields[6]) == 0:
                yield int(fields[1])


def _files() -> Iterator[Path]:
    if os.environ.get("CRHPC_TEST_SHARED") == "1":
        return
    for path in (path for directory, pattern in _FILES for path in Path(directory).glob(pattern)):
        with suppress(OSError):
            if path.lstat().st_uid == os.getuid():
                yield path


def _used() -> frozenset[str]:
    """Lines that name the files that some process has open, mapped, mounted, or in its environment."""
    names: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        for table in (process / "maps", process / "mountinfo"):
            with suppress(OSError):
                names |= set(table.read_text(errors="replace").splitlines())
        with suppress(OSError):
            names |= set((process / "environ").read_text(errors="replace").split("\0"))
            for link in [process / "cwd", *(process / "fd").iterdir()]:
                with suppress(OSError):   # closed since
                    names.add(os.readlink(link))
    return frozenset(names)
