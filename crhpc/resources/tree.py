"""Processes: ids, parents, process groups, sessions, zombies with their exit status, and job control.

Read from ``/proc/PID/status`` and ``stat``. Rebuilt from the pod's first process down: each is cloned under its old
number (clone3's set_tid) by who must have it to be in its session (lineage.py). A session or a group whose
leader is gone gets a stand-in for as long as it takes to join it.
"""
from __future__ import annotations

import contextlib
import os
import signal
import struct
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from crhpc.errors import PASSING, ImageDamaged, OtherMachine
from crhpc.kernel import clone, proc
from crhpc.resources import Chapter, Cut, Kind, Phase, at, stubs
from crhpc.resources.context import Dump, Restore, Task
from crhpc.resources.lineage import FIRST, Birth, End, NoLineage, Plan, plan
from crhpc.resources.sharing import TABLES, SharedTable, sharers

_P_PID, _WNOHANG, _WSTOPPED, _WCONTINUED, _WNOWAIT, _WALL = 1, 1, 2, 8, 0x1000000, 0x40000000
_SIGINFO_SIZE = 128
_CLD_STOPPED, _CLD_CONTINUED = 5, 6
_PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 15, 36
_LARGEST_ID = 1 << 22


@dataclass(frozen=True, slots=True)
class Process:
    """A process; all ids are the pod's. ``parent`` is 1 for those whose parent is the pod's first process."""

    pid: int
    parent: int
    thread: int = field(metadata={"doc": "the thread of the parent whose child it is; 0: of the first process"})
    group: int
    session: int
    zombie: bool
    exit_status: int = field(metadata={"doc": "as waitpid(2) gives it; zombies only"})
    exit_signal: int = field(metadata={"doc": "what its parent gets at its end: SIGCHLD, but for clone(2)"})
    stopped: bool = field(metadata={"doc": "stopped by a signal, as job control does"})
    report: int = field(metadata={"doc": "what its parent has not waited for yet: the signal that stopped it, SIGCONT "
                                         "that let it go on, or 0"})
    uid: int
    name: bytes = field(metadata={"doc": "of a zombie"})
    program: str


class TreeKind(Kind):
    name = "tree"
    chapter = Chapter.PROCESSES
    records = (Process,)
    saved = ("every process under its own id, with its parent (also where the child is that of a thread beside the "
             "first), process group and session, also those whose leader has ended; orphans; zombies with their exit "
             "status, name and user id; stopped processes, and whether their parents know; an exit signal other than "
             "SIGCHLD")
    refused = (
        ("a place in the process tree that no order of births leads to",
         "let it start a session of its own (setsid), and share no tables with others"),
        ("a process whose parent has just ended", PASSING),
        ("a process under a debugger", "detach the debugger"),
        ("as a plain user, a process that may not be traced",
         "run it without setuid, and without prctl(PR_SET_DUMPABLE, 0)"),
    )
    afterwards = ("the processor time of children that have ended is counted no more. Where the core pattern names a "
                  "program or a directory, the status of a zombie does not say that it left a core file, which is "
                  "told. A restart is refused where process ids end below those of the job (pid_max)")

    @at(Cut.INSPECT)
    def inspect(self, ctx: Dump) -> None:
        rows = ctx.state["processes"] = [*_rows(ctx)]
        tables = {flag: {ctx.pod_pid(host): first.pid for host, first in sharers(ctx, table).items()}
                  for table, (_kind, flag) in TABLES.items()}
        try:
            _plan(rows, tables)
        except NoLineage as error:
            task = next((task for task in [*ctx.tasks, *ctx.zombies] if task.pid == error.pid), ctx.tasks[0])
            raise ctx.refuse(f"the place in the process tree ({error})", task,
                             "let it start a session of its own (setsid), and share no tables with others") from None

    @at(Cut.COLLECT)
    def dump(self, ctx: Dump) -> None:
        rows: list[Process] = ctx.state.pop("processes")
        reports = dict(_reports(ctx, rows))
        for row in rows:
            ctx.add(replace(row, report=reports.get(row.pid, 0)))

    @at(Phase.CHECK)
    def check(self, ctx: Restore) -> None:
        rows = ctx.rows(Process)
        zombies = {row.pid for row in rows if row.zombie}
        if any(row.parent in zombies for row in rows):
            raise ImageDamaged(image=ctx.image, what="a process has a parent that has ended")
        tables: dict[int, dict[int, int]] = {}
        for shared in ctx.rows(SharedTable):
            if shared.table in TABLES:
                tables.setdefault(TABLES[shared.table][1], {})[shared.pid] = shared.first
        try:
            ctx.state["plan"] = _plan(rows, tables)
        except NoLineage as error:
            raise ImageDamaged(image=ctx.image, what=f"process {error.pid}: {error}") from None

    @at(Phase.POD)
    def check_ids(self, ctx: Restore) -> None:
        rows = ctx.rows(Process)
        most = int(ctx.init.request({"op": "read", "path": "/proc/sys/kernel/pid_max"})["text"])
        highest = max((max(row.pid, row.thread, row.group, row.session) for row in rows), default=0)
        if highest >= most:
            raise OtherMachine(image=ctx.image, what=f"the job has a process id {highest}, here they end at {most - 1}",
                               cure=f"sysctl kernel.pid_max={_LARGEST_ID}")

    @at(Phase.TREE)
    def restore(self, ctx: Restore) -> None:
        births: Plan = ctx.state.pop("plan")
        rows = {row.pid: row for row in ctx.rows(Process)}
        for birth in births.births:
            if birth.leads:
                _lead_session(ctx, ctx.tasks[birth.pid])
            else:
                ctx.tasks[birth.pid] = _bear(ctx, birth, rows.get(birth.pid))
        _join_groups(ctx, rows, births.spare)
        for end in births.ends:
            _end_stand_in(ctx, end)
        for row in rows.values():
            if row.zombie:
                _end_zombie(ctx, ctx.tasks.pop(row.pid), row)

    @at(Phase.CREDENTIALS)
    def stop(self, ctx: Restore) -> None:
        """When their actions are set, and before the signals that this sends to parents are cleared away."""
        for row in ctx.rows(Process):
            if row.stopped or row.report == signal.SIGCONT:
                task = ctx.tasks[row.pid]
                stubs.stop(task, row.report if row.stopped and row.report else signal.SIGSTOP)
                if not row.stopped:
                    os.kill(task.host, signal.SIGCONT)
                    task.call("getpid")   # its parent hears of it when it runs
                elif not row.report and row.parent != FIRST:
                    ctx.tasks[row.parent].call("waitid", _P_PID, row.pid, 0, _WSTOPPED | _WNOHANG | _WALL, 0)


def _plan(rows: list[Process], tables: dict[int, dict[int, int]]) -> Plan:
    """Sharers are given with the first that has the table; that one has it too."""
    whole = {flag: group | {first: first for first in group.values()} for flag, group in tables.items()}
    planned = plan(rows, avoid=[row.thread for row in rows], tables=whole)
    signals = {row.pid: row.exit_signal for row in rows}
    for birth in planned.births:
        if birth.beside and signals[birth.pid] != signals[birth.creator]:   # CLONE_PARENT: the creator's
            raise NoLineage(birth.pid, "it shares tables with a sibling that has another exit signal")
    return planned


# -- dump -----------------------------------------------------------------------------------------------
def _rows(ctx: Dump) -> Iterator[Process]:
    """In the order in which parents have their children, as wait(2) looks at them."""
    tasks = [*ctx.tasks, *ctx.zombies]
    stats = {task.host: proc.stat(task.host) for task in tasks}
    places: dict[int, tuple[int, int]] = {}   # a child's number here: its place among all, and the thread whose it is
    for parent in dict.fromkeys(stat.ppid for stat in stats.values()):
        for tid in proc.threads(parent):
            with contextlib.suppress(OSError):
                for child in proc.read(f"/proc/{parent}/task/{tid}/children").split():
                    places[int(child)] = len(places), tid
    for task in sorted(tasks, key=lambda task: places.get(task.host, (0, 0))[0]):
        status, stat = proc.status(task.host), stats[task.host]
        parent = ctx.pod_pid(stat.ppid)
        if parent == 0:
            raise ctx.refuse("a process whose parent has just ended", task, PASSING)
        yield Process(
            pid=task.pid, parent=parent, thread=_thread(ctx, parent, places.get(task.host, (0, 0))[1]),
            group=status.inner("NSpgid"), session=status.inner("NSsid"), zombie=task.zombie,
            exit_status=stat.exit_code if task.zombie else 0, exit_signal=stat.exit_signal, stopped=task.stopped,
            report=0, uid=status.numbers("Uid")[0], name=proc.comm(task.host) if task.zombie else b"",
            program=proc.program(task.host))


def _thread(ctx: Dump, parent: int, host: int) -> int:
    """The pod's number of a parent's thread."""
    task = ctx.task(parent)
    if task is None:
        return 0
    return next((tid for tid, tracee in task.threads.items() if tracee.tid == host), parent)


def _reports(ctx: Dump, rows: Iterable[Process]) -> Iterator[tuple[int, int]]:
    """What parents would get from waitid(2) of children that stopped or went on; it is left there."""
    below: dict[int, list[Process]] = {}
    for row in rows:
        if not row.zombie:
            below.setdefault(row.parent, []).append(row)
    for pid, children in below.items():
        task = ctx.task(pid)
        if task is None:   # the pod's first process takes no notice
            continue
        for start in range(0, len(children), at_once := task.area.room // _SIGINFO_SIZE):
            group = children[start:start + at_once]
            task.leader.write(task.area.data, bytes(len(group) * _SIGINFO_SIZE))
            task.area.run([("waitid", (_P_PID, row.pid, task.area.data + i * _SIGINFO_SIZE,
                                       _WSTOPPED | _WCONTINUED | _WNOHANG | _WNOWAIT | _WALL, 0))
                           for i, row in enumerate(group)])
            raw = task.leader.read(task.area.data, len(group) * _SIGINFO_SIZE)
            for i, row in enumerate(group):
                code, status = struct.unpack_from("8xi12xi", raw, i * _SIGINFO_SIZE)
                if code in (_CLD_STOPPED, _CLD_CONTINUED):
                    yield row.pid, status


# -- restore --------------------------------------------------------------------------------------------
def _bear(ctx: Restore, birth: Birth, row: Process | None) -> Task:
    if birth.creator == FIRST:
        return stubs.fork_stub(ctx, birth.pid)
    parent = ctx.tasks[birth.creator]
    if row is None or row.parent != birth.creator:
        return stubs.clone_stub(parent, birth.pid, flags=birth.flags | (clone.CLONE_PARENT if birth.beside else 0))
    thread = row.thread or birth.creator
    if thread not in parent.threads:
        parent.threads[thread] = stubs.clone_thread(parent, thread)
    return stubs.clone_stub(parent, birth.pid, thread=thread, exit_signal=row.exit_signal, flags=birth.flags)


def _lead_session(ctx: Restore, task: Task) -> None:
    task.call("setsid")
    for action in ctx.after_setsid:
        action(ctx, task)


def _join_groups(ctx: Restore, rows: dict[int, Process], spare: Iterator[int]) -> None:
    """All were born into the first group of their session, and join their own when all groups are there."""
    joining: dict[int, list[Process]] = {}
    for row in rows.values():
        if row.group != row.session:
            joining.setdefault(row.group, []).append(row)
    stand_ins: list[tuple[Task, Task]] = []
    for group, members in joining.items():
        first = ctx.tasks[members[0].pid]
        leader = ctx.tasks.get(group) or stubs.clone_stub(first, group)
        leader.call("setpgid", 0, 0)
        if group not in rows:
            stand_ins.append((leader, first))
        elif all(row.pid in joining for row in members if row.pid != group):
            keeper = stubs.clone_stub(first, next(spare))   # its leader may leave before anybody has come
            keeper.call("setpgid", 0, group)
            stand_ins.append((keeper, first))
    for row in sorted(rows.values(), key=lambda row: row.pid in joining):   # who has left its own group goes last
        if row.group not in (row.pid, row.session):
            ctx.tasks[row.pid].call("setpgid", 0, row.group)
    for task, parent in stand_ins:
        stubs.end(task)
        parent.call("wait4", task.pid, 0, _WALL, 0)


def _end_stand_in(ctx: Restore, end: End) -> None:
    """Its children go to the nearest child subreaper above, which is the heir for this moment."""
    task, heir = ctx.tasks.pop(end.pid), ctx.tasks.get(end.heir)
    if heir is not None:
        heir.call("prctl", _PR_SET_CHILD_SUBREAPER, 1)
    stubs.end(task)
    if heir is not None:
        heir.call("prctl", _PR_SET_CHILD_SUBREAPER, 0)
    if end.creator == FIRST:
        stubs.await_reaping(task.host)
    else:
        ctx.tasks[end.creator].call("wait4", end.pid, 0, _WALL, 0)


def _end_zombie(ctx: Restore, task: Task, row: Process) -> None:
    status = row.exit_status
    _name(task, row.name)
    if row.uid != os.getuid() and os.getuid() == 0:
        task.call("setresuid", row.uid, row.uid, row.uid)
    with contextlib.ExitStack() as stack:
        if os.WCOREDUMP(status):
            place = tempfile.TemporaryDirectory(dir=ctx.pod.outside(ctx.pod.temporary))
            status &= 0xFF if _leaves_core_in(stack.enter_context(place), ctx, task) else 0x7F
        stubs.end(task, status)
    ctx.zombies[row.pid] = task.host


def _name(task: Task, name: bytes) -> None:
    room = stubs.stack_room(task)
    task.leader.write(room, name[:15] + b"\0")
    task.call("prctl", _PR_SET_NAME, room)


def _leaves_core_in(place: str, ctx: Restore, task: Task) -> bool:
    """Let a stub's core file be a small one in a directory that will go, if it depends on the directory (core(5))."""
    if Path("/proc/sys/kernel/core_pattern").read_bytes().startswith((b"|", b"/", b"@")):
        ctx.warn(f"pid {task.pid} had left a core file before the checkpoint; its parent will not be told of that")
        return False
    os.chmod(place, 0o777)
    room = stubs.stack_room(task)
    task.leader.write(room, os.fsencode(place.removeprefix(ctx.pod.root)) + b"\0")
    task.call("chdir", room)
    return True
