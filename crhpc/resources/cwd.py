"""Working directories and umasks, of processes and of threads that have their own (unshare(2), CLONE_FS).

Read from ``/proc/PID``; entered by the task itself, which has all rights in its pod.
"""
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations

from crhpc.errors import FileGone
from crhpc.kernel import clone, pidfd, proc
from crhpc.resources import Chapter, Cut, Kind, Phase, at
from crhpc.resources.context import Dump, Restore, Task
from crhpc.resources.sharing import threads_apart

_GONE = " (deleted)"


@dataclass(frozen=True, slots=True)
class WorkingDirectory:
    """Of a process, or of a thread that has its own."""

    pid: int
    tid: int = field(metadata={"doc": "0: of the process"})
    path: str = field(metadata={"path": True})
    removed: int = field(metadata={"doc": "a number of the directory where it has been removed, or 0"})
    umask: int


class WorkingDirectoryKind(Kind):
    name = "cwd"
    chapter = Chapter.PROCESSES
    records = (WorkingDirectory,)
    saved = ("working directory and umask of every process, and of a thread that has its own; a working directory "
             "that has been removed is a removed one again, also for several processes in the same")
    refused = (
        ("a root directory of its own (chroot)", "run it without chroot"),
        ("a working directory that only some threads of a process share", "run it without clone(CLONE_FS)"),
    )
    afterwards = ("the name of a removed directory may be another one. A restart is refused where a directory is "
                  "gone or can't be entered")

    @at(Cut.INSPECT)
    def inspect(self, ctx: Dump) -> None:
        apart = ctx.state["threads with directories"] = {task.pid: threads_apart(task, "fs") for task in ctx.tasks}
        for task in ctx.tasks:
            threads = [task.threads[tid].tid for tid in apart[task.pid]]
            for host in (task.host, *threads):
                if os.readlink(f"/proc/{host}/root") != "/":
                    raise ctx.refuse("a root directory of its own (chroot)", task, "run it without chroot")
            if any(pidfd.kcmp(a, b, pidfd.KCMP_FS) == 0 for a, b in combinations(threads, 2)):
                raise ctx.refuse("a working directory that some of its threads share", task,
                                 "run it without clone(CLONE_FS)")

    @at(Cut.COLLECT)
    def dump(self, ctx: Dump) -> None:
        for task in ctx.tasks:
            for tid in (0, *ctx.state["threads with directories"][task.pid]):
                host = task.threads[tid or task.pid].tid
                path, removed = _directory(host)
                ctx.add(WorkingDirectory(task.pid, tid, path, removed, proc.status(host).number("Umask", 8)))

    @at(Phase.CHECK)
    def check(self, ctx: Restore) -> None:
        for row in ctx.rows(WorkingDirectory):
            if not (row.removed or ctx.pod.private(row.path) or row.path.startswith("/proc/")):
                try:
                    os.stat(ctx.pod.outside(row.path) + "/.")
                except PermissionError:   # the task has more rights in its pod
                    continue
                except OSError as error:
                    ctx.problems.append(_not_entered(ctx, row, error))

    @at(Phase.STATE)
    def restore(self, ctx: Restore) -> None:
        for row in ctx.rows(WorkingDirectory):
            task = ctx.tasks[row.pid]
            if row.tid:
                task.threads[row.tid].call("unshare", clone.CLONE_FS)
            if not row.removed:
                _enter(ctx, task, row)
            elif not any(_try_to_enter(task, row, way) for way in _ways(ctx, row)):
                raise _not_entered(ctx, row, OSError(0, "no directory can be made for it"))
            task.threads[row.tid or row.pid].call("umask", row.umask)


# -- dump -----------------------------------------------------------------------------------------------
def _directory(host: int) -> tuple[str, int]:
    """Where it is; where that has been removed, its old name, and its inode number."""
    link = f"/proc/{host}/cwd"
    path, stat = os.readlink(link), os.stat(link)
    if path.endswith(_GONE):
        try:
            removed = not os.path.samestat(os.stat(f"/proc/{host}/root{path}"), stat)
        except OSError:
            removed = True
        if removed:
            return path.removesuffix(_GONE), stat.st_ino
    return path, 0


# -- restore --------------------------------------------------------------------------------------------
def _enter(ctx: Restore, task: Task, row: WorkingDirectory) -> None:
    try:
        with task.area_of(row.tid or row.pid).batch() as batch:
            batch.call("chdir", batch.string(row.path))
    except OSError as error:
        raise _not_entered(ctx, row, error) from None


def _not_entered(ctx: Restore, row: WorkingDirectory, error: OSError) -> FileGone:
    return FileGone(image=ctx.image, path=row.path, why=f"cannot be entered ({error.strerror})", pid=row.pid,
                    program="its working directory")


def _ways(ctx: Restore, row: WorkingDirectory) -> Iterator[tuple[str, bool]]:
    """Where to find a removed directory: with who is in it already, else a new one, where it was if that can be."""
    made: dict[int, str] = ctx.state.setdefault("removed directories", {})
    if row.removed in made:
        yield made[row.removed], False
    made[row.removed] = f"/proc/{row.pid}/task/{row.tid or row.pid}/cwd"
    yield row.path, True
    yield os.path.join(ctx.pod.temporary, "removed"), True


def _try_to_enter(task: Task, row: WorkingDirectory, way: tuple[str, bool]) -> bool:
    path, new = way
    with contextlib.suppress(OSError), task.area_of(row.tid or row.pid).batch() as batch:
        if new:
            batch.call("mkdir", batch.string(path), 0o700)
        batch.call("chdir", batch.string(path))
        if new:
            batch.call("rmdir", batch.string(path))
        batch.flush()
        return True
    return False
