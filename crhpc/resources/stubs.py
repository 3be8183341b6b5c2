"""Empty tasks that a restart fills: made by their parents under their old ids, stopped, and ended where they stand in.

A stub is a copy of the pod's first process that has never run an instruction of it: remote calls are all it makes.
"""
from __future__ import annotations

import contextlib
import os
import resource
import signal
import struct
import time

from crhpc.kernel import clone, proc, ptrace
from crhpc.kernel.libc import NR
from crhpc.kernel.tracee import ALL_BUT_TRAP, NO_CALL, Tracee, await_stop, event, find_instruction, wait
from crhpc.resources.context import Restore, Task

_OPTIONS = (ptrace.O_TRACESYSGOOD | ptrace.O_TRACECLONE | ptrace.O_TRACEFORK | ptrace.O_TRACEVFORK
            | ptrace.O_EXITKILL)
_THREAD = (clone.CLONE_VM | clone.CLONE_FS | clone.CLONE_FILES | clone.CLONE_SIGHAND | clone.CLONE_THREAD
           | clone.CLONE_SYSVSEM)
_WALL = 0x40000000
_NO_CORE = 1
"""As a limit of core files: too little for a file, and a program gets none either (core(5))."""
_SMALL_CORE = 4096
_PATIENCE = 30.0


def fork_stub(ctx: Restore, pid: int) -> Task:
    """A child of the pod's first process."""
    host = ctx.init.fork_as(pid)
    ptrace.seize(host, _OPTIONS)
    ptrace.interrupt(host)
    await_stop(host)
    instruction = ctx.state.get("instruction of stubs")
    if instruction is None:   # all have the first one's vdso
        instruction = ctx.state["instruction of stubs"] = find_instruction(host, proc.maps(host))
    return _stub(host, pid, instruction, stack=ptrace.get_registers(host).rsp - 4096 & ~0xF)


def _stub(host: int, pid: int, instruction: int, stack: int | None = None) -> Task:
    leader = Tracee(host, host)
    ptrace.set_signal_mask(host, ALL_BUT_TRAP)
    leader.prepare(instruction, stack=stack)
    return Task(pid, host, leader, {pid: leader})


def clone_stub(parent: Task, pid: int, *, thread: int = 0, exit_signal: int = signal.SIGCHLD, flags: int = 0) -> Task:
    """A child of a stub, or of one of its threads; with CLONE_PARENT among the flags of its parent."""
    tracee = parent.threads[thread or parent.pid]
    host = _clone(parent, tracee, pid, flags, 0 if flags & clone.CLONE_PARENT else exit_signal)
    return _stub(host, pid, tracee.instruction)


def clone_thread(task: Task, tid: int) -> Tracee:
    """One more thread of a stub."""
    tracee = Tracee(task.host, _clone(task, task.leader, tid, _THREAD, 0))
    ptrace.set_signal_mask(tracee.tid, ALL_BUT_TRAP)
    tracee.prepare(task.leader.instruction)
    return tracee


def stack_room(task: Task) -> int:
    """The address of 2 KiB that a stub does not use; until its memory is emptied."""
    return int(ptrace.get_registers(task.leader.tid).rsp - 2048) & ~0xF


def _clone(task: Task, tracee: Tracee, number: int, flags: int, exit_signal: int) -> int:
    """clone3(2) with a chosen id."""
    room = stack_room(task)
    words = clone.clone_args(flags=flags, exit_signal=exit_signal, set_tid=room + clone.ARGS_SIZE, set_tid_size=1)
    task.leader.write(room, struct.pack("11Qi", *words, number))
    return tracee.clone(room, clone.ARGS_SIZE)


# -- job control ----------------------------------------------------------------------------------------
def stop(task: Task, number: int) -> None:
    """Stop all threads of a traced task as a signal does (job control); it stays so when it is let go.

    Where the kernel does not let the signal stop it, as nobody could let it go on, SIGSTOP does (setpgid(2)).
    """
    others = [tracee for tracee in task.threads.values() if tracee is not task.leader]
    for tracee in (task.leader, *others):
        _prepare_call(tracee, "pause")   # where it goes if nothing stops it
    if not _deliver_stop(task, number):
        _prepare_call(task.leader, "pause")
        _deliver_stop(task, signal.SIGSTOP)
    for tracee in others:
        ptrace.cont(tracee.tid)
        await_stop(tracee.tid)


def _deliver_stop(task: Task, number: int) -> bool:
    """Exchange a SIGSTOP for another signal while it is delivered; whether that stopped the task."""
    mask = ptrace.get_signal_mask(task.host)
    ptrace.set_signal_mask(task.host, mask & ~(1 << (number - 1)))
    os.kill(task.host, signal.SIGSTOP)
    ptrace.cont(task.host)
    while True:
        status = wait(task.host)
        assert status is not None
        if event(status) == ptrace.EVENT_STOP:
            ptrace.set_signal_mask(task.host, mask)
            return os.WSTOPSIG(status) == number
        stopping = event(status) == 0 and os.WSTOPSIG(status) == signal.SIGSTOP
        ptrace.cont(task.host, number if stopping else 0)
        if stopping:
            ptrace.interrupt(task.host)


def _prepare_call(tracee: Tracee, name: str, argument: int = 0) -> None:
    """Let a stub make a call as soon as it runs."""
    registers = ptrace.get_registers(tracee.tid)
    registers.rip = tracee.instruction
    registers.rax, registers.rdi, registers.orig_rax = NR[name], argument, NO_CALL
    ptrace.set_registers(tracee.tid, registers)


# -- ends -----------------------------------------------------------------------------------------------
def end(task: Task, status: int = 0) -> None:
    """End a stub with a wait status; its parent finds a zombie, or has reaped it, when this returns."""
    host, number = task.host, os.WTERMSIG(status)
    if number:
        if number not in (signal.SIGKILL, signal.SIGSTOP):   # the first process may catch or ignore it
            room = stack_room(task)
            task.leader.write(room, bytes(32))
            task.call("rt_sigaction", number, room, 0, 8)
        limit = _SMALL_CORE if os.WCOREDUMP(status) else _NO_CORE
        resource.prlimit(host, resource.RLIMIT_CORE, (limit, limit))
        ptrace.set_signal_mask(host, 0)
        os.kill(host, number)   # its default action comes before the stub's next instruction
    else:
        _prepare_call(task.leader, "exit_group", os.WEXITSTATUS(status))
    with contextlib.suppress(ProcessLookupError):   # SIGKILL doesn't wait for the detach
        ptrace.detach(host)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(host, _WALL)
    _await(host, "Z")


def await_reaping(host: int) -> None:
    """Until a stub that has ended is gone."""
    _await(host, "")


def _await(host: int, state: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        try:
            if proc.stat(host).state == state:
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.0002)
    raise TimeoutError(110, f"process {host} does not end", "exit_group")
