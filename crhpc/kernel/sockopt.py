"""Socket options that a program may have set: read all, set again those that differ from a fresh socket's."""
from __future__ import annotations

import contextlib
import socket
import struct

_SO_BUF_LOCK, _SNDBUF_LOCK, _RCVBUF_LOCK = 72, 1, 2
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_SO_RCVTIMEO, _SO_SNDTIMEO, _SO_PRIORITY, _SO_OOBINLINE = 20, 21, 12, 10
_SO_TIMESTAMP, _SO_PASSSEC, _SO_PEEK_OFF, _SO_PASSPIDFD = 29, 34, 42, 76
_IP_TOS, _IP_TTL, _IPV6_TCLASS, _IPV6_UNICAST_HOPS, _IPV6_V6ONLY = 1, 2, 67, 16, 26
_ENTRY = struct.Struct("<iiI")

Option = tuple[int, int]

OPTIONS_SOCKET: tuple[Option, ...] = tuple((socket.SOL_SOCKET, name) for name in (
    socket.SO_KEEPALIVE, socket.SO_LINGER, socket.SO_REUSEADDR, socket.SO_REUSEPORT, socket.SO_BROADCAST,
    socket.SO_RCVLOWAT, _SO_RCVTIMEO, _SO_SNDTIMEO, _SO_PRIORITY, _SO_OOBINLINE, socket.SO_PASSCRED, _SO_TIMESTAMP,
    socket.SO_DONTROUTE, _SO_PEEK_OFF, _SO_PASSSEC, _SO_PASSPIDFD))
"""Those of every socket; buffer sizes are handled apart."""

OPTIONS_INET: tuple[Option, ...] = ((socket.IPPROTO_IP, _IP_TOS), (socket.IPPROTO_IP, _IP_TTL))
OPTIONS_INET6: tuple[Option, ...] = ((socket.IPPROTO_IPV6, _IPV6_TCLASS), (socket.IPPROTO_IPV6, _IPV6_UNICAST_HOPS))
OPTIONS_TCP: tuple[Option, ...] = tuple((socket.IPPROTO_TCP, name) for name in (
    socket.TCP_NODELAY, socket.TCP_CORK, socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT,
    socket.TCP_SYNCNT, socket.TCP_LINGER2, socket.TCP_DEFER_ACCEPT, socket.TCP_USER_TIMEOUT, socket.TCP_NOTSENT_LOWAT))

_ROOM = 64


def read_options(sock: socket.socket, wanted: tuple[Option, ...]) -> bytes:
    """The options' values, packed as (level, name, length, value); those that the socket lacks are left out."""
    found = b""
    for level, name in wanted:
        with contextlib.suppress(OSError):
            value = sock.getsockopt(level, name, _ROOM)
            found += _ENTRY.pack(level, name, len(value)) + value
    return found + _read_buffers(sock)


def _read_buffers(sock: socket.socket) -> bytes:
    """Buffer sizes, where the program has fixed them (SO_BUF_LOCK, Linux 5.14); else the kernel tunes them."""
    found = b""
    with contextlib.suppress(OSError):
        lock = sock.getsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK)
        for bit, name in ((_SNDBUF_LOCK, socket.SO_SNDBUF), (_RCVBUF_LOCK, socket.SO_RCVBUF)):
            if lock & bit:
                half = sock.getsockopt(socket.SOL_SOCKET, name) // 2   # the kernel doubles what is set
                found += _ENTRY.pack(socket.SOL_SOCKET, name, 4) + struct.pack("i", half)
    return found


def set_options(sock: socket.socket, packed: bytes, *, only: tuple[Option, ...] | None = None) -> None:
    """Set the options that differ from what the socket has now."""
    while packed:
        level, name, length = _ENTRY.unpack_from(packed)
        value = packed[_ENTRY.size:_ENTRY.size + length]
        packed = packed[_ENTRY.size + length:]
        if only is not None and (level, name) not in only:
            continue
        with contextlib.suppress(OSError):
            if name in (socket.SO_SNDBUF, socket.SO_RCVBUF) and level == socket.SOL_SOCKET:
                _set_buffer(sock, name, value)
            elif sock.getsockopt(level, name, _ROOM) != value:
                sock.setsockopt(level, name, value)


def _set_buffer(sock: socket.socket, name: int, value: bytes) -> None:
    """Past the system's limit where that is allowed (root)."""
    force = _SO_SNDBUFFORCE if name == socket.SO_SNDBUF else _SO_RCVBUFFORCE
    try:
        sock.setsockopt(socket.SOL_SOCKET, force, value)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, name, value)


def grow_send_buffer(sock: socket.socket) -> tuple[int, int]:
    """Double the send buffer; what ``restore_send_buffer`` takes."""
    size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    lock = sock.getsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK)
    _set_buffer(sock, socket.SO_SNDBUF, struct.pack("i", size))   # doubled by the kernel
    return size, lock


def restore_send_buffer(sock: socket.socket, before: tuple[int, int]) -> None:
    """The size that it had, tuned by the kernel again where it was."""
    size, lock = before
    _set_buffer(sock, socket.SO_SNDBUF, struct.pack("i", size // 2))
    sock.setsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK, lock)
