"""``crhpc doctor``: what this machine allows, and the cure for each no.

What the kernel allows is tried by crhpc.kernel.probe; here is the rest: the directory, MPI, shared memory,
the processor. Each row is found out for real, none is read off a version number.
"""
from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from crhpc.launch import agent_command, agent_environment
from crhpc.progress import size

_MPI_SECONDS = 60
_LITTLE_SPACE = 1 << 30
_VECTOR = ("sse4_2", "avx", "avx2", "avx512f", "amx_tile", "xsave", "xsaves", "shstk")


class Row(Protocol):
    """One thing that was looked at; crhpc.kernel.probe.Capability is one."""

    @property
    def name(self) -> str:
        """What it is."""
    @property
    def ok(self) -> bool:
        """Whether it is there."""
    @property
    def needed(self) -> bool:
        """Whether crhpc can't do without."""
    @property
    def detail(self) -> str:
        """What was found."""
    @property
    def cure(self) -> str:
        """What to do about a no."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A row found here."""

    name: str
    ok: bool
    needed: bool
    detail: str
    cure: str = ""


def examine(directory: Path, environment: Mapping[str, str]) -> list[Row]:
    """Look at everything; ``directory`` is where the images would go."""
    rows: list[Row] = [system(), processor()]
    rows += kernel_capabilities()
    rows += [writable(directory), shared_memory(Path("/dev/shm")), *mpi(environment)]
    return rows


def all_needed(rows: Iterable[Row]) -> bool:
    """Whether crhpc can work here."""
    return all(row.ok or not row.needed for row in rows)


def kernel_capabilities() -> Sequence[Row]:
    """What crhpc.kernel.probe finds."""
    from crhpc.kernel.probe import capabilities

    return capabilities()


def system() -> Finding:
    """Kernel and Python."""
    machine = platform.machine()
    detail = f"Linux {platform.release()}, {machine}, Python {platform.python_version()}"
    return Finding("system", machine == "x86_64", True, detail, "crhpc runs on x86-64 only")


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Finding:
    """The processor's name and those features that an image may need on another machine."""
    found: dict[str, str] = {}
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    flags = set(found.get("flags", "").split())
    have = [name for name in _VECTOR if name in flags]
    detail = f"{found.get('model name', 'unknown')}: {' '.join(have)}"
    return Finding("processor", "xsave" in flags, True, detail,
                   "XSAVE is needed to save registers; ask for a virtual machine that has it")


def writable(directory: Path) -> Finding:
    """Whether images can be written to ``directory``, or to where it would be made, and how much fits."""
    there = directory.absolute()
    while not there.exists():
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return Finding("checkpoint directory", False, True, f"{directory}: {error.strerror}",
                       "name a directory of your own with --dir or CRHPC_DIR")
    space = os.statvfs(there)
    free = space.f_bavail * space.f_frsize
    return Finding("checkpoint directory", free >= _LITTLE_SPACE, False, f"{directory}: {size(free)} free",
                   "free space there, or name another with --dir or CRHPC_DIR")


def shared_memory(path: Path) -> Finding:
    """Whether POSIX shared memory is there, which every MPI uses within a node."""
    try:
        space = os.statvfs(path)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        return Finding("shared memory", False, True, f"{path}: {error.strerror}",
                       f"ask the administrator to mount a tmpfs on {path} (mode 1777)")
    return Finding("shared memory", True, True, f"{path}: {size(space.f_blocks * space.f_frsize)}")


def mpi(environment: Mapping[str, str]) -> list[Finding]:
    """Whether an MPI is there for the agents, tried with the launcher that they would be started with."""
    command = agent_command(environment)
    launcher = command[:command.index(sys.executable)]
    cure = "pip install 'crhpc[mpi]', or load your site's MPI and set CRHPC_MPIEXEC to its mpiexec"
    program = "from mpi4py import MPI; print(MPI.Get_library_version())"
    started = _run([*launcher, sys.executable, "-P", "-c", program], environment)
    name = launcher[0] if launcher else "none: one agent, started alone"
    there = bool(launcher) and shutil.which(launcher[0]) is not None
    rows = [Finding("mpiexec", there, False, name, cure)]
    version = started[1].replace("\0", "").splitlines()
    first = version[0].strip() if version else "no output"
    return [*rows, Finding("mpi4py", started[0], True, " ".join(first.split()), cure)]


def _run(command: Sequence[str], environment: Mapping[str, str]) -> tuple[bool, str]:
    """Run a program; whether it succeeded, and what it said."""
    try:
        done = subprocess.run(command, env=agent_environment(environment, "", ""), stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_MPI_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    text = done.stdout.decode("utf-8", "replace")
    return done.returncode == 0, text if done.returncode == 0 else _last_line(text)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
