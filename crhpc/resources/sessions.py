"""Controlling terminals: which terminal a session has, its foreground group, and who of the session has left it.

Taken by the session's leader right after setsid(2), so that its children inherit it; TIOCNOTTY lets go of it again
where a process had done so, or was born before. The foreground group may be one of which nobody is left: a stand-in
is it for the moment.
"""
from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field

from crhpc.errors import ImageDamaged
from crhpc.kernel import proc
from crhpc.resources import Chapter, Cut, Kind, Phase, at, stubs
from crhpc.resources.context import Dump, Restore, Task

_TIOCSPGRP, _TIOCNOTTY = 0x5410, 0x5422
_SLAVE_MAJORS = range(136, 144)
_WALL = 0x40000000
_FOREGROUND = 7
"""Where tpgid stands in /proc/PID/stat, counted from behind the name."""


_OUTSIDE = ("a controlling terminal that is not the job's", "start it without a terminal (setsid)")


@dataclass(frozen=True, slots=True)
class ControllingTerminal:
    """The terminal of a session."""

    session: int
    number: int = field(metadata={"ref": "pty.number"})
    foreground: int = field(metadata={"doc": "process group"})
    gone: bool = field(metadata={"doc": "nobody of the foreground group is left"})


@dataclass(frozen=True, slots=True)
class WithoutTerminal:
    """A process that does not have its session's terminal."""

    pid: int


class SessionsKind(Kind):
    name = "sessions"
    chapter = Chapter.PROCESSES
    records = (ControllingTerminal, WithoutTerminal)
    saved = ("controlling terminals with their foreground group, also one of which nobody is left; processes that have "
             "left their session's terminal")
    refused = (_OUTSIDE,)
    afterwards = "a session's leader whose terminal was hung up hangs nobody up at its end"

    @at(Cut.INSPECT)
    def inspect(self, ctx: Dump) -> None:
        for task in ctx.tasks:
            number = _number(proc.stat(task.host).tty)
            try:
                if number is not None:
                    ctx.pod.stat(f"/dev/pts/{number}")
            except OSError:
                raise ctx.refuse(_OUTSIDE[0], task, _OUTSIDE[1]) from None

    @at(Cut.COLLECT)
    def dump(self, ctx: Dump) -> None:
        groups: dict[int, int] = {}
        members: list[tuple[Task, int, int | None, int]] = []
        for task in ctx.tasks:
            stat, status = proc.stat(task.host), proc.status(task.host)
            groups[stat.pgrp] = status.inner("NSpgid")
            members.append((task, status.inner("NSsid"), _number(stat.tty), stat.foreground))
        with_terminal = set()
        for task, session, number, foreground in members:
            if number is not None and task.pid == session:
                with_terminal.add(session)
                gone = foreground not in groups
                inner = _foreground(ctx, task) if gone else groups[foreground]
                ctx.add(ControllingTerminal(session, number, inner, gone))
        for task, session, number, _foreground_group in members:
            if session in with_terminal and number is None:
                ctx.add(WithoutTerminal(task.pid))

    @at(Phase.CHECK)
    def check(self, ctx: Restore) -> None:
        rows = ctx.rows(ControllingTerminal)
        if (len({row.session for row in rows}) != len(rows) or len({row.number for row in rows}) != len(rows)
                or any(row.number < 0 or row.foreground < 0 for row in rows)):
            raise ImageDamaged(image=ctx.image, what="a controlling terminal of two sessions")

    @at(Phase.OBJECTS)
    def prepare(self, ctx: Restore) -> None:
        ctx.after_setsid.append(_take)

    @at(Phase.WATCH)
    def set_foreground(self, ctx: Restore) -> None:
        """When all groups are there."""
        for row in ctx.rows(ControllingTerminal):
            if row.session in ctx.tasks and row.foreground and not row.gone:
                _ask_terminal(ctx.tasks[row.session], _TIOCSPGRP, row.foreground)
        for left in ctx.rows(WithoutTerminal):
            if left.pid in ctx.tasks:
                _ask_terminal(ctx.tasks[left.pid], _TIOCNOTTY, 0)


def _number(device: int) -> int | None:
    """Of a device number as /proc/PID/stat has it; None where it is no pseudo-terminal."""
    major, minor = os.major(device), os.minor(device)
    return minor + 256 * (major - _SLAVE_MAJORS.start) if major in _SLAVE_MAJORS else None


def _foreground(ctx: Dump, leader: Task) -> int:
    """A group's number in the pod when no process is left that would tell it; 0 where there is none."""
    text = ctx.pod_file(f"/proc/{leader.pid}/stat")
    return max(int(text.rpartition(")")[2].split()[_FOREGROUND - 2]), 0)


def _take(ctx: Restore, leader: Task) -> None:
    for row in ctx.rows(ControllingTerminal):
        if row.session == leader.pid:
            room = stubs.stack_room(leader)
            leader.leader.write(room, f"/dev/pts/{row.number}".encode() + b"\0")
            fd = leader.call("open", room, os.O_RDWR, 0)
            if row.gone and row.foreground:
                group = stubs.clone_stub(leader, row.foreground)
                group.call("setpgid", 0, 0)
                leader.leader.write(room, struct.pack("i", row.foreground))
                leader.call("ioctl", fd, _TIOCSPGRP, room)
                stubs.end(group)
                leader.call("wait4", group.pid, 0, _WALL, 0)
            leader.call("close", fd)


def _ask_terminal(task: Task, request: int, value: int) -> None:
    """An ioctl of a process's own controlling terminal."""
    room = task.area.data
    task.leader.write(room, b"/dev/tty\0" + bytes(7) + struct.pack("i", value))
    fd = task.call("open", room, os.O_RDWR, 0)
    task.call("ioctl", fd, request, room + 16)
    task.call("close", fd)
