"""Messages over a stream socket of one machine: JSON objects, with open descriptors beside them.

Used between the supervisor and the agents, between the other commands and the supervisor, and between
an agent and the first process of its pod. A frame is a 32-bit length (little-endian) and that many
bytes of JSON in UTF-8; paths and arguments keep undecodable bytes as lone surrogates. Descriptors
travel with the first byte of their frame (unix(7), SCM_RIGHTS). Standard library only.
"""
from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]

_LENGTH = struct.Struct("<I")
_MAX_FRAME = 64 << 20
_MAX_FDS = 250   # SCM_MAX_FD is 253


class ChannelClosed(ConnectionError):
    """The other side is gone."""


class Channel:
    """One end of a stream of messages. Blocking; not for several threads at once."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Two connected ends (socketpair(2))."""
        a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return cls(a), cls(b)

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        self.socket.close()

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send one message and duplicates of ``fds`` (at most 250).

        Raises:
            ChannelClosed: the other side is gone.
        """
        body = json.dumps(message, ensure_ascii=True, separators=(",", ":")).encode("ascii")
        if len(body) > _MAX_FRAME or len(fds) > _MAX_FDS:
            raise ValueError(f"a message of {len(body)} bytes and {len(fds)} descriptors is too large")
        frame = _LENGTH.pack(len(body)) + body
        try:
            if fds:
                sent = socket.send_fds(self.socket, [frame], list(fds), socket.MSG_NOSIGNAL)
                if sent < len(frame):   # nothing more would fail where the other side has read it all and left
                    self.socket.sendall(frame[sent:], socket.MSG_NOSIGNAL)
            else:
                self.socket.sendall(frame, socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionError) as error:
            raise ChannelClosed(str(error)) from None

    def receive(self) -> tuple[Message, list[int]]:
        """The next message and the descriptors that came with it (close-on-exec; the caller's to close).

        Raises:
            ChannelClosed: end of file, a reset, or bytes that are no frame.
        """
        fds: list[int] = []
        try:
            head = self._read(_LENGTH.size, fds)
            (length,) = _LENGTH.unpack(head)
            if length > _MAX_FRAME:
                raise ChannelClosed(f"a frame of {length} bytes")
            body = self._read(length, fds)
            message = json.loads(body)
            if not isinstance(message, dict):
                raise ChannelClosed("a frame that is no object")
        except (ConnectionError, ValueError, RecursionError) as error:
            for fd in fds:
                os.close(fd)
            raise ChannelClosed(str(error)) from None
        return message, fds

    def _read(self, size: int, fds: list[int]) -> bytes:
        parts: list[bytes] = []
        while size:
            data, ancillary, _flags, _address = self.socket.recvmsg(
                size, socket.CMSG_SPACE(_MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC)
            for level, kind, payload in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    received = array.array("i")
                    received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                    fds.extend(received)
            if not data:
                raise ChannelClosed("end of file")
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def peer_uid(self) -> int:
        """The user at the other end, as the kernel saw it at connect time (SO_PEERCRED)."""
        raw = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        _pid, uid, _gid = struct.unpack("iII", raw)
        return int(uid)
