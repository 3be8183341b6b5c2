"""Stopping every thread of a pod, borrowing tasks for remote calls, and letting them go unchanged."""
from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from crhpc.engine.scratch import map_area
from crhpc.engine.watch import STOP_SIGNALS, watch
from crhpc.errors import CheckpointFailed, Unsupported
from crhpc.kernel import pidfd, proc, ptrace
from crhpc.kernel.reaper import Reaper
from crhpc.kernel.tracee import ALL, ALL_BUT_TRAP, TaskGone, Tracee, event, find_instruction, wait
from crhpc.resources.context import Task

_ACTION_SIZE = 32
_SIG_IGN = 1
_ATTEMPTS, _PATIENCE, _PAUSE, _LET_GO = 8, 0.25, 0.03, 0.1
_VFORK = 0.002
"""Seconds after which a thread that does not stop may be in vfork(2)."""


@dataclass(slots=True)
class Frozen:
    """A pod that stands still."""

    tasks: list[Task] = field(default_factory=list)
    """Parents before their children."""
    zombies: list[Task] = field(default_factory=list)
    reaper: Reaper | None = None
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
    reaper: Reaper | None = Reaper()
    try:
        for attempt in range(_ATTEMPTS):
            attempt_pause = _PAUSE * (attempt + 1)
            try:
                frozen = _Freezer(init).freeze()
            except NotStopping as error:
                reason = error
                time.sleep(attempt_pause)
            else:
                frozen.reaper, reaper = reaper, None
                return frozen
    finally:
        if reaper is not None:
            reaper.stop()
    raise CheckpointFailed(why=str(reason),
                           cure="try again; a process that hangs in a device or a file system can't be saved")


class _Freezer:
    def __init__(self, init: int) -> None:
        self.init = init
        self.frozen = Frozen()
        self.known: dict[int, dict[int, bool]] = {}
        """process -> thread -> whether it stands still"""
        self.group_stopped: set[int] = set()
        self.tracees: dict[int, Tracee] = {}
        self.gone: set[int] = set()
        """Threads that had ended when we came to them: what they have left behind may be where we had just looked."""
        self.bearers: set[int] = set()
        """Threads with children, who are told of their ends by SIGCHLD; of processes that have several threads."""

    def freeze(self) -> Frozen:
        watch.look(self.init)
        self.bearers = set(_bearers(self.init))
        watch.pause()
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
        """Interrupt what is not known yet; whether there may be more."""
        more = False
        for pid in proc.descendants(self.init):
            threads = self.known.setdefault(pid, {})
            new = self._targets_last(pid, [tid for tid in proc.threads(pid) or [pid] if tid not in threads])
            for tid in new:
                if self._seize(pid, tid):
                    threads[tid] = False
                    more = True
                elif tid not in self.gone:
                    self.gone.add(tid)
                    more = True
            for tid in new:
                with contextlib.suppress(ProcessLookupError):   # its end is ours to be told of
                    if tid in threads:
                        ptrace.interrupt(tid)
        return more

    def _targets_last(self, pid: int, tids: Iterable[int]) -> list[int]:
        """Those that signals are for are traced last, and go first at the thaw.

        An ignored signal is kept where its thread is traced (sig_ignored), and may end the call of one that is not.
        """
        return sorted(tids, key=lambda tid: (tid == pid, tid in self.bearers))

    def _seize(self, pid: int, tid: int) -> bool:
        """Whether a thread is ours; not where it has ended. In the midst of an exec none can be had for a moment."""
        for _attempt in range(_ATTEMPTS):
            try:
                if tid not in watch:
                    ptrace.seize(tid, ptrace.O_TRACESYSGOOD)
                return True
            except ProcessLookupError:
                return False
            except PermissionError:
                try:
                    status = proc.status(pid, tid)
                except OSError:
                    return False
                if status.fields.get("State", "Z")[:1] in "ZX":
                    return False
                if status.number("TracerPid") == os.getpid():   # a thread of ours that has this number since an exec
                    return True
                time.sleep(0.001)
        self._explain(pid, status)
        return False

    def _explain(self, pid: int, status: proc.Status) -> None:
        tracer = status.number("TracerPid")
        if tracer:
            raise Unsupported(what=f"a process under {proc.program(tracer)}", pid=status.inner("NSpid"),
                              program=proc.program(pid), cure="detach the debugger")
        raise Unsupported(what="a process that may not be traced", pid=status.inner("NSpid"), program=proc.program(pid),
                          cure="run it without setuid, and without prctl(PR_SET_DUMPABLE, 0)") from None

    def _await_all(self) -> None:
        begun = time.monotonic()
        waiting = [(pid, tid) for pid, threads in self.known.items() for tid, still in threads.items() if not still]
        while waiting:
            left = [(pid, tid) for pid, tid in waiting if not self._stands_still(pid, tid)]
            if len(left) == len(waiting):
                if time.monotonic() > begun + _PATIENCE:
                    pid, tid = left[0]
                    raise NotStopping(f"thread {tid} of {proc.program(pid)} does not stop")
                if time.monotonic() > begun + _VFORK:
                    self._free_borrowers(left)
                time.sleep(0.0001)
            waiting = left

    def _stands_still(self, pid: int, tid: int) -> bool:
        try:
            status = wait(tid, block=False)
            if status is None:
                return False
            if watch.knows(tid):
                still = watch.stands_still(tid, status)
            elif event(status) != ptrace.EVENT_STOP:
                number = os.WSTOPSIG(status)
                ptrace.cont(tid, number if event(status) == 0 else 0)
                return False
            else:
                still = True
        except TaskGone:
            del self.known[pid][tid]
            return True
        except ProcessLookupError:   # killed: its end is on its way
            return False
        if os.WSTOPSIG(status) in STOP_SIGNALS and event(status) == ptrace.EVENT_STOP:
            self.group_stopped.add(pid)
        self.known[pid][tid] = still
        return still

    def _free_borrowers(self, waiting: list[tuple[int, int]]) -> None:
        """A thread in vfork(2) stops when its child has an address space of its own: let that go for as long."""
        for pid, tid in waiting:
            for child in proc.children(pid, tid):
                threads = self.known.get(child, {})
                with contextlib.suppress(OSError):
                    if threads and all(threads.values()) and pidfd.kcmp(pid, child, pidfd.KCMP_VM) == 0:
                        self._let_go_still(child, threads)
                        del self.known[child]

    def _make_tasks(self) -> None:
        for pid in proc.descendants(self.init):
            threads = self.known.get(pid, {})
            if not threads:
                self._note_zombie(pid)
                continue
            numbers = dict(self._numbered(pid, tid) for tid in self._targets_last(pid, threads)[::-1])
            number = proc.status(pid).inner("NSpid")
            if pid not in threads:
                raise Unsupported(what="a process whose first thread has ended", pid=number, program=proc.program(pid),
                                  cure="let the first thread wait for the others")
            self.frozen.tasks.append(Task(number, pid, numbers[number], numbers, proc.smaps(pid),
                                          stopped=pid in self.group_stopped))

    def _note_zombie(self, pid: int) -> None:
        """Those of the pod's first process are about to be reaped, or have been meanwhile."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            stat = proc.stat(pid)
            if stat.state == "Z" and stat.ppid != self.init:
                number = proc.status(pid).inner("NSpid")
                self.frozen.zombies.append(Task(number, pid, Tracee(pid, pid), zombie=True))

    def _numbered(self, pid: int, tid: int) -> tuple[int, Tracee]:
        """A thread and its number in the pod."""
        try:
            tracee = self._examined(pid, tid)
            number, waiting = proc.glance(pid, tid)
        except (ProcessLookupError, FileNotFoundError):
            raise NotStopping(f"thread {tid} of {proc.program(pid)} is being killed") from None
        tracee.careful = bool(waiting & ALL & ~ALL_BUT_TRAP)
        return number, tracee

    def _examined(self, pid: int, tid: int) -> Tracee:
        """A thread that stands still, once it is known what it has been stopped in: that can be found out only once."""
        if tid not in self.tracees:
            tracee = Tracee(pid, tid)
            watch.examine(tracee, stopped=pid in self.group_stopped)
            self.tracees[tid] = tracee
        return self.tracees[tid]

    def _let_go(self) -> None:
        """Those that never stopped do so now that the others run again, or some time."""
        deadline = time.monotonic() + _LET_GO
        while True:
            for pid, threads in self.known.items():
                self._let_go_still(pid, threads)
                for tid in list(threads):
                    self._stands_still(pid, tid)
            if not any(self.known.values()) or time.monotonic() > deadline:
                break
            time.sleep(0.0005)
        for pid, threads in self.known.items():
            for tid in threads:
                watch.let_go_later(Tracee(pid, tid))
        watch.resume()

    def _let_go_still(self, pid: int, threads: dict[int, bool]) -> None:
        """Let the threads of a process go that stand still."""
        for tid in [tid for tid, still in threads.items() if still]:
            try:
                watch.go_on([self._examined(pid, tid)])
            except ProcessLookupError:   # it is being killed
                watch.let_go_later(Tracee(pid, tid))
            self.tracees.pop(tid, None)
            del threads[tid]


def _bearers(init: int) -> Iterator[int]:
    for pid in proc.descendants(init):
        threads = proc.threads(pid)
        if len(threads) > 1:
            yield from (tid for tid in threads if proc.children(pid, tid))


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
        """Block signals, keep registers, and map a scratch area in each process.

        Raises:
            OSError: a process has no vdso, or no address space left.
        """
        for task in self.frozen.tasks:
            instruction = find_instruction(task.host, task.mappings)
            for tracee in task.threads.values():
                self.loans[tracee] = _Loan(tracee.registers, ptrace.get_signal_mask(tracee.tid))
                ptrace.set_signal_mask(tracee.tid, ALL if tracee.careful else ALL_BUT_TRAP)
                tracee.prepare(instruction)
            task.mapped_area = map_area(task)
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
    watch.go_on([tracee for task in frozen.tasks for tracee in task.threads.values()])
    watch.resume()
    seconds = time.monotonic() - frozen.stopped_at
    give_up(frozen)
    return seconds


def give_up(frozen: Frozen | None) -> None:
    """Have nothing more to do with a pod that stands still, or did: it will be ended."""
    if frozen is not None and frozen.reaper is not None:
        frozen.reaper.stop()


def kill(frozen: Frozen) -> None:
    """End a frozen pod's tasks; the pod's first process reaps them."""
    for task in frozen.tasks:
        with contextlib.suppress(ProcessLookupError):
            os.kill(task.host, signal.SIGKILL)
    for task in frozen.tasks:
        for tracee in sorted(task.threads.values(), key=lambda tracee: tracee.tid == tracee.pid):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(tracee.tid, 0x40000000)
    give_up(frozen)
    watch.resume()
