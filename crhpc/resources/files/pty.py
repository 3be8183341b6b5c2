"""Pseudo-terminals: masters and slaves with their number, settings and what waits in them.

The pod has a terminal file system of its own, so that a number is free again at restart. What waits is taken out and
put back at a checkpoint, too (crhpc/kernel/terminal.py). Whose controlling terminal one is: see sessions.py. A slave
that is open after its master was closed is hung up for good (pty(7)): it comes back as such a one.
"""
from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import stat as modes
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from crhpc.errors import ImageDamaged
from crhpc.kernel import ptys
from crhpc.kernel.terminal import Terminal, Waiting
from crhpc.resources import Chapter, Cut, Phase, at, stubs
from crhpc.resources.context import Dump, OpenFile, Restore
from crhpc.resources.files import File, FileKind, copied

_F_SETOWN_EX, _F_GETOWN_EX = 15, 16
_SLAVE_MAJORS, _PTMX, _TTY = range(136, 144), (5, 2), (5, 0)
_MOST = 1 << 20
_MASTER, _SLAVE, _CONTROLLING = "master", "slave", "controlling"
_OPENED_WITH = os.O_ACCMODE | 0o100000   # O_LARGEFILE


_USERS = ("a terminal of the user's that is not one of the standard streams",
          "let the job use its standard streams only")
_OUTSIDE = ("a terminal whose master is held outside the job", "close it")
_HUNG_UP = ("a terminal that was hung up while its master is open (vhangup)", "close it and open it again")
_DISCIPLINE = ("a terminal with a line discipline other than N_TTY", "set N_TTY (TIOCSETD)")
_PINNED = ("a terminal whose settings are pinned", "release them (TIOCSLCKTRMIOS)")


@dataclass(frozen=True, slots=True)
class PtyEnd:
    """An open file description of a master or a slave."""

    id: int
    number: int = field(metadata={"ref": "pty.number", "doc": "-1 where it is hung up and was opened as /dev/tty"})
    side: str = field(metadata={"doc": "master; slave; controlling, which is a slave that was opened as /dev/tty"})
    hung_up: bool = field(metadata={"doc": "a slave whose master is closed"})


@dataclass(frozen=True, slots=True)
class Pty:
    """A pseudo-terminal, ``/dev/pts/<number>`` in the pod."""

    number: int
    termios: bytes = field(metadata={"doc": "struct termios2"})
    window: bytes = field(metadata={"doc": "struct winsize"})
    mode: int
    uid: int
    gid: int
    locked: bool
    exclusive: bool = field(metadata={"doc": "TIOCEXCL of the slave's side"})
    master_exclusive: bool
    packet: bool
    status: int = field(metadata={"doc": "what a master in packet mode is to be told next: TIOCPKT_ constants"})
    untouched: bool = field(metadata={"doc": "the slave's side has never been open"})
    output: bytes = field(metadata={"doc": "written by the slave's side, not read yet"})
    echo: bytes = field(metadata={"doc": "still to be echoed, as output is stopped or full"})
    rest: bytes = field(metadata={"doc": "written by the master's side, not read yet: without lines, or behind them"})
    behind: bytes = field(metadata={"doc": "the same, and the line discipline has not looked at it yet"})
    quoting: bool = field(metadata={"doc": "the next character is quoted, as after ^V"})
    stopped: int = field(metadata={"doc": "output: 0 runs, 1 is stopped by ^S, 2 by TCOOFF"})


@dataclass(frozen=True, slots=True)
class PtyLine:
    """A line of a terminal's input that has not been read, in their order."""

    number: int = field(metadata={"ref": "pty.number"})
    content: bytes = field(metadata={"doc": "with its newline; without, it was ended by VEOF, VEOL or VEOL2"})


class PtyKind(FileKind):
    name = "pty"
    chapter = Chapter.CHANNELS
    priority = 10
    records = (PtyEnd, Pty, PtyLine)
    saved = ("pseudo-terminals of the job under their own numbers: all settings, window size, mode and owner, lock, "
             "exclusive and packet mode with what is to be told, stopped output; what waits in both directions, by "
             "lines and ends of file, and what is still to be echoed; sides that are closed, slaves that are hung up, "
             "files opened as /dev/tty")
    refused = (
        _USERS,
        _OUTSIDE,
        _HUNG_UP,
        _DISCIPLINE,
        _PINNED,
    )
    afterwards = ("the column that tabs are reckoned from is the first again; an edge-triggered poll may tell again of "
                  "what waits, after a checkpoint too")

    def matches(self, file: OpenFile, ctx: Dump) -> bool:
        device = _device(file)
        return modes.S_ISCHR(file.stat.st_mode) and (device in (_PTMX, _TTY) or device[0] in _SLAVE_MAJORS)

    def refusal(self, file: OpenFile, ctx: Dump) -> tuple[str, str] | None:
        side = _side(file)
        if side == _SLAVE and file.stat.st_dev != ctx.pod.stat("/dev/pts").st_dev:
            return _USERS
        with copied(file) as fd:
            if side != _MASTER and ptys.is_hung_up(fd):
                return _HUNG_UP if side == _SLAVE and _number(file, ctx) in _masters(ctx) else None
            if ptys.discipline(fd):
                return _DISCIPLINE
            if side == _MASTER and ptys.is_pinned(fd):
                return _PINNED
        return None if _number(file, ctx) in _masters(ctx) else _OUTSIDE

    @at(Cut.REGISTERS)
    def read_all(self, ctx: Dump) -> None:
        """Before records are made; each terminal once."""
        ctx.state["terminals"] = {number: _read(ctx, number, master) for number, master in _masters(ctx).items()}

    def dump(self, file: OpenFile, ctx: Dump) -> PtyEnd:
        side, number = _side(file), _number(file, ctx)
        if side == _MASTER:
            row, lines = ctx.state["terminals"][number]
            ctx.add(row)
            for line in lines:
                ctx.add(PtyLine(number, line))
        return PtyEnd(file.id, number, side, side != _MASTER and number not in _masters(ctx))

    # -- restore ----------------------------------------------------------------------------------
    @at(Phase.CHECK)
    def check(self, ctx: Restore) -> None:
        def wrong(what: str) -> ImageDamaged:
            return ImageDamaged(image=ctx.image, what=f"terminals: {what}")

        rows, ends = {row.number: row for row in ctx.rows(Pty)}, ctx.rows(PtyEnd)
        masters = [end.number for end in ends if end.side == _MASTER]
        if len(rows) != len(ctx.rows(Pty)) or sorted(masters) != sorted(rows):
            raise wrong("not every one has one master")
        for row in rows.values():
            if (not 0 <= row.number < _MOST or len(row.termios) != ptys.SETTINGS.size or len(row.window) != 8
                    or row.stopped not in (0, 1, 2)):
                raise wrong(f"number {row.number} has settings that can't be")
        for end in ends:
            if end.side not in (_MASTER, _SLAVE, _CONTROLLING) or not -1 <= end.number < _MOST:
                raise wrong(f"a side {end.side!r} of number {end.number}")
            if (end.number in rows) == end.hung_up or (end.number < 0 and end.side == _SLAVE):
                raise wrong(f"number {end.number} has no master")
        if any(line.number not in rows for line in ctx.rows(PtyLine)):
            raise wrong("a line of none")

    @at(Phase.OBJECTS)
    def make_masters(self, ctx: Restore) -> None:
        """Numbers are given lowest first: make all up to the highest, keep those that are wanted."""
        ends = ctx.rows(PtyEnd)
        links = {file.id: file.link for file in ctx.rows(File)}
        paths = {end.number: links[end.id] for end in ends if end.side == _MASTER}
        wanted = {end.number for end in ends if end.number >= 0}
        made = ctx.until_held({})
        while wanted - made.keys():
            fd = _new_master(ctx, paths.get(len(made), ""))
            made[ptys.number(fd)] = fd
        if any(end.number < 0 for end in ends):   # of one that is hung up nobody knows the number
            made[-1] = _new_master(ctx, "")
        for number in made.keys() - wanted - {-1}:
            os.close(made.pop(number))
        for fd in made.values():
            ptys.lock(fd, False)
        for row in ctx.rows(Pty):
            _set_up(ctx, made[row.number], row)
        ctx.state["masters"] = made
        ctx.state["controlling"] = _open_controlling(ctx, made)

    def restore(self, record: PtyEnd, file: File, ctx: Restore) -> int:
        if record.side == _CONTROLLING:
            return int(ctx.state["controlling"][record.id])
        master: int = ctx.state["masters"][record.number]
        return master if record.side == _MASTER else ptys.open_slave(master, file.flags & _OPENED_WITH)

    @at(Phase.CONNECT)
    def fill(self, ctx: Restore) -> None:
        """First what is hung up by closing its master."""
        masters: dict[int, int] = ctx.state["masters"]
        open_sides = {end.number for end in ctx.rows(PtyEnd) if end.side != _MASTER}
        for number in masters.keys() - {row.number for row in ctx.rows(Pty)}:
            os.close(masters.pop(number))
        for row in ctx.rows(Pty):
            lines = tuple(line.content for line in ctx.rows(PtyLine) if line.number == row.number)
            waiting = Waiting(row.output, row.echo, lines, row.rest, row.behind, row.quoting, row.stopped, row.status)
            master = masters[row.number]
            with ptys.opened(master, untouched=row.untouched and row.number not in open_sides) as slave:
                Terminal(master, slave, row.termios).put(waiting, packets=row.packet)
                if row.number not in open_sides:
                    ptys.set_exclusive(slave, row.exclusive)

    @at(Phase.LAST)
    def close_up(self, ctx: Restore) -> None:
        """Nobody opens a terminal for the restart any more; asking for signals has made somebody the owner where there
        was none (__tty_fasync in drivers/tty/tty_io.c)."""
        rows, files = {row.number: row for row in ctx.rows(Pty)}, {file.id: file for file in ctx.rows(File)}
        for end in ctx.rows(PtyEnd):
            fd = ctx.open_files[end.id]
            if files[end.id].flags & os.O_ASYNC and not files[end.id].owner:
                fcntl.fcntl(fd, fcntl.F_SETOWN, 0)
            if end.side == _MASTER:
                ptys.set_exclusive(fd, rows[end.number].master_exclusive)
                ptys.lock(fd, rows[end.number].locked)
            elif not end.hung_up:
                ptys.set_exclusive(fd, rows[end.number].exclusive)


def _device(file: OpenFile) -> tuple[int, int]:
    return os.major(file.stat.st_rdev), os.minor(file.stat.st_rdev)


def _side(file: OpenFile) -> str:
    return {_PTMX: _MASTER, _TTY: _CONTROLLING}.get(_device(file), _SLAVE)


def _number(file: OpenFile, ctx: Dump) -> int:
    """-1 where nobody can tell."""
    numbers: dict[int, int] = ctx.state.setdefault("numbers of terminals", {})
    if file.id not in numbers:
        major, minor = _device(file)
        if (major, minor) in (_PTMX, _TTY):
            with copied(file) as fd:
                device = ptys.device(fd)
            major, minor = device >> 8 & 0xFFF, device & 0xFF | device >> 12 & 0xFFF00
        numbers[file.id] = minor + 256 * (major - _SLAVE_MAJORS.start) if major in _SLAVE_MAJORS else -1
    return numbers[file.id]


def _masters(ctx: Dump) -> dict[int, OpenFile]:
    if "masters" not in ctx.state:
        ctx.state["masters"] = {_number(file, ctx): file for file in _files(ctx) if _side(file) == _MASTER}
    found: dict[int, OpenFile] = ctx.state["masters"]
    return found


def _files(ctx: Dump) -> list[OpenFile]:
    return [file for file in ctx.open_files.values() if isinstance(ctx.state["kind of file"][file.id], PtyKind)]


def _copy(file: OpenFile, ctx: Dump) -> int:
    if file.copy < 0:
        file.copy = ctx.take(file.task, file.fd)
    return file.copy


# -- dump -----------------------------------------------------------------------------------------------
def _read(ctx: Dump, number: int, file: OpenFile) -> tuple[Pty, tuple[bytes, ...]]:
    """Through the master, which shows the slave's settings too."""
    master = _copy(file, ctx)
    sides = [other for other in _files(ctx) if _number(other, ctx) == number and other is not file]
    stat = ctx.pod.stat(f"/dev/pts/{number}")
    untouched = not sides and not ptys.was_closed(master)
    settings, packet, locked = ptys.settings(master), ptys.in_packet_mode(master), ptys.is_locked(master)
    exclusive = any(ptys.is_exclusive(_copy(side, ctx)) for side in sides[:1])
    if exclusive:
        ptys.set_exclusive(_copy(sides[0], ctx), False)
    waiting = Waiting()
    try:
        with _nobody_told(ctx, [file, *sides]), ptys.opened(master, untouched=untouched) as slave:
            exclusive = exclusive or ptys.is_exclusive(slave)
            waiting = _look(Terminal(master, slave, settings), packet=packet)
    except OSError as error:
        if error.errno != errno.EBUSY:   # it is exclusive, and closed: only root can ever open it
            raise
        exclusive = True
    finally:
        if sides:
            ptys.set_exclusive(_copy(sides[0], ctx), exclusive)
    row = Pty(number, settings, ptys.window(master), modes.S_IMODE(stat.st_mode), stat.st_uid,
              stat.st_gid, locked, exclusive, ptys.is_exclusive(master), packet, waiting.status, untouched,
              waiting.output, waiting.echo, waiting.rest, waiting.behind, waiting.quoting, waiting.stopped)
    return row, waiting.lines


def _look(both: Terminal, *, packet: bool) -> Waiting:
    if not both.in_lines and not _may_hold(both):
        return Waiting()
    waiting = both.take(packets=packet)
    if waiting != Waiting():
        both.put(waiting, packets=packet)
    return waiting


def _may_hold(both: Terminal) -> bool:
    """Whether anything waits, or output is stopped; without lines that can be seen."""
    return bool(ptys.events(both.master) & (select.POLLIN | select.POLLPRI) or ptys.unread(both.slave)
                or not ptys.events(both.slave) & select.POLLOUT)


@contextlib.contextmanager
def _nobody_told(ctx: Dump, files: list[OpenFile]) -> Iterator[None]:
    """Nobody gets SIGIO for what comes and goes meanwhile."""
    owners: list[tuple[int, bytes]] = []
    for file in files:
        if file.info.flags & os.O_ASYNC:
            fd = _copy(file, ctx)
            owners.append((fd, fcntl.fcntl(fd, _F_GETOWN_EX, struct.pack("ii", 0, 0))))
            fcntl.fcntl(fd, fcntl.F_SETOWN, 0)
    try:
        yield
    finally:
        for fd, owner in owners:
            fcntl.fcntl(fd, _F_SETOWN_EX, owner)


# -- restore --------------------------------------------------------------------------------------------
def _new_master(ctx: Restore, path: str) -> int:
    """Under the name that it had been opened by; in a pod they lead to the same."""
    name = path if path in ("/dev/ptmx", "/dev/pts/ptmx") else "/dev/pts/ptmx"
    return os.open(ctx.pod.outside(name), os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)


def _set_up(ctx: Restore, master: int, row: Pty) -> None:
    path = ctx.pod.outside(f"/dev/pts/{row.number}")
    ptys.change(master, row.termios)
    ptys.set_window(master, row.window)
    stat = os.stat(path)
    if (stat.st_uid, stat.st_gid) != (row.uid, row.gid):
        os.chown(path, row.uid, row.gid)
    os.chmod(path, row.mode)


def _open_controlling(ctx: Restore, masters: dict[int, int]) -> dict[int, int]:
    """Open files as /dev/tty, by a process that has the terminal for as long: no session of the job's has it yet."""
    flags = {file.id: file.flags for file in ctx.rows(File)}
    opened = ctx.until_held({})
    ends = [end for end in ctx.rows(PtyEnd) if end.side == _CONTROLLING]
    for number in {end.number for end in ends}:
        task = stubs.fork_stub(ctx, _FREE_ID)
        room = stubs.stack_room(task)
        path = f"/dev/pts/{ptys.number(masters[number])}".encode()
        task.leader.write(room, path.ljust(64, b"\0") + b"/dev/tty\0")
        task.call("setsid")
        task.call("open", room, os.O_RDWR, 0)
        for end in ends:
            if end.number == number:
                fd = task.call("open", room + 64, flags[end.id] & os.O_ACCMODE | os.O_NONBLOCK | os.O_CLOEXEC, 0)
                opened[end.id] = ctx.take(task, fd)
        stubs.end(task)
        stubs.await_reaping(task.host)
    return opened


_FREE_ID = 2
"""Any is free before the job's processes are made."""
