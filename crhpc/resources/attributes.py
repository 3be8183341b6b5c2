"""What prctl(2) and a few files of /proc set for a process: working directory, umask, personality and others.

Read by remote prctl(2) calls and from ``/proc/PID``.
"""
from __future__ import annotations

import contextlib
import os
import struct
from dataclasses import dataclass, field

from crhpc.errors import FileGone
from crhpc.image.records import U64
from crhpc.kernel import proc
from crhpc.kernel.namespaces import write_file
from crhpc.resources import Cut, Kind, Phase, at
from crhpc.resources.context import Dump, Restore

_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG = 1, 2
_PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 3, 4
_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37
_PR_SET_THP_DISABLE, _PR_GET_THP_DISABLE = 41, 42
_ARCH_GET_XCOMP_PERM, _ARCH_REQ_XCOMP_PERM = 0x1022, 0x1023
_AMX_TILE_DATA = 18


@dataclass(frozen=True, slots=True)
class Attributes:
    """Of one process."""

    pid: int
    directory: str
    umask: int
    personality: U64
    parent_death_signal: int
    dumpable: int
    subreaper: bool
    thp_disabled: int
    coredump_filter: int
    extended_state: U64 = field(metadata={"doc": "XSAVE features that the process may use beyond the default (AMX)"})


class AttributesKind(Kind):
    name = "attributes"
    records = (Attributes,)
    saved = ("working directory, umask, personality, parent-death signal, dumpable, child subreaper, coredump filter, "
             "AMX permission")
    refused = "a root directory other than the pod's; a working directory that is gone"

    @at(Cut.INSPECT)
    def inspect(self, ctx: Dump) -> None:
        for task in ctx.tasks:
            if os.readlink(f"/proc/{task.host}/root") != "/":
                raise ctx.refuse("a root directory of its own (chroot)", task, "run it without chroot")
            if os.readlink(f"/proc/{task.host}/cwd").endswith(" (deleted)"):
                raise ctx.refuse("a working directory that has been removed", task, "keep the directory")

    @at(Cut.COLLECT)
    def dump(self, ctx: Dump) -> None:
        for task in ctx.tasks:
            room = task.area.data
            task.leader.write(room, bytes(24))
            results = task.area.run([
                ("prctl", (_PR_GET_PDEATHSIG, room)), ("prctl", (_PR_GET_CHILD_SUBREAPER, room + 8)),
                ("prctl", (_PR_GET_DUMPABLE,)), ("prctl", (_PR_GET_THP_DISABLE, 0, 0, 0, 0))])
            with contextlib.suppress(OSError):   # a CPU without AMX
                task.call("arch_prctl", _ARCH_GET_XCOMP_PERM, room + 16)
            death, reaper, permitted = struct.unpack("ixxxxixxxxQ", task.leader.read(room, 24))
            ctx.add(Attributes(
                task.pid, os.readlink(f"/proc/{task.host}/cwd"), proc.status(task.host).number("Umask", 8),
                U64(int(proc.read(f"/proc/{task.host}/personality"), 16)), death, results[2], bool(reaper), results[3],
                int(proc.read(f"/proc/{task.host}/coredump_filter") or b"0", 16), U64(permitted)))

    @at(Phase.STATE)
    def restore(self, ctx: Restore) -> None:
        for row in ctx.rows(Attributes):
            task = ctx.tasks[row.pid]
            try:
                with task.area.batch() as batch:
                    batch.call("chdir", batch.string(row.directory))
            except OSError as error:
                raise FileGone(image=ctx.image, path=row.directory, why=f"cannot be entered ({error.strerror})",
                               pid=row.pid, program="its working directory") from None
            with task.area.batch() as batch:
                batch.call("umask", row.umask)
                batch.call("personality", row.personality)
                batch.call("prctl", _PR_SET_CHILD_SUBREAPER, row.subreaper)
                batch.call("prctl", _PR_SET_THP_DISABLE, row.thp_disabled, 0, 0, 0)
            with contextlib.suppress(OSError):
                write_file(f"/proc/{task.host}/coredump_filter", hex(row.coredump_filter))

    @at(Phase.SPACE)
    def permit_tiles(self, ctx: Restore) -> None:
        """Before any thread is cloned: the permission belongs to the process and sizes its signal frames."""
        for row in ctx.rows(Attributes):
            if row.extended_state >> _AMX_TILE_DATA & 1:
                ctx.tasks[row.pid].call("arch_prctl", _ARCH_REQ_XCOMP_PERM, _AMX_TILE_DATA)

    @at(Phase.LAST)
    def restore_after_credentials(self, ctx: Restore) -> None:
        """What a change of credentials would reset."""
        for row in ctx.rows(Attributes):
            task = ctx.tasks[row.pid]
            task.call("prctl", _PR_SET_DUMPABLE, row.dumpable & 1)   # 2 can only come from an exec
            task.call("prctl", _PR_SET_PDEATHSIG, row.parent_death_signal)
