"""One TCP connection from outside: its state, and what is queued in it (tcp(7), tcp_info).

Works on copies of the sockets of stopped processes; needs no privilege.
"""
from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass

_SIOCINQ, _SIOCOUTQ = 0x541B, 0x5411
_TCP_INFO_ROOM = 256


@dataclass(frozen=True, slots=True)
class Info:
    """From struct tcp_info: the state, and of a listening socket how many wait and may wait."""

    state: int
    waiting: int
    backlog: int


def info(sock: socket.socket) -> Info:
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_ROOM)
    (waiting, backlog) = struct.unpack_from("II", raw, 24)   # tcpi_unacked, tcpi_sacked
    return Info(raw[0], waiting, backlog)


def unread(sock: socket.socket) -> int:
    """Bytes that wait in the receive queue."""
    return _queue(sock, _SIOCINQ)


def unacknowledged(sock: socket.socket) -> int:
    """Bytes that the other end has not taken into its receive queue yet."""
    return _queue(sock, _SIOCOUTQ)


def _queue(sock: socket.socket, request: int) -> int:
    try:
        raw = fcntl.ioctl(sock.fileno(), request, bytes(4))
    except OSError as error:
        if error.errno == 22:   # EINVAL: a listening socket
            return 0
        raise
    return int(struct.unpack("i", raw)[0])


def peek(sock: socket.socket) -> bytes:
    """All that can be read now, left where it is."""
    size = unread(sock)
    if not size:
        return b""
    try:
        return sock.recv(size + 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""


def settle(socks: Sequence[socket.socket], timeout: float) -> list[socket.socket]:
    """Wait until what was sent has arrived; the sockets for which it has not, as the window is full."""
    deadline = time.monotonic() + timeout
    left = list(socks)
    while True:
        left = [sock for sock in left if unacknowledged(sock)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.0005)


def drain(ends: Sequence[tuple[socket.socket, socket.socket]], timeout: float) -> list[bytes]:
    """Read all that is under way from each sender to each receiver; (sender, receiver) pairs.

    Raises:
        TimeoutError: bytes stay under way.
    """
    parts: list[list[bytes]] = [[] for _ in ends]
    deadline = time.monotonic() + timeout
    while True:
        moved = False
        for (_sender, receiver), into in zip(ends, parts, strict=True):
            with contextlib.suppress(BlockingIOError):
                data = receiver.recv(1 << 20, socket.MSG_DONTWAIT)
                if data:
                    into.append(data)
                    moved = True
        if not moved:
            if not any(unacknowledged(sender) or unread(receiver) for sender, receiver in ends):
                return [b"".join(into) for into in parts]
            if time.monotonic() > deadline:
                raise TimeoutError("bytes stay under way in a TCP connection")
            time.sleep(0.0002)


def refill(sender: socket.socket, data: bytes, timeout: float) -> None:
    """Send ``data`` anew, however full the connection gets: the send buffer grows where it must.

    Raises:
        TimeoutError: it doesn't fit.
    """
    view = memoryview(data)
    deadline = time.monotonic() + timeout
    stuck = 0
    while view:
        try:
            view = view[sender.send(view[:1 << 20], socket.MSG_DONTWAIT):]
            stuck = 0
        except BlockingIOError:
            stuck += 1
            if stuck == 40:
                size = sender.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)   # doubled by the kernel
                stuck = 0
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(view)} bytes don't fit into a TCP connection") from None
            time.sleep(0.0005)
