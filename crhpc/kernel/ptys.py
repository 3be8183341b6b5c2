"""Questions to pseudo-terminals, what can be set of them (ioctl_tty(2)), and slaves opened for a moment."""
from __future__ import annotations

import fcntl
import os
import select
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress

SETTINGS = struct.Struct("4IB19s2I")
"""struct termios2: c_iflag, c_oflag, c_cflag, c_lflag, c_line, c_cc, c_ispeed, c_ospeed"""
_TCGETS2, _TCSETS2, _TIOCGPTPEER, _TIOCPKT, _TIOCGPKT = 0x802C542A, 0x402C542B, 0x5441, 0x5420, 0x80045438
_TIOCSPTLCK, _TIOCGPTLCK, _TIOCGPTN, _TIOCGEXCL, _TIOCGDEV = 0x40045431, 0x80045439, 0x80045430, 0x80045440, 0x80045432
_TIOCGETD, _TIOCGLCKTRMIOS, _TIOCGWINSZ, _TIOCSWINSZ = 0x5424, 0x5456, 0x5413, 0x5414


def ask(fd: int, request: int) -> int:
    """An ioctl that gives an int."""
    return int(struct.unpack("i", fcntl.ioctl(fd, request, bytes(4)))[0])


def number(master: int) -> int:
    return ask(master, _TIOCGPTN)


def device(fd: int) -> int:
    """The device number of the terminal, also where it was opened as ``/dev/tty``; -1 where it is hung up."""
    try:
        return ask(fd, _TIOCGDEV)
    except OSError:
        return -1


def is_locked(master: int) -> bool:
    return bool(ask(master, _TIOCGPTLCK))


def lock(master: int, locked: bool) -> None:
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", locked))


def is_exclusive(fd: int) -> bool:
    return bool(ask(fd, _TIOCGEXCL))


def set_exclusive(fd: int, exclusive: bool) -> None:
    fcntl.ioctl(fd, termios.TIOCEXCL if exclusive else termios.TIOCNXCL)


def in_packet_mode(master: int) -> bool:
    return bool(ask(master, _TIOCGPKT))


def set_packet_mode(master: int, on: bool) -> None:
    fcntl.ioctl(master, _TIOCPKT, struct.pack("i", on))


def discipline(fd: int) -> int:
    """The line discipline; 0 is N_TTY."""
    return ask(fd, _TIOCGETD)


def is_pinned(master: int) -> bool:
    """Whether settings may not be changed (TIOCSLCKTRMIOS)."""
    return any(fcntl.ioctl(master, _TIOCGLCKTRMIOS, bytes(36)))


def window(master: int) -> bytes:
    return fcntl.ioctl(master, _TIOCGWINSZ, bytes(8))


def set_window(master: int, size: bytes) -> None:
    """Whose controlling terminal it is gets SIGWINCH where that is another size."""
    fcntl.ioctl(master, _TIOCSWINSZ, size)


def unread(slave: int) -> int:
    """Bytes that can be read now: of terminals that give lines, those of whole ones."""
    return ask(slave, termios.FIONREAD)


def settings(master: int) -> bytes:
    """The slave's: a master has none of its own."""
    return fcntl.ioctl(master, _TCGETS2, bytes(SETTINGS.size))


def settings_if_any(fd: int) -> bytes:
    """Those of any terminal; empty where it is none."""
    try:
        return settings(fd)
    except OSError:
        return b""


def change(master: int, wanted: bytes) -> None:
    fcntl.ioctl(master, _TCSETS2, wanted)


def events(fd: int) -> int:
    """What poll(2) tells now."""
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLOUT | select.POLLPRI)
    return sum(found for _, found in poll.poll(0))


def is_hung_up(slave: int) -> bool:
    """Whether the file is dead, as its master was closed (hung_up_tty_poll in drivers/tty/tty_io.c)."""
    return bool(events(slave) & select.POLLERR)


def was_closed(master: int) -> bool:
    """Whether the slave's side is closed after it had been open."""
    return bool(events(master) & select.POLLHUP)


# -- the slave's side ---------------------------------------------------------------------------------------
def open_slave(master: int, flags: int = os.O_RDWR) -> int:
    """Open the other side, whatever the mode of its file; it must not be locked."""
    fd = int(fcntl.ioctl(master, _TIOCGPTPEER, flags | os.O_NOCTTY | os.O_NONBLOCK))
    os.set_inheritable(fd, False)   # given there, O_CLOEXEC would stay among the flags that the file shows
    return fd


@contextmanager
def opened(master: int, *, untouched: bool) -> Iterator[int]:
    """The slave's side, opened for a moment.

    Args:
        untouched: it has never been open, and the master is not to learn that it was.

    Raises:
        OSError: EBUSY where it is exclusive (TIOCEXCL).
    """
    locked = is_locked(master)
    if locked:
        lock(master, False)
    try:
        slave = open_slave(master)
        try:
            yield slave
        finally:
            if untouched:   # a close after an open that has failed is told to nobody (pty_close in drivers/tty/pty.c)
                lock(master, True)
                with suppress(OSError):
                    os.close(open_slave(master))
                lock(master, False)
            os.close(slave)
    finally:
        if locked:
            lock(master, True)
