"""Pseudo-terminals: masters and slaves with their number, termios, window size and buffered data.

The pod has a terminal file system of its own, so that a number is free again at restart. What waits to be
read can't be peeked at: it is read and put back from the other side while the line discipline is told not to
touch it; nothing of the job runs meanwhile. A controlling terminal is taken by the session's leader right
after setsid(2), so that the leader's children inherit it.
"""
from __future__ import annotations

import fcntl
import os
import select
import stat as modes
import struct
from dataclasses import dataclass, field

from crhpc.kernel import proc, ptrace
from crhpc.resources import Chapter, Cut, Phase, at
from crhpc.resources.context import Dump, OpenFile, Restore, Task
from crhpc.resources.files import File, FileKind

_TIOCGPTN, _TIOCSPTLCK, _TIOCGPTLCK, _TIOCGPKT, _TIOCPKT = 0x80045430, 0x40045431, 0x80045439, 0x80045438, 0x5420
_TCGETS2, _TCSETS2, _TIOCGWINSZ, _TIOCSWINSZ, _TIOCSPGRP = 0x802C542A, 0x402C542B, 0x5413, 0x5414, 0x5410
_TERMIOS2 = struct.Struct("4IB19s2I")
"""c_iflag, c_oflag, c_cflag, c_lflag, c_line, c_cc, c_ispeed, c_ospeed"""
_ICANON = 2
_SLAVE_MAJORS, _PTMX = range(136, 144), (5, 2)


@dataclass(frozen=True, slots=True)
class PtyEnd:
    """An open file description of a master or a slave."""

    id: int
    number: int = field(metadata={"ref": "pty.number"})
    master: bool
    packet: bool


@dataclass(frozen=True, slots=True)
class Pty:
    """A pseudo-terminal, ``/dev/pts/<number>`` in the pod."""

    number: int
    termios: bytes = field(metadata={"doc": "struct termios2"})
    window: bytes = field(metadata={"doc": "struct winsize"})
    locked: bool
    mode: int
    output: bytes = field(metadata={"doc": "written by the slave's side, not read yet"})
    input: bytes = field(metadata={"doc": "written by the master's side, not read yet"})
    session: int = field(metadata={"doc": "whose controlling terminal it is; 0: nobody's"})
    foreground: int


class PtyKind(FileKind):
    name = "pty"
    chapter = Chapter.CHANNELS
    priority = 10
    records = (PtyEnd, Pty)
    saved = ("pseudo-terminals of the job under their own numbers: terminal settings, window size, modes, what is "
             "buffered in both directions, session and foreground group")
    refused = (
        ("a terminal of the user's that is not one of the standard streams",
         "let the job use its standard streams only"),
        ("a terminal whose master is closed", "close it too"),
    )

    def matches(self, file: OpenFile, ctx: Dump) -> bool:
        if not modes.S_ISCHR(file.stat.st_mode):
            return False
        major, minor = os.major(file.stat.st_rdev), os.minor(file.stat.st_rdev)
        return (major, minor) == _PTMX or major in _SLAVE_MAJORS

    def refusal(self, file: OpenFile, ctx: Dump) -> tuple[str, str] | None:
        outside = file.stat.st_dev != os.stat(ctx.pod.outside("/dev/pts")).st_dev
        if outside and os.major(file.stat.st_rdev) in _SLAVE_MAJORS:
            return f"the user's terminal {file.link}", "let the job use its standard streams only"
        number = _number(file, ctx)
        if not any(_is_master(other) and _number(other, ctx) == number for other in _terminals(ctx)):
            return f"the terminal {file.link}, whose master is closed", "close it too"
        return None

    @at(Cut.REGISTERS)
    def read_all(self, ctx: Dump) -> None:
        """Before records are made; each terminal once."""
        ctx.state["terminals"] = {
            _number(file, ctx): _read(ctx, file, _number(file, ctx)) for file in _terminals(ctx) if _is_master(file)}

    def dump(self, file: OpenFile, ctx: Dump) -> PtyEnd:
        number, master = _number(file, ctx), _is_master(file)
        if master:
            ctx.add(ctx.state["terminals"][number])
        return PtyEnd(file.id, number, master, master and bool(_ioctl_int(_copy(file, ctx), _TIOCGPKT)))

    @at(Phase.OBJECTS)
    def make_masters(self, ctx: Restore) -> None:
        """Numbers are given lowest first: make all up to the highest, keep those that are wanted."""
        wanted = {row.number: row for row in ctx.rows(Pty)}
        made: dict[int, int] = {}
        while wanted.keys() - made.keys():
            fd = os.open(ctx.pod.outside("/dev/pts/ptmx"), os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            made[_ioctl_int(fd, _TIOCGPTN)] = fd
        for number in made.keys() - wanted.keys():
            os.close(made.pop(number))
        for number, row in wanted.items():
            _set_up(ctx, made[number], row)
        ctx.state["masters"] = made
        ctx.after_setsid.append(_take_controlling_terminal)

    def restore(self, record: PtyEnd, file: File, ctx: Restore) -> int:
        if not record.master:
            path = ctx.pod.outside(f"/dev/pts/{record.number}")
            return os.open(path, file.flags & os.O_ACCMODE | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        fd: int = ctx.state["masters"].pop(record.number)
        if record.packet:
            fcntl.ioctl(fd, _TIOCPKT, struct.pack("i", 1))
        return fd

    @at(Phase.CONNECT)
    def fill(self, ctx: Restore) -> None:
        masters = {row.number: ctx.open_files[row.id] for row in ctx.rows(PtyEnd) if row.master}
        for row in ctx.rows(Pty):
            _put_back(ctx.pod.outside(f"/dev/pts/{row.number}"), masters[row.number], row)
            fcntl.ioctl(masters[row.number], _TIOCSPTLCK, struct.pack("i", row.locked))

    @at(Phase.WATCH)
    def set_foreground(self, ctx: Restore) -> None:
        for row in ctx.rows(Pty):
            if row.session in ctx.tasks and row.foreground:
                _set_foreground(ctx.tasks[row.session], row.foreground)


def _is_master(file: OpenFile) -> bool:
    return (os.major(file.stat.st_rdev), os.minor(file.stat.st_rdev)) == _PTMX


def _terminals(ctx: Dump) -> list[OpenFile]:
    return [file for file in ctx.open_files.values() if isinstance(ctx.state["kind of file"][file.id], PtyKind)]


def _copy(file: OpenFile, ctx: Dump) -> int:
    if file.copy < 0:
        file.copy = ctx.take(file.task, file.fd)
    return file.copy


def _number(file: OpenFile, ctx: Dump) -> int:
    if _is_master(file):
        return _ioctl_int(_copy(file, ctx), _TIOCGPTN)
    return os.minor(file.stat.st_rdev) + 256 * (os.major(file.stat.st_rdev) - _SLAVE_MAJORS.start)


def _ioctl_int(fd: int, request: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(fd, request, bytes(4)))[0])


# -- dump -----------------------------------------------------------------------------------------------
def _read(ctx: Dump, file: OpenFile, number: int) -> Pty:
    """Through the master, which shows the slave's settings too."""
    master = _copy(file, ctx)
    path = ctx.pod.outside(f"/dev/pts/{number}")
    session, foreground = _session(ctx, number)
    row = Pty(number, fcntl.ioctl(master, _TCGETS2, bytes(_TERMIOS2.size)), fcntl.ioctl(master, _TIOCGWINSZ, bytes(8)),
              bool(_ioctl_int(master, _TIOCGPTLCK)), modes.S_IMODE(os.stat(path).st_mode), b"", b"", session,
              foreground)
    packet = bool(_ioctl_int(master, _TIOCGPKT))
    if packet:
        fcntl.ioctl(master, _TIOCPKT, struct.pack("i", 0))
    row = _take_waiting(path, master, row)
    _put_back(path, master, row)
    if packet:
        fcntl.ioctl(master, _TIOCPKT, struct.pack("i", 1))
    return row


def _session(ctx: Dump, number: int) -> tuple[int, int]:
    """The session that the terminal controls, and its foreground group."""
    device = os.makedev(_SLAVE_MAJORS.start + number // 256, number % 256)
    groups: dict[int, int] = {}
    found = (0, 0)
    for task in ctx.tasks:
        stat, status = proc.stat(task.host), proc.status(task.host)
        groups[stat.pgrp] = status.inner("NSpgid")
        if stat.tty == device:
            found = (status.inner("NSsid"), stat.foreground)
    return found[0], groups.get(found[1], 0)


def _raw(settings: bytes, *, keep_lines: bool) -> bytes:
    """Settings under which bytes pass as they are; with ``keep_lines`` the input still waits for line ends."""
    _iflag, _oflag, cflag, lflag, line, _cc, ispeed, ospeed = _TERMIOS2.unpack(settings)
    return _TERMIOS2.pack(0, 0, cflag, lflag & _ICANON if keep_lines else 0, line, bytes(19), ispeed, ospeed)


def _take_waiting(path: str, master: int, row: Pty) -> Pty:
    lines = _TERMIOS2.unpack(row.termios)[3] & _ICANON
    slave = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC) if not row.locked else -1
    try:
        output = _read_all(master)
        received = b""
        if slave >= 0:
            if lines:   # what is no line yet shows only without line mode
                fcntl.ioctl(master, _TCSETS2, _raw(row.termios, keep_lines=False))
            received = _read_all(slave)
            if lines:
                fcntl.ioctl(master, _TCSETS2, row.termios)
    finally:
        if slave >= 0:
            os.close(slave)
    return Pty(row.number, row.termios, row.window, row.locked, row.mode, output, received, row.session, row.foreground)


def _read_all(fd: int) -> bytes:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    parts: list[bytes] = []
    while any(events & select.POLLIN for _, events in poll.poll(0)):
        try:
            part = os.read(fd, 65536)
        except OSError:   # EIO: the other side is closed
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


def _put_back(path: str, master: int, row: Pty) -> None:
    """Write what waited from the side that it came from, so that it waits again unchanged."""
    if not (row.output or row.input):
        return
    slave = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(master, _TCSETS2, _raw(row.termios, keep_lines=True))
        _write_all(slave, row.output)
        _write_all(master, row.input)
        fcntl.ioctl(master, _TCSETS2, row.termios)
    finally:
        os.close(slave)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


# -- restore --------------------------------------------------------------------------------------------
def _set_up(ctx: Restore, master: int, row: Pty) -> None:
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    fcntl.ioctl(master, _TCSETS2, row.termios)
    fcntl.ioctl(master, _TIOCSWINSZ, row.window)
    os.chmod(ctx.pod.outside(f"/dev/pts/{row.number}"), row.mode)


def _take_controlling_terminal(ctx: Restore, leader: Task) -> None:
    """Only a session's leader can; its children are cloned later and inherit."""
    for row in ctx.rows(Pty):
        if row.session == leader.pid:
            room = (ptrace.get_registers(leader.host).rsp - 2048) & ~0xF
            leader.leader.write(room, f"/dev/pts/{row.number}".encode() + b"\0")
            leader.call("close", leader.call("open", room, os.O_RDWR, 0))


def _set_foreground(leader: Task, group: int) -> None:
    room = leader.area.data
    leader.leader.write(room, b"/dev/tty\0" + bytes(7) + struct.pack("i", group))
    number = leader.call("open", room, os.O_RDWR, 0)
    leader.call("ioctl", number, _TIOCSPGRP, room + 16)
    leader.call("close", number)
