"""Tables that processes share, and threads that have one of their own (clone(2), unshare(2), kcmp(2)).

What is shared is dumped for the first process that has it, and comes back by the flags that the others are born with
(tree.py). Memory that is shared in this way by processes that are not threads of one is refused.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cmp_to_key

from crhpc.kernel import clone, pidfd
from crhpc.resources import Chapter, Cut, Kind, at
from crhpc.resources.context import Dump, Task

TABLES = {"files": (pidfd.KCMP_FILES, clone.CLONE_FILES), "fs": (pidfd.KCMP_FS, clone.CLONE_FS)}
"""Descriptors; working directory, root and umask."""


@dataclass(frozen=True, slots=True)
class SharedTable:
    """A process that has a table of another's."""

    pid: int
    table: str = field(metadata={"doc": "files (descriptors) or fs (working directory, umask)"})
    first: int = field(metadata={"doc": "the process with whose rows it is"})


class SharingKind(Kind):
    name = "sharing"
    chapter = Chapter.PROCESSES
    records = (SharedTable,)
    saved = ("descriptor tables and working directories that processes share without being threads of one "
             "(CLONE_FILES, CLONE_FS), among siblings, parents and children")
    refused = (
        ("memory that is shared by processes that are no threads of one (CLONE_VM), but for vfork(2), which is soon "
         "over", "use threads, or fork without CLONE_VM"),
    )
    afterwards = "I/O contexts are not shared any more (CLONE_IO)"

    @at(Cut.INSPECT)
    def inspect(self, ctx: Dump) -> None:
        alike: dict[object, list[Task]] = {}
        for task in ctx.tasks:
            alike.setdefault(tuple((m.start, m.end, m.inode) for m in task.mappings), []).append(task)
        for tasks in alike.values():
            for host, first in _sharers(tasks, pidfd.KCMP_VM):
                task = next(task for task in tasks if task.host == host)
                raise ctx.refuse(f"memory that is shared with process {first.pid}", task,
                                 "use threads, or fork without CLONE_VM")

    @at(Cut.COLLECT)
    def dump(self, ctx: Dump) -> None:
        for table in TABLES:
            for host, first in sharers(ctx, table).items():
                ctx.add(SharedTable(ctx.pod_pid(host), table, first.pid))


def sharers(ctx: Dump, table: str) -> dict[int, Task]:
    """Of the tasks that share a table with one before them, by this node's numbers: the first that has it."""
    known: dict[str, dict[int, Task]] = ctx.state.setdefault("sharers", {})
    if table not in known:
        known[table] = dict(_sharers(ctx.tasks, TABLES[table][0]))
    return known[table]


def _sharers(tasks: Iterable[Task], kind: int) -> Iterator[tuple[int, Task]]:
    def compare(a: tuple[int, Task], b: tuple[int, Task]) -> int:
        return {0: a[0] - b[0], 1: -1, 2: 1}[pidfd.kcmp(a[1].host, b[1].host, kind)]

    first: Task | None = None
    for _, task in sorted(enumerate(tasks), key=cmp_to_key(compare)):
        if first is not None and pidfd.kcmp(first.host, task.host, kind) == 0:
            yield task.host, first
        else:
            first = task


def threads_apart(task: Task, table: str) -> list[int]:
    """The threads of a task that have a table of their own."""
    kind, _flag = TABLES[table]
    return [tid for tid, tracee in task.threads.items()
            if tracee.tid != task.host and pidfd.kcmp(task.host, tracee.tid, kind) != 0]
