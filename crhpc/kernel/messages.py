"""What waits in a socket's receive queue, looked at and left there (SO_PEEK_OFF in socket(7), unix(7), udp(7))."""
from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

SO_PEEK_OFF = 42
_ANY_SIZE = 1 << 20
_MOST_DESCRIPTORS = 253
_CREDENTIALS = struct.Struct("iII")
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
    with own_peeking(sock):
        try:
            while True:
                message = _peek(sock, offset, _ANY_SIZE)
                if message is None:
                    return found
                if not message.data:
                    if sock.type == socket.SOCK_DGRAM:
                        raise EmptyMessage
                    return found
                found += _split(sock, offset, message) if sock.type == socket.SOCK_STREAM else [message]
                offset += len(message.data)
        except BaseException:
            for message in found:
                close_all(message)
            raise


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


def _split(sock: socket.socket, offset: int, message: Message) -> list[Message]:
    """A stream's bytes in front of those that came with descriptors, and those: whoever reads less gets none."""
    if not message.fds:
        return [message]
    low, high = 0, len(message.data) - 1   # the first byte that carries them lies in [low, high]
    while low < high:
        middle = (low + high) // 2
        part = _peek(sock, offset, middle + 1)
        assert part is not None
        if part.fds:
            high = middle
        else:
            low = middle + 1
        close_all(part)
    front = Message(message.data[:low], message.sender, [], message.pid, message.uid, message.gid)
    message.data = message.data[low:]
    return [front, message] if front.data else [message]
