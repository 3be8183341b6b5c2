"""A stopped thread, and system calls made in its name.

A system call is made on a ``syscall`` instruction that the thread has mapped anyway (its vdso's), one at a
time between two syscall stops. Many are made in one go by a loop of 51 bytes of machine code over a table
in a scratch area of the thread's memory; that is six to ten times cheaper a call.

Traps, all met on real kernels:

- ``orig_rax`` must be -1 while registers are foreign, else the kernel "restarts" an interrupted call.
- The runner ends in ``int3``. While SIGTRAP is ignored or blocked the kernel resets its action, so it is
  never blocked here, and who needs the action kept reads it before the first run and puts it back. Where a SIGTRAP
  waits that is blocked, it has to stay so: no runner then.
- A raw ``-ERESTARTSYS`` in rax leaks to the program when a thread leaves a syscall stop by CONT: leave by
  DETACH.
"""
from __future__ import annotations

import os
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from crhpc.kernel import libc, proc, ptrace, vm
from crhpc.kernel.calls import Call
from crhpc.kernel.libc import NR, PAGE

ALL = (1 << 64) - 1
ALL_BUT_TRAP = (1 << 64) - 1 & ~(1 << (signal.SIGTRAP - 1))
NO_CALL = (1 << 64) - 1
"""orig_rax of a thread that is in no system call."""

_WALL = 0x40000000
SYSCALL_STOP = signal.SIGTRAP | 0x80
"""How a stop at the entry to or the exit from a system call is told (PTRACE_O_TRACESYSGOOD)."""
_FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGSYS)
_INSTRUCTION = b"\x0f\x05"

RUNNER = bytes.fromhex(
    "488b03"        # loop: mov rax, [rbx]        the number
    "488b7b08"      #       mov rdi, [rbx+8]      six arguments
    "488b7310"      #       mov rsi, [rbx+16]
    "488b5318"      #       mov rdx, [rbx+24]
    "4c8b5320"      #       mov r10, [rbx+32]
    "4c8b4328"      #       mov r8,  [rbx+40]
    "4c8b4b30"      #       mov r9,  [rbx+48]
    "0f05"          #       syscall
    "48894338"      #       mov [rbx+56], rax     the result
    "483d01f0ffff"  #       cmp rax, -4095
    "7309"          #       jae out               stop at the first error
    "4883c340"      #       add rbx, 64
    "48ffcd"        #       dec rbp
    "75ce"          #       jnz loop
    "cc")           # out:  int3
RUNNER_INSTRUCTION = RUNNER.index(_INSTRUCTION)
_ENTRY = 64


class TaskGone(ProcessLookupError):
    """The thread ended while it was traced."""

    def __init__(self, tid: int, status: int = 0) -> None:
        super().__init__(3, "the thread ended", f"thread {tid}")
        self.status = status


_waits = [0, 0]
"""The thread that is waited for, 0 for none, and how many waits there were (crhpc/kernel/reaper.py)."""


def awaited() -> tuple[int, int]:
    """For which thread somebody waits, and the number of that wait."""
    return _waits[0], _waits[1]


def wait(tid: int, *, block: bool = True) -> int | None:
    """The next stop of a traced thread as a raw wait status; None where ``block`` is false and none is due.

    Raises:
        TaskGone: it ended instead.
    """
    _waits[:] = tid if block else 0, _waits[1] + 1
    try:
        pid, status = os.waitpid(tid, _WALL | (0 if block else os.WNOHANG))
    except ChildProcessError:
        raise TaskGone(tid) from None
    finally:
        _waits[0] = 0
    if pid == 0:
        return None
    if not os.WIFSTOPPED(status):
        raise TaskGone(tid, status)
    return status


def event(status: int) -> int:
    """The PTRACE_EVENT_ of a stop, 0 where it is none."""
    return status >> 16


class Tracee:
    """One thread of a traced process while it stands still.

    ``pid`` is its process (thread group), ``tid`` the thread, both in this process's pid namespace.
    """

    __slots__ = ("_base", "_instruction", "careful", "deferred", "interrupted", "pid", "registers", "tid")

    def __init__(self, pid: int, tid: int) -> None:
        self.pid = pid
        self.tid = tid
        self.deferred: list[int] = []
        self.careful = False
        """Whether calls are made one by one, as a SIGTRAP waits."""
        self.registers: ptrace.Registers = None
        """What it will go on with, once that has been looked at."""
        self.interrupted: Call | None = None
        """The system call that it was stopped in, where there is something to do about it."""
        self._base: ptrace.Registers | None = None
        self._instruction = 0

    # -- memory -----------------------------------------------------------------------------------
    def read(self, address: int, size: int) -> bytes:
        return vm.read(self.tid, address, size)

    def write(self, address: int, content: bytes) -> None:
        vm.write(self.tid, address, content)

    # -- system calls -----------------------------------------------------------------------------
    def prepare(self, instruction: int, *, stack: int | None = None) -> None:
        """Make the thread ready for remote calls, from the registers that it has now.

        Args:
            instruction: the address of a ``syscall`` instruction.
        """
        registers = ptrace.get_registers(self.tid)
        registers.orig_rax = NO_CALL
        if stack is not None:
            registers.rsp = stack
        self._base = registers
        self._instruction = instruction

    @property
    def instruction(self) -> int:
        return self._instruction

    @instruction.setter
    def instruction(self, address: int) -> None:
        self._instruction = address

    def call(self, name: str, *args: int) -> int:
        """Make one system call in the thread.

        Raises:
            OSError: what the call failed with, named.
            TaskGone: the thread died of it.
        """
        result = self.call_raw(NR[name], *args)
        if -4096 < result < 0:
            shown = ", ".join(hex(arg) if arg > 9 else str(arg) for arg in args)
            raise libc.os_error(f"{name}({shown}) in thread {self.tid}", -result)
        return result

    def call_raw(self, number: int, *args: int) -> int:
        """The same by number, with the kernel's result as it is: negative error numbers."""
        self._start(number, args)
        self._to_syscall_stop()
        self._to_syscall_stop()
        return _signed(ptrace.get_registers(self.tid).rax)

    def call_interrupted(self, number: int, *args: int) -> int:
        """A call that is interrupted where it would wait: its result then, such as ``-ERESTART_RESTARTBLOCK``."""
        self._start(number, args)
        self._to_syscall_stop()
        ptrace.interrupt(self.tid)
        self._to_syscall_stop()
        return _signed(ptrace.get_registers(self.tid).rax)

    def _start(self, number: int, args: tuple[int, ...]) -> None:
        assert self._base is not None, "prepare() first"
        registers = ptrace.Registers.from_buffer_copy(self._base)
        registers.rip = self._instruction
        registers.rax = number
        words = [arg & NO_CALL for arg in args] + [0] * (6 - len(args))
        (registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9) = words
        ptrace.set_registers(self.tid, registers)

    def _to_syscall_stop(self) -> None:
        ptrace.syscall(self.tid)
        while True:
            status = wait(self.tid)
            assert status is not None
            if os.WSTOPSIG(status) == SYSCALL_STOP:
                return
            self._pass_by(status)
            ptrace.syscall(self.tid)

    def _pass_by(self, status: int) -> None:
        """A stop that nobody asked for: keep a signal for later, go on from a group stop."""
        if event(status) == 0:
            self.deferred.append(os.WSTOPSIG(status))

    def clone(self, args: int, size: int) -> int:
        """clone3 in the thread, with the struct at ``args``; the new thread's id here. It stands still.

        The tracee's options must hold TRACEFORK and TRACECLONE; the new thread inherits them.

        Raises:
            OSError: what clone3 failed with.
        """
        self._start(NR["clone3"], (args, size))
        self._to_syscall_stop()
        new = 0
        ptrace.syscall(self.tid)
        while True:
            status = wait(self.tid)
            assert status is not None
            if os.WSTOPSIG(status) == SYSCALL_STOP:
                break
            if event(status) in (ptrace.EVENT_FORK, ptrace.EVENT_VFORK, ptrace.EVENT_CLONE):
                new = ptrace.event_message(self.tid)
            else:
                self._pass_by(status)
            ptrace.syscall(self.tid)
        result = _signed(ptrace.get_registers(self.tid).rax)
        if result < 0:
            raise libc.os_error("clone3", -result)
        await_stop(new)
        return new

    def run_table(self, code: int, table: int, count: int) -> None:
        """Run the table runner at ``code`` over ``count`` entries; it ends at the first error.

        Raises:
            TaskGone: the thread died.
            OSError: EFAULT where it stopped anywhere else than at the runner's end.
        """
        self.run_code(code, code + len(RUNNER), table, count)

    def run_code(self, code: int, end: int, rbx: int, rbp: int = 0) -> None:
        """Run machine code that makes no call of its own and ends in an ``int3`` just before ``end``.

        Raises:
            TaskGone: the thread died.
            OSError: EFAULT where it stopped anywhere else.
        """
        assert self._base is not None, "prepare() first"
        registers = ptrace.Registers.from_buffer_copy(self._base)
        registers.rip, registers.rbx, registers.rbp = code, rbx, rbp
        ptrace.set_registers(self.tid, registers)
        while True:
            ptrace.cont(self.tid)
            status = wait(self.tid)
            assert status is not None
            if event(status) == 0 and os.WSTOPSIG(status) == signal.SIGTRAP:
                if ptrace.get_registers(self.tid).rip != end:
                    raise libc.os_error(f"the runner in thread {self.tid} strayed", 14)
                return
            if event(status) == 0 and os.WSTOPSIG(status) in _FAULTS:
                raise libc.os_error(f"signal {os.WSTOPSIG(status)} in the runner of thread {self.tid}", 14)
            self._pass_by(status)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def await_stop(tid: int) -> list[int]:
    """After INTERRUPT: wait for EVENT_STOP, passing on real signals; the signals that came before."""
    passed: list[int] = []
    while True:
        status = wait(tid)
        assert status is not None
        if event(status) == ptrace.EVENT_STOP:
            return passed
        number = os.WSTOPSIG(status)
        deliver = number if event(status) == 0 and number != SYSCALL_STOP else 0
        passed += [deliver] if deliver else []
        ptrace.cont(tid, deliver)


_vdso_offset: dict[bytes, int] = {}


def find_instruction(pid: int, mappings: list[proc.Mapping]) -> int:
    """The address of a ``syscall`` instruction in a process's vdso.

    Raises:
        OSError: ENOEXEC where it has no vdso.
    """
    for mapping in mappings:
        if mapping.name == "[vdso]":
            content = vm.read(pid, mapping.start, mapping.size)
            if content not in _vdso_offset:
                _vdso_offset[content] = content.index(_INSTRUCTION)
            return mapping.start + _vdso_offset[content]
    raise libc.os_error(f"process {pid} has no vdso", 8)


class Area:
    """A scratch area in a stopped process: the runner, its table, and room for data.

    ``batch`` gathers calls; they are made when it is left, or earlier when the table or the room is full.
    """

    def __init__(self, tracee: Tracee, address: int, size: int) -> None:
        """Lay out an area that is already mapped readable and executable, and writable but for the runner's page."""
        self.tracee = tracee
        self.address = address
        self.size = size
        self.table = address + PAGE
        self.entries = min(size // 2, 512 << 10) // _ENTRY
        self.data = self.table + self.entries * _ENTRY
        self.room = address + size - self.data
        try:
            tracee.write(address, RUNNER)
        except OSError:   # who may not write what it executes has it already
            if tracee.read(address, len(RUNNER)) != RUNNER:
                raise

    @property
    def instruction(self) -> int:
        """The runner's own ``syscall`` instruction."""
        return self.address + RUNNER_INSTRUCTION

    def run(self, calls: list[tuple[str, tuple[int, ...]]]) -> list[int]:
        """Make the calls in their order, in one go where the table holds them; their results.

        Raises:
            OSError: of the first call that failed; those behind it were not made.
        """
        results: list[int] = []
        for start in range(0, len(calls), self.entries):
            results += self._run(calls[start:start + self.entries])
        return results

    def _run(self, calls: list[tuple[str, tuple[int, ...]]]) -> list[int]:
        if self.tracee.careful:
            return [self.tracee.call(name, *args) for name, args in calls]
        table = bytearray(_ENTRY * len(calls))
        for i, (name, args) in enumerate(calls):
            words = [arg & NO_CALL for arg in args] + [0] * (7 - len(args))
            struct.pack_into("8Q", table, i * _ENTRY, NR[name], *words)
        self.tracee.write(self.table, bytes(table))
        self.tracee.run_table(self.address, self.table, len(calls))
        raw = self.tracee.read(self.table, len(table))
        results = [result for (result,) in struct.iter_unpack("56xq", raw)]
        for (name, args), result in zip(calls, results, strict=True):
            if -4096 < result < 0:
                shown = ", ".join(hex(arg) if arg > 9 else str(arg) for arg in args)
                raise libc.os_error(f"{name}({shown}) in process {self.tracee.pid}", -result)
        return results

    @contextmanager
    def batch(self) -> Iterator[Batch]:
        """Gather calls and make them on leaving; nothing is made when the body raises."""
        batch = Batch(self)
        yield batch
        batch.flush()


class Batch:
    """Calls to be made together, and the data that they point to."""

    def __init__(self, area: Area) -> None:
        self.area = area
        self.results: list[int] = []
        self._calls: list[tuple[str, tuple[int, ...]]] = []
        self._data = bytearray()
        self._strings: dict[bytes, int] = {}

    def call(self, name: str, *args: int) -> int:
        """Add a call; the index of its result in ``results`` after ``flush``."""
        self._calls.append((name, args))
        index = len(self.results) + len(self._calls) - 1
        if len(self._calls) == self.area.entries or len(self._data) > self.area.room * 3 // 4:
            self.flush()
        return index

    def put(self, content: bytes) -> int:
        """Room that holds ``content`` until the calls are made; its address, a multiple of 16.

        Room is made free when a call is added, by making the calls so far: take the addresses of a call's
        arguments just before it, and no more than a quarter of the room for one call.
        """
        padded = -(-len(content) // 16) * 16
        if len(self._data) + padded > self.area.room:
            raise ValueError(f"{len(content)} bytes are too much for a scratch area")
        address = self.area.data + len(self._data)
        self._data += content + bytes(padded - len(content))
        return address

    def string(self, text: str) -> int:
        """Room for a path or a name, with its final zero; one that was there before is found again."""
        raw = os.fsencode(text) + b"\0"
        if raw not in self._strings:
            address = self.put(raw)
            self._strings[raw] = address
        return self._strings[raw]

    def room(self, size: int) -> int:
        """Room for what a call writes; read it with ``read`` after ``flush`` and before the next call."""
        return self.put(bytes(size))

    def read(self, address: int, size: int) -> bytes:
        return self.area.tracee.read(address, size)

    def flush(self) -> list[int]:
        """Make the calls gathered so far; the results of all calls of this batch."""
        if self._data:
            self.area.tracee.write(self.area.data, bytes(self._data))
        if self._calls:
            calls, self._calls = self._calls, []
            self._data = bytearray()
            self._strings = {}
            self.results += self.area.run(calls)
        return self.results
