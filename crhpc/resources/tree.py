"""Processes: ids, parents, process groups, sessions, and zombies with their exit status.

Read from ``/proc/PID/status`` and ``stat``. Rebuilt from the pod's first process down: a child is cloned by
its own parent under its old number (clone3's set_tid), before or after the parent's setsid(2), whichever
session it belongs to. A group whose leader is gone gets a stand-in for as long as it takes to join it.
"""
from __future__ import annotations

import contextlib
import os
import resource
import struct
import time
from dataclasses import dataclass, field

from crhpc.kernel import clone, proc, ptrace
from crhpc.kernel.libc import NR
from crhpc.kernel.tracee import ALL_BUT_TRAP, NO_CALL, Tracee, await_stop, find_instruction
from crhpc.resources import Cut, Kind, Phase, at
from crhpc.resources.context import Dump, Restore, Task

STUB_OPTIONS = (ptrace.O_TRACESYSGOOD | ptrace.O_TRACECLONE | ptrace.O_TRACEFORK | ptrace.O_TRACEVFORK
                | ptrace.O_EXITKILL)
_WALL = 0x40000000


@dataclass(frozen=True, slots=True)
class Process:
    """A process; all ids are the pod's. ``parent`` is 1 for those whose parent is the pod's first process."""

    pid: int
    parent: int
    group: int
    session: int
    zombie: bool
    exit_status: int = field(metadata={"doc": "as waitpid(2) gives it; zombies only"})
    stopped: bool = field(metadata={"doc": "stopped by a signal, as job control does"})
    program: str


class TreeKind(Kind):
    name = "tree"
    records = (Process,)
    saved = "process ids, parents, process groups, sessions, zombies with their exit status, stopped processes"
    refused = "an orphan in a session that its parent, the pod's first process, is not in"

    @at(Cut.COLLECT)
    def dump(self, ctx: Dump) -> None:
        for task in [*ctx.tasks, *ctx.zombies]:
            status, stat = proc.status(task.host), proc.stat(task.host)
            row = Process(
                pid=task.pid, parent=ctx.pod_pid(stat.ppid), group=status.inner("NSpgid"),
                session=status.inner("NSsid"), zombie=task.zombie, exit_status=stat.exit_code if task.zombie else 0,
                stopped=task.stopped, program=proc.program(task.host))
            if row.parent == 0:
                raise ctx.refuse(f"a process whose parent {stat.ppid} is outside the pod", task,
                                 "end it, or start it by the job itself")
            ctx.add(row)
        _check_sessions(ctx)

    @at(Phase.TREE)
    def restore(self, ctx: Restore) -> None:
        rows = {row.pid: row for row in ctx.rows(Process)}
        for row in rows.values():
            if row.parent == 1:
                host = ctx.init.fork_as(row.pid)
                _grow(ctx, rows, row, adopt(host, row.pid))
        _join_groups(ctx, rows)
        for row in rows.values():
            if row.zombie:
                _die(ctx.tasks.pop(row.pid), row.exit_status)


def _check_sessions(ctx: Dump) -> None:
    """Refuse what ``_grow`` could not rebuild."""
    rows = {row.pid: row for row in ctx.rows.get(Process, [])}
    for row in rows.values():
        own = row.session == row.pid
        parent = rows.get(row.parent)
        inherited = {1} if parent is None else {parent.session, _before_setsid(rows, parent)}
        if not own and row.session not in inherited:
            task = next(task for task in [*ctx.tasks, *ctx.zombies] if task.pid == row.pid)
            raise ctx.refuse(f"an orphan in session {row.session}", task, "let it start a session of its own (setsid)")


def _before_setsid(rows: dict[int, Process], row: Process) -> int:
    """The session that a process was born into."""
    if row.session != row.pid:
        return row.session
    parent = rows.get(row.parent)
    return 1 if parent is None else parent.session


def adopt(host: int, pid: int) -> Task:
    """Stop an empty task and make it ready for remote calls; it dies with its tracer.

    Args:
        host: its number here; ``pid``: in the pod.
    """
    ptrace.seize(host, STUB_OPTIONS)
    ptrace.interrupt(host)
    await_stop(host)
    return _stub(host, pid)


def _stub(host: int, pid: int) -> Task:
    leader = Tracee(host, host)
    ptrace.set_signal_mask(host, ALL_BUT_TRAP)
    registers = ptrace.get_registers(host)
    leader.prepare(find_instruction(host, proc.maps(host)), stack=registers.rsp - 4096 & ~0xF)
    return Task(pid, host, leader, {pid: leader})


def _grow(ctx: Restore, rows: dict[int, Process], row: Process, task: Task) -> None:
    """Register a new task and clone its children, those of its earlier session first."""
    ctx.tasks[row.pid] = task
    children = [child for child in rows.values() if child.parent == row.pid]
    own = row.session == row.pid
    elders = [child for child in children if own and child.session not in (child.pid, row.session)]
    for child in elders:
        _grow(ctx, rows, child, clone_child(task, child.pid))
    if own:
        task.call("setsid")
        for action in ctx.after_setsid:
            action(ctx, task)
    for child in children:
        if child not in elders:
            _grow(ctx, rows, child, clone_child(task, child.pid))


def clone_child(parent: Task, pid: int) -> Task:
    """Fork a stub under a chosen number; the arguments lie on the parent's stack, below what it uses."""
    tracee = parent.leader
    room = (ptrace.get_registers(tracee.tid).rsp - 2048) & ~0xF
    words = clone.clone_args(set_tid=room + clone.ARGS_SIZE, set_tid_size=1)
    tracee.write(room, struct.pack("11Qi", *words, pid))
    return _stub(tracee.clone(room, clone.ARGS_SIZE), pid)


def _join_groups(ctx: Restore, rows: dict[int, Process]) -> None:
    leaders_first = sorted(rows.values(), key=lambda row: row.group != row.pid)
    for row in leaders_first:
        if row.group == row.pid:
            if row.session != row.pid:
                ctx.tasks[row.pid].call("setpgid", 0, 0)
        elif row.group not in rows:
            _join_orphan_group(ctx, [member for member in rows.values() if member.group == row.group])
        elif _group_of(ctx.tasks[row.pid]) != row.group:
            ctx.tasks[row.pid].call("setpgid", 0, row.group)


def _group_of(task: Task) -> int:
    return task.call("getpgid", 0)


def _join_orphan_group(ctx: Restore, members: list[Process]) -> None:
    """A group whose leader has ended: a stand-in leads it until all members have joined."""
    group = members[0].group
    first = ctx.tasks[members[0].pid]
    if group == 1 or all(_group_of(ctx.tasks[member.pid]) == group for member in members):
        return
    leader = clone_child(first, group)
    leader.call("setpgid", 0, 0)
    for member in members:
        ctx.tasks[member.pid].call("setpgid", 0, group)
    _die(leader, 0)
    first.call("wait4", group, 0, _WALL, 0)


def _die(task: Task, status: int) -> None:
    """End a stub with a wait status; its parent finds a zombie when this returns."""
    host = task.host
    if os.WIFSIGNALED(status):
        resource.prlimit(host, resource.RLIMIT_CORE, (0, 0))
        ptrace.set_signal_mask(host, 0)
        os.kill(host, os.WTERMSIG(status))   # its default action comes before the stub's next instruction
    else:
        registers = ptrace.get_registers(host)
        registers.rip = task.leader.instruction
        registers.rax, registers.rdi, registers.orig_rax = NR["exit_group"], os.WEXITSTATUS(status), NO_CALL
        ptrace.set_registers(host, registers)
    with contextlib.suppress(ProcessLookupError):   # SIGKILL doesn't wait for the detach
        ptrace.detach(host)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(host, _WALL)
    while proc.stat(host).state != "Z":
        time.sleep(0.0005)
