"""What a freeze interrupts: looked at shortly before it, and found out about when a thread stands still.

How long a thread has been waiting is only to be seen while it waits; what its call has returned, only afterwards.
"""
from __future__ import annotations

import contextlib
import time
from collections.abc import Container
from dataclasses import dataclass

from crhpc.kernel import calls, proc, ptrace, transfers, vm
from crhpc.kernel.calls import Call
from crhpc.kernel.libc import NR
from crhpc.kernel.tracee import Tracee
from crhpc.kernel.waiting import Asleep, Clocks, Waiting, restarted, waiting

_WORTH_A_LOOK = 5 * 10**6
"""Nanoseconds: a shorter time may well start anew."""


@dataclass(frozen=True, slots=True)
class Look:
    """A call that waits for some time, seen while it did."""

    at: Waiting
    number: int
    """Of the call, also where the kernel calls it restart_syscall."""
    time: int
    """All of it, in nanoseconds."""
    asleep: Asleep

    def is_of(self, tracee: Tracee, args: tuple[int, ...]) -> bool:
        """Whether a thread that has stopped has been in this very call ever since."""
        registers = tracee.registers
        if self.at != Waiting(int(registers.orig_rax), args, int(registers.rsp), int(registers.rip)):
            return False
        # The stop itself is the one time more that it has gone to sleep.
        switches = proc.status(tracee.pid, tracee.tid).number("voluntary_ctxt_switches")
        return switches == self.asleep.switches + 1


def look(init: int, watched: Container[int], kept: Container[int]) -> dict[int, Look]:
    """Since when the threads below a pod's first process have been waiting for some time, by thread.

    Args:
        watched, kept: threads of which that is known; of these, while the kernel calls it restart_syscall.
    """
    found: dict[int, Look] = {}
    clocks = Clocks()
    for pid in proc.descendants(init):
        for tid in proc.threads(pid):
            seen = None if tid in watched else waiting(pid, tid)
            if seen is None:
                continue
            number: int | None = seen.number
            if number == NR["restart_syscall"]:
                number = None if tid in kept else restarted(pid, tid, seen.arguments)
            if number is None or not calls.has_time(number, seen.arguments):
                continue
            if calls.writes_rest(number, seen.arguments) and number == seen.number:
                continue
            with contextlib.suppress(OSError):
                whole = calls.time_to_wait(number, seen.arguments, reader(tid))
                if whole is not None and whole >= _WORTH_A_LOOK and (asleep := clocks.asleep(pid, tid)):
                    found[tid] = Look(seen, number, whole, asleep)
    return found


def was_interrupted(result: int) -> bool:
    """Whether a call has ended for no other reason."""
    return result == -calls.EINTR or -result in calls.RESTARTS


def cut_short(tracee: Tracee, result: int, seen: Look | None) -> Call | None:
    """A call that would end by our doing, or not go on as it was; None where there is nothing to do about it.

    Raises:
        OSError: what it points to is not there, or its descriptor is closed.
    """
    number, args = int(tracee.registers.orig_rax), calls.arguments(tracee.registers)
    memory = reader(tracee.tid)
    if result > 0 and number in transfers.MOVING:
        call = transfers.partly(tracee.pid, number, args, result, memory)
        limit = transfers.limit(tracee.pid, number, args) if call is not None else None
        if call is not None and limit is not None:
            call.until = now() + limit
        return call
    ended = result == -calls.EINTR and number in calls.AGAIN
    if not ended and result != -calls.ERESTARTNOHAND:
        return None
    call = Call(number, kept=not ended)
    if ended or number in calls.IN_PLACE:
        call.until = end_of_time(tracee, number, args, seen, written=not ended)
    mask = calls.temporary_mask(number, args, memory)
    call.guarded = mask is not None and bool(mask & ~ptrace.get_signal_mask(tracee.tid))
    return call if ended or call.guarded or call.until is not None else None


def end_of_time(tracee: Tracee, number: int, args: tuple[int, ...], seen: Look | None, *,
                written: bool = True) -> int | None:
    """When the time of a call that has just been interrupted is over, a little late rather than early; None: never.

    Args:
        written: whether the kernel could write the rest, where it does.

    Raises:
        OSError: as ``cut_short``.
    """
    memory, moment = reader(tracee.tid), now()
    left = calls.time_left(number, args, memory) if written else None
    if left is not None:
        return moment + left
    if seen is not None and seen.is_of(tracee, args):
        return seen.asleep.since + seen.time
    whole = calls.time_to_wait(number, args, memory)
    if whole is None:
        whole = transfers.limit(tracee.pid, number, args)
    return None if whole is None else moment + whole


def reader(tid: int) -> calls.Read:
    """Reads memory of a thread's process."""
    return lambda address, size: vm.read(tid, address, size)


def now() -> int:
    """CLOCK_MONOTONIC in nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)
