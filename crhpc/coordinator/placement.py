"""Which machine each pod is on after a restart, and what becomes of the addresses that the job knows: pure functions.

A pod has addresses that the job knows it by: those of the machine where it began. They stay its names for good, and
each has a machine's address behind it, at first itself. When a pod goes to another machine, what is behind its names
changes.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Names = Sequence[Sequence[str]]
"""Of one pod: each address that the job knows it by, with the machine's that is behind it."""


def place(pods: Mapping[str, Names], nodes: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """What each pod has to know, where pod n goes to node n.

    An address that several pods have, as that of a bridge that every machine makes for itself, stays what it is.

    Args:
        pods: their names, as the image has them.
        nodes: the addresses that each machine has now, the one first by which others reach it.

    Returns:
        By pod: ``addresses``, its names with what is behind them now; ``hosts``, from the names of all pods, where that
        is something else, to it; ``moves``, from addresses of machines at the checkpoint to those now; ``own`` and
        ``others``, the names of this pod and of all others.
    """
    times = Counter(name for names in pods.values() for name in {name for name, _ in names})
    behind = {pod: [[name, then, then if times[name] > 1 else _now(then, nodes.get(pod, ()))] for name, then in names]
              for pod, names in pods.items()}
    distinct = {pod: [row for row in rows if times[row[0]] == 1] for pod, rows in behind.items()}
    everywhere = [row for rows in distinct.values() for row in rows]
    hosts = {name: now for name, _, now in everywhere if name != now}
    moves = {then: now for _, then, now in everywhere}
    return {pod: {
        "addresses": [[name, now] for name, _, now in behind[pod]],
        "hosts": hosts,
        # Where several pods were on one machine, each means its own by that machine's address.
        "moves": {then: now for then, now in (moves | {then: now for _, then, now in rows}).items() if then != now},
        "own": sorted(name for name, _, _ in rows),
        "others": sorted({name for name, _, _ in everywhere} - {name for name, _, _ in rows}),
    } for pod, rows in distinct.items()}


def _now(then: str, addresses: Sequence[str]) -> str:
    """What is behind a name on a machine: the same address where it has that, else the best of its family."""
    if then in addresses:
        return then
    return next((address for address in addresses if (":" in address) == (":" in then)), then)
