"""Matching the ends of connections over all pods: pure functions over plain rows."""
from __future__ import annotations

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


def match(ends: dict[int, list[dict[str, Any]]]) -> tuple[list[Connection], list[External]]:
    """Pair the ends of all nodes; what stays alone and is not just waiting to be closed leaves the job.

    Args:
        ends: of each node, rows of file, state, local and remote address, pid and program.
    """
    rows = [(node, row) for node, of_node in ends.items() for row in of_node]
    listening = {(row["local"][0], row["local"][1]) for _, row in rows if row["state"] == _LISTEN}
    open_ends = [(node, row) for node, row in rows if row["state"] != _LISTEN]
    by_name: dict[tuple[Any, ...], list[tuple[int, dict[str, Any]]]] = {}
    for node, row in open_ends:
        by_name.setdefault((*row["local"], *row["remote"]), []).append((node, row))
    connections: list[Connection] = []
    outside: list[External] = []
    done: set[tuple[int, int]] = set()
    for node, row in open_ends:
        if (node, row["file"]) in done:
            continue
        others = [(n, r) for n, r in by_name.get((*row["remote"], *row["local"]), [])
                  if (n, r["file"]) not in done and (n, r["file"]) != (node, row["file"])]
        if others:
            other_node, other = others[0]
            connections.append(Connection(node, row["file"], other_node, other["file"]))
            done |= {(node, row["file"]), (other_node, other["file"])}
        elif row["state"] == _CLOSE_WAIT or _waits(row, listening):
            connections.append(Connection(node, row["file"], -1, -1))
        else:
            outside.append(External(node, row["file"], tuple(row["local"]), tuple(row["remote"]),
                                    row["pid"], row["program"]))
    return connections, outside


def _waits(row: dict[str, Any], listening: set[tuple[str, int]]) -> bool:
    """Whether an end waits to be accepted by a listener of the job."""
    address, port = row["remote"]
    return any((name, port) in listening for name in (address, "0.0.0.0", "::"))
