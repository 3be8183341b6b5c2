"""One TCP connection from outside: its state, and what is queued in it (tcp(7), tcp_info).

Works on copies of the sockets of stopped processes; needs no privilege. Four ways of the kernel are used here that
no manual page tells (net/ipv4/tcp.c):

- TCP_ZEROCOPY_RECEIVE with no memory to map says whether the end of the stream has come, without taking an error
  that the program has not seen yet.
- SO_RCVLOWAT makes the receive buffer large enough for what it asks for, up to half of tcp_rmem's limit, and leaves
  the kernel's own tuning on; the next MSG_PEEK tells the sender of the larger window.
- TCP_NODELAY set again sends what waits for more to come, also below TCP_CORK.
- What both ends have counted tells whether all has arrived, long before the last acknowledgement.
"""
from __future__ import annotations

import contextlib
import errno
import fcntl
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from crhpc.kernel import sockdiag
from crhpc.kernel.messages import SO_PEEK_OFF, own_peeking
from crhpc.kernel.sockopt import SO_BUF_LOCK, get_by_key

_SIOCINQ, _SIOCOUTQ, _SIOCATMARK, _SO_OOBINLINE = 0x541B, 0x5411, 0x8905, 10
_TCP_INFO_ROOM = 512
_TCP_ZEROCOPY_RECEIVE, _TCP_INQ = 35, 36
_OPTION_TIMESTAMPS = 1
_LARGEST_SEGMENT = 32767
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Info:
    """From struct tcp_info, linux/tcp.h."""

    state: int
    waiting: int
    """Of a listening socket: connections that wait to be accepted."""
    in_flight: int
    """Of a connection: segments that are not acknowledged; none where the window is full."""
    backlog: int
    """Of a listening socket: how many may wait."""
    connected: bool
    """Whether it is, or was until it was closed or reset, connected."""
    answered: bool
    """Whether anything has come from the other end."""
    retried: bool
    """Whether the other end has been silent for so long that something was sent again."""
    acknowledged: int
    received: int
    segment: int
    """The largest segment that it wants, where that is less than the path allows (TCP_MAXSEG); else 0."""


def info(sock: socket.socket) -> Info:
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_ROOM)
    waiting, backlog = struct.unpack_from("II", raw, 24)   # tcpi_unacked, tcpi_sacked
    listens = raw[0] == sockdiag.TCP_LISTEN
    path, advertised = struct.unpack_from("I20xI", raw, 60)
    acknowledged, received = struct.unpack_from("QQ", raw, 120)
    (segments_in,), (delivered,) = struct.unpack_from("I", raw, 140), struct.unpack_from("I", raw, 192)
    wanted = advertised + (12 if raw[5] & _OPTION_TIMESTAMPS else 0)
    natural = path - (40 if sock.family == socket.AF_INET else 60)
    return Info(raw[0], waiting if listens else 0, 0 if listens else waiting, backlog if listens else 0,
                bool(delivered or acknowledged), bool(segments_in), bool(raw[2] or raw[3]), acknowledged, received,
                wanted if 0 < wanted < min(natural, _LARGEST_SEGMENT + 1) else 0)


def unread(sock: socket.socket) -> int:
    """Bytes that wait in the receive queue, up to urgent ones (SIOCINQ in tcp(7))."""
    return _queue(sock, _SIOCINQ)


def unacknowledged(sock: socket.socket) -> int:
    """Bytes that the other end has not said it has."""
    return _queue(sock, _SIOCOUTQ)


def _queue(sock: socket.socket, request: int) -> int:
    try:
        raw = fcntl.ioctl(sock.fileno(), request, bytes(4))
    except OSError as error:
        if error.errno == errno.EINVAL:   # a listening socket
            return 0
        raise
    return int(struct.unpack("i", raw)[0])


# -- what is unread -------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Unread:
    """What waits in a receive queue; an urgent byte (MSG_OOB, tcp(7)) stands where it was sent."""

    data: bytes = b""
    urgent: int = -1
    """The place of the urgent byte; -1 where there is none."""
    urgent_read: bool = False
    """The program has read it, apart from the rest; what it was is not known any more."""


def at_mark(sock: socket.socket) -> bool:
    """Whether the urgent byte is the next one."""
    return bool(struct.unpack("i", fcntl.ioctl(sock.fileno(), _SIOCATMARK, bytes(4)))[0])


def peek(sock: socket.socket, size: int) -> Unread:
    """All that can be read now, left where it is.

    Args:
        size: how much that is, as inet_diag tells; one more where the end of the stream is counted.

    Raises:
        OSError: EOPNOTSUPP, there is urgent data, which takes Linux 6.9 to look at.
    """
    if size <= 0:
        return Unread()
    with own_peeking(sock):
        marked = at_mark(sock)
        front = b"" if marked else _peek(sock, size)
        if not marked and len(front) == size:
            return Unread(front)
        found = _around_mark(sock, front, size)
        if not marked and (found.data == front or (len(front) == size - 1 and found.urgent_read)):
            return Unread(front)   # it was the end of the stream that is counted
        return found


def peek_closed(sock: socket.socket) -> tuple[Unread, bool]:
    """What can be read of a connection that is none any more, and whether its stream was ended before that."""
    try:
        raw = get_by_key(sock, (socket.IPPROTO_TCP, _TCP_ZEROCOPY_RECEIVE), bytes(20), 20)
        size = int(struct.unpack_from("I", raw, 16)[0])
    except OSError as error:
        if error.errno == errno.EIO:   # nothing to read, and nothing will come
            return Unread(), True
        if error.errno != errno.EINVAL:
            raise
        size = _bytes_to_end(sock)   # more than a page, which it would map
    found = peek(sock, size)
    return found, size > len(found.data)


def _bytes_to_end(sock: socket.socket) -> int:
    """What TCP_INQ tells with what is read: the end of the stream counts one."""
    before = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INQ)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_INQ, 1)
    try:
        with own_peeking(sock):
            control = sock.recvmsg(1, 64, socket.MSG_PEEK | socket.MSG_DONTWAIT)[1]
    finally:
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_INQ, before)
    return next((int.from_bytes(value, "little") for level, kind, value in control
                 if (level, kind) == (socket.IPPROTO_TCP, _TCP_INQ)), 0)


def _peek(sock: socket.socket, size: int, flags: int = 0) -> bytes:
    try:
        return sock.recv(size, socket.MSG_PEEK | socket.MSG_DONTWAIT | flags)
    except BlockingIOError:
        return b""


def _urgent_byte(sock: socket.socket) -> bytes:
    """The urgent byte, where there is one that is kept apart and was not read."""
    try:
        return _peek(sock, 1, socket.MSG_OOB)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTCONN):
            raise
        return b""


def _around_mark(sock: socket.socket, front: bytes, size: int) -> Unread:
    sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, len(front))
    rest = _peek(sock, size)
    if sock.getsockopt(socket.SOL_SOCKET, _SO_OOBINLINE):
        return Unread(front + rest, len(front))
    byte = _urgent_byte(sock)
    return Unread(front + (byte or b"\0") + rest, len(front), not byte)


# -- what is under way ----------------------------------------------------------------------------------
def push(sock: socket.socket) -> None:
    """Send what waits for more to come, or for an acknowledgement."""
    before = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not before:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)


def all_arrived(one: sockdiag.InetSocket, other: sockdiag.InetSocket) -> bool:
    """Whether all that both ends of a connection have sent is in the other's queue.

    What has been sent is what was acknowledged and what was not yet. Whoever made the connection counts one more,
    its first packet: one end does. Rows that were read while something arrived don't add up.
    """
    ends = [(one, other), (other, one)] if one.inode != other.inode else [(one, one)]
    return sum(sender.acknowledged + sender.wqueue - receiver.received for sender, receiver in ends) == 1


def _arrived(sender: socket.socket, receiver: socket.socket) -> bool:
    """Whether all that one end has sent has arrived; told early where that is so for both."""
    if not unacknowledged(sender):
        return True
    sent = unacknowledged(sender) + unacknowledged(receiver)
    one, other = info(sender), info(receiver)
    return sent + one.acknowledged + other.acknowledged - one.received - other.received == 1


def offer_window(receiver: socket.socket, size: int) -> None:
    """Let the sender know that ``size`` bytes may be under way to the reader, as far as the system allows that."""
    before = receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, before)
    with own_peeking(receiver), contextlib.suppress(OSError):
        _peek(receiver, 1)


@contextlib.contextmanager
def window_opened(receiver: socket.socket, size: int) -> Iterator[None]:
    """``offer_window`` also where the program has fixed the buffer; afterwards it is as large as it was.

    For a direction that nothing more is sent in: what has arrived stays, and nothing else will come.
    """
    before = receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    lock = receiver.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK)
    receiver.setsockopt(socket.SOL_SOCKET, SO_BUF_LOCK, lock & ~2)
    offer_window(receiver, size)
    try:
        yield
    finally:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, before // 2)   # doubled by the kernel
        receiver.setsockopt(socket.SOL_SOCKET, SO_BUF_LOCK, lock)


@contextlib.contextmanager
def _not_tuned(sock: socket.socket) -> Iterator[None]:
    """The kernel leaves buffers as they are; else it would take us for a fast reader."""
    lock = sock.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK)
    sock.setsockopt(socket.SOL_SOCKET, SO_BUF_LOCK, 3)
    try:
        yield
    finally:
        sock.setsockopt(socket.SOL_SOCKET, SO_BUF_LOCK, lock)


@contextlib.contextmanager
def untouched(receiver: socket.socket) -> Iterator[None]:
    """Read for a program that must not see that somebody did: neither by its own peeking nor by its buffers."""
    with own_peeking(receiver), _not_tuned(receiver):
        yield


def drain(ends: Sequence[tuple[socket.socket, socket.socket]], timeout: float) -> list[bytes]:
    """Read all that is under way from each sender to each receiver; (sender, receiver) pairs.

    Raises:
        TimeoutError: bytes stay under way; what was read so far is lost.
    """
    parts: list[list[bytes]] = [[] for _ in ends]
    deadline = time.monotonic() + timeout
    with contextlib.ExitStack() as stack:
        for sender, receiver in ends:
            stack.enter_context(own_peeking(receiver))
            stack.enter_context(_not_tuned(sender))
            stack.enter_context(_not_tuned(receiver))
        while True:
            moved = False
            for (_sender, receiver), into in zip(ends, parts, strict=True):
                with contextlib.suppress(BlockingIOError):
                    data = receiver.recv(_PIECE, socket.MSG_DONTWAIT)
                    if data:
                        into.append(data)
                        moved = True
            if not moved:
                # In this order: what has arrived is unread from then on.
                if all(_arrived(sender, receiver) and not unread(receiver) for sender, receiver in ends):
                    return [b"".join(into) for into in parts]
                if time.monotonic() > deadline:
                    raise TimeoutError("bytes stay under way in a TCP connection")
                time.sleep(0.0002)


def refill(sender: socket.socket, data: bytes, timeout: float, *, receiver: socket.socket | None = None) -> None:
    """Send ``data`` anew, however full the connection gets: window and send buffer grow where they must.

    The send buffer's size is left to the kernel afterwards where it was before.

    Raises:
        TimeoutError: it doesn't fit.
    """
    view = memoryview(data)
    deadline = time.monotonic() + timeout
    lock = sender.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK)
    before = sender.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    stuck = raised = 0
    while view:
        try:
            view = view[sender.send(view[:_PIECE], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL):]
            stuck = 0
        except BlockingIOError:
            stuck += 1
            if stuck == 20 and receiver is not None:
                offer_window(receiver, unread(receiver) + unacknowledged(sender) + len(view))
            if stuck == 40:
                size = sender.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)   # doubled by the kernel
                stuck, raised = 0, 1
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(view)} bytes don't fit into a TCP connection") from None
            time.sleep(0.0005)
    if raised:
        if lock & 1:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, before // 2)
        sender.setsockopt(socket.SOL_SOCKET, SO_BUF_LOCK, lock)


def send_unread(sender: socket.socket, receiver: socket.socket, what: Unread, timeout: float) -> None:
    """Send what a receiver had not read, with its urgent byte.

    Raises:
        TimeoutError: it doesn't fit.
    """
    if what.urgent < 0:
        refill(sender, what.data, timeout, receiver=receiver)
        return
    refill(sender, what.data[:what.urgent], timeout, receiver=receiver)
    sender.send(what.data[what.urgent:what.urgent + 1], socket.MSG_OOB | socket.MSG_NOSIGNAL)
    refill(sender, what.data[what.urgent + 1:], timeout, receiver=receiver)


# -- closing -----------------------------------------------------------------------------
def reset(sock: socket.socket) -> None:
    """Close a socket so that the other end is told by a reset, and nothing is left of the connection here."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def until(condition: Callable[[], bool], timeout: float, *, pause: float = 0.0005) -> bool:
    """Whether something that takes a moment has come true."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True
