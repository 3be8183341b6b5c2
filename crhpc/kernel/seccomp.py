"""System calls of other processes answered from here: seccomp user notification (seccomp(2), seccomp_unotify(2)).

A filter in the other process stops it at the calls that were chosen; whoever has its listener sees each with its
arguments and either lets it go on or answers in its stead. All other calls pass at the cost of a few instructions.
"""
from __future__ import annotations

import ctypes
import errno
import struct
from dataclasses import dataclass

from crhpc.kernel import libc
from crhpc.kernel.libc import NR
from crhpc.kernel.tracee import Area

_SET_MODE_FILTER = 1
_FLAG_TSYNC, _FLAG_SPEC_ALLOW, _FLAG_NEW_LISTENER, _FLAG_TSYNC_ESRCH = 1, 4, 8, 16
_FLAGS = _FLAG_TSYNC | _FLAG_SPEC_ALLOW | _FLAG_NEW_LISTENER | _FLAG_TSYNC_ESRCH
"""For all threads of the process, which keep their settings of speculation, and with a listener."""
_AUDIT_ARCH_X86_64 = 0xC000003E
_RET_ALLOW, _RET_USER_NOTIF = 0x7FFF0000, 0x7FC00000
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06   # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4
"""Where nr and arch lie in struct seccomp_data."""

_IOCTL_RECV, _IOCTL_SEND, _IOCTL_ID_VALID = 0xC0502100, 0xC0182101, 0x40082102
_NOTIFICATION = struct.Struct("QIIiIQ6Q")
_RESPONSE = struct.Struct("QqiI")
_CONTINUE = 1


@dataclass(frozen=True, slots=True)
class Notification:
    """A call that waits for an answer."""

    id: int
    tid: int
    """The thread that makes it, in this process's pid namespace."""
    number: int
    arguments: tuple[int, ...]


def filter_program(calls: tuple[str, ...]) -> bytes:
    """The instructions (struct sock_filter) that notify of ``calls`` and allow everything else."""
    steps = [(_LOAD, 0, 0, _ARCHITECTURE_AT), (_JUMP_EQUAL, 1, 0, _AUDIT_ARCH_X86_64), (_RETURN, 0, 0, _RET_ALLOW),
             (_LOAD, 0, 0, _NUMBER_AT)]
    for left, name in zip(range(len(calls), 0, -1), calls, strict=True):
        steps.append((_JUMP_EQUAL, left, 0, NR[name]))
    steps += [(_RETURN, 0, 0, _RET_ALLOW), (_RETURN, 0, 0, _RET_USER_NOTIF)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def install(area: Area, calls: tuple[str, ...]) -> int:
    """Filter all threads of a stopped thread's process; the number that the listener has there.

    Threads and processes that it makes from then on inherit the filter. The thread needs CAP_SYS_ADMIN in its user
    namespace.

    Raises:
        OSError: EACCES without that, EINVAL before Linux 5.7, EBUSY where it has a listener already, ESRCH where
            another thread has a filter that this one does not have.
    """
    program = filter_program(calls)
    header = struct.pack("HxxxxxxQ", len(program) // 8, area.data + 16)
    area.tracee.write(area.data, header + program)
    return area.tracee.call("seccomp", _SET_MODE_FILTER, _FLAGS, area.data)


def receive(listener: int) -> Notification | None:
    """The next call that waits; None where its thread has been interrupted or killed meanwhile."""
    room = ctypes.create_string_buffer(_NOTIFICATION.size)
    try:
        libc.syscall("ioctl", listener, _IOCTL_RECV, room)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINTR):
            return None
        raise
    number_of, tid, _flags, number, _arch, _instruction, *arguments = _NOTIFICATION.unpack(room.raw)
    return Notification(number_of, tid, number, tuple(arguments))


def still_waits(listener: int, notification: Notification) -> bool:
    """Whether the thread still waits for the answer; ask after anything was read from it."""
    try:
        libc.syscall("ioctl", listener, _IOCTL_ID_VALID, ctypes.create_string_buffer(struct.pack("Q", notification.id)))
    except FileNotFoundError:
        return False
    return True


def let_go_on(listener: int, notification: Notification) -> None:
    """The call is made as if nobody had looked."""
    _respond(listener, _RESPONSE.pack(notification.id, 0, 0, _CONTINUE))


def answer(listener: int, notification: Notification, error: int) -> bool:
    """The call returns 0, or fails with ``error``, without being made; whether its thread has waited for it."""
    return _respond(listener, _RESPONSE.pack(notification.id, 0, -error, 0))


def _respond(listener: int, response: bytes) -> bool:
    try:
        libc.syscall("ioctl", listener, _IOCTL_SEND, ctypes.create_string_buffer(response))
    except FileNotFoundError:
        return False
    return True


def process_of(tid: int) -> int:
    """The process of a thread.

    Raises:
        OSError: it is gone.
    """
    with open(f"/proc/{tid}/status", "rb") as file:
        for line in file:
            if line.startswith(b"Tgid:"):
                return int(line.split()[1])
    raise libc.os_error(f"status of thread {tid}", errno.ESRCH)
