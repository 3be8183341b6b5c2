"""Which hosts a job may use: as the user lists them, or as the batch system has allocated them.

A list is ``node1,node[3-5]:2``: names, ranges as ClusterShell knows them, and behind a colon how many processes each
takes. A host file has a host per line, ``node1``, ``node1:2`` or ``node1 slots=2``. The order counts.
"""
from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ClusterShell.NodeSet import NodeSet, NodeSetException

from crhpc.errors import Usage

_BETWEEN = re.compile(r",(?![^\[]*\])")
"""A comma that is not within brackets."""
_REPEATED = re.compile(r"(\d+)(?:\(x(\d+)\))?")


@dataclass(frozen=True, slots=True)
class Host:
    """A host by the name that others reach it under."""

    name: str
    slots: int = 0
    """How many processes of the job it takes; 0: not said."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """What a batch system has given to this job."""

    system: str
    job: str
    hosts: tuple[Host, ...]


# -- as the user says ---------------------------------------------------------------------------------------
def parse(text: str) -> list[Host]:
    """A list of hosts in its order.

    Raises:
        Usage: it makes no sense, or names a host twice.
    """
    return _distinct([host for item in _BETWEEN.split(text) if item.strip() for host in _item(item.strip())])


def _item(item: str) -> list[Host]:
    names, colon, slots = item.rpartition(":")
    if not colon or "]" in slots:
        names, slots = item, ""
    if slots and not slots.isdigit():
        raise Usage(what=f"{item!r} is no host: behind the colon there is a number. Cure: --hosts node1:2,node[3-5]")
    try:
        found = list(NodeSet(names))
    except NodeSetException as error:
        raise Usage(what=f"{item!r} is no list of hosts ({error}). Cure: --hosts node1,node[3-5]:2") from None
    return [Host(name, int(slots or 0)) for name in found]


def read_file(path: Path) -> list[Host]:
    """A host file; what is behind ``#`` doesn't count. A host that stands there n times has n slots.

    Raises:
        Usage: it can't be read or makes no sense.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Usage(what=f"cannot read the host file {path}: {error}. Cure: --hosts node1,node2") from None
    found: list[Host] = []
    for line in lines:
        words = line.partition("#")[0].split()
        if words:
            slots = next((word.partition("=")[2] for word in words[1:] if word.startswith("slots=")), "")
            if slots and not slots.isdigit():
                raise Usage(what=f"{path}: {line!r} makes no sense. Cure: node1 slots=2")
            found += [replace(host, slots=int(slots)) if slots else host for host in _item(words[0])]
    return _counted(found)


def _distinct(hosts: list[Host]) -> list[Host]:
    seen: set[str] = set()
    for host in hosts:
        if host.name in seen:
            raise Usage(what=f"host {host.name} is listed twice. Cure: once, with its slots ({host.name}:2)")
        seen.add(host.name)
    return hosts


def _counted(hosts: Iterable[Host]) -> list[Host]:
    """Hosts that are listed several times, once each; a line without slots stands for one."""
    listed = list(hosts)
    names = list(dict.fromkeys(host.name for host in listed))
    found = []
    for name in names:
        same = [host for host in listed if host.name == name]
        found.append(same[0] if len(same) == 1 else Host(name, sum(host.slots or 1 for host in same)))
    return found


# -- as the batch system says -------------------------------------------------------------------------------
def allocation(environment: Mapping[str, str]) -> Allocation | None:
    """The allocation that this process runs in, None outside of one.

    Slurm's variables are in srun(1) and sbatch(1), PBS's nodes in a file that lists a host per process, LSF's in bsub's
    manual, Grid Engine's in sge_pe(5).
    """
    for system in (_slurm, _pbs, _lsf, _grid_engine):
        with suppress(OSError, ValueError, NodeSetException):
            found = system(environment)
            if found is not None and found.hosts:
                return found
    return None


def _slurm(environment: Mapping[str, str]) -> Allocation | None:
    names = environment.get("SLURM_JOB_NODELIST") or environment.get("SLURM_NODELIST")
    if not names:
        return None
    found = [host for item in _BETWEEN.split(names) if item for host in NodeSet(item)]
    slots = _per_node(environment.get("SLURM_TASKS_PER_NODE", ""))
    slots += [0] * (len(found) - len(slots))
    hosts = tuple(Host(name, count) for name, count in zip(found, slots, strict=False))
    return Allocation("slurm", environment.get("SLURM_JOB_ID", ""), hosts)


def _per_node(text: str) -> list[int]:
    """``2(x3),1`` is 2, 2, 2, 1."""
    counts: list[int] = []
    for count, times in _REPEATED.findall(text):
        counts += [int(count)] * int(times or 1)
    return counts


def _pbs(environment: Mapping[str, str]) -> Allocation | None:
    if "PBS_NODEFILE" not in environment:
        return None
    lines = Path(environment["PBS_NODEFILE"]).read_text(encoding="utf-8").split()
    return Allocation("pbs", environment.get("PBS_JOBID", ""), tuple(_counted(Host(line, 1) for line in lines)))


def _lsf(environment: Mapping[str, str]) -> Allocation | None:
    job = environment.get("LSB_JOBID", "")
    if "LSB_MCPU_HOSTS" in environment:
        words = environment["LSB_MCPU_HOSTS"].split()
        pairs = zip(words[::2], words[1::2], strict=True)
        return Allocation("lsf", job, tuple(_counted(Host(name, int(count)) for name, count in pairs)))
    if "LSB_DJOB_HOSTFILE" in environment:
        lines = Path(environment["LSB_DJOB_HOSTFILE"]).read_text(encoding="utf-8").split()
        return Allocation("lsf", job, tuple(_counted(Host(line, 1) for line in lines)))
    return None


def _grid_engine(environment: Mapping[str, str]) -> Allocation | None:
    if "PE_HOSTFILE" not in environment:
        return None
    lines = Path(environment["PE_HOSTFILE"]).read_text(encoding="utf-8").splitlines()
    hosts = tuple(_counted(Host(words[0], int(words[1])) for line in lines if len(words := line.split()) > 1))
    return Allocation("sge", environment.get("JOB_ID", ""), hosts)


# -- this host ----------------------------------------------------------------------------------------------
def index_of_this(hosts: Sequence[Host]) -> int | None:
    """Which of them this machine is; None where it is none of them."""
    names = {socket.gethostname(), socket.gethostname().partition(".")[0], "localhost"}
    for number, host in enumerate(hosts):
        if host.name in names or host.name.partition(".")[0] in names:
            return number
    for number, host in enumerate(hosts):
        if is_here(host.name):
            return number
    return None


def is_here(name: str) -> bool:
    """Whether one of a host's addresses is this machine's: only then can it be bound to."""
    try:
        found = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, protocol, _, address in found:
        with suppress(OSError), closing(socket.socket(family, kind, protocol)) as sock:
            sock.bind(address)
            return True
    return False
