"""Starting the agents: which MPI launches them, in which environment, and what they said when they died.

The agents are an MPI job of their own, apart from the user's: in a session of their own, so that the
terminal's signals reach only the supervisor, and without what an outer MPI launch left in the
environment. posix_spawn(3) rather than subprocess, because the supervisor blocks the signals that it
waits for, and a child must not inherit that.
"""
from __future__ import annotations

import os
import shlex
import shutil
import signal
import site
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from select import POLLIN, poll

from crhpc import errors
from crhpc.channel import Channel

AGENT = "crhpc.agent"
_OF_AN_OUTER_MPI = ("PMI_", "PMI2_", "PMIX_", "OMPI_COMM_", "OMPI_WORLD_", "PRTE_", "HYDRA_", "HYDI_",
                    "MPI_LOCAL", "GFORKER_")
_FOR_AGENTS = ("CRHPC_SUPERVISOR", "CRHPC_SECRET", "CRHPC_MONITOR", "CRHPC_PATIENCE", "CRHPC_LOG", "PYTHONPATH")
"""What Open MPI has to be asked to pass on."""
_KEPT_OUTPUT = 16 << 10
_PIPE_READ = 64 << 10


@dataclass(frozen=True, slots=True)
class Launch:
    """How and where the agents are started."""

    hosts: tuple[str, ...] = ()
    """In the order of their ranks, those of one host together; none: on this host alone."""
    launcher: str = "mpiexec"
    """How mpiexec reaches other hosts: ``mpiexec`` as it likes, ``srun``, ``ssh``, or a program like ssh."""
    monitor: str = ""
    """Where the agents show that they live (crhpc.heartbeat)."""
    patience: float = 0.0


ALONE = Launch()


def agent_command(environment: Mapping[str, str], launch: Launch = ALONE) -> list[str]:
    """How the agents are started: with $CRHPC_MPIEXEC, else the mpiexec beside this Python, else alone.

    An empty $CRHPC_MPIEXEC asks for no launcher: one agent without mpiexec (an MPI singleton).

    Raises:
        errors.LaunchFailed: there is no launcher for several hosts.
    """
    agent = [sys.executable, "-P", "-m", AGENT]
    chosen = environment.get("CRHPC_MPIEXEC")
    if chosen is not None:
        launcher = shlex.split(chosen)
    else:
        beside = shutil.which("mpiexec", path=os.path.dirname(sys.executable))
        launcher = [beside] if beside else []
    if len(launch.hosts) > 1:
        if not launcher:
            raise errors.LaunchFailed(launcher="nothing", why="agents on several hosts need an mpiexec",
                                      cure="pip install 'crhpc[mpi]', or set CRHPC_MPIEXEC to your site's")
        return [*launcher, *_over_hosts(launcher, launch), "-n", str(len(launch.hosts)), *agent]
    return [*launcher, "-n", "1", *agent] if launcher else agent


def _over_hosts(launcher: Sequence[str], launch: Launch) -> list[str]:
    """Options of mpiexec for one process on each host."""
    if _is_open_mpi(launcher):
        options = ["--host", _counted(launch.hosts), "--map-by", "slot", "--bind-to", "none"]
        for name in _FOR_AGENTS:
            options += ["-x", name]
        return options
    reach = {"mpiexec": [], "srun": ["-launcher", "slurm"], "ssh": ["-launcher", "ssh"]}
    way = reach.get(launch.launcher, ["-launcher", "ssh", "-launcher-exec", launch.launcher])
    return [*way, "-hosts", _counted(launch.hosts)]


def _counted(hosts: Sequence[str]) -> str:
    """Hosts with how many processes each gets; those of one host stand together."""
    return ",".join(f"{host}:{hosts.count(host)}" for host in dict.fromkeys(hosts))


def _is_open_mpi(launcher: Sequence[str]) -> bool:
    """Whether it is Open MPI's mpiexec rather than Hydra, which MPICH, Intel MPI and MVAPICH have."""
    try:
        said = subprocess.run([*launcher, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=20,
                              check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False
    return any(word in said for word in (b"Open MPI", b"OpenRTE", b"PRRTE", b"prte"))


def agent_environment(environment: Mapping[str, str], supervisor: str, secret: str,
                      launch: Launch = ALONE) -> dict[str, str]:
    """The agents' environment: the user's without the traces of an outer MPI launch, and where to report."""
    # The job's choice of an MPI for mpi4py is not the agents', which must have their launcher's.
    foreign = _OF_AN_OUTER_MPI if "CRHPC_MPIEXEC" in environment else (*_OF_AN_OUTER_MPI, "MPI4PY_")
    kept = {name: value for name, value in environment.items() if not name.startswith(foreign)}
    ours = with_this_package(kept) | {
        "CRHPC_SUPERVISOR": supervisor,
        "CRHPC_SECRET": secret,
        "CRHPC_MONITOR": launch.monitor,
        "CRHPC_PATIENCE": str(launch.patience),
        # Open MPI's mpiexec refuses root without both; they concern our agents only, never the job.
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    if len(launch.hosts) < 2:
        # One agent, on this machine: within a Slurm allocation MPICH's mpiexec would look for srun.
        return ours | {"HYDRA_LAUNCHER": "fork"}
    if launch.launcher == "mpiexec":
        return ours
    return ours | {"OMPI_MCA_plm_rsh_agent": launch.launcher, "PRTE_MCA_plm_ssh_agent": launch.launcher}


def with_this_package(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which a new Python finds the crhpc that is running, also where it is not installed."""
    root = str(Path(__file__).resolve().parents[1])
    if root in (*site.getsitepackages(), site.getusersitepackages()):
        return dict(environment)
    path = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    return {**environment, "PYTHONPATH": path}


class Child:
    """A process of ours with no input, whose output is drained into a bounded tail."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str], *, session: bool = False,
                 echo: bool = False) -> None:
        """Start it; in a session of its own, and with its output shown on standard error too, if so wished.

        Raises:
            OSError: from posix_spawnp(3), pipe(2) or pidfd_open(2).
        """
        self.argv = list(argv)
        self.status: int | None = None
        self._tail = bytearray()
        self._echo = echo
        self.output, end = os.pipe()
        try:
            self.pid = os.posix_spawnp(
                self.argv[0], self.argv, environment, setsid=session, setsigmask=[],
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],   # Python ignores them, its children should not
                file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                              (os.POSIX_SPAWN_DUP2, end, 1), (os.POSIX_SPAWN_DUP2, end, 2)])
        except OSError:
            os.close(self.output)
            raise
        finally:
            os.close(end)
        os.set_blocking(self.output, False)
        self.pidfd = os.pidfd_open(self.pid)

    def drain(self) -> bool:
        """Take what it has written so far; False at the end of it."""
        while True:
            try:
                data = os.read(self.output, _PIPE_READ)
            except BlockingIOError:
                return True
            if not data:
                return False
            if self._echo:
                with suppress(OSError):
                    os.write(2, data)
            self._tail += data
            del self._tail[:-_KEPT_OUTPUT]

    @property
    def tail(self) -> str:
        """The end of what it has written, where that was not shown already."""
        if self._echo:
            return ""
        return self._tail.decode("utf-8", "replace").strip()

    def wait(self, seconds: float | None) -> int | None:
        """Its exit code (negative: a signal), or None if it is still alive after ``seconds``."""
        if self.status is None:
            waiter = poll()
            waiter.register(self.pidfd, POLLIN)
            if not waiter.poll(None if seconds is None else round(seconds * 1000)):
                return None
            _, status = os.waitpid(self.pid, 0)
            self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def kill(self, number: int, *, group: bool = False) -> None:
        """Send it a signal, or all of its process group; not after its end."""
        if self.status is None:
            with suppress(ProcessLookupError):
                if group:
                    os.killpg(self.pid, number)
                else:
                    os.kill(self.pid, number)

    def end(self, patience: float) -> None:
        """Wait for it; after ``patience`` seconds ask it to end, then make it."""
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            if number is not None:
                self.kill(number, group=os.getpgid(self.pid) == self.pid)
            if self.wait(patience if number is None else 2.0) is not None:
                break

    def close(self) -> None:
        """Let go of the descriptors."""
        for fd in (self.output, self.pidfd):
            os.close(fd)


def launch_agents(environment: Mapping[str, str], supervisor: str, secret: str, launch: Launch = ALONE) -> Child:
    """Start the agents; the first connects to the abstract socket ``supervisor`` and says hello.

    Raises:
        errors.LaunchFailed: the launcher can't be started.
    """
    command = agent_command(environment, launch)
    try:
        return Child(command, agent_environment(environment, supervisor, secret, launch), session=True,
                     echo=bool(environment.get("CRHPC_LOG")))
    except OSError as error:
        raise errors.LaunchFailed(launcher=Path(command[0]), why=error.strerror or error,
                                  cure="set CRHPC_MPIEXEC to an mpiexec that works") from error


class Peer:
    """The process at the other end of a channel: an agent whose launcher was killed has nobody else."""

    def __init__(self, channel: Channel) -> None:
        self._pidfd = -1
        credentials = channel.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, _uid, _gid = struct.unpack("iII", credentials)
        with suppress(OSError):   # gone already, or in a pid namespace that is not below ours
            self._pidfd = os.pidfd_open(pid)

    def end(self, patience: float) -> None:
        """Wait for its end; after ``patience`` seconds make it end."""
        if self._pidfd >= 0:
            waiter = poll()
            waiter.register(self._pidfd, POLLIN)
            if not waiter.poll(patience * 1000):
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.close(self._pidfd)
            self._pidfd = -1
