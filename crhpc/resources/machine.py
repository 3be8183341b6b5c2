"""The machine: what of it a program may rely on must be there at a restart.

Programs look once at what their processor can do and choose code by it (glibc does for strlen and the others), so one
that lacks instructions kills them later. More of them do no harm. What single threads and mappings need is checked
where they are restored; the vdso has a bridge (bridge.py).
"""
from __future__ import annotations

import re

from crhpc.errors import OtherMachine
from crhpc.kernel import advice
from crhpc.resources import Chapter, Cut, Kind, Phase, at, facts
from crhpc.resources.context import Dump, Restore
from crhpc.resources.facts import Machine
from crhpc.resources.space import Vma

_SHOWN = 8
_HWCAP2 = {1: "MWAIT in programs", 2: "instructions for FS and GS base"}
_NEWER = "restart on a node with a newer kernel"


class MachineKind(Kind):
    name = "machine"
    records = (Machine,)
    chapter = Chapter.PROCESSES
    saved = ("what the job may have found out about its machine: kernel, page size, instructions of the processor and "
             "how its registers are laid out")
    afterwards = ("another kernel is fine, and so is a processor that can do more, or lays registers out otherwise. A "
                  "restart is refused where something is missing; `--force` goes on without instructions that the "
                  "job may not use. A program that reads the TSC itself, and not the clocks, sees it jump")

    @at(Cut.COLLECT)
    def dump(self, ctx: Dump) -> None:
        ctx.add(facts.here())

    @at(Phase.CHECK)
    def check(self, ctx: Restore) -> None:
        here, there = facts.here(), facts.there(ctx)
        if there is None:
            return
        _check_basics(ctx, there, here)
        missing = sorted(set(there.instructions) - set(here.instructions))
        if missing:
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            ctx.doubt(_other(ctx, f"this processor ({here.processor}) lacks {' '.join(missing[:_SHOWN])}{more}, which "
                                  f"the job may use (it ran on {there.processor})",
                             "restart on a node with such a processor, or with --force if the job uses none of it"))
        lost = [text for bit, text in _HWCAP2.items() if there.hwcap2 & ~here.hwcap2 & bit]
        if lost:
            ctx.doubt(_other(ctx, f"here programs have no {' and no '.join(lost)}",
                             "restart on a node with the kernel of the checkpoint, or with --force"))
        if _version(here.kernel) < _version(there.kernel):
            ctx.warn(f"the job ran on Linux {there.kernel}, this is {here.kernel}: what it has found out about the "
                     "newer one may not be there")

    @at(Phase.CHECK)
    def check_memory(self, ctx: Restore) -> None:
        """What mappings need of the kernel."""
        flags = {flag for row in ctx.rows(Vma) for flag in row.flags.split()}
        for flag, what, known in (("sl", "sealed memory (mseal)", advice.knows_seals),
                                  ("dp", "droppable memory (MAP_DROPPABLE)", advice.knows_droppable)):
            if flag in flags and not known():
                ctx.problems.append(_other(ctx, f"this kernel has no {what}, which the job uses", _NEWER))


def _check_basics(ctx: Restore, there: Machine, here: Machine) -> None:
    """What nothing can make good.

    Raises:
        OtherMachine: the job would not even start.
    """
    if there.architecture != here.architecture:
        raise _other(ctx, f"this machine is {here.architecture}, the job ran on {there.architecture}",
                     f"restart on a node that is {there.architecture}")
    if there.page_size != here.page_size:
        raise _other(ctx, f"pages have {here.page_size} bytes here, the job's have {there.page_size}",
                     "restart on a node with a kernel of the same page size")


def _other(ctx: Restore, what: str, cure: str) -> OtherMachine:
    return OtherMachine(image=ctx.image, what=what, cure=cure)


def _version(release: str) -> tuple[int, ...]:
    """The first two numbers of a kernel's release."""
    return tuple(int(word) for word in re.findall(r"\d+", release[:64])[:2])
