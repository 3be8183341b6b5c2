"""Stopping every thread of a pod, borrowing tasks for remote calls, and letting them go unchanged."""
from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass, field

from crhpc.errors import CheckpointFailed, Unsupported
from crhpc.kernel import proc, ptrace
from crhpc.kernel.tracee import ALL_BUT_TRAP, Area, TaskGone, Tracee, event, find_instruction, wait
from crhpc.resources.context import Task

_AREA_SIZE = 128 << 10
_ACTION_SIZE = 32
_SIG_IGN = 1
_STOP_SIGNALS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_ATTEMPTS, _PATIENCE, _PAUSE, _LET_GO = 8, 0.25, 0.03, 5.0


@dataclass(slots=True)
class Frozen:
    """A pod that stands still."""

    tasks: list[Task] = field(default_factory=list)
    """Parents before their children."""
    zombies: list[Task] = field(default_factory=list)
    stopped_at: float = 0.0
    """CLOCK_MONOTONIC of the first interrupt, seconds."""


class NotStopping(TimeoutError):
    """A thread does not stop: it waits for something that other threads must do (vfork(2)) or for a device."""


def freeze(init: int) -> Frozen:
    """Stop every thread below a pod's first process.

    A vfork in progress can't be stopped on its own; such a freeze is given up and tried again a moment
    later, a few times.

    Raises:
        Unsupported: a task is being debugged, or may not be traced.
        CheckpointFailed: threads did not stop.
    """
    for attempt in range(_ATTEMPTS):
        attempt_pause = _PAUSE * (attempt + 1)
        try:
            return _Freezer(init).freeze()
        except NotStopping as error:
            reason = error
            time.sleep(attempt_pause)
    raise CheckpointFailed(why=str(reason),
                           cure="try again; a process that hangs in a device or a file system can't be saved")


class _Freezer:
    def __init__(self, init: int) -> None:
        self.init = init
        self.frozen = Frozen()
        self.known: dict[int, dict[int, bool]] = {}
        """process -> thread -> whether it stands still"""
        self.group_stopped: set[int] = set()

    def freeze(self) -> Frozen:
        self.frozen.stopped_at = time.monotonic()
        try:
            while self._seize_new():
                self._await_all()
            self._make_tasks()
        except BaseException:
            self._let_go()
            raise
        return self.frozen

    def _seize_new(self) -> bool:
        """Interrupt what is not known yet; whether there was any."""
        found = False
        for pid in proc.descendants(self.init):
            threads = self.known.setdefault(pid, {})
            for tid in proc.threads(pid):
                if tid not in threads and self._seize(pid, tid):
                    threads[tid] = False
                    found = True
        return found

    def _seize(self, pid: int, tid: int) -> bool:
        try:
            ptrace.seize(tid, ptrace.O_TRACESYSGOOD)
            ptrace.interrupt(tid)
            return True
        except ProcessLookupError:
            return False
        except PermissionError:
            return self._explain(pid, tid)

    def _explain(self, pid: int, tid: int) -> bool:
        try:
            status = proc.status(pid, tid)
        except OSError:
            return False
        if status.fields.get("State", "Z")[:1] in "ZX":
            return False
        tracer = status.number("TracerPid")
        if tracer:
            raise Unsupported(what=f"a process under {proc.program(tracer)}", pid=status.inner("NSpid"),
                              program=proc.program(pid), cure="detach the debugger")
        raise Unsupported(what="a process that may not be traced", pid=status.inner("NSpid"), program=proc.program(pid),
                          cure="run it without setuid, and without prctl(PR_SET_DUMPABLE, 0)") from None

    def _await_all(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        waiting = [(pid, tid) for pid, threads in self.known.items() for tid, still in threads.items() if not still]
        while waiting:
            left = [(pid, tid) for pid, tid in waiting if not self._stands_still(pid, tid)]
            if len(left) == len(waiting):
                if time.monotonic() > deadline:
                    pid, tid = left[0]
                    raise NotStopping(f"thread {tid} of {proc.program(pid)} does not stop")
                time.sleep(0.0001)
            waiting = left

    def _stands_still(self, pid: int, tid: int) -> bool:
        try:
            status = wait(tid, block=False)
        except TaskGone:
            del self.known[pid][tid]
            return True
        if status is None:
            return False
        if event(status) != ptrace.EVENT_STOP:
            number = os.WSTOPSIG(status)
            ptrace.cont(tid, number if event(status) == 0 else 0)
            return False
        if os.WSTOPSIG(status) in _STOP_SIGNALS:
            self.group_stopped.add(pid)
        self.known[pid][tid] = True
        return True

    def _make_tasks(self) -> None:
        for pid in proc.descendants(self.init):
            threads = self.known.get(pid, {})
            if not threads:
                stat = proc.stat(pid)
                if stat.state == "Z" and stat.ppid != self.init:   # the pod's first process is about to reap its own
                    number = proc.status(pid).inner("NSpid")
                    self.frozen.zombies.append(Task(number, pid, Tracee(pid, pid), zombie=True))
                continue
            numbers = {proc.status(pid, tid).inner("NSpid"): Tracee(pid, tid) for tid in threads}
            number = proc.status(pid).inner("NSpid")
            if pid not in threads:
                raise Unsupported(what="a process whose first thread has ended", pid=number, program=proc.program(pid),
                                  cure="let the first thread wait for the others")
            self.frozen.tasks.append(Task(number, pid, numbers[number], numbers, proc.smaps(pid),
                                          stopped=pid in self.group_stopped))

    def _let_go(self) -> None:
        """Those that never stopped do so now that the others run again."""
        _detach_all([tid for threads in self.known.values() for tid in threads])


def _detach_all(threads: list[int]) -> None:
    """Let threads go; of those that were killed meanwhile, take the status, else their parents never get it."""
    deadline = time.monotonic() + _LET_GO
    while (threads := [tid for tid in threads if not _try_detach(tid)]) and time.monotonic() < deadline:
        time.sleep(0.001)


def _try_detach(tid: int) -> bool:
    """Whether a thread is on its own again; one that has not stopped yet can't be let go."""
    try:
        ptrace.detach(tid)
        return True
    except ProcessLookupError:
        with contextlib.suppress(TaskGone, ProcessLookupError):
            status = wait(tid, block=False)
            if status is None:
                return False
            ptrace.detach(tid, os.WSTOPSIG(status) if event(status) == 0 else 0)
        return True


@dataclass(slots=True)
class _Loan:
    """What a thread had before it was borrowed."""

    registers: ptrace.Registers
    mask: int


class Borrowed:
    """The threads of a frozen pod while remote calls may be made in them."""

    def __init__(self, frozen: Frozen) -> None:
        self.frozen = frozen
        self.loans: dict[Tracee, _Loan] = {}

    def borrow(self) -> None:
        """Block signals, note registers, and map a scratch area in each process.

        Raises:
            OSError: a process has no vdso, or no address space left.
        """
        for task in self.frozen.tasks:
            instruction = find_instruction(task.host, task.mappings)
            for tracee in task.threads.values():
                self.loans[tracee] = _Loan(ptrace.get_registers(tracee.tid), ptrace.get_signal_mask(tracee.tid))
                ptrace.set_signal_mask(tracee.tid, ALL_BUT_TRAP)
                tracee.prepare(instruction)
            address = task.call("mmap", 0, _AREA_SIZE, 7, 0x22, -1, 0)   # PROT_ALL, MAP_PRIVATE | MAP_ANONYMOUS
            task.mapped_area = Area(task.leader, address, _AREA_SIZE)
            task.call("rt_sigaction", signal.SIGTRAP, 0, task.area.data, 8)
            task.trap_action = task.leader.read(task.area.data, _ACTION_SIZE)

    def give_back(self) -> None:
        """Leave every thread as it was; never raises for one that has died."""
        for task in self.frozen.tasks:
            with contextlib.suppress(OSError):
                self._unmap(task)
            for tracee in task.threads.values():
                loan = self.loans.pop(tracee, None)
                if loan is not None:
                    with contextlib.suppress(OSError):
                        ptrace.set_registers(tracee.tid, loan.registers)
                        ptrace.set_signal_mask(tracee.tid, loan.mask)

    def _unmap(self, task: Task) -> None:
        area = task.mapped_area
        if area is None:
            return
        if int.from_bytes(task.trap_action[:8], "little") == _SIG_IGN:   # the runner's end has reset it
            task.leader.write(area.data, task.trap_action)
            task.call("rt_sigaction", signal.SIGTRAP, area.data, 0, 8)
        task.call("munmap", area.address, area.size)
        task.mapped_area = None


def thaw(frozen: Frozen) -> float:
    """Let every thread go on; how long the pod stood still, in seconds."""
    for task in frozen.tasks:
        with contextlib.suppress(ProcessLookupError):
            for tracee in task.threads.values():
                for number in tracee.deferred:
                    os.kill(task.host, number)
    _detach_all([tracee.tid for task in frozen.tasks for tracee in task.threads.values()])
    return time.monotonic() - frozen.stopped_at


def kill(frozen: Frozen) -> None:
    """End a frozen pod's tasks; the pod's first process reaps them."""
    for task in frozen.tasks:
        with contextlib.suppress(ProcessLookupError):
            os.kill(task.host, signal.SIGKILL)
    for task in frozen.tasks:
        for tracee in sorted(task.threads.values(), key=lambda tracee: tracee.tid == tracee.pid):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(tracee.tid, 0x40000000)
