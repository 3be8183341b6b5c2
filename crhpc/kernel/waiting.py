"""What a thread of a running process waits in, and since when.

The call is in ``/proc/PID/task/TID/syscall``. The moment is in ``sched`` beside it: ``se.exec_start`` is when a thread
that sleeps was last accounted for, which is when it went to sleep. It is told by the clock of the processor that it
ran on, which lags behind CLOCK_MONOTONIC by what that processor spent on interrupts and, in a virtual machine, was
not there; so this thread goes to that processor for a moment and looks at its own. Kernels before Linux 6.15 may
lack the file (CONFIG_SCHED_DEBUG).
"""
from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass

from crhpc.kernel import proc
from crhpc.kernel.libc import NR, PAGE


@dataclass(frozen=True, slots=True)
class Waiting:
    """A call that a thread sleeps in."""

    number: int
    arguments: tuple[int, ...]
    stack: int
    instruction: int
    """The address behind the one that made the call."""


@dataclass(frozen=True, slots=True)
class Asleep:
    """When a thread went to sleep, by CLOCK_MONOTONIC in nanoseconds, and how often it had done so by then."""

    since: int
    switches: int


def parse_syscall(content: bytes) -> Waiting | None:
    """None for a thread that runs, or that sleeps in no call."""
    words = content.split()
    if len(words) != 9:
        return None
    number, *rest = (int(word, 0) for word in words)
    return Waiting(number, tuple(rest[:6]), rest[6], rest[7])


def waiting(pid: int, tid: int) -> Waiting | None:
    """What a thread waits in now; None where it does not, or is gone."""
    try:
        return parse_syscall(proc.read(f"/proc/{pid}/task/{tid}/syscall"))
    except OSError:
        return None


def restarted(pid: int, tid: int, arguments: tuple[int, ...]) -> int | None:
    """The call that a thread is in when the kernel says restart_syscall(2); None where that can't be told.

    It has been stopped before, by job control, say. Its arguments are there still, and ``wchan`` shows where it sleeps;
    what makes it sleep again is called last by the kernel, and leaves no name of its own.
    """
    try:
        place = proc.read(f"/proc/{pid}/task/{tid}/wchan").decode()
    except OSError:
        return None
    if place.startswith("futex"):
        return NR["futex"]
    if "poll" in place:
        return NR["poll"]
    if "nanosleep" in place or place == "do_syscall_64":
        return NR["clock_nanosleep" if arguments[0] < PAGE else "nanosleep"]   # a clock or an address
    return None


def parse_sched(content: bytes) -> tuple[int, int] | None:
    """``se.exec_start`` in nanoseconds and ``nr_voluntary_switches``; None where they are not there."""
    fields = {words[0]: words[-1] for words in map(bytes.split, content.splitlines()) if len(words) == 3}
    try:
        milliseconds, _, nanoseconds = fields[b"se.exec_start"].partition(b".")
        return int(milliseconds) * 10**6 + int(nanoseconds), int(fields[b"nr_voluntary_switches"])
    except (KeyError, ValueError):
        return None


class Clocks:
    """The processors' clocks, each looked at once."""

    def __init__(self) -> None:
        self._behind: dict[int, int | None] = {}

    def asleep(self, pid: int, tid: int) -> Asleep | None:
        """Since when a thread sleeps; a little late rather than early. None where that can't be told."""
        try:
            found = parse_sched(proc.read(f"/proc/{pid}/task/{tid}/sched"))
            processor = proc.stat(pid, tid).processor
        except OSError:
            return None
        behind = self._of(processor)
        return None if found is None or behind is None else Asleep(found[0] + behind, found[1])

    def _of(self, processor: int) -> int | None:
        if processor not in self._behind:
            self._behind[processor] = None
            before = os.sched_getaffinity(0)
            with contextlib.suppress(OSError):   # not one of ours
                os.sched_setaffinity(0, {processor})
                try:
                    found = parse_sched(proc.read("/proc/thread-self/sched"))
                    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
                finally:
                    os.sched_setaffinity(0, before)
                if found is not None:
                    self._behind[processor] = now - found[0]
        return self._behind[processor]
