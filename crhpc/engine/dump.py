"""The cut: everything of a frozen pod into the shard's tables and page log."""
from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Any

from crhpc.engine.freeze import Borrowed, Frozen
from crhpc.engine.pod import PodProcess
from crhpc.errors import Unsupported
from crhpc.image.writer import ShardWriter
from crhpc.kernel import proc
from crhpc.kernel.tracee import Tracee
from crhpc.log import Steps, logger
from crhpc.resources import Cut, Kind, run_steps
from crhpc.resources.context import Dump, Pod, Task, table_name
from crhpc.resources.files.tcp import endpoints, look_again

log = logger(__name__)

_PF_EXITING = 4
"""linux/sched.h; in the flags of /proc/PID/stat."""


class Cutting:
    """A cut in two steps: what is under way between nodes must have arrived everywhere before the second begins."""

    def __init__(self, frozen: Frozen, pod: PodProcess, context: Pod, writer: ShardWriter, kinds: list[Kind],
                 memory: dict[str, Any], steps: Steps) -> None:
        """
        Args:
            memory: what kinds keep from one checkpoint to the next.
        """
        self.ctx = Dump(writer, context, pod, frozen.tasks, frozen.zombies, memory)
        self.begun = False
        self._frozen = frozen
        self._kinds = kinds
        self._steps = steps
        self._borrowed = Borrowed(frozen)

    def begin(self) -> None:
        """Look at everything, and wait for what is under way.

        Raises:
            Unsupported: something can't be saved; nothing has been touched where that can be.
            OSError: a task died, or a queue could not be read.
        """
        self.begun = True
        with self._whole():
            with self._steps.step("inspect", log):
                run_steps(self._kinds, Cut.INSPECT, self.ctx)
            with self._steps.step("registers", log):
                run_steps(self._kinds, Cut.REGISTERS, self.ctx)

    def finish(self) -> Dump:
        """Take everything; the tasks are as they were when this returns or raises.

        Raises:
            Unsupported, OSError: as ``begin``.
        """
        look_again(self.ctx)
        with self._whole():
            with self._steps.step("registers", log):
                self._borrowed.borrow()
            with self._steps.step("collect", log):
                run_steps(self._kinds, Cut.COLLECT, self.ctx)
            with self._steps.step("content", log):
                run_steps(self._kinds, Cut.CONTENT, self.ctx)
        self.close()
        return self.ctx

    def close(self) -> None:
        """Leave the tasks as they were; again is harmless."""
        try:
            self._borrowed.give_back()
        finally:
            self.ctx.closing.close()

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.close()
            if isinstance(error, Unsupported) and any(_has_ended(task) for task in self._frozen.tasks):
                # what is left of it looks strange
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from None
            raise


def _has_ended(task: Task) -> bool:
    try:
        stat = proc.stat(task.host)
        return stat.state in "ZX" or bool(stat.flags & _PF_EXITING)
    except OSError:
        return True


def survey(pod: PodProcess, context: Pod, kinds: list[Kind]) -> tuple[list[str], list[dict[str, Any]]]:
    """What the kinds would refuse of a pod that runs, and the ends of its connections.

    One line for each kind that would refuse; nothing that passes soon.
    """
    memory: dict[str, Any] = {}
    ctx = Dump(None, context, pod, [*_running(pod.pid)], [], memory)   # type: ignore[arg-type]
    ctx.closing.callback(memory.clear)   # some of it holds descriptors
    found: list[str] = []
    with ctx.closing:
        for kind in kinds:
            try:
                run_steps([kind], Cut.INSPECT, ctx)
            except Unsupported as error:
                if not error.passing and not any(task.pid == error.fields["pid"] and _has_ended(task)
                                                 for task in ctx.tasks):
                    found.append(str(error))
            except OSError:   # something has ended or been closed meanwhile
                log.debug("survey of %s", kind.name, exc_info=True)
        return found, endpoints(ctx)


def _running(init: int) -> Iterator[Task]:
    for host in proc.descendants(init):
        with contextlib.suppress(OSError):
            status, mappings = proc.status(host), proc.smaps(host)
            if mappings:
                number = status.inner("NSpid")
                yield Task(number, host, Tracee(host, host), mappings=mappings)


def write_tables(ctx: Dump, kinds: list[Kind]) -> None:
    """Hand the rows to the shard, a table for every record of every kind, empty ones too; the job runs."""
    run_steps(kinds, Cut.LATER, ctx)
    ctx.state.clear()   # what is in it knows the dump: a circle, which would last until the collector comes
    for kind in kinds:
        for record in kind.records:
            ctx.writer.table(ctx.rows.get(record, []), record, table_name(record))


def write_tree(ctx: Dump) -> None:
    """The tree that people look at: tasks, and under each its descriptors as links to the open files."""
    by_name = {record.__name__: rows for record, rows in ctx.rows.items()}
    for file in by_name.get("File", []):
        ctx.writer.tree_group(f"files/{file.id}", {
            "kind": file.kind, "link": _text(file.link), "flags": oct(file.flags), "position": file.position})
    for row in by_name.get("Process", []):
        state = "zombie" if row.zombie else "stopped" if row.stopped else "running"
        ctx.writer.tree_group(f"tree/{row.pid}", {
            "program": _text(row.program), "parent": row.parent, "state": state})
    for row in by_name.get("Machine", []):
        ctx.writer.tree_group("machine", {
            "kernel": row.kernel, "architecture": row.architecture, "processor": row.processor,
            "instructions": " ".join(row.instructions)})
    for row in by_name.get("Descriptor", []):
        ctx.writer.tree_link(f"tree/{row.pid}/fds/{row.fd}", f"files/{row.file}")


def _text(value: str) -> str:
    return value.replace("\0", "@")
