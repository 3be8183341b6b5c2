"""Credentials of every thread: user and group ids, groups, capabilities, secure bits, no_new_privs (credentials(7)).

Read from ``/proc/PID/task/TID/status``, the secure bits by prctl(2). Set by the thread itself, late: a stub has all
capabilities over its pod until here. A plain user's job has one uid and no capabilities; only root can restore others.
"""
from __future__ import annotations

import contextlib
import os
import struct
from dataclasses import dataclass

from crhpc.errors import OtherMachine
from crhpc.image.records import U64
from crhpc.kernel import proc
from crhpc.kernel.tracee import Batch
from crhpc.resources import Chapter, Cut, Kind, Phase, at
from crhpc.resources.context import Dump, Restore
from crhpc.resources.questions import Question, answer, ask

_CAPABILITY_VERSION_3 = 0x20080522
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECUREBITS, _PR_GET_SECUREBITS = 38, 28, 27
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 2, 4
_NO_SETUID_FIXUP = 1 << 2
"""SECBIT_NO_SETUID_FIXUP: a change of user ids leaves capabilities alone (capabilities(7))."""
_SECURE_BITS = Question("prctl", (_PR_GET_SECUREBITS, 0, 0, 0, 0))
_STRICT, _FILTERED = 1, 2
"""As Seccomp in /proc/PID/status."""
_SECCOMP_CURE = "run the program without a system call filter"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Of one thread; capability sets are bit masks. Ids are real, effective, saved, and of file access."""

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
    chapter = Chapter.PROCESSES
    records = (Credentials,)
    saved = ("of every thread: user and group ids (real, effective, saved, of file access), supplementary groups, "
             "capability sets, secure bits, no_new_privs")
    refused = (
        ("a seccomp filter, or strict mode", "run the program without a system call filter"),
        ("a security label (SELinux, AppArmor) other than that of the pod's first process",
         "run the program without a profile of its own"),
    )
    afterwards = ("keyrings are those of the restart, and tickets in them today's. A plain user's job is restarted "
                  "by the same user with the same group, else it is refused; of supplementary groups those are left "
                  "out, with a warning, that the user is not in any more")

    @at(Cut.INSPECT)
    def inspect(self, ctx: Dump) -> None:
        ask(ctx, _SECURE_BITS)
        seen = ctx.state["status of threads"] = {}
        own = proc.status(os.getpid())
        for task in ctx.tasks:
            for tid, tracee in (task.threads or {task.pid: task.leader}).items():
                status = seen[task.pid, tid] = proc.status(task.host, tracee.tid)
                if not _only_known_filters(ctx, status, own):
                    raise ctx.refuse("a seccomp filter", task, _SECCOMP_CURE)
        _check_labels(ctx)

    @at(Cut.COLLECT)
    def dump(self, ctx: Dump) -> None:
        for task in ctx.tasks:
            for tid in task.threads:
                status = ctx.state["status of threads"][task.pid, tid]
                inheritable, permitted, effective, bounding, ambient = (
                    U64(status.number(name, 16)) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"))
                ctx.add(Credentials(
                    task.pid, tid, status.numbers("Uid"), status.numbers("Gid"), status.numbers("Groups"), inheritable,
                    permitted, effective, bounding, ambient, answer(ctx, task, tid, _SECURE_BITS)[0],
                    bool(status.number("NoNewPrivs"))))

    @at(Phase.CHECK)
    def check(self, ctx: Restore) -> None:
        """As a plain user, nothing can be set: all must be so already."""
        if os.getuid() == 0:
            return
        for what, here, rows in (("uid", os.getuid(), {uid for row in ctx.rows(Credentials) for uid in row.uids}),
                                 ("gid", os.getgid(), {gid for row in ctx.rows(Credentials) for gid in row.gids})):
            if rows - {here}:
                raise OtherMachine(image=ctx.image, what=f"the job ran as {what} {min(rows - {here})}, this is {here}",
                                   cure="restart it as the user who ran it" + (" (sg(1))" if what == "gid" else ""))
        missing = {gid for row in ctx.rows(Credentials) for gid in row.groups} - {os.getgid(), *os.getgroups()}
        if missing:
            ctx.warn(f"the job was in groups {sorted(missing)}, which you are not in now; it is not any more either")

    @at(Phase.CREDENTIALS)
    def restore(self, ctx: Restore) -> None:
        for row in ctx.rows(Credentials):
            task = ctx.tasks[row.pid]
            status = proc.status(task.host, task.threads[row.tid].tid)
            with task.area_of(row.tid).batch() as batch:
                _restore(batch, row, status)


def _only_known_filters(ctx: Dump, status: proc.Status, own: proc.Status) -> bool:
    """Whether a thread has no more filters than all processes here, and the one of crhpc's after ports have moved.

    Which they are is not told without a privilege.
    """
    ours = _filters(own) + ctx.pod.redirects.watched
    return status.number("Seccomp") != _STRICT and _filters(status) in (_filters(own), ours)


def _filters(status: proc.Status) -> int:
    """How many a thread has; before Linux 5.9 only whether it has any."""
    return status.number("Seccomp_filters", default=int(status.number("Seccomp") == _FILTERED))


def _check_labels(ctx: Dump) -> None:
    """Refuse what runs under another label than the pod's first process: a stub could not take it."""
    try:
        first = proc.read(f"/proc/{ctx.pod.init}/attr/current")
    except OSError:   # no security module has labels
        return
    for task in ctx.tasks:
        with contextlib.suppress(OSError):
            label = proc.read(f"/proc/{task.host}/attr/current")
            if label != first:
                raise ctx.refuse(f"the security label {os.fsdecode(label).strip()}", task,
                                 "run the program without a profile of its own")


def _restore(batch: Batch, row: Credentials, now: proc.Status) -> None:
    """From what the thread has now to what it had; in an order in which it still may (capabilities(7))."""
    _put_capabilities(batch, now.number("CapEff", 16), now.number("CapPrm", 16), row.inheritable)
    for number in _bits(now.number("CapBnd", 16) & ~row.bounding):
        batch.call("prctl", _PR_CAPBSET_DROP, number)
    if os.getuid() == 0:
        if row.groups != now.numbers("Groups"):
            groups = struct.pack(f"{len(row.groups)}I", *row.groups)
            batch.call("setgroups", len(row.groups), batch.put(groups or bytes(8)))
        if (row.uids, row.gids) != (now.numbers("Uid"), now.numbers("Gid")):
            batch.call("prctl", _PR_SET_SECUREBITS, _NO_SETUID_FIXUP)
            batch.call("setresgid", *row.gids[:3])
            batch.call("setfsgid", row.gids[3])
            batch.call("setresuid", *row.uids[:3])
            batch.call("setfsuid", row.uids[3])
            batch.call("prctl", _PR_SET_SECUREBITS, 0)
    batch.call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for number in _bits(row.ambient):
        batch.call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number, 0, 0)
    if row.securebits:
        batch.call("prctl", _PR_SET_SECUREBITS, row.securebits)
    _put_capabilities(batch, row.effective, row.permitted, row.inheritable)
    if row.no_new_privs:
        batch.call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _bits(mask: int) -> list[int]:
    return [number for number in range(64) if mask >> number & 1]


def _put_capabilities(batch: Batch, *sets: int) -> None:
    """capset(2). Two struct __user_cap_data_struct: effective, permitted, inheritable, low words first."""
    data = struct.pack("6I", *(s & 0xFFFFFFFF for s in sets), *(s >> 32 for s in sets))
    batch.call("capset", batch.put(struct.pack("Ii", _CAPABILITY_VERSION_3, 0)), batch.put(data))
