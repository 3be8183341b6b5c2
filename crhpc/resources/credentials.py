"""Credentials of every thread: user and group ids, groups, capabilities, no_new_privs (credentials(7)).

Read from ``/proc/PID/task/TID/status``. Set by the thread itself, late: a stub has all capabilities over its pod
until here. A plain user's job has one uid and no capabilities; only root can restore others.
"""
from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from crhpc.errors import OtherMachine
from crhpc.image.records import U64
from crhpc.kernel import proc
from crhpc.resources import Cut, Kind, Phase, at
from crhpc.resources.context import Dump, Restore, Task

_CAPABILITY_VERSION_3 = 0x20080522
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_KEEPCAPS = 23, 24, 8
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECUREBITS, _PR_GET_SECUREBITS = 38, 28, 27
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_LAST_CAPABILITY = 40
_SECCOMP_CURE = "run the program without a system call filter"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Of one thread; capability sets are bit masks."""

    pid: int
    tid: int
    uids: tuple[int, ...]
    gids: tuple[int, ...]
    groups: tuple[int, ...]
    inheritable: U64
    permitted: U64
    effective: U64
    bounding: U64
    ambient: U64
    securebits: int
    no_new_privs: bool


class CredentialsKind(Kind):
    name = "credentials"
    records = (Credentials,)
    saved = "user and group ids, supplementary groups, capability sets, securebits, no_new_privs, of every thread"
    refused = "seccomp filters; as a plain user, ids other than the own"

    @at(Cut.INSPECT)
    def inspect(self, ctx: Dump) -> None:
        for task in ctx.tasks:
            if proc.status(task.host).number("Seccomp"):
                raise ctx.refuse("a seccomp filter", task, _SECCOMP_CURE)

    @at(Cut.COLLECT)
    def dump(self, ctx: Dump) -> None:
        for task in ctx.tasks:
            securebits = task.call("prctl", _PR_GET_SECUREBITS)
            for tid, tracee in task.threads.items():
                status = proc.status(task.host, tracee.tid)
                inheritable, permitted, effective, bounding, ambient = (
                    U64(status.number(name, 16)) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"))
                ctx.add(Credentials(
                    task.pid, tid, status.numbers("Uid"), status.numbers("Gid"), status.numbers("Groups"), inheritable,
                    permitted, effective, bounding, ambient, securebits, bool(status.number("NoNewPrivs"))))

    @at(Phase.CHECK)
    def check(self, ctx: Restore) -> None:
        uid = os.getuid()
        others = {row.uids[0] for row in ctx.rows(Credentials)} - {uid}
        if others and uid != 0:
            raise OtherMachine(image=ctx.image, what=f"the job ran as uid {min(others)}, this is uid {uid}",
                               cure="restart it as the user who ran it")

    @at(Phase.CREDENTIALS)
    def restore(self, ctx: Restore) -> None:
        for row in ctx.rows(Credentials):
            task = ctx.tasks[row.pid]
            status = proc.status(task.host, task.threads[row.tid].tid)
            _restore(task, row, status)


def _restore(task: Task, row: Credentials, now: proc.Status) -> None:
    with task.area_of(row.tid).batch() as batch:
        if os.getuid() == 0:
            if row.groups != now.numbers("Groups"):
                groups = struct.pack(f"{len(row.groups)}I", *row.groups)
                batch.call("setgroups", len(row.groups), batch.put(groups or bytes(8)))
            dropped = now.number("CapBnd", 16) & ~row.bounding
            for number in range(_LAST_CAPABILITY + 1):
                if dropped >> number & 1:
                    batch.call("prctl", _PR_CAPBSET_DROP, number)
            if row.uids != now.numbers("Uid") or row.gids != now.numbers("Gid"):
                batch.call("prctl", _PR_SET_KEEPCAPS, 1)
                batch.call("setresgid", *row.gids[:3])
                batch.call("setresuid", *row.uids[:3])
                batch.call("prctl", _PR_SET_KEEPCAPS, 0)
        if row.securebits:
            batch.call("prctl", _PR_SET_SECUREBITS, row.securebits)
        batch.call("capset", batch.put(struct.pack("Ii", _CAPABILITY_VERSION_3, 0)), batch.put(_capability_data(row)))
        for number in range(_LAST_CAPABILITY + 1):
            if row.ambient >> number & 1:
                batch.call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number, 0, 0)
        if row.no_new_privs:
            batch.call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _capability_data(row: Credentials) -> bytes:
    """Two struct __user_cap_data_struct: effective, permitted, inheritable, low words first."""
    sets = (row.effective, row.permitted, row.inheritable)
    return struct.pack("6I", *(s & 0xFFFFFFFF for s in sets), *(s >> 32 for s in sets))
