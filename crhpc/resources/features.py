"""What a thread has asked of its processor and of the kernel by prctl(2): speculation, TSC, CPUID, memory failures.

And what its process has registered for with membarrier(2), without which a later barrier would be an error.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from crhpc.kernel import libc, ptrace
from crhpc.resources import Chapter, Cut, Kind, Phase, at
from crhpc.resources.context import Dump, Restore
from crhpc.resources.questions import ROOM, Question, answer, ask

_PR_GET_TSC, _PR_SET_TSC, _TSC_ENABLE = 25, 26, 1
_PR_MCE_KILL, _PR_MCE_KILL_GET, _MCE_KILL_SET, _MCE_KILL_DEFAULT = 33, 34, 1, 2
_PR_GET_SPECULATION, _PR_SET_SPECULATION, _SETTABLE = 52, 53, 1
_SPECULATIONS = range(3)
"""PR_SPEC_STORE_BYPASS, PR_SPEC_INDIRECT_BRANCH, PR_SPEC_L1D_FLUSH."""
_ARCH_GET_CPUID, _ARCH_SET_CPUID = 0x1011, 0x1012
_GET_REGISTRATIONS = 1 << 9
_PRIVATE_EXPEDITED, _PRIVATE_EXPEDITED_SYNC_CORE = 1 << 4, 1 << 6

_TSC = Question("prctl", (_PR_GET_TSC, ROOM), 4)
_MEMORY_FAILURE = Question("prctl", (_PR_MCE_KILL_GET, 0, 0, 0, 0))
_SPECULATION = [Question("prctl", (_PR_GET_SPECULATION, which, 0, 0, 0)) for which in _SPECULATIONS]
_CPUID = Question("arch_prctl", (_ARCH_GET_CPUID, 0))
_BARRIERS = Question("membarrier", (_GET_REGISTRATIONS, 0, 0))


@dataclass(frozen=True, slots=True)
class ThreadFeatures:
    """Of a thread whose settings are not the usual ones."""

    pid: int
    tid: int
    tsc: int = field(metadata={"doc": "PR_TSC_ constant"})
    cpuid: bool = field(metadata={"doc": "whether the CPUID instruction may be used (ARCH_SET_CPUID)"})
    memory_failure: int = field(metadata={"doc": "PR_MCE_KILL_ constant"})
    speculation: tuple[int, ...] = field(metadata={"doc": "PR_SPEC_ flags by PR_SPEC_ number; -1: unknown here"})


@dataclass(frozen=True, slots=True)
class MemoryBarriers:
    """A process's registrations for membarrier(2)."""

    pid: int
    commands: int = field(metadata={"doc": "MEMBARRIER_CMD_REGISTER_ constants"})


class FeaturesKind(Kind):
    name = "features"
    chapter = Chapter.PROCESSES
    records = (ThreadFeatures, MemoryBarriers)
    saved = ("registrations for membarrier(2); of every thread: control of speculation, whether the TSC and CPUID "
             "instructions may be used, policy for memory failures")
    refused = (
        ("a thread whose system calls are dispatched to itself",
         "run the program without the emulator that does so (PR_SET_SYSCALL_USER_DISPATCH)"),
    )
    afterwards = "what this processor or kernel does not offer is left out, with a warning"

    @at(Cut.INSPECT)
    def inspect(self, ctx: Dump) -> None:
        for task in ctx.tasks:
            if any(ptrace.dispatches_calls(tracee.tid) for tracee in task.threads.values()):
                raise ctx.refuse("a thread whose system calls are dispatched to itself", task,
                                 "run the program without the emulator that does so (PR_SET_SYSCALL_USER_DISPATCH)")
        for question in _answered():
            ask(ctx, question)

    @at(Cut.COLLECT)
    def dump(self, ctx: Dump) -> None:
        usual = _usual()
        for task in ctx.tasks:
            for tid in task.threads:
                answers = {question: answer(ctx, task, tid, question) for question in _answered()}
                features = (int.from_bytes(answers[_TSC][1], "little"), bool(answers[_CPUID][0]),
                            answers[_MEMORY_FAILURE][0],
                            tuple(answers[q][0] if q in answers else -1 for q in _SPECULATION))
                if features != usual:
                    ctx.add(ThreadFeatures(task.pid, tid, *features))
            # Before Linux 6.3 nobody can tell: the two that are in use (kernel/sched/membarrier.c) cost little.
            commands = (answer(ctx, task, task.pid, _BARRIERS)[0] if _BARRIERS in _answered()
                        else _PRIVATE_EXPEDITED | _PRIVATE_EXPEDITED_SYNC_CORE)
            if commands:
                ctx.add(MemoryBarriers(task.pid, commands))

    @at(Phase.STATE)
    def register(self, ctx: Restore) -> None:
        for row in ctx.rows(MemoryBarriers):
            for bit in range(_GET_REGISTRATIONS.bit_length() - 1):
                if row.commands >> bit & 1:
                    try:
                        ctx.tasks[row.pid].call("membarrier", 1 << bit, 0, 0)
                    except OSError as error:
                        ctx.warn(f"pid {row.pid} can't be registered for membarrier {1 << bit}: {error.strerror}")

    @at(Phase.LAST)
    def restore(self, ctx: Restore) -> None:
        for row in ctx.rows(ThreadFeatures):
            tracee = ctx.tasks[row.pid].threads[row.tid]
            wanted = [("prctl", (_PR_MCE_KILL, _MCE_KILL_SET, row.memory_failure, 0, 0)),
                      ("prctl", (_PR_SET_TSC, row.tsc)), ("arch_prctl", (_ARCH_SET_CPUID, int(row.cpuid)))]
            for which, flags in enumerate(row.speculation[:len(_SPECULATIONS)]):
                if flags > 0 and flags & _SETTABLE:
                    wanted.append(("prctl", (_PR_SET_SPECULATION, which, flags & ~_SETTABLE, 0, 0)))
            if row.cpuid:
                del wanted[2]
            for call, arguments in wanted:
                try:
                    tracee.call(call, *arguments)
                except OSError as error:
                    ctx.warn(f"a setting of thread {row.tid} can't be made here: {error}")


@lru_cache
def _answered() -> tuple[Question, ...]:
    """Those that this kernel and this processor can answer: asked of this very process."""
    found = [_TSC, _MEMORY_FAILURE, _CPUID]
    for question in (*_SPECULATION, _BARRIERS):
        try:
            libc.syscall(question.call, *question.arguments)
        except OSError:
            continue
        found.append(question)
    return tuple(found)


@lru_cache
def _usual() -> tuple[int, bool, int, tuple[int, ...]]:
    """What a thread has that has set nothing: what this one has of speculation."""
    own = [libc.syscall(q.call, *q.arguments) if q in _answered() else -1 for q in _SPECULATION]
    return _TSC_ENABLE, True, _MCE_KILL_DEFAULT, tuple(own)
