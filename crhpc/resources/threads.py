"""Threads: registers, the XSAVE area, restartable sequences, robust lists, names, signal masks and stacks.

Read through ptrace from outside, but for a table of remote calls a thread (sigaltstack(2), PR_GET_TID_ADDRESS and
other prctls). Rebuilt by clone3 under their old ids; registers come last.

System calls in progress: a thread that was interrupted in one has -ERESTART* in rax and the call's number in orig_rax,
and the restored one gets the same: the kernel makes the call again (crhpc/kernel/calls.py). Where the old thread's
kernel kept the rest of its time, the new thread makes the call with that, and is interrupted at once: then the
kernel keeps the same for it.
"""
from __future__ import annotations

import contextlib
import ctypes
import struct
import time
from dataclasses import dataclass, field, replace

from crhpc.errors import ImageDamaged, OtherMachine
from crhpc.image.records import U64
from crhpc.kernel import calls, cpu, libc, proc, ptrace, transfers
from crhpc.kernel.calls import Call
from crhpc.kernel.cpu import Layout
from crhpc.kernel.tracee import NO_CALL, Tracee
from crhpc.resources import Chapter, Cut, Kind, Phase, at, facts
from crhpc.resources.bridge import lead_out
from crhpc.resources.context import Dump, Restore, Task
from crhpc.resources.facts import Machine
from crhpc.resources.questions import ROOM, Question, answer, ask
from crhpc.resources.space import bridges
from crhpc.resources.stubs import clone_thread

PR_SET_NAME, PR_GET_TID_ADDRESS = 15, 40
RSEQ_FLAG_UNREGISTER = 1
_NOTHING = -1
_ALTSTACK = Question("sigaltstack", (0, ROOM), 24)
_CLEAR_TID = Question("prctl", (PR_GET_TID_ADDRESS, ROOM), 8)
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
    call: int = field(metadata={"doc": "number of a call in progress of which registers don't tell all, or -1"})
    moved: int = field(metadata={"doc": "bytes that the call had moved, and will count as its own"})
    wanted: int = field(metadata={"doc": "bytes after which it ends"})
    guarded: bool = field(metadata={"doc": "whether it blocks signals that are not blocked otherwise"})
    until: int = field(metadata={"doc": "when its time is over, by the job's CLOCK_MONOTONIC in nanoseconds, or -1"})


class ThreadsKind(Kind):
    name = "threads"
    chapter = Chapter.PROCESSES
    records = (Thread,)
    saved = ("every thread under its own id: registers, vector state (SSE, AVX, AVX-512, AMX), thread-local storage, "
             "name, signal mask, alternate signal stack, robust list, restartable sequence (one that is under way is "
             "aborted, as by the scheduler). System calls in progress go on for what is left of their time and of "
             "their bytes; no program sees an EINTR or a short count that it would not have seen")
    refused = (
        ("a process whose first thread has ended", "let the first thread wait for the others"),
    )
    afterwards = ("sleeps on a processor's clock begin anew, and so may, for as long as a checkpoint takes, a "
                  "time-out that begins just then. These return what they had moved, as after any signal: recvmsg "
                  "with MSG_WAITALL on a unix socket, recvmmsg, sendmmsg, splice, and reads of TCP with SO_RCVLOWAT")

    @at(Cut.INSPECT)
    def ask(self, ctx: Dump) -> None:
        ask(ctx, _ALTSTACK)
        ask(ctx, _CLEAR_TID)

    @at(Cut.REGISTERS)
    def read_registers(self, ctx: Dump) -> None:
        """Before anything is borrowed; the rest follows in ``dump``."""
        ahead = ctx.pod.clock_ahead()
        ctx.state["registers"] = {
            (task.pid, tid): _outside(task, tracee) | _call(tracee, ahead)
            for task in ctx.tasks for tid, tracee in task.threads.items()}

    @at(Cut.COLLECT)
    def dump(self, ctx: Dump) -> None:
        saved = ctx.state.pop("registers")
        for task in ctx.tasks:
            for tid in task.threads:
                (clear_tid,) = struct.unpack("Q", answer(ctx, task, tid, _CLEAR_TID)[1])
                ctx.add(Thread(pid=task.pid, tid=tid, altstack=answer(ctx, task, tid, _ALTSTACK)[1],
                               clear_tid=U64(clear_tid), **saved[task.pid, tid]))

    @at(Phase.CHECK)
    def check(self, ctx: Restore) -> None:
        rows = ctx.rows(Thread)
        for row in rows:
            _check_form(ctx, row)
        here, there = facts.here(), facts.there(ctx)
        if there is None:
            return
        if here.layout is not None and there.layout is not None and here.layout != there.layout:
            rows[:] = [replace(row, xstate=_converted(ctx, row, there.layout, here.layout)) for row in rows]
        _check_areas(ctx, rows, there, here)

    @at(Phase.THREADS)
    def clone_threads(self, ctx: Restore) -> None:
        for row in ctx.rows(Thread):
            task = ctx.tasks[row.pid]
            if row.tid not in task.threads:
                task.threads[row.tid] = clone_thread(task, row.tid)

    @at(Phase.WATCH)
    def leave_old_code(self, ctx: Restore) -> None:
        """Threads that were inside a vdso of another kernel: all memory is there, and not yet the jumps out of it."""
        rows = ctx.rows(Thread)
        for i, row in enumerate(rows):
            made = bridges(ctx).get(row.pid)
            if made is not None and made.inside(ptrace.Registers.from_buffer_copy(row.registers).rip):
                task = ctx.tasks[row.pid]
                registers, xstate = lead_out(ctx, task, task.threads[row.tid], made, row.registers, row.xstate)
                rows[i] = replace(row, registers=registers, xstate=xstate)

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

    @at(Phase.LAST)
    def prime_calls(self, ctx: Restore) -> None:
        """Let the kernel keep the rest of a call's time again."""
        ahead = ctx.pod.clock_ahead()
        for row in ctx.rows(Thread):
            tracee = ctx.tasks[row.pid].threads[row.tid]
            tracee.registers = registers = ptrace.Registers.from_buffer_copy(row.registers)
            if calls.result(registers) == -calls.ERESTART_RESTARTBLOCK:
                _prime(ctx.tasks[row.pid], tracee, row, ahead)
            else:
                tracee.interrupted = _in_progress(row, ahead)
                if (call := tracee.interrupted) is not None and row.call in calls.IN_PLACE:
                    _write_rest(tracee, call)

    @at(Phase.REGISTERS)
    def set_registers(self, ctx: Restore) -> None:
        for row in ctx.rows(Thread):
            tracee = ctx.tasks[row.pid].threads[row.tid]
            ptrace.set_regset(tracee.tid, row.xstate)
            ptrace.set_registers(tracee.tid, tracee.registers)
            ptrace.set_signal_mask(tracee.tid, row.mask)


# -- another machine ------------------------------------------------------------------------------------
_REGISTERS_SIZE, _ALTSTACK_SIZE, _XSTATE_LEAST, _NAME_MOST = 27 * 8, 24, 576, 15
_DISABLED = 2
_RSEQ_FIRST_SIZE = 32


def _check_form(ctx: Restore, row: Thread) -> None:
    """What the code below goes by, where the image comes from a stranger.

    Raises:
        ImageDamaged: it is not a thread's.
    """
    wrong = (len(row.registers) != _REGISTERS_SIZE or len(row.altstack) != _ALTSTACK_SIZE
             or len(row.xstate) < _XSTATE_LEAST or len(row.name) > _NAME_MOST)
    if wrong:
        raise ImageDamaged(image=ctx.image, what=f"the state of thread {row.tid} is not as prescribed")


def _converted(ctx: Restore, row: Thread, there: Layout, here: Layout) -> bytes:
    try:
        return cpu.converted(row.xstate, there, here)
    except ValueError as error:
        raise OtherMachine(image=ctx.image, what=f"thread {row.tid} uses {error}, which this processor lacks or the "
                           "kernel has turned off", cure="restart on a node with such a processor") from None


def _check_areas(ctx: Restore, rows: list[Thread], there: Machine, here: Machine) -> None:
    """What the kernel will write into the memory of threads must have room there."""
    for row in rows:
        _pointer, flags, size = struct.unpack("QixxxxQ", row.altstack)
        if not flags & _DISABLED and there.signal_stack < here.signal_stack and size < here.signal_stack:
            ctx.doubt(OtherMachine(
                image=ctx.image, what=f"the signal stack of thread {row.tid} has {size} bytes, this processor's "
                f"registers need {here.signal_stack}", cure="restart on a node with a processor like the checkpoint's, "
                "or with --force if no signals are expected"))
            break
        if row.rseq_size not in (0, _RSEQ_FIRST_SIZE) and row.rseq_size < (here.rseq_size or row.rseq_size + 1):
            raise OtherMachine(image=ctx.image, what=f"this kernel can't use the area of {row.rseq_size} bytes that "
                               f"thread {row.tid} has for restartable sequences",
                               cure="restart on a node with the kernel of the checkpoint, or start the job with "
                               "GLIBC_TUNABLES=glibc.pthread.rseq=0")


def _outside(task: Task, tracee: Tracee) -> dict[str, object]:
    rseq = ptrace.rseq_configuration(tracee.tid)
    if rseq.address:
        _leave_critical_section(tracee, rseq)
    head, size = ctypes.c_ulong(), ctypes.c_ulong()
    libc.syscall("get_robust_list", tracee.tid, ctypes.addressof(head), ctypes.addressof(size))
    return {
        "name": proc.comm(task.host, tracee.tid), "registers": bytes(tracee.registers),
        "xstate": ptrace.get_regset(tracee.tid),
        "mask": U64(ptrace.get_signal_mask(tracee.tid)), "rseq_address": U64(rseq.address), "rseq_size": rseq.size,
        "rseq_signature": U64(rseq.signature), "robust_list": U64(head.value), "robust_size": size.value}


def _call(tracee: Tracee, ahead: int) -> dict[str, int]:
    call = tracee.interrupted
    if call is None:
        return {"call": _NOTHING, "moved": 0, "wanted": 0, "guarded": False, "until": _NOTHING}
    return {"call": call.number, "moved": call.moved, "wanted": call.wanted, "guarded": call.guarded,
            "until": _NOTHING if call.until is None else call.until + ahead}


def _leave_critical_section(tracee: Tracee, rseq: ptrace.RseqConfiguration) -> None:
    """Move a thread out of a restartable sequence to its abort address, in the job as in the image.

    The kernel does so when it preempts a thread, by a pointer in the rseq area; a remote call in between
    would make it forget (Documentation/userspace-api/rseq.rst).
    """
    (section,) = struct.unpack("Q", tracee.read(rseq.address + 8, 8))
    if not section:
        return
    _version, _flags, start, length, abort = struct.unpack("IIQQQ", tracee.read(section, 32))
    if start <= tracee.registers.rip < start + length:
        tracee.registers.rip = abort
        tracee.write(rseq.address + 8, bytes(8))
        ptrace.set_registers(tracee.tid, tracee.registers)


# -- calls in progress ----------------------------------------------------------------------------------
def _in_progress(row: Thread, ahead: int) -> Call | None:
    """What the engine needs to know of a call that does not go on by itself."""
    if row.call < 0:
        return None
    call = Call(row.call, until=None if row.until < 0 else row.until - ahead)
    if 0 < row.moved < row.wanted and row.call in transfers.MOVING:
        call.moved, call.wanted = row.moved, row.wanted
    call.guarded = row.guarded
    return call


def _write_rest(tracee: Tracee, call: Call) -> None:
    """The rest of the time, where the kernel has left it at the cut."""
    args = calls.arguments(tracee.registers)
    if call.until is None or not calls.has_time(call.number, args):
        return
    left = call.until - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    _index, where, content = calls.with_time(call, args, left)
    with contextlib.suppress(OSError):   # it lies where it can't be written: the thread will be watched
        tracee.write(where, content)
        call.kept = True


def _prime(task: Task, tracee: Tracee, row: Thread, ahead: int) -> None:
    """Make a call with what is left of its time; it is interrupted as soon as it waits.

    A call whose time is no relative one is just made again; of one that nobody knows the program sees EINTR.
    """
    args = calls.arguments(tracee.registers)
    if row.call < 0:
        calls.set_result(tracee.registers, -calls.EINTR)
        tracee.registers.orig_rax = NO_CALL
    elif row.until < 0 or not calls.has_time(row.call, args):
        calls.set_result(tracee.registers, -calls.ERESTARTNOHAND)
    else:
        until = row.until - ahead
        call = Call(row.call, until=until, kept=True)
        index, value, content = calls.with_time(call, args, until - time.clock_gettime_ns(time.CLOCK_MONOTONIC))
        if content:
            value = task.area.data
            tracee.write(value, content)
        result = tracee.call_interrupted(row.call, *args[:index], value, *args[index + 1:])
        calls.set_result(tracee.registers, result)
        if result == -calls.ERESTART_RESTARTBLOCK:
            tracee.interrupted = call
        else:   # it has ended meanwhile
            tracee.registers.orig_rax = NO_CALL


def _without_on_stack(altstack: bytes) -> bytes:
    """A stack_t to set: SS_ONSTACK is only ever reported; the kernel sees by the stack pointer."""
    pointer, flags, size = struct.unpack("QixxxxQ", altstack)
    return struct.pack("QixxxxQ", pointer, flags & ~1, size)


def _use_tiles(task: Task, tracee: Tracee) -> None:
    """Let a thread touch an AMX tile: only then has the kernel room for its tiles (arch/x86/kernel/fpu, XFD)."""
    code, shape = task.area.data, task.area.data + len(_USE_TILES)
    tracee.write(code, _USE_TILES + _TILE_SHAPE)
    tracee.run_code(code, shape, shape)
