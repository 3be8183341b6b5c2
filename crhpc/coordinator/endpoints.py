"""Matching the ends of connections over all pods: pure functions over plain rows."""
from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LISTEN = 10
_ENDED = (8, 9, 11)
"""CLOSE_WAIT, LAST_ACK, CLOSING: the other end has closed its direction (netinet/tcp.h)."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A TCP connection inside the job: two ends, each a file of a node. ``far`` is -1 where that end is closed.

    Between two nodes the near end is the one that a listener has accepted, where that is still there.
    """

    near_node: int
    near_file: int
    far_node: int
    far_file: int


@dataclass(frozen=True, slots=True)
class External:
    """An end whose other end is outside the job."""

    node: int
    file: int
    local: tuple[str, int]
    remote: tuple[str, int]
    pid: int
    program: str


@dataclass(frozen=True, slots=True)
class _End:
    node: int
    machine: int
    row: dict[str, Any]
    local: tuple[str, int]
    remote: tuple[str, int]

    @property
    def key(self) -> tuple[int, int]:
        return self.node, self.row["file"]

    @property
    def scope(self) -> int:
        """Where its other end can be: on the machine itself where one address is loopback's, else (-1) anywhere."""
        return self.machine if _is_loopback(self.local[0]) or _is_loopback(self.remote[0]) else -1


def match(ends: dict[int, list[dict[str, Any]]],
          machines: Mapping[int, int] | None = None) -> tuple[list[Connection], list[External]]:
    """Pair the ends of all nodes; what stays alone and is not just waiting to be closed leaves the job.

    Each machine has loopback addresses of its own: such ends are paired within it.

    Args:
        ends: of each node, rows of file, state, local and remote address, pid and program; ``stranger`` where a program
            of the node's, outside the job, still has the other end.
        machines: of each node; None where each has its own.
    """
    rows = [_End(node, node if machines is None else machines[node], row, _name(row["local"]), _name(row["remote"]))
            for node, of_node in ends.items() for row in of_node]
    listening = {(scope, end.local) for end in rows if end.row["state"] == _LISTEN for scope in (end.machine, -1)}
    open_ends = [end for end in rows if end.row["state"] != _LISTEN]
    by_name: dict[tuple[Any, ...], list[_End]] = {}
    for end in open_ends:
        by_name.setdefault((end.scope, end.local, end.remote), []).append(end)
    connections: list[Connection] = []
    outside: list[External] = []
    done: set[tuple[int, int]] = set()
    for end in open_ends:
        if end.key in done:
            continue
        others = [other for other in by_name.get((end.scope, end.remote, end.local), [])
                  if other.key not in done and other.key != end.key]
        if others:
            near, far = end, others[0]
            if near.node != far.node and _serves(far, listening) and not _serves(near, listening):
                near, far = far, near
            connections.append(Connection(*near.key, *far.key))
            done |= {near.key, far.key}
        elif end.local == end.remote:   # connected to itself
            connections.append(Connection(*end.key, *end.key))
        elif (end.row["state"] in _ENDED and not end.row.get("stranger")) or _is_accepted_by(end, listening):
            connections.append(Connection(*end.key, -1, -1))
        else:
            outside.append(External(*end.key, end.local, end.remote, end.row["pid"], end.row["program"]))
    return connections, outside


def _name(address: tuple[str, int] | list[Any]) -> tuple[str, int]:
    """An address and port; an IPv4 address in IPv6's form (RFC 4291, 2.5.5.2) is the IPv4 one."""
    host, port = address
    if "." in host and ":" in host:
        host = host.rpartition(":")[2]
    return str(host), int(port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _serves(end: _End, listening: set[tuple[int, tuple[str, int]]]) -> bool:
    """Whether a listener of its node has its name."""
    host, port = end.local
    return any((end.machine, (name, port)) in listening for name in (host, "0.0.0.0", "::"))


def _is_accepted_by(end: _End, listening: set[tuple[int, tuple[str, int]]]) -> bool:
    """Whether an end waits to be accepted by a listener of the job."""
    host, port = end.remote
    return any((end.scope, (name, port)) in listening for name in (host, "0.0.0.0", "::"))
