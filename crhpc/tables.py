"""What ``status``, ``list`` and ``doctor`` print for people."""
from __future__ import annotations

import shlex
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from crhpc.progress import duration, plain, plural, size

if TYPE_CHECKING:
    from crhpc.doctor import Row
    from crhpc.image.browse import Entry


_COMMAND = 100
"""Characters that are shown of a command line."""


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, each column as wide as its widest cell."""
    table = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in table]


def when(moment: float | None) -> str:
    """A time of day with its date; ``-`` if unknown."""
    return "-" if moment is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def images(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The images of a directory."""
    rows = [("number", "taken", "size", "tasks", "job", "state")]
    for entry in entries:
        large = "-" if entry["size"] is None else size(entry["size"])
        tasks = "-" if entry["tasks"] is None else str(entry["tasks"])
        rows.append((str(entry["number"]), when(entry["taken"]), large, tasks, (entry["job"] or "-")[:8],
                     entry["state"]))
    return aligned(rows)


def status(status: Mapping[str, Any], now: float) -> list[str]:
    """The running job: is it safe, what does it cost, what is it made of."""
    job, last, agents = status["job"], status["last"], status["agents"] or {}
    resumed = f", resumed from {status['resumed_from']}" if status["resumed_from"] else ""
    head = [("job", f"{job['id'][:8]}, {textwrap.shorten(shlex.join(job['argv']), _COMMAND, placeholder=' ...')}"),
            ("runs since", when(job["started"]) + resumed),
            ("directory", status["directory"]),
            ("supervisor", f"process {status['supervisor']['pid']} on {status['supervisor']['host']}")]
    if not status["running"]:
        head.append(("state", "being started"))
    if last is None:
        head.append(("last checkpoint", "none yet"))
    else:
        verified = "verified" if status["verified"] == last["number"] else "not verified yet"
        age = duration(max(0.0, now - last["time"]))
        head += [("last checkpoint", f"{last['number']}, {age} ago, {verified}"),
                 ("it took", f"frozen {duration(last['frozen'])}, written in {duration(last['seconds'])}, "
                             f"{size(last['bytes'])} saved as {size(last['stored'])}")]
    head.append(("next", _next(status, agents)))
    lines = aligned(head)
    for pod in agents.get("pods", ()):
        lines += ["", f"node {pod['node']} ({plain(pod['host'])}): {plural(len(pod['tasks']), 'process')}"]
        rows = [("  pid", "host pid", "threads", "program")]
        rows += [(f"  {task['pid']}", str(task["host_pid"]), str(task["threads"]), task["program"])
                 for task in pod["tasks"]]
        lines += aligned(rows)
    if status["running"] and status["agents"] is None:
        lines.append("the agents are busy and did not answer in time")
    return lines


def _next(status: Mapping[str, Any], agents: Mapping[str, Any]) -> str:
    if agents.get("checkpointing"):
        return "under way"
    due = agents.get("next")
    if due is not None:
        return f"in {duration(max(0.0, due))}"
    return "on request" if status["every"] is None else f"every {duration(status['every'])}"


def tree(entries: Sequence[Entry], described: Sequence[Mapping[str, Any]]) -> list[str]:
    """A group of an image with its attributes, or the rows of a table."""
    if entries and entries[0].kind == "column" and described:
        return aligned([tuple(described[0]), *(tuple(map(str, row.values())) for row in described)])
    lines = [plain(f"{name}: {value}") for row in described for name, value in row.items()]
    return lines + [""] * bool(lines and entries) + aligned((e.name, e.kind, e.text) for e in entries)


def capabilities(rows: Iterable[Row]) -> list[str]:
    """What the machine allows; a no is followed by its cure."""
    lines: list[tuple[str, ...]] = []
    cures: dict[int, str] = {}
    for row in rows:
        lines.append((row.name, "yes" if row.ok else "no" if row.needed else "no (optional)", row.detail))
        if not row.ok and row.cure:
            cures[len(lines) - 1] = row.cure
    result: list[str] = []
    for number, line in enumerate(aligned(lines)):
        result.append(line)
        if number in cures:
            result.append(f"    cure: {plain(cures[number])}")
    return result
