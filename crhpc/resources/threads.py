"""Threads: registers, the XSAVE area, restartable sequences, robust lists, names, signal masks and stacks.

Read through ptrace from outside, but for two remote calls a thread (sigaltstack(2), PR_GET_TID_ADDRESS).
Rebuilt by clone3 under their old ids; registers come last.

System calls in progress: a thread that was interrupted in one has -ERESTART* in rax and the call's number
in orig_rax. The kernel's own way to restart is lost with the old thread, so the restored one is sent back
to its ``syscall`` instruction. A call with a relative time-out then waits for all of it again. Where the
kernel had already restarted a call once, orig_rax is restart_syscall's own number: the real one is
remembered from the earlier checkpoint of the same thread.
"""
from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass, field

from crhpc.image.records import U64
from crhpc.kernel import libc, proc, ptrace
from crhpc.kernel.libc import NR
from crhpc.kernel.tracee import NO_CALL, Tracee
from crhpc.resources import Cut, Kind, Phase, at
from crhpc.resources.context import Dump, Restore, Task
from crhpc.resources.stubs import clone_thread

PR_SET_NAME, PR_GET_TID_ADDRESS = 15, 40
RSEQ_FLAG_UNREGISTER = 1
_ERESTARTSYS, _ERESTARTNOINTR, _ERESTARTNOHAND, _ERESTART_RESTARTBLOCK = 512, 513, 514, 516


_EINTR = 4

_XSTATE_HEADER, _TILE_DATA = 512, 1 << 18
"""Where the XSAVE header lies, whose first word says which features are in use; that of AMX tiles."""
_USE_TILES = bytes.fromhex(
    "c4e2784903"   # ldtilecfg [rbx]
    "c4e27b49c0"   # tilezero tmm0
    "c4e27849c0"   # tilerelease
    "cc")          # int3
_TILE_SHAPE = bytes([1]) + bytes(15) + bytes([64]) + bytes(31) + bytes([16]) + bytes(15)
"""For ldtilecfg: palette 1, one tile of 16 rows of 64 bytes."""


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread, the leader (``tid`` equal to ``pid``) too."""

    pid: int
    tid: int
    name: bytes
    registers: bytes = field(metadata={"doc": "struct user_regs_struct, 27 words, as after an interrupted call"})
    xstate: bytes = field(metadata={"doc": "XSAVE area, standard format (NT_X86_XSTATE)"})
    mask: U64
    rseq_address: U64
    rseq_size: int
    rseq_signature: U64
    robust_list: U64
    robust_size: int
    clear_tid: U64 = field(metadata={"doc": "address that the kernel zeroes when the thread ends"})
    altstack: bytes = field(metadata={"doc": "stack_t: pointer, flags, size"})


class ThreadsKind(Kind):
    name = "threads"
    records = (Thread,)
    saved = ("thread ids, registers, vector state (XSAVE, AVX-512 and AMX too), TLS, rseq areas and critical sections, "
             "robust lists, names, signal masks, alternate signal stacks, system calls in progress")
    refused = "hardware breakpoints; shadow stacks; a process whose first thread has ended"

    @at(Cut.REGISTERS)
    def read_registers(self, ctx: Dump) -> None:
        """Before anything is borrowed; the rest follows in ``dump``."""
        seen = ctx.memory.setdefault("restarted calls", {})
        ctx.state["registers"] = {
            (task.pid, tid): _outside(task, tid, tracee, seen)
            for task in ctx.tasks for tid, tracee in task.threads.items()}

    @at(Cut.COLLECT)
    def dump(self, ctx: Dump) -> None:
        saved = ctx.state.pop("registers")
        for task in ctx.tasks:
            for tid, tracee in task.threads.items():
                altstack, clear_tid = _inside(task, tracee)
                ctx.add(Thread(pid=task.pid, tid=tid, altstack=altstack, clear_tid=clear_tid, **saved[task.pid, tid]))

    @at(Phase.THREADS)
    def clone_threads(self, ctx: Restore) -> None:
        for row in ctx.rows(Thread):
            task = ctx.tasks[row.pid]
            if row.tid not in task.threads:
                task.threads[row.tid] = clone_thread(task, row.tid)

    @at(Phase.STATE)
    def set_state(self, ctx: Restore) -> None:
        for row in ctx.rows(Thread):
            task = ctx.tasks[row.pid]
            with task.area_of(row.tid).batch() as batch:
                batch.call("sigaltstack", batch.put(_without_on_stack(row.altstack)), 0)
                batch.call("set_tid_address", row.clear_tid)
                batch.call("set_robust_list", row.robust_list, row.robust_size or 24)
                batch.call("prctl", PR_SET_NAME, batch.put(row.name + b"\0"))
                if row.rseq_address:
                    batch.call("rseq", row.rseq_address, row.rseq_size, 0, row.rseq_signature)
            if int.from_bytes(row.xstate[_XSTATE_HEADER:_XSTATE_HEADER + 8], "little") & _TILE_DATA:
                _use_tiles(task, task.threads[row.tid])

    @at(Phase.REGISTERS)
    def set_registers(self, ctx: Restore) -> None:
        for row in ctx.rows(Thread):
            tid = ctx.tasks[row.pid].threads[row.tid].tid
            ptrace.set_regset(tid, row.xstate)
            ptrace.set_registers(tid, resumed(row.registers))
            ptrace.set_signal_mask(tid, row.mask)


def _outside(task: Task, tid: int, tracee: Tracee, seen: dict[tuple[int, int, int, int], int]) -> dict[str, object]:
    registers = ptrace.get_registers(tracee.tid)
    rseq = ptrace.rseq_configuration(tracee.tid)
    if rseq.address:
        _leave_critical_section(tracee, registers, rseq)
    _undo_interruption(task, tracee, registers, seen)
    _remember_call(task.pid, tid, registers, seen)
    head, size = ctypes.c_ulong(), ctypes.c_ulong()
    libc.syscall("get_robust_list", tracee.tid, ctypes.addressof(head), ctypes.addressof(size))
    return {
        "name": proc.comm(task.host, tracee.tid), "registers": bytes(registers),
        "xstate": ptrace.get_regset(tracee.tid),
        "mask": U64(ptrace.get_signal_mask(tracee.tid)), "rseq_address": U64(rseq.address), "rseq_size": rseq.size,
        "rseq_signature": U64(rseq.signature), "robust_list": U64(head.value), "robust_size": size.value}


def _inside(task: Task, tracee: Tracee) -> tuple[bytes, U64]:
    room = task.area.data
    tracee.call("sigaltstack", 0, room)
    tracee.call("prctl", PR_GET_TID_ADDRESS, room + 32)
    (clear_tid,) = struct.unpack("Q", task.leader.read(room + 32, 8))
    return task.leader.read(room, 24), U64(clear_tid)


def _leave_critical_section(tracee: Tracee, registers: ptrace.Registers, rseq: ptrace.RseqConfiguration) -> None:
    """Move a thread out of a restartable sequence to its abort address, in the job as in the image.

    The kernel does so when it preempts a thread, by a pointer in the rseq area; a remote call in between
    would make it forget (Documentation/userspace-api/rseq.rst).
    """
    (section,) = struct.unpack("Q", tracee.read(rseq.address + 8, 8))
    if not section:
        return
    _version, _flags, start, length, abort = struct.unpack("IIQQQ", tracee.read(section, 32))
    if start <= registers.rip < start + length:
        registers.rip = abort
        tracee.write(rseq.address + 8, bytes(8))
        ptrace.set_registers(tracee.tid, registers)


def _remember_call(pid: int, tid: int, registers: ptrace.Registers, seen: dict[tuple[int, int, int, int], int]) -> None:
    """Replace restart_syscall's number by that of the call that it stands for."""
    if _error(registers) != _ERESTART_RESTARTBLOCK:
        return
    key = (pid, tid, registers.rip, registers.rsp)
    if registers.orig_rax != NR["restart_syscall"]:
        seen[key] = registers.orig_rax
    elif key in seen:
        registers.orig_rax = seen[key]


def _undo_interruption(task: Task, tracee: Tracee, registers: ptrace.Registers,
                       seen: dict[tuple[int, int, int, int], int]) -> None:
    """Make a call again that our stop ended with EINTR, as epoll_wait(2) is; in the job as in the image.

    Not where a signal waits: then the program would have seen EINTR without us too. An epoll_wait with a
    time-out starts anew, so it is ended at the second stop in a row: its program looks at the clock.
    """
    if registers.orig_rax >> 63 or registers.orig_rax == NR["close"] or _error(registers) != _EINTR:
        return
    status = proc.status(task.host, tracee.tid)
    waiting = status.number("SigPnd", 16) | status.number("ShdPnd", 16)
    if waiting & ~ptrace.get_signal_mask(tracee.tid):
        return
    key = (task.pid, tracee.tid, registers.rip, -registers.rsp)
    if _is_timed_epoll(registers):
        seen[key] = seen.get(key, 0) + 1
        if seen[key] % 2 == 0:
            return
    registers.rax, registers.rip, registers.orig_rax = registers.orig_rax, registers.rip - 2, NO_CALL
    ptrace.set_registers(tracee.tid, registers)


def _is_timed_epoll(registers: ptrace.Registers) -> bool:
    if registers.orig_rax == NR["epoll_pwait2"]:
        return bool(registers.r10)
    return registers.orig_rax in (NR["epoll_wait"], NR["epoll_pwait"]) and registers.r10 & 0xFFFFFFFF != 0xFFFFFFFF


def _error(registers: ptrace.Registers) -> int:
    return (1 << 64) - int(registers.rax) if registers.rax >> 63 else 0


def resumed(raw: bytes) -> ptrace.Registers:
    """Registers for a new thread that goes on where the old one was, an interrupted call made again."""
    registers = ptrace.Registers.from_buffer_copy(raw)
    in_call = not registers.orig_rax >> 63
    if in_call and _error(registers) in (_ERESTARTSYS, _ERESTARTNOINTR, _ERESTARTNOHAND, _ERESTART_RESTARTBLOCK):
        if registers.orig_rax == NR["restart_syscall"]:
            registers.rax = -4 & NO_CALL   # the call's number is lost: EINTR
        else:
            registers.rax = registers.orig_rax
            registers.rip -= 2
    registers.orig_rax = NO_CALL
    return registers


def _without_on_stack(altstack: bytes) -> bytes:
    """A stack_t to set: SS_ONSTACK is only ever reported; the kernel sees by the stack pointer."""
    pointer, flags, size = struct.unpack("QixxxxQ", altstack)
    return struct.pack("QixxxxQ", pointer, flags & ~1, size)


def _use_tiles(task: Task, tracee: Tracee) -> None:
    """Let a thread touch an AMX tile: only then has the kernel room for its tiles (arch/x86/kernel/fpu, XFD)."""
    code, shape = task.area.data, task.area.data + len(_USE_TILES)
    tracee.write(code, _USE_TILES + _TILE_SHAPE)
    tracee.run_code(code, shape, shape)
