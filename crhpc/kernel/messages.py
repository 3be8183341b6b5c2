"""What waits in a socket's receive queue, looked at and left there (SO_PEEK_OFF in socket(7), unix(7), udp(7))."""
from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from crhpc.kernel import libc

SO_PEEK_OFF = 42
_ANY_SIZE = 1 << 20
_MOST_DESCRIPTORS = 253
_CREDENTIALS = struct.Struct("iII")
_HEADER = struct.Struct("QIxxxxQQQQIxxxx")
"""A msghdr (recvmsg(2))."""
_ROOM = socket.CMSG_SPACE(4 * _MOST_DESCRIPTORS) + socket.CMSG_SPACE(_CREDENTIALS.size) + 256


class EmptyMessage(ValueError):
    """A datagram without a byte hides what is queued behind it."""


@dataclass(slots=True)
class Message:
    """A datagram or packet, or a part of a stream that ends before the next sender or descriptor."""

    data: bytes
    sender: Any = b""
    """The sender's address, as the socket module gives it."""
    fds: list[int] = field(default_factory=list)
    """Descriptors that it carries, as copies of this process's own."""
    pid: int = 0
    """Who sent it, by this process's pid namespace, where the receiver asks for that (SO_PASSCRED); else 0."""
    uid: int = 0
    gid: int = 0


@contextlib.contextmanager
def own_peeking(sock: socket.socket) -> Iterator[None]:
    """Peek from where one likes; the program's own place (SO_PEEK_OFF) is put back."""
    try:
        before = sock.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF)
        sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, -1)
    except OSError:   # a protocol, or a kernel, without it
        yield
        return
    try:
        yield
    finally:
        sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, before)


def peek_messages(sock: socket.socket) -> list[Message]:
    """All that waits to be read, in order.

    Raises:
        EmptyMessage: what is behind it can't be seen.
    """
    found: list[Message] = []
    offset = 0
    datagrams = sock.type == socket.SOCK_DGRAM
    # A look behind the last byte would take the error of a connection that was reset (net/unix/af_unix.c).
    whole = 0 if datagrams else struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))[0]
    with own_peeking(sock):
        try:
            while datagrams or offset < whole:
                message = _peek(sock, offset, _ANY_SIZE)
                if message is None:
                    return found
                if not message.data:
                    if datagrams:
                        raise EmptyMessage
                    return found
                size = len(message.data)
                found += _split(sock, offset, message) if sock.type == socket.SOCK_STREAM else [message]
                offset += size
            return found
        except BaseException:
            for message in found:
                close_all(message)
            raise


# -- datagrams from the network ---------------------------------------------------------------------------
_IP_PKTINFO, _IP_RECVTTL, _IP_RECVTOS, _IP_TOS, _IP_TTL = 8, 12, 13, 1, 2
_IPV6_RECVPKTINFO, _IPV6_PKTINFO, _IPV6_RECVHOPLIMIT, _IPV6_HOPLIMIT, _IPV6_RECVTCLASS, _IPV6_TCLASS = (
    49, 50, 51, 52, 66, 67)
_LARGEST_DATAGRAM = 64 << 10


@dataclass(frozen=True, slots=True)
class Datagram:
    """A datagram with what its header tells."""

    data: bytes
    sender: tuple[Any, ...]
    """As the socket module gives it."""
    destination: str = ""
    """The address that it was sent to; a mapped one (RFC 4291, 2.5.5.2) for IPv4 to a socket of IPv6."""
    ttl: int = -1
    tos: int = -1


@contextlib.contextmanager
def _headers_told(sock: socket.socket) -> Iterator[None]:
    """Let recvmsg(2) tell what the headers say; what the program asks for is put back."""
    options = [(socket.IPPROTO_IP, name) for name in (_IP_PKTINFO, _IP_RECVTTL, _IP_RECVTOS)]
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_INET6:
        options += [(socket.IPPROTO_IPV6, name) for name in (_IPV6_RECVPKTINFO, _IPV6_RECVHOPLIMIT, _IPV6_RECVTCLASS)]
    before = [sock.getsockopt(*option) for option in options]
    try:
        for option in options:
            sock.setsockopt(*option, 1)
        yield
    finally:
        for option, value in zip(options, before, strict=True):
            sock.setsockopt(*option, value)


def peek_datagrams(sock: socket.socket) -> list[Datagram]:
    """All datagrams that wait, in order, as far as the kernel shows them.

    One without a byte is shown once: the kernel marks it as seen, and passes over it the next time, unless it is the
    first (SO_PEEK_OFF, net/core/datagram.c).
    """
    found: list[Datagram] = []
    offset = 0
    with own_peeking(sock), _headers_told(sock):
        if (first := _peek_datagram(sock)) is not None and not first.data:
            found.append(first)
        while True:
            sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, offset)
            datagram = _peek_datagram(sock)
            if datagram is None:
                return found
            found.append(datagram)
            offset += len(datagram.data)


def _peek_datagram(sock: socket.socket) -> Datagram | None:
    try:
        data, control, _flags, sender = sock.recvmsg(_LARGEST_DATAGRAM, 512, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    destination, ttl, tos = "", -1, -1
    for level, kind, value in control:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            destination = socket.inet_ntop(socket.AF_INET, value[8:12])
        elif (level, kind) == (socket.IPPROTO_IPV6, _IPV6_PKTINFO):
            destination = socket.inet_ntop(socket.AF_INET6, value[:16])
        elif (level, kind) in ((socket.IPPROTO_IP, _IP_TTL), (socket.IPPROTO_IPV6, _IPV6_HOPLIMIT)):
            ttl = int.from_bytes(value, "little")
        elif (level, kind) in ((socket.IPPROTO_IP, _IP_TOS), (socket.IPPROTO_IPV6, _IPV6_TCLASS)):
            tos = value[0]
    return Datagram(data, sender, destination, ttl, tos)


def send_datagram(sock: socket.socket, datagram: Datagram, to: tuple[Any, ...], source: str = "") -> None:
    """Send a datagram with the header that it had.

    Args:
        source: the address to send it from, where the socket has none of its own.

    Raises:
        OSError: it can't be sent.
    """
    control: list[tuple[int, int, bytes]] = []
    four = "." in to[0]
    names = (_IP_TTL, _IP_TOS) if four else (_IPV6_HOPLIMIT, _IPV6_TCLASS)
    level = socket.IPPROTO_IP if four else socket.IPPROTO_IPV6
    for name, value in zip(names, (datagram.ttl, datagram.tos), strict=True):
        if value > 0:
            control.append((level, name, struct.pack("i", value)))
    if source and four:
        packed = socket.inet_pton(socket.AF_INET, source.removeprefix("::ffff:"))
        control.append((socket.IPPROTO_IP, _IP_PKTINFO, struct.pack("i4s4x", 0, packed)))
    elif source:
        control.append((socket.IPPROTO_IPV6, _IPV6_PKTINFO, socket.inet_pton(socket.AF_INET6, source) + bytes(4)))
    sock.sendmsg([datagram.data], control, socket.MSG_DONTWAIT, to)


def close_all(message: Message) -> None:
    """Let go of a message's descriptors."""
    for fd in message.fds:
        os.close(fd)
    message.fds = []


def _peek(sock: socket.socket, offset: int, size: int) -> Message | None:
    sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, offset)
    try:
        data, ancillary, flags, sender = sock.recvmsg(
            size, _ROOM, socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        return None
    message = Message(data, sender or b"")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds = array.array("i")
            fds.frombytes(payload[:len(payload) // 4 * 4])
            message.fds += fds
        elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            message.pid, message.uid, message.gid = _CREDENTIALS.unpack(payload)
    if flags & socket.MSG_TRUNC and sock.type != socket.SOCK_STREAM:
        close_all(message)
        return _peek(sock, offset, size * 8)
    return message


def _in_front(sock: socket.socket, offset: int, size: int) -> int:
    """How many bytes of a stream lie in front of the piece, the last of ``size``, that descriptors came with.

    A look at fewer bytes would tell of them all the same: the kernel looks on for the next piece when it has given
    all that it was asked for. But it gives nothing of a piece for which there is no room (unix_stream_read_generic).
    """
    sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, offset)
    room = ctypes.create_string_buffer(size)
    parts = ctypes.create_string_buffer(struct.pack("4Q", ctypes.addressof(room), size - 1, 0, 1))   # the last nowhere
    header = ctypes.create_string_buffer(_HEADER.pack(0, 0, ctypes.addressof(parts), 2, 0, 0, 0))
    try:
        return libc.syscall("recvmsg", sock.fileno(), header, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
        return 0   # it is the first


def _split(sock: socket.socket, offset: int, message: Message) -> list[Message]:
    """A stream's bytes in front of those that came with descriptors, and those: whoever reads less gets none."""
    if not message.fds:
        return [message]
    low = _in_front(sock, offset, len(message.data))
    front = Message(message.data[:low], message.sender, [], message.pid, message.uid, message.gid)
    message.data = message.data[low:]
    return [front, message] if front.data else [message]
