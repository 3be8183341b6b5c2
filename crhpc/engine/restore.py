"""Rebuilding a pod from its shard: phases in their order, everything stopped until the release."""
from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crhpc.engine.pod import PodProcess
from crhpc.engine.watch import watch
from crhpc.errors import CrhpcError
from crhpc.filepolicy import FilePolicy
from crhpc.image.reader import Shard
from crhpc.kernel import proc
from crhpc.kernel.reaper import Reaper
from crhpc.kernel.tracee import find_instruction
from crhpc.log import Steps, logger
from crhpc.resources import Kind, Phase, run_steps
from crhpc.resources.context import Pod, Restore
from crhpc.resources.files import Descriptor

log = logger(__name__)

_MARGIN = 16
"""Below it a pod's first process has its own descriptors."""
_TOLD = 20
"""So many reasons why a restart is refused; the others are counted."""


class Rebuilding:
    """One restart of one pod: build, connect, release; or abandon."""

    def __init__(self, shard: Shard, image: Path, pod: PodProcess, context: Pod, kinds: list[Kind],
                 warn: Callable[[str], None], steps: Steps, policy: FilePolicy | None = None) -> None:
        self.kinds = kinds
        self.pod = pod
        self.steps = steps
        number = control_number(shard)
        self.ctx = Restore(shard, image, context, pod, pod.control(number), number, warn, policy)
        self._reaper = Reaper()

    def build(self) -> None:
        """Everything up to the open files; sockets between pods come with ``connect``.

        Raises:
            CrhpcError: this machine or its files don't fit the image.
            OSError: a system call failed.
        """
        with self.steps.step("check", log):
            check(self.kinds, self.ctx)
        self._run(Phase.POD, Phase.OPEN)

    def connect(self) -> None:
        """Connect sockets."""
        self._run(Phase.CONNECT, Phase.CONNECT)

    def finish(self) -> None:
        """All that comes after up to the release."""
        self._run(Phase(Phase.CONNECT + 1), Phase.LAST)
        for task in self.ctx.tasks.values():
            task.leader.instruction = find_instruction(task.host, proc.maps(task.host))
            task.call("munmap", task.area.address, task.area.size)
            task.mapped_area = None
        self._run(Phase.REGISTERS, Phase.REGISTERS)
        self.ctx.closing.close()   # whoever watches a file is told of a close
        for action in self.ctx.at_end:
            action()

    def _run(self, first: Phase, last: Phase) -> None:
        for phase in Phase:
            if first <= phase <= last:
                with self.steps.step(phase.name.lower(), log):
                    run_steps(self.kinds, phase, self.ctx)

    def release(self, root: int, last_pid: int) -> None:
        """Let every task go.

        Args:
            root: the job's first process, whose end the pod's first is to tell.
        """
        self.ctx.undo.pop_all()
        self.close()
        self.pod.request({"op": "built", "root": root, "last_pid": last_pid})
        threads = [tracee for task in self.ctx.tasks.values() for tracee in task.threads.values()]
        for tracee in threads:
            watch.remember(tracee)
        watch.go_on(threads)
        watch.resume()

    def close(self) -> None:
        """Let go of the descriptors that the agent held for the pod; before the release, also of what it made."""
        self._reaper.stop()
        self.ctx.closing.close()
        self.ctx.control.close()
        with contextlib.suppress(OSError):
            self.ctx.undo.close()


def check(kinds: list[Kind], ctx: Restore) -> None:
    """Compare the image with this machine and its files; nothing is made.

    Raises:
        CrhpcError: the last of all reasons why it can't be restarted; the others are told as warnings.
    """
    for kind in kinds:
        for step in kind.steps(Phase.CHECK):
            try:
                step(ctx)
            except CrhpcError as error:
                ctx.problems.append(error)
    distinct: dict[object, CrhpcError] = {}
    for problem in ctx.problems:
        distinct.setdefault(problem.fields.get("path", str(problem)), problem)
    if distinct:
        *others, last = distinct.values()
        for problem in others[:_TOLD]:
            ctx.warn(str(problem))
        if len(others) > _TOLD:
            ctx.warn(f"and {len(others) - _TOLD} more like these")
        raise last


def preview(shard: Shard, image: Path, context: Pod, kinds: list[Kind], warn: Callable[[str], None],
            policy: FilePolicy) -> list[str]:
    """What a restart would do to the user's files, a line each; no pod is needed for it.

    Raises:
        CrhpcError: it would be refused.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ctx = Restore(shard, image, context, _NoPod(), ours, 0, warn, policy)
        with ctx.closing:
            check(kinds, ctx)
        return ctx.plans


class _NoPod:
    """Stands in for a pod's first process where none is made."""

    def fork_as(self, pid: int) -> int:
        raise NotImplementedError

    def request(self, message: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError


def control_number(shard: Shard) -> int:
    """A descriptor number that no task of the image has: above all of them, or in a gap where that is not allowed.

    Raises:
        OSError: EMFILE, no number is left.
    """
    used = {row.fd for row in shard.table(Descriptor, "descriptor")}
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = min(max(used, default=0) + _MARGIN, hard - 1)
    while number in used:
        number -= 1
    if number < _MARGIN:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "descriptor for passing files")
    return number
