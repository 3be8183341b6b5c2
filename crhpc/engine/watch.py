"""Calls in progress over a freeze: most go on by themselves, some have to be watched until they end.

A thread whose call would start again with all of its time, or end with a part of its bytes, is not let go at the
thaw. It makes the call again for what is left, and stays traced for as long as that takes; then it gets
the arguments that it had, and the result that it would have had. A signal ends that early, as it would have ended the
call. SIGCHLD tells this process that one of them has stopped, and its handler sees to it, whatever else this process
does at the time; but not while a pod stands still, when every stop is waited for.

There is one ``Watch`` in a process, as there is one table of what it traces.
"""
from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from crhpc.engine.interruption import Look, cut_short, end_of_time, look, now, reader, was_interrupted
from crhpc.kernel import calls, proc, ptrace, transfers, vm
from crhpc.kernel.calls import Call
from crhpc.kernel.libc import NR
from crhpc.kernel.tracee import ALL, NO_CALL, SYSCALL_STOP, TaskGone, Tracee, event, wait

_ENOSYS = 38
"""What rax holds at the entry to a call (arch/x86/entry)."""
_RED_ZONE = 128
_IGNORED_BY_DEFAULT = {signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH}
STOP_SIGNALS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)


@dataclass(slots=True)
class _Watched:
    """A thread that makes its call again."""

    tracee: Tracee
    call: Call
    arguments: tuple[int, ...]
    """As the program gave them."""
    mask: int
    patches: list[tuple[int, bytes]] = field(default_factory=list)
    """(address, content) of the program's memory to be put back."""
    ended: int = -calls.ERESTARTNOHAND
    """What the call returned when a signal interrupted it."""
    hurried: bool = False
    """Whether it was interrupted since its time is over."""


class Watch:
    """The threads that are watched, and what is known of calls that the kernel makes again."""

    def __init__(self) -> None:
        self._watched: dict[int, _Watched] = {}
        self._kept: dict[int, tuple[Call, tuple[int, ...]]] = {}
        """Calls that threads were in at an earlier stop: the kernel hides them behind restart_syscall(2)."""
        self._looks: dict[int, Look] = {}
        self._leaving: dict[int, Tracee] = {}
        """Threads to be let go as soon as they stop."""
        self._paused = False
        self._tending = self._again = False

    # -- the freeze -------------------------------------------------------------------------------
    def look(self, init: int) -> None:
        """See what the threads of a pod wait for, shortly before it is stopped."""
        self.tend()
        self._kept = {tid: known for tid, known in self._kept.items() if os.path.exists(f"/proc/{tid}")}
        self._looks = look(init, self._watched, self._kept)

    def pause(self) -> None:
        """From here on all stops are the freeze's."""
        self._paused = True
        self._listen()

    def resume(self) -> None:
        """See to those that are watched again."""
        self._paused = False
        self._listen()
        self.tend()

    def __contains__(self, tid: int) -> bool:
        """Whether a thread is traced already."""
        return tid in self._watched or tid in self._leaving

    def knows(self, tid: int) -> bool:
        """Whether a thread is in a call that is watched."""
        return tid in self._watched

    def stands_still(self, tid: int, status: int) -> bool:
        """See to a stop of a watched thread that was interrupted; whether it was the last.

        Raises:
            TaskGone, ProcessLookupError: it is dying.
        """
        watched = self._watched[tid]
        number = os.WSTOPSIG(status)
        registers = ptrace.get_registers(tid)
        if number == SYSCALL_STOP and calls.result(registers) == -_ENOSYS:   # about to begin
            ptrace.interrupt(tid)
            ptrace.syscall(tid)
            return False
        if number != SYSCALL_STOP and event(status) == 0:
            if _ignores(watched.tracee.pid, number):   # which stops a thread that is traced, and nothing else
                ptrace.interrupt(tid)
                ptrace.cont(tid, 0)
                return False
            self._end(watched, watched.call.moved or watched.ended)
            ptrace.interrupt(tid)
            ptrace.cont(tid, number)
            return False
        if number in STOP_SIGNALS:
            self._end(watched, watched.call.moved or watched.ended)
            return True
        result = calls.result(registers)
        if was_interrupted(result):
            self._put_back(watched, -calls.ERESTARTNOHAND)
        elif 0 < result < watched.call.wanted - watched.call.moved:
            watched.call.moved += result
            self._put_back(watched, -calls.ERESTARTNOHAND)
        else:
            self._end(watched, _whole(watched.call, result))
        return True

    def examine(self, tracee: Tracee, *, stopped: bool) -> None:
        """Find out what call a thread is in that stands still, and let it look like one that goes on by itself.

        Args:
            stopped: by job control, before we came: what its call returned is not our doing.

        Raises:
            ProcessLookupError: it is gone.
        """
        registers = tracee.registers = ptrace.get_registers(tracee.tid)
        kept = self._kept.pop(tracee.tid, None)
        seen = self._looks.pop(tracee.tid, None)
        watched = self._watched.pop(tracee.tid, None)
        self._leaving.pop(tracee.tid, None)
        tracee.interrupted = watched.call if watched is not None else None
        if watched is not None or not calls.in_call(registers):
            return
        result = calls.result(registers)
        if result == -calls.ERESTART_RESTARTBLOCK:
            tracee.interrupted = self._keep(tracee, kept, seen)
        elif not stopped:
            with contextlib.suppress(OSError):   # what it points to is not there, or its descriptor is closed
                tracee.interrupted = cut_short(tracee, result, seen)
            if tracee.interrupted is not None and result != -calls.ERESTARTNOHAND:
                calls.set_result(registers, -calls.ERESTARTNOHAND)
                ptrace.set_registers(tracee.tid, registers)

    def _keep(self, tracee: Tracee, kept: tuple[Call, tuple[int, ...]] | None, seen: Look | None) -> Call | None:
        """A call whose rest of the time the kernel keeps; None where nobody knows which it was."""
        registers = tracee.registers
        number, args = int(registers.orig_rax), calls.arguments(registers)
        if number == NR["restart_syscall"] and kept is not None and kept[1] == args:
            call = kept[0]
        else:
            if number == NR["restart_syscall"]:
                if seen is None or not seen.is_of(tracee, args):
                    return None
                number = seen.number
            call = Call(number, kept=True)
            with contextlib.suppress(OSError):
                call.until = end_of_time(tracee, number, args, seen)
        registers.orig_rax = call.number
        self._kept[tracee.tid] = call, args
        return call

    # -- the thaw ---------------------------------------------------------------------------------
    def go_on(self, tracees: Iterable[Tracee]) -> None:
        """Let threads go that have their registers and masks back, or watch them."""
        begun = []
        for tracee in tracees:
            if tracee.interrupted is not None and tracee.interrupted.watched:
                begun.append(tracee)
            else:
                self._let_go(tracee)
        entering: list[_Watched] = []
        for tracee in begun:
            if (watched := self._begin(tracee)) is not None:
                entering.append(watched)
            else:
                self._let_go(tracee)
        for watched in entering:
            try:
                self._enter(watched)
            except TaskGone:
                continue
            except ProcessLookupError:
                self.let_go_later(watched.tracee)

    def _let_go(self, tracee: Tracee) -> None:
        try:
            ptrace.detach(tracee.tid)
        except ProcessLookupError:
            self.let_go_later(tracee)

    def let_go_later(self, tracee: Tracee) -> None:
        """Let a thread go that has not stopped yet, as in vfork(2); of one that is being killed, take the status.

        Its parent does not get it before.
        """
        self._leaving[tracee.tid] = tracee

    def remember(self, tracee: Tracee) -> None:
        """Know at the next freeze what a thread is in that the kernel has been given the rest of the time for."""
        if tracee.interrupted is not None and tracee.interrupted.kept:
            self._kept[tracee.tid] = tracee.interrupted, calls.arguments(tracee.registers)

    def _begin(self, tracee: Tracee) -> _Watched | None:
        """Send a thread back to its call for what is left, all signals blocked on the way; None: just let it go."""
        assert tracee.interrupted is not None
        call, tid = tracee.interrupted, tracee.tid
        watched = _Watched(tracee, call, calls.arguments(tracee.registers), 0)
        try:
            watched.mask = ptrace.get_signal_mask(tid)
            registers = ptrace.Registers.from_buffer_copy(tracee.registers)
            try:
                self._adapt(watched, registers)
            except OSError:   # its arguments can't be changed
                self._put_back(watched, call.moved or -calls.ERESTARTNOHAND)
                return None
            calls.begin_again(registers, call.number)
            ptrace.set_signal_mask(tid, ALL)
            ptrace.set_registers(tid, registers)
            ptrace.syscall(tid)
        except ProcessLookupError:   # it is being killed
            return None
        return watched

    def _adapt(self, watched: _Watched, registers: ptrace.Registers) -> None:
        """Change the arguments of a call to what is left: bytes, or time."""
        call, args = watched.call, watched.arguments
        changes: dict[int, int] = {}
        patches: list[tuple[int, bytes]] = []
        if call.moved:
            rest = transfers.rest(call, args, reader(watched.tracee.tid))
            changes, patches = rest.arguments, rest.patches
        elif call.until is not None and not call.kept and calls.has_time(call.number, args):
            index, value, content = calls.with_time(call, args, call.until - now())
            if content and (beside := _put_on_stack(watched.tracee, registers, content)):
                value, content = beside, b""
            changes, patches = {index: value}, [(value, content)] if content else []
        for index, value in changes.items():
            calls.set_argument(registers, index, value)
        for address, content in patches:
            watched.patches.append((address, watched.tracee.read(address, len(content))))
            _write(watched.tracee, address, content)

    def _enter(self, watched: _Watched) -> None:
        """At the entry to the call signals may come again; from here on it is as if it had always been in it."""
        tid = watched.tracee.tid
        status = wait(tid)
        if status is not None and event(status) == ptrace.EVENT_STOP and os.WSTOPSIG(status) == signal.SIGTRAP:
            ptrace.syscall(tid)   # the freeze had asked for a stop where it stood already
            status = wait(tid)
        assert status is not None
        ptrace.set_signal_mask(tid, watched.mask)
        if os.WSTOPSIG(status) == SYSCALL_STOP:
            ptrace.syscall(tid)
            self._watched[tid] = watched
        else:   # SIGSTOP, which can't be blocked; it is as if that had come in the call
            registers = ptrace.get_registers(tid)
            registers.rip, registers.orig_rax = registers.rip + 2, watched.call.number
            ptrace.set_registers(tid, registers)
            self._end(watched, watched.call.moved or -calls.ERESTARTNOHAND)
            ptrace.detach(tid, os.WSTOPSIG(status) if event(status) == 0 else 0)

    # -- while the pod runs -----------------------------------------------------------------------
    @property
    def due(self) -> int | None:
        """When ``tend`` should be called whatever happens, by CLOCK_MONOTONIC in nanoseconds."""
        limits = [w.call.until for w in self._watched.values() if w.call.until is not None and _is_limited(w)]
        return min(limits, default=None)

    def tend(self) -> None:
        """See to threads that have stopped: their calls have ended, or a signal has come."""
        if self._paused or self._tending:
            self._again = True
            return
        self._again = True
        while self._again:   # looked at last, when another SIGCHLD would be seen to again
            self._tending, self._again = True, False
            try:
                for tid in [*self._watched, *self._leaving]:
                    self._tend(tid)
            finally:
                self._tending = False

    def _tend(self, tid: int) -> None:
        try:
            watched = self._watched.get(tid)
            if watched is None:
                self._leave(tid)
                return
            if _is_limited(watched) and watched.call.until is not None and now() >= watched.call.until:
                watched.hurried = True
                ptrace.interrupt(tid)
            while tid in self._watched and (status := wait(tid, block=False)) is not None:
                self._meet(watched, status)
        except ProcessLookupError:   # it has ended, or another thread has made an exec
            self._watched.pop(tid, None)
            self._leaving.pop(tid, None)

    def _leave(self, tid: int) -> None:
        status = wait(tid, block=False)
        if status is None:
            return
        if event(status) != ptrace.EVENT_STOP:
            number = os.WSTOPSIG(status)
            ptrace.cont(tid, number if event(status) == 0 and number != SYSCALL_STOP else 0)
            return
        tracee = self._leaving.pop(tid)
        self.examine(tracee, stopped=os.WSTOPSIG(status) in STOP_SIGNALS)
        self.go_on([tracee])

    def _meet(self, watched: _Watched, status: int) -> None:
        """One stop."""
        tid, call = watched.tracee.tid, watched.call
        number = os.WSTOPSIG(status)
        registers = ptrace.get_registers(tid)
        result = calls.result(registers)
        if number == SYSCALL_STOP:
            if result == -_ENOSYS:
                ptrace.syscall(tid)
            elif not was_interrupted(result):
                self._finish(watched, _whole(call, result))
            elif watched.hurried:
                self._finish(watched, call.moved or transfers.out_of_time(call.number))
            else:   # by a signal, which is the next stop; without one the call is made again
                watched.ended = result
                calls.set_result(registers, -calls.ERESTARTNOHAND)
                ptrace.set_registers(tid, registers)
                ptrace.syscall(tid)
        elif event(status) == 0 and not _ignores(watched.tracee.pid, number):
            self._finish(watched, call.moved or watched.ended, number)
        elif number in STOP_SIGNALS and event(status):
            self._finish(watched, call.moved or watched.ended)
        else:
            self._refresh(watched, registers)
            ptrace.syscall(tid)

    def _refresh(self, watched: _Watched, registers: ptrace.Registers) -> None:
        """Nothing but a signal that the program ignores: the call will be made again, for the time that is left now."""
        _undo(watched)
        with contextlib.suppress(OSError):
            self._adapt(watched, registers)
        ptrace.set_registers(watched.tracee.tid, registers)

    def _finish(self, watched: _Watched, result: int, number: int = 0) -> None:
        self._end(watched, result)
        ptrace.detach(watched.tracee.tid, number)

    def _end(self, watched: _Watched, result: int) -> None:
        """Give a thread back its arguments, and the result of its call."""
        self._watched.pop(watched.tracee.tid, None)
        self._put_back(watched, result)

    def _put_back(self, watched: _Watched, result: int) -> None:
        _undo(watched)
        tid = watched.tracee.tid
        registers = ptrace.get_registers(tid)
        for index, value in enumerate(watched.arguments):
            calls.set_argument(registers, index, value)
        calls.set_result(registers, result)
        if not was_interrupted(result):
            registers.orig_rax = NO_CALL
        ptrace.set_registers(tid, registers)

    def _listen(self) -> None:
        """Let SIGCHLD tell us of stops as long as there is somebody to see to; it would only slow a freeze down."""
        if threading.current_thread() is not threading.main_thread():
            return
        wanted = bool(self._watched or self._leaving) and not self._paused
        now = signal.getsignal(signal.SIGCHLD)
        if wanted and now is signal.SIG_DFL:
            signal.signal(signal.SIGCHLD, self._heard)
        elif not wanted and now == self._heard:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _heard(self, number: int, frame: object) -> None:
        with contextlib.suppress(OSError):
            self.tend()


watch = Watch()


def _write(tracee: Tracee, address: int, content: bytes) -> None:
    """Also to memory that the program itself may only read, such as a constant."""
    try:
        tracee.write(address, content)
    except OSError:
        with contextlib.closing(vm.Memory(tracee.tid)) as memory:
            memory.write(address, content)


def _put_on_stack(tracee: Tracee, registers: ptrace.Registers, content: bytes) -> int:
    """Content for the kernel to read, in memory of which nobody else knows; its address, 0 where there is none.

    What a program gives may be read by its other threads meanwhile. Below the stack, and the 128 bytes there
    that are a function's own (System V ABI, 3.2.2), anything may lie: the next signal's frame would.
    """
    place = int(registers.rsp) - _RED_ZONE - len(content) & ~15
    try:
        tracee.write(place, content)
    except OSError:
        return 0
    return place


def _undo(watched: _Watched) -> None:
    while watched.patches:
        with contextlib.suppress(OSError):
            _write(watched.tracee, *watched.patches.pop())


def _whole(call: Call, result: int) -> int:
    """What the program sees as its call's result: all that was moved, or the error where nothing was."""
    return call.moved + max(result, 0) if call.moved else result


def _is_limited(watched: _Watched) -> bool:
    """Whether the time is the socket's: the kernel would start it anew."""
    return not watched.call.kept and not calls.has_time(watched.call.number, watched.arguments)


def _ignores(pid: int, number: int) -> bool:
    """Whether a signal does nothing to a process; one that is traced is stopped by it all the same."""
    status = proc.status(pid)
    bit = 1 << (number - 1)
    if status.number("SigIgn", 16) & bit:
        return True
    return number in _IGNORED_BY_DEFAULT and not status.number("SigCgt", 16) & bit
