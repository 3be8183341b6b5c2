"""Matching the ends of connections over all pods: pure functions over plain rows."""
from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any

_LISTEN, _CLOSE_WAIT = 10, 8


@dataclass(frozen=True, slots=True)
class Connection:
    """A TCP connection inside the job: two ends, each a file of a node. ``far`` is -1 where that end is closed."""

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
    row: dict[str, Any]
    local: tuple[str, int]
    remote: tuple[str, int]

    @property
    def key(self) -> tuple[int, int]:
        return self.node, self.row["file"]

    @property
    def waits(self) -> bool:
        return bool(self.row["state"] == _CLOSE_WAIT)


def match(ends: dict[int, list[dict[str, Any]]]) -> tuple[list[Connection], list[External]]:
    """Pair the ends of all nodes; what stays alone and is not just waiting to be closed leaves the job.

    Each node has loopback addresses of its own: such ends are paired within the node.

    Args:
        ends: of each node, rows of file, state, local and remote address, pid and program.
    """
    rows = [_End(node, row, _name(row["local"]), _name(row["remote"]))
            for node, of_node in ends.items() for row in of_node]
    listening = {(_place(end.node, end.local), end.local) for end in rows if end.row["state"] == _LISTEN}
    open_ends = [end for end in rows if end.row["state"] != _LISTEN]
    by_name: dict[tuple[Any, ...], list[_End]] = {}
    for end in open_ends:
        by_name.setdefault((_place(end.node, end.local), end.local, end.remote), []).append(end)
    connections: list[Connection] = []
    outside: list[External] = []
    done: set[tuple[int, int]] = set()
    for end in open_ends:
        if end.key in done:
            continue
        others = [other for other in by_name.get((_place(end.node, end.remote), end.remote, end.local), [])
                  if other.key not in done and other.key != end.key]
        if others:
            connections.append(Connection(*end.key, *others[0].key))
            done |= {end.key, others[0].key}
        elif end.waits or _is_accepted_by(end, listening):
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


def _place(node: int, name: tuple[str, int]) -> int:
    """Whose address it is: the node's own for loopback, else the network's, -1."""
    try:
        return node if ipaddress.ip_address(name[0].partition("%")[0]).is_loopback else -1
    except ValueError:
        return -1


def _is_accepted_by(end: _End, listening: set[tuple[int, tuple[str, int]]]) -> bool:
    """Whether an end waits to be accepted by a listener of the job."""
    host, port = end.remote
    return any((place, (name, port)) in listening
               for place in (_place(end.node, end.remote), -1) for name in (host, "0.0.0.0", "::"))
