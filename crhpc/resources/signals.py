"""Signal actions of processes, and pending signals of processes and threads with their order and siginfo.

Actions are read by remote rt_sigaction(2) calls: /proc shows neither flags nor masks. Pending signals are read
by PTRACE_PEEKSIGINFO and queued again by the task to itself, the only sender that may give any siginfo.
"""
from __future__ import annotations

import signal
import struct
from dataclasses import dataclass, field

from crhpc.image.records import U64
from crhpc.kernel import ptrace
from crhpc.kernel.libc import NR
from crhpc.kernel.tracee import ALL, Batch
from crhpc.resources import Chapter, Cut, Kind, Phase, at
from crhpc.resources.context import Dump, Restore, Task

ACTION_SIZE = 32
"""struct kernel_sigaction: handler, flags, restorer, mask."""
_BATCHED = [n for n in range(1, 65) if n not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTRAP)]


@dataclass(frozen=True, slots=True)
class SignalAction:
    """What a process does at a signal; signals with the default action and nothing else have no row."""

    pid: int
    signal: int
    handler: U64
    flags: U64
    restorer: U64
    mask: U64


@dataclass(frozen=True, slots=True)
class PendingSignal:
    """A signal that waits to be delivered; rows are in the order of the queue."""

    pid: int
    tid: int = field(metadata={"doc": "0: to the process, any thread may take it"})
    info: bytes = field(metadata={"doc": "siginfo_t as the kernel keeps it, 128 bytes"})


class SignalsKind(Kind):
    name = "signals"
    chapter = Chapter.EVENTS
    records = (SignalAction, PendingSignal)
    saved = ("signal actions of every process; pending signals of processes and threads, in their order and with all "
             "that they tell")
    afterwards = "timers send their signals again: their order among other signals of the same number may differ"

    @at(Cut.CONTENT)
    def dump_pending(self, ctx: Dump) -> None:
        """After the timers: what has fired by then and is armed no more has left its signal."""
        for task in ctx.tasks:
            for info in ptrace.pending_signals(task.host, shared=True):
                ctx.add(PendingSignal(task.pid, 0, info))
            for tid, tracee in task.threads.items():
                for info in ptrace.pending_signals(tracee.tid, shared=False):
                    ctx.add(PendingSignal(task.pid, tid, info))

    @at(Cut.COLLECT)
    def dump_actions(self, ctx: Dump) -> None:
        for task in ctx.tasks:
            room = task.area.data
            task.area.run([("rt_sigaction", (n, 0, room + n * ACTION_SIZE, 8)) for n in _BATCHED])
            raw = bytearray(task.leader.read(room, ACTION_SIZE * 65))
            raw[signal.SIGTRAP * ACTION_SIZE:(signal.SIGTRAP + 1) * ACTION_SIZE] = task.trap_action
            for number in [*_BATCHED, signal.SIGTRAP]:
                words = struct.unpack_from("4Q", raw, number * ACTION_SIZE)
                if any(words):
                    ctx.add(SignalAction(task.pid, number, *map(U64, words)))

    @at(Phase.STATE)
    def restore_actions(self, ctx: Restore) -> None:
        by_pid: dict[int, dict[int, SignalAction]] = {pid: {} for pid in ctx.tasks}
        for row in ctx.rows(SignalAction):
            by_pid[row.pid][row.signal] = row
        for pid, actions in by_pid.items():
            with ctx.tasks[pid].area.batch() as batch:
                for number in _BATCHED:
                    batch.call("rt_sigaction", number, _raw(batch, actions.get(number)), 0, 8)

    @at(Phase.QUEUE)
    def queue_pending(self, ctx: Restore) -> None:
        for task in ctx.tasks.values():
            # What the building itself caused: SIGCHLD of stand-ins and zombies.
            task.leader.write(task.area.data, struct.pack("QQQ", (1 << 64) - 1, 0, 0))
            while task.leader.call_raw(NR["rt_sigtimedwait"], task.area.data, 0, task.area.data + 8, 8) >= 0:
                pass
        timers: set[tuple[int, int | None]] = ctx.state.get("timers", set())   # they send theirs again
        for row in ctx.rows(PendingSignal):
            if _number(row) != signal.SIGTRAP and (row.pid, ptrace.timer_of(row.info)) not in timers:
                _queue(ctx.tasks[row.pid], row)

    @at(Phase.LAST)
    def queue_traps(self, ctx: Restore) -> None:
        """Those that wait are blocked; the runner needed them not to be."""
        for row in ctx.rows(PendingSignal):
            if _number(row) == signal.SIGTRAP:
                task = ctx.tasks[row.pid]
                for tracee in task.threads.values():
                    ptrace.set_signal_mask(tracee.tid, ALL)
                _queue(task, row)

    @at(Phase.LAST)
    def restore_trap_action(self, ctx: Restore) -> None:
        for row in ctx.rows(SignalAction):
            if row.signal == signal.SIGTRAP:
                task = ctx.tasks[row.pid]
                task.leader.write(task.area.data, struct.pack("4Q", row.handler, row.flags, row.restorer, row.mask))
                task.call("rt_sigaction", row.signal, task.area.data, 0, 8)


def _number(row: PendingSignal) -> int:
    return int(struct.unpack_from("i", row.info)[0])


def _queue(task: Task, row: PendingSignal) -> None:
    room = task.area.data
    task.leader.write(room, row.info)
    if row.tid:
        task.threads[row.tid].call("rt_tgsigqueueinfo", row.pid, row.tid, _number(row), room)
    else:
        task.call("rt_sigqueueinfo", row.pid, _number(row), room)


def _raw(batch: Batch, row: SignalAction | None) -> int:
    words = (row.handler, row.flags, row.restorer, row.mask) if row else (0, 0, 0, 0)
    return batch.put(struct.pack("4Q", *words))
