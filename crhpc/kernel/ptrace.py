"""ptrace(2) requests on one stopped thread.

Stands on python-ptrace's low-level binding for the register structure and the call itself; the requests
that the binding lacks (SEIZE and what came after it) go through its generic call. All requests on a
thread must come from the one thread of this process that seized it. Failures are OSError naming the
request.
"""
from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from ptrace import PtraceError
from ptrace.binding import func as _binding

if TYPE_CHECKING:
    Registers: TypeAlias = Any
else:
    Registers = _binding.ptrace_registers_t
    """The 27 registers of x86-64, ``struct user_regs_struct`` of <sys/user.h>."""

_CONT, _STEP, _DETACH, _SYSCALL, _GETREGS, _SETREGS = 7, 9, 17, 24, 12, 13
_SETOPTIONS, _GETEVENTMSG, _GETSIGINFO, _SETSIGINFO = 0x4200, 0x4201, 0x4202, 0x4203
_GETREGSET, _SETREGSET, _SEIZE, _INTERRUPT, _LISTEN = 0x4204, 0x4205, 0x4206, 0x4207, 0x4208
_PEEKSIGINFO, _GETSIGMASK, _SETSIGMASK = 0x4209, 0x420A, 0x420B
_GET_RSEQ_CONFIGURATION, _GET_SYSCALL_USER_DISPATCH_CONFIG = 0x420F, 0x4211
_NAMES = {
    _CONT: "CONT", _STEP: "SINGLESTEP", _DETACH: "DETACH", _SYSCALL: "SYSCALL",
    _GETREGS: "GETREGS", _SETREGS: "SETREGS",
    _SETOPTIONS: "SETOPTIONS", _GETEVENTMSG: "GETEVENTMSG", _GETSIGINFO: "GETSIGINFO", _SETSIGINFO: "SETSIGINFO",
    _GETREGSET: "GETREGSET", _SETREGSET: "SETREGSET", _SEIZE: "SEIZE", _INTERRUPT: "INTERRUPT", _LISTEN: "LISTEN",
    _PEEKSIGINFO: "PEEKSIGINFO", _GETSIGMASK: "GETSIGMASK", _SETSIGMASK: "SETSIGMASK",
    _GET_RSEQ_CONFIGURATION: "GET_RSEQ_CONFIGURATION",
    _GET_SYSCALL_USER_DISPATCH_CONFIG: "GET_SYSCALL_USER_DISPATCH_CONFIG",
}

O_TRACESYSGOOD, O_TRACEFORK, O_TRACEVFORK, O_TRACECLONE, O_TRACEEXEC = 1, 2, 4, 8, 16
O_EXITKILL = 0x100000
EVENT_FORK, EVENT_VFORK, EVENT_CLONE, EVENT_EXEC, EVENT_STOP = 1, 2, 3, 4, 128
NT_X86_XSTATE = 0x202
SIGINFO_SIZE = 128
"""What the kernel keeps of a siginfo_t: SI_MAX_SIZE."""

_XSTATE_ROOM = 64 << 10   # AMX tiles need 8 KiB, all of today's features below 12 KiB
_PEEK_SHARED = 1
_SI_TIMER = -2
_PEEK_AT_ONCE = 32


def _request(request: int, tid: int, address: int = 0, data: int = 0) -> int:
    try:
        return int(_binding.ptrace(request, tid, address, data))
    except PtraceError as error:
        number = error.errno or ctypes.get_errno()
        raise OSError(number, str(error), f"PTRACE_{_NAMES[request]} of {tid}") from None


def seize(tid: int, options: int) -> None:
    """Become the tracer of a thread without stopping it."""
    _request(_SEIZE, tid, 0, options)


def interrupt(tid: int) -> None:
    """Ask a seized thread to stop; it reports EVENT_STOP."""
    _request(_INTERRUPT, tid)


def set_options(tid: int, options: int) -> None:
    """Replace the options of a stopped tracee."""
    _request(_SETOPTIONS, tid, 0, options)


def cont(tid: int, signal: int = 0) -> None:
    """Let a stopped thread run, delivering ``signal``."""
    _request(_CONT, tid, 0, signal)


def syscall(tid: int, signal: int = 0) -> None:
    """Let a stopped thread run to the next entry to or exit from a system call."""
    _request(_SYSCALL, tid, 0, signal)


def step(tid: int) -> None:
    """Let a stopped thread run for one instruction; SIGTRAP must not be blocked, or its action goes."""
    _request(_STEP, tid)


def listen(tid: int) -> None:
    """Let a group-stopped thread wait for SIGCONT without running."""
    _request(_LISTEN, tid)


def detach(tid: int, signal: int = 0) -> None:
    """Stop tracing; the thread goes on, and an interrupted system call restarts."""
    _request(_DETACH, tid, 0, signal)


def get_registers(tid: int) -> Registers:
    """The general registers of a stopped thread."""
    registers = _binding.ptrace_registers_t()
    _request(_GETREGS, tid, 0, ctypes.addressof(registers))
    return registers


def set_registers(tid: int, registers: Registers) -> None:
    """Set the general registers of a stopped thread."""
    _request(_SETREGS, tid, 0, ctypes.addressof(registers))


def get_regset(tid: int, kind: int = NT_X86_XSTATE) -> bytes:
    """A register set, by default the XSAVE area in its standard format."""
    buffer = ctypes.create_string_buffer(_XSTATE_ROOM)
    vector = (ctypes.c_ulong * 2)(ctypes.addressof(buffer), len(buffer))
    _request(_GETREGSET, tid, kind, ctypes.addressof(vector))
    return buffer.raw[: vector[1]]


def set_regset(tid: int, content: bytes, kind: int = NT_X86_XSTATE) -> None:
    """Set a register set from what ``get_regset`` gave."""
    buffer = ctypes.create_string_buffer(content, len(content))
    vector = (ctypes.c_ulong * 2)(ctypes.addressof(buffer), len(content))
    _request(_SETREGSET, tid, kind, ctypes.addressof(vector))


def get_signal_mask(tid: int) -> int:
    """The blocked signals of a stopped thread; bit n-1 is signal n."""
    mask = ctypes.c_ulong()
    _request(_GETSIGMASK, tid, 8, ctypes.addressof(mask))
    return mask.value


def set_signal_mask(tid: int, mask: int) -> None:
    """Block the signals of ``mask`` (KILL and STOP excepted)."""
    value = ctypes.c_ulong(mask)
    _request(_SETSIGMASK, tid, 8, ctypes.addressof(value))


def pending_signals(tid: int, *, shared: bool) -> list[bytes]:
    """The queued signals, oldest first, as raw siginfo of 128 bytes: the thread's own or its process's."""
    found: list[bytes] = []
    room = ctypes.create_string_buffer(SIGINFO_SIZE * _PEEK_AT_ONCE)
    while True:
        which = ctypes.create_string_buffer(
            struct.pack("QIi", len(found), _PEEK_SHARED if shared else 0, _PEEK_AT_ONCE))
        count = _request(_PEEKSIGINFO, tid, ctypes.addressof(which), ctypes.addressof(room))
        found += [room.raw[i * SIGINFO_SIZE:(i + 1) * SIGINFO_SIZE] for i in range(count)]
        if count < _PEEK_AT_ONCE:
            return found


def timer_of(info: bytes) -> int | None:
    """The id of the POSIX timer that a signal is of, by its siginfo."""
    code, timer = struct.unpack_from("8xixxxxi", info)
    return int(timer) if code == _SI_TIMER else None


def dispatches_calls(tid: int) -> bool:
    """Whether a stopped thread gets SIGSYS for its calls (PR_SET_SYSCALL_USER_DISPATCH); before Linux 6.4 always no."""
    buffer = ctypes.create_string_buffer(32)   # mode, selector, offset, length
    try:
        _request(_GET_SYSCALL_USER_DISPATCH_CONFIG, tid, 32, ctypes.addressof(buffer))
    except ProcessLookupError:
        raise
    except OSError:
        return False
    return any(buffer.raw[:8])


def event_message(tid: int) -> int:
    """What came with the last event stop, such as the id of a new child in this process's pid namespace."""
    value = ctypes.c_ulong()
    _request(_GETEVENTMSG, tid, 0, ctypes.addressof(value))
    return value.value


@dataclass(frozen=True, slots=True)
class RseqConfiguration:
    """Where a thread's restartable-sequence area lies; ``address`` is 0 where none is registered."""

    address: int
    size: int
    signature: int
    flags: int


def rseq_configuration(tid: int) -> RseqConfiguration:
    """PTRACE_GET_RSEQ_CONFIGURATION (Linux 5.13)."""
    buffer = ctypes.create_string_buffer(24)
    _request(_GET_RSEQ_CONFIGURATION, tid, 24, ctypes.addressof(buffer))
    address, size, signature, flags, _ = struct.unpack("QIIII", buffer.raw)
    return RseqConfiguration(address, size, signature, flags)
