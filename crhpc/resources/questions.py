"""What only a thread itself can be asked for, gathered: one stop for the questions of all kinds.

A kind asks at ``Cut.INSPECT`` and has the answers from ``Cut.COLLECT`` on. To borrow a thread costs far more than a
call, and there are many threads. A question must be one that this kernel can answer.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from crhpc.kernel import libc
from crhpc.resources.context import Dump, Task

ROOM = -1
"""Among a question's arguments: the address of its room. ``ROOM - n`` is n bytes behind it."""


@dataclass(frozen=True, slots=True)
class Question:
    """A system call that changes nothing, and how many bytes it writes."""

    call: str
    arguments: tuple[int, ...]
    size: int = 0


def ask(ctx: Dump, question: Question) -> None:
    """Have every thread asked."""
    ctx.state.setdefault("questions", {})[question] = None


def answer(ctx: Dump, task: Task, tid: int, question: Question) -> tuple[int, bytes]:
    """The call's result, and what it wrote."""
    answers: dict[tuple[int, int], dict[Question, tuple[int, bytes]]] = ctx.state.setdefault("answers", {})
    if (task.pid, tid) not in answers:
        answers[task.pid, tid] = _answers(task, tid, list(ctx.state["questions"]))
    return answers[task.pid, tid][question]


def _answers(task: Task, tid: int, questions: list[Question]) -> dict[Question, tuple[int, bytes]]:
    area, calls, ends, end = task.area_of(tid), [], [], task.area.data
    for question in questions:
        start = end
        calls.append((question.call, tuple(start + ROOM - n if n <= ROOM else n for n in question.arguments)))
        end += -(-question.size // 16) * 16
        ends.append((start - area.data, start - area.data + question.size))
    if end > area.data:
        task.leader.write(area.data, bytes(end - area.data))
    results = area.run(calls)
    raw = task.leader.read(area.data, end - area.data) if end > area.data else b""
    return {question: (result, raw[low:high])
            for question, result, (low, high) in zip(questions, results, ends, strict=True)}


@lru_cache
def has_prctl(option: int) -> bool:
    """Whether this kernel knows an option of prctl(2) that reads a setting and takes no argument."""
    try:
        libc.prctl(option)
    except OSError:
        return False
    return True
