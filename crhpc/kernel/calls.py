"""System calls that a stop has interrupted: what the kernel does about them, and what it leaves to us (signal(7)).

A thread that waits in the kernel leaves its call when it is stopped, with one of four numbers that no program
ever sees: the call is made again when the thread goes on without a signal. That is all right for most. Not for

- calls that end with EINTR when a thread was only stopped, such as epoll_wait(2). They can be given one of those
  numbers afterwards;
- calls with a time to wait for, relative to their beginning, that are made again with all of it. Where the kernel keeps
  the rest (its restart block: nanosleep, poll, futex) that is of use in the same thread only; a new thread gets one of
  its own by being interrupted in the same call (``prime``);
- calls that had moved a part of their bytes: they end with the count so far, which a program that has no signal
  handlers need not expect (crhpc/kernel/transfers.py).
"""
from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from crhpc.kernel import ptrace
from crhpc.kernel.libc import NAME, NR

EINTR, EAGAIN = 4, 11
ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK = 512, 513, 514, 516
"""The numbers (include/linux/errno.h). ERESTARTNOHAND: made again, but with EINTR after a signal's handler has run."""
RESTARTS = (ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK)

Read = Callable[[int, int], bytes]
"""Reads (address, size) of the memory of the process that makes the call."""
Form = Literal["ms", "timespec", "timeval"]

_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
_WORD = (1 << 64) - 1
_NS = 10**9
_LONG = 1 << 62
"""Nanoseconds that are as good as for ever."""
_FUTEX_WAIT, _FUTEX_COMMAND = 0, 0x7F
_TIMER_ABSTIME = 1
_CLOCKS_OF_TIME = (0, 1, 7, 8, 9, 11)
"""Clocks that run while nobody does (clock_gettime(2)); not those of processors."""

_TIMES: dict[str, tuple[int, Form]] = {
    "nanosleep": (0, "timespec"), "clock_nanosleep": (2, "timespec"), "poll": (2, "ms"), "futex": (3, "timespec"),
    "epoll_wait": (3, "ms"), "epoll_pwait": (3, "ms"), "epoll_pwait2": (3, "timespec"),
    "rt_sigtimedwait": (2, "timespec"), "semtimedop": (3, "timespec"), "ppoll": (2, "timespec"),
    "pselect6": (4, "timespec"), "select": (4, "timeval")}
"""Calls whose time to wait for is relative: which argument, and in which form."""
IN_PLACE = {NR[name] for name in ("ppoll", "pselect6", "select")}
"""Calls that leave the rest of the time where the program has put all of it, but for memory that can't be written."""
_REST = {NR["nanosleep"]: 1, NR["clock_nanosleep"]: 3} | {number: _TIMES[NAME[number]][0] for number in IN_PLACE}
"""Calls that write the rest of the time when they are interrupted, and which argument says where to (or is 0)."""

_RECEIVING = ("read", "readv", "recvfrom", "recvmsg", "accept", "accept4")
_LIMITED = (*_RECEIVING, "write", "writev", "sendto", "sendmsg", "connect")
"""Calls on sockets: they end with EINTR where SO_RCVTIMEO or SO_SNDTIMEO is set."""
AGAIN = {NR[name] for name in (
    *_LIMITED, "epoll_wait", "epoll_pwait", "epoll_pwait2", "rt_sigtimedwait", "semop", "semtimedop", "select",
    "pselect6", "ppoll")}
"""Calls that have done nothing yet where they end with EINTR. Not close(2): its descriptor is gone."""
RECEIVING = {NR[name] for name in _RECEIVING}
ON_SOCKETS = {NR[name] for name in _LIMITED}

_MASKS = {NR[name]: argument for name, argument in (
    ("rt_sigsuspend", 0), ("ppoll", 3), ("pselect6", 5), ("epoll_pwait", 4), ("epoll_pwait2", 4))}
"""Calls that set a signal mask for their own time, and which argument points to it."""


@dataclass(slots=True)
class Call:
    """A system call in progress, as far as the kernel won't see to it.

    Registers are kept beside it as the program had them, with its own arguments.
    """

    number: int
    moved: int = 0
    """Bytes that are through already."""
    wanted: int = 0
    """Bytes after which the call ends, where some are through."""
    until: int | None = None
    """CLOCK_MONOTONIC when its time is over, nanoseconds."""
    kept: bool = False
    """Whether the rest of the time is seen to: in the thread's restart block, or in the program's memory."""
    guarded: bool = False
    """Whether it blocks signals that are not blocked otherwise: on the way back to it none of them may come through."""

    @property
    def watched(self) -> bool:
        """Whether it takes somebody who waits for its end."""
        return self.moved > 0 or self.guarded or (self.until is not None and not self.kept)

    @property
    def name(self) -> str:
        return NAME.get(self.number, str(self.number))


def arguments(registers: ptrace.Registers) -> tuple[int, ...]:
    """The six arguments of a call."""
    return tuple(int(getattr(registers, name)) for name in _ARGUMENTS)


def set_argument(registers: ptrace.Registers, index: int, value: int) -> None:
    """Change one of the arguments of a call that will be made."""
    setattr(registers, _ARGUMENTS[index], value & _WORD)


def result(registers: ptrace.Registers) -> int:
    """What a call returned; negative error numbers."""
    value = int(registers.rax)
    return value - (1 << 64) if value >> 63 else value


def set_result(registers: ptrace.Registers, value: int) -> None:
    """Let a call that was interrupted have ended like this."""
    registers.rax = value & _WORD


def in_call(registers: ptrace.Registers) -> bool:
    """Whether a thread is in a system call, or on its way out of one."""
    return not int(registers.orig_rax) >> 63


def begin_again(registers: ptrace.Registers, number: int) -> None:
    """Take a thread back to where it makes its call."""
    registers.rax, registers.orig_rax = number, _WORD
    registers.rip -= 2   # the length of the instruction


# -- time ---------------------------------------------------------------------------------------------
def has_time(number: int, args: tuple[int, ...]) -> bool:
    """Whether a call waits for a time that is relative to its beginning, as far as its arguments tell."""
    name = NAME.get(number, "")
    if name not in _TIMES:
        return False
    if name == "clock_nanosleep":
        return args[1] & _TIMER_ABSTIME == 0 and args[0] in _CLOCKS_OF_TIME
    if name == "futex" and args[1] & _FUTEX_COMMAND != _FUTEX_WAIT:
        return False
    index, form = _TIMES[name]
    return args[index] & 0xFFFFFFFF < 1 << 31 if form == "ms" else args[index] != 0


def time_to_wait(number: int, args: tuple[int, ...], read: Read) -> int | None:
    """How long a call waits from its beginning, in nanoseconds; None where that is no relative time, or for ever.

    Raises:
        OSError: the time lies where nothing is.
    """
    if not has_time(number, args):
        return None
    index, form = _TIMES[NAME[number]]
    if form == "ms":
        return (args[index] & 0xFFFFFFFF) * 10**6
    return _nanoseconds(read(args[index], 16), form)


def time_left(number: int, args: tuple[int, ...], read: Read) -> int | None:
    """What the kernel has written of the rest, when it interrupted a call; None where it has not.

    Raises:
        OSError: the time lies where nothing is.
    """
    where = args[_REST[number]] if writes_rest(number, args) else 0
    return _nanoseconds(read(where, 16), _TIMES[NAME[number]][1]) if where else None


def writes_rest(number: int, args: tuple[int, ...]) -> bool:
    """Whether the kernel writes the rest of a call's time when it interrupts it."""
    return number in _REST and has_time(number, args) and args[_REST[number]] != 0


def _nanoseconds(time: bytes, form: Form) -> int | None:
    seconds, fraction = struct.unpack("qq", time)
    whole = int(seconds) * _NS + int(fraction) * (1000 if form == "timeval" else 1)
    return whole if 0 <= whole < _LONG else None


def with_time(call: Call, args: tuple[int, ...], left: int) -> tuple[int, int, bytes]:
    """A call's time argument for what is left: its index, its value, and what must lie where it points to."""
    index, form = _TIMES[call.name]
    left = max(left, 0)
    if form == "ms":
        return index, -(-left // 10**6), b""   # not a moment too early
    if form == "timeval":
        return index, args[index], struct.pack("qq", *divmod(-(-left // 1000), 10**6))
    return index, args[index], struct.pack("qq", *divmod(left, _NS))


# -- signals ------------------------------------------------------------------------------------------
def temporary_mask(number: int, args: tuple[int, ...], read: Read) -> int | None:
    """The signals that are blocked while a call waits, where it says so itself.

    Raises:
        OSError: the mask lies where nothing is.
    """
    where = args[_MASKS[number]] if number in _MASKS else 0
    if where and number == NR["pselect6"]:
        where = int.from_bytes(read(where, 8), "little")
    return int.from_bytes(read(where, 8), "little") if where else None
