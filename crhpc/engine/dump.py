"""The cut: everything of a frozen pod into the shard's tables and page log."""
from __future__ import annotations

from typing import Any

from crhpc.engine.freeze import Borrowed, Frozen
from crhpc.engine.pod import PodProcess
from crhpc.image.writer import ShardWriter
from crhpc.log import Steps, logger
from crhpc.resources import Cut, Kind, run_steps
from crhpc.resources.context import Dump, Pod, table_name

log = logger(__name__)


def cut(frozen: Frozen, pod: PodProcess, context: Pod, writer: ShardWriter, kinds: list[Kind], memory: dict[str, Any],
        steps: Steps) -> Dump:
    """Dump a frozen pod; its tasks are as they were when this returns or raises.

    Args:
        memory: what kinds keep from one checkpoint to the next.

    Raises:
        Unsupported: something can't be saved; raised before anything has been touched where that can be.
        OSError: a task died, or a queue could not be read.
    """
    ctx = Dump(writer, context, pod, frozen.tasks, frozen.zombies, memory)
    borrowed = Borrowed(frozen)
    with ctx.closing:
        try:
            with steps.step("inspect", log):
                run_steps(kinds, Cut.INSPECT, ctx)
            with steps.step("registers", log):
                run_steps(kinds, Cut.REGISTERS, ctx)
                borrowed.borrow()
            with steps.step("collect", log):
                run_steps(kinds, Cut.COLLECT, ctx)
            with steps.step("content", log):
                run_steps(kinds, Cut.CONTENT, ctx)
        finally:
            borrowed.give_back()
    return ctx


def write_tables(ctx: Dump, kinds: list[Kind]) -> None:
    """Hand the rows to the shard, a table for every record of every kind, empty ones too."""
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
    for row in by_name.get("Descriptor", []):
        ctx.writer.tree_link(f"tree/{row.pid}/fds/{row.fd}", f"files/{row.file}")


def _text(value: str) -> str:
    return value.replace("\0", "@")
