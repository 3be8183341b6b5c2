"""What waits in a pseudo-terminal, taken out and put back while nobody else reads or writes it.

Nothing of it can be peeked at: it is read by the side that it waits for, and comes back by being written again from
the side that it came from, while the line discipline is told to let it pass. The kernel's own rules are those of
drivers/tty/n_tty.c:

- Lines: each read(2) of a terminal that gives lines ends at a mark. Marks go when ICANON or EXTPROC is switched, so
  neither is. What is no line yet comes out by an end of file of our own. A character behind ^V is that character: so
  a ^V that waits is found out, and what would mean something to the line discipline is written behind one.
- A terminal takes no more than 4095 bytes. What is behind them has not been looked at yet: characters in it that
  interrupt, erase or are echoed have not done so. It goes back last, when all settings are the program's again.
- Output that is stopped (TCOOFF or ^S) keeps what is to be echoed to itself. It comes out when output is started, and
  is put back by being typed with echo while output is stopped.
- What is written arrives through a worker of the kernel's; poll(2) waits for that where nothing can be read.
- Each change is told to a master in packet mode, so that is off meanwhile, and what it had to be told is made
  to happen again.
"""
from __future__ import annotations

import errno
import fcntl
import os
import select
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from crhpc.kernel.ptys import SETTINGS, change, events, in_packet_mode, set_packet_mode, unread

_ICANON, _ECHO, _IEXTEN, _EXTPROC, _IXON = 0o2, 0o10, 0o100000, 0o200000, 0o2000
_UNCOOKED = 0o20 | 0o40 | 0o100 | 0o200 | 0o400 | 0o1000 | _IXON | 0o10
"""Of c_iflag: INPCK, ISTRIP, INLCR, IGNCR, ICRNL, IUCLC, IXON, PARMRK; without these and without ICANON, ISIG and ECHO
nothing is looked at."""
_EOF, _STOP, _START, _QUOTE = 0x04, 0x13, 0x11, 0x16
_VEOF, _VMIN, _VSTART, _VSTOP, _VLNEXT = 4, 6, 8, 9, 15
_FULL = 4093
"""Bytes with which a terminal may be full; with PARMRK that is a little less than 4095."""
_FLUSHED, _STOPPED, _STARTED, _FLOW, _CHANGED = 1 | 2, 4, 8, 16 | 32, 64
"""TIOCPKT_ statuses (ioctl_tty(2)): FLUSHREAD, FLUSHWRITE; STOP; START; NOSTOP, DOSTOP; IOCTL."""
_WHOLE, _PIECE, _LARGE_PIECE = 19968, 256, 1792
"""In such pieces most goes in: the kernel's buffers (drivers/tty/tty_buffer.c) are full, the last is a large one."""
_PATIENCE, _PAUSE = 2.0, 0.001

RUNS, STOPPED_BY_CHARACTER, STOPPED_BY_CALL = 0, 1, 2
"""Whether output is stopped: not, by ^S, by TCOOFF."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits in a pseudo-terminal."""

    output: bytes = b""
    echo: bytes = b""
    lines: tuple[bytes, ...] = ()
    rest: bytes = b""
    behind: bytes = b""
    quoting: bool = False
    stopped: int = RUNS
    status: int = 0


# -- what waits -----------------------------------------------------------------------------------------
class Terminal:
    """Both sides of a pseudo-terminal, of which nobody reads or writes but we.

    Its settings are changed with each step; ``take`` and ``put`` leave those that the program has made.
    """

    def __init__(self, master: int, slave: int, wanted: bytes) -> None:
        """
        Args:
            slave: an opening of our own, that does not wait.
            wanted: the settings that the program has made.
        """
        self.master = master
        self.slave = slave
        self.wanted = wanted
        iflag, _oflag, _cflag, lflag, _line, _cc, _ispeed, _ospeed = SETTINGS.unpack(wanted)
        self.outside_lines = bool(lflag & _EXTPROC)
        self.in_lines = bool(lflag & _ICANON) and not self.outside_lines
        self.raw = not (iflag & _UNCOOKED or lflag & (_ICANON | _ECHO | 1)) or self.outside_lines

    def take(self, *, packets: bool) -> Waiting:
        """All that waits. The master is in packet mode, or not, as it was; nothing is left that it had to be told."""
        status = 0
        with _not_waiting(self.master):
            if packets:
                status = os.read(self.master, 1)[0] if events(self.master) & select.POLLPRI else 0
                set_packet_mode(self.master, False)
            self._quiet(flow=None)
            output = _read_all(self.master)
            stopped = self._start()
            echo = self._take_echo()
            lines, rest, behind, quoting = self._take_input()
            change(self.master, self.wanted)
            if packets:
                set_packet_mode(self.master, True)
        return Waiting(output, echo, lines, rest, behind, quoting, stopped, status)

    def put(self, waiting: Waiting, *, packets: bool) -> None:
        """Let all of it wait again; nothing may wait yet.

        Raises:
            OSError: ENOBUFS, it does not fit.
        """
        early = packets and bool(waiting.status & _FLUSHED or (waiting.status & _CHANGED and not self.outside_lines))
        with _not_waiting(self.master):
            set_packet_mode(self.master, False)
            self._quiet(flow=None)
            if early:
                self._tell_early(waiting.status)
            self._write(self.slave, waiting.output)
            if waiting.echo:
                self._put_echo(waiting.echo)
            self._put_input(waiting, early=early)
            if waiting.stopped == STOPPED_BY_CALL:
                termios.tcflow(self.slave, termios.TCOOFF)
            change(self.master, self.wanted)
            if packets and not early:
                self._tell(waiting.status, waiting.stopped)
            self._write(self.master, waiting.behind)

    # -- settings ---------------------------------------------------------------------------------
    def _quiet(self, *, flow: bool | None, lines: bool | None = None, echo: bool = False, eof: bool = False,
               quote: bool = False) -> None:
        """Let bytes pass as they are.

        Args:
            flow: whether ^S stops output; None for what the program has, with its characters.
            lines: whether to give lines; None for what the program has.
        """
        iflag, _oflag, cflag, lflag, line, cc, ispeed, ospeed = SETTINGS.unpack(self.wanted)
        characters = bytearray(19)
        characters[_VMIN] = 1
        characters[_VEOF] = _EOF if eof else 0
        characters[_VLNEXT] = _QUOTE if quote else 0
        characters[_VSTART], characters[_VSTOP] = (cc[_VSTART], cc[_VSTOP]) if flow is None else (_START, _STOP)
        keep = lflag & (_ICANON | _EXTPROC) if lines is None else _ICANON if lines else 0
        change(self.master, SETTINGS.pack(
            iflag & _IXON if flow is None else _IXON if flow else 0, 0, cflag,
            keep | (_IEXTEN if quote else 0) | (_ECHO if echo else 0), line, bytes(characters), ispeed, ospeed))

    # -- taking -----------------------------------------------------------------------------------
    def _start(self) -> int:
        """Start output; how it was stopped. The master's side must be empty: full output looks the same."""
        if events(self.slave) & select.POLLOUT:
            return RUNS
        termios.tcflow(self.slave, termios.TCOON)
        if events(self.slave) & select.POLLOUT:
            return STOPPED_BY_CALL
        self._quiet(flow=False)   # that starts it, too (n_tty_set_termios)
        return STOPPED_BY_CHARACTER

    def _take_echo(self) -> bytes:
        """What could not be echoed, as output was stopped or full: any write lets it go on its way first."""
        echo = b""
        while True:
            os.write(self.slave, b"")
            part = _read_all(self.master)
            if not part:
                return echo
            echo += part

    def _take_input(self) -> tuple[tuple[bytes, ...], bytes, bytes, bool]:
        """Lines, what is no line yet, what has not been looked at, and whether a ^V waits."""
        events(self.slave)
        known = unread(self.slave)
        pieces = []
        while (piece := _read(self.slave)) is not None:
            pieces.append(piece)
        if not self.in_lines:
            content = b"".join(pieces)
            looked_at = known if known >= _FULL and not self.raw else len(content)
            return (), content[:looked_at], content[looked_at:], False
        self._quiet(flow=None, eof=True)
        rest, quoting = self._end_line()
        lines = []
        while pieces and (known > 0 or not pieces[0]):
            known -= len(pieces[0])
            lines.append(pieces.pop(0))
        unended = b"".join([*pieces, rest])
        ends = sum(1 for piece in lines if not piece.endswith(b"\n"))
        room = 4095 - sum(map(len, lines)) - ends
        if room >= len(unended):
            return tuple(lines), unended, b"", quoting
        return tuple(lines), unended[:max(room, 0)], unended[max(room, 0):], quoting

    def _end_line(self) -> tuple[bytes, bool]:
        """What is no line yet, and whether our end of file was quoted."""
        os.write(self.master, bytes([_EOF]))
        piece = _read(self.slave)
        if piece is not None:
            return piece, False
        os.write(self.master, bytes([_EOF]))
        return (_read(self.slave) or b"")[:-1], True

    # -- putting ----------------------------------------------------------------------------------
    def _write(self, fd: int, content: bytes) -> None:
        done, deadline = 0, time.monotonic() + _PATIENCE
        while done < len(content):
            size = _PIECE if done + _PIECE <= _WHOLE else _LARGE_PIECE
            try:
                done += os.write(fd, content[done:done + size])
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS), "write to a terminal") from None
                events(self.slave if fd == self.master else self.master)
                time.sleep(_PAUSE)

    def _put_echo(self, echo: bytes) -> None:
        """Type it with echo while output is stopped, and take the typing away."""
        termios.tcflow(self.slave, termios.TCOOFF)
        self._quiet(flow=None, lines=False, echo=True)
        for start in range(0, len(echo), 1024):
            part = echo[start:start + 1024]
            self._write(self.master, part)
            self._await_input(len(part))
            _read_all(self.slave)
        self._quiet(flow=None)

    def _put_input(self, waiting: Waiting, *, early: bool) -> None:
        """Behind it output is stopped if ^S had done so, and runs if not."""
        stop = waiting.stopped == STOPPED_BY_CHARACTER
        if self.in_lines:
            self._put_lines(waiting, early=early, stop=stop)
            return
        if waiting.rest:
            self._quiet(flow=False)
            self._write(self.master, waiting.rest)
            self._await_input(min(len(waiting.rest), _FULL))
        if waiting.echo:
            self._go()
        if stop:
            self._stop()

    def _put_lines(self, waiting: Waiting, *, early: bool, stop: bool) -> None:
        self._quiet(flow=True, eof=True, quote=True)
        full = len(waiting.rest) + sum(len(line) + 1 for line in waiting.lines) >= _FULL
        settle = bool(waiting.lines or waiting.rest) and not full and not early
        if not settle and waiting.echo:
            self._go()
        if not settle and stop:
            self._stop()
        for line in waiting.lines:
            ended = line.endswith(b"\n")
            self._write(self.master, _quoted(line[:-1] if ended else line) + (b"\n" if ended else bytes([_EOF])))
        self._write(self.master, _quoted(waiting.rest))
        if settle:
            self._go()
            self._stop()
            if not stop:
                self._go()
        else:
            self._settle()
        if waiting.quoting:
            self._write(self.master, bytes([_QUOTE]))
            self._settle()

    def _go(self) -> None:
        """Start output, whatever has stopped it."""
        termios.tcflow(self.slave, termios.TCOOFF)
        termios.tcflow(self.slave, termios.TCOON)

    def _await_input(self, count: int) -> None:
        """Until so many bytes have arrived; not for lines."""
        deadline = time.monotonic() + _PATIENCE
        while events(self.slave) >= 0 and unread(self.slave) < count and time.monotonic() < deadline:
            time.sleep(_PAUSE / 10)

    def _settle(self) -> None:
        """Until what was written has most probably arrived: nothing tells of it where lines can be read."""
        if events(self.slave) & select.POLLIN:
            time.sleep(5 * _PAUSE)

    def _stop(self) -> None:
        """Stop output by ^S and wait until that has happened: what was written before has arrived then."""
        self._quiet(flow=True, eof=self.in_lines, quote=self.in_lines)
        packets = in_packet_mode(self.master)
        set_packet_mode(self.master, True)
        os.write(self.master, bytes([_STOP]))
        deadline = time.monotonic() + _PATIENCE
        while not events(self.master) & select.POLLPRI and time.monotonic() < deadline:
            time.sleep(_PAUSE / 10)
        if not packets:
            set_packet_mode(self.master, False)

    # -- packet mode ------------------------------------------------------------------------------
    def _tell_early(self, status: int) -> None:
        """What comes of flushing, and of EXTPROC that is off again, can be told only while nothing waits."""
        change(self.master, self._contrary(status))
        set_packet_mode(self.master, True)
        change(self.master, self.wanted)
        self._quiet(flow=None)
        if status & 1:
            termios.tcflush(self.slave, termios.TCIFLUSH)
        if status & 2:
            termios.tcflush(self.slave, termios.TCOFLUSH)
        if status & _STARTED:
            self._go()

    def _contrary(self, status: int) -> bytes:
        """Settings of which a change to those of the program is told as ``status``."""
        iflag, oflag, cflag, lflag, line, cc, ispeed, ospeed = SETTINGS.unpack(self.wanted)
        characters = bytearray(cc)
        if status & _FLOW:
            characters[_VSTART], characters[_VSTOP] = _START, _STOP
            iflag = iflag & ~_IXON if status & 32 else iflag | _IXON
        if status & _CHANGED:
            lflag |= _EXTPROC
        return SETTINGS.pack(iflag, oflag, cflag, lflag, line, bytes(characters), ispeed, ospeed)

    def _tell(self, status: int, stopped: int) -> None:
        """What is to be told, made to happen again."""
        changes = bool(status & (_FLOW | _CHANGED))
        if status & _STOPPED:
            self._go()
        if changes:
            change(self.master, self._contrary(status))
        set_packet_mode(self.master, True)
        if changes:
            change(self.master, self.wanted)
        if status & _STARTED:
            self._go()
        elif status & _STOPPED and stopped == STOPPED_BY_CALL:
            termios.tcflow(self.slave, termios.TCOOFF)
        elif status & _STOPPED:
            self._stop()
            change(self.master, self.wanted)


def _quoted(content: bytes) -> bytes:
    """With a ^V before whatever would mean something."""
    special = (0x0A, _EOF, _STOP, _START, _QUOTE)
    return b"".join(bytes([_QUOTE, byte]) if byte in special else bytes([byte]) for byte in content)


@contextmanager
def _not_waiting(fd: int) -> Iterator[None]:
    """A file whose reads and writes don't wait; whoever shares it stands still."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    try:
        yield
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)


def _read(fd: int) -> bytes | None:
    """One piece; None where nothing waits."""
    events(fd)   # waits for the kernel's worker
    try:
        return os.read(fd, 1 << 16)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno != errno.EIO:   # a master whose other side is closed
            raise
        return None


def _read_all(fd: int) -> bytes:
    parts = []
    while part := _read(fd):
        parts.append(part)
    return b"".join(parts)
