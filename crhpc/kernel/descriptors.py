"""Putting open files into a stopped process: SCM_RIGHTS over a socket that it has one end of (unix(7)).

The process receives by a remote recvmsg(2); the descriptors get the lowest free numbers, in order. The other
way round, a message that a stopped process sends, with descriptors of its own.
"""
from __future__ import annotations

import array
import errno
import os
import socket
import struct

from crhpc.kernel import libc
from crhpc.kernel.tracee import Area

AT_ONCE = 250
"""Below the kernel's SCM_MAX_FD of 253."""

_MSGHDR = struct.Struct("QIxxxxQQQQi4x")
_CMSG_HEADER = 16


def push(sock: socket.socket, area: Area, number: int, fds: list[int]) -> list[int]:
    """Give a stopped process duplicates of ``fds``; their numbers there, close-on-exec not set.

    Args:
        sock: this side's end of a stream socket, whose other end the process has as ``number``.

    Raises:
        OSError: EMFILE where the process may not have so many.
    """
    there: list[int] = []
    for start in range(0, len(fds), AT_ONCE):
        there += _push(sock, area, number, fds[start:start + AT_ONCE])
    return there


def _push(sock: socket.socket, area: Area, number: int, fds: list[int]) -> list[int]:
    socket.send_fds(sock, [b"x"], fds)
    base = area.data
    control = _CMSG_HEADER + 4 * len(fds)
    # one byte of data, its iovec, the control buffer, and the msghdr that names them
    iovec, room = base + 16, base + 32
    header = base + 64 + _CMSG_HEADER + 4 * AT_ONCE
    area.tracee.write(iovec, struct.pack("QQ", base, 1))
    area.tracee.write(header, _MSGHDR.pack(0, 0, iovec, 1, room, control + 8, 0))
    area.tracee.call("recvmsg", number, header, 0)
    (length,) = struct.unpack("Q", area.tracee.read(room, 8))
    received = array.array("i")
    received.frombytes(area.tracee.read(room + _CMSG_HEADER, max(length - _CMSG_HEADER, 0)))
    if len(received) < len(fds):
        raise libc.os_error(f"recvmsg in process {area.tracee.pid}: {len(received)} of {len(fds)} descriptors", 24)
    return list(received)


def send(area: Area, number: int, data: bytes, *, address: bytes = b"", fds: tuple[int, ...] = (),
         credentials: tuple[int, int, int] | None = None) -> int:
    """Let a stopped process send a message by its socket ``number``; how many bytes went.

    Args:
        address: a raw socket address; empty for a connected socket.
        fds: descriptors of the process that go with it.
        credentials: pid, uid and gid that go with it; the kernel accepts the process's own.

    Raises:
        OSError: EAGAIN where the receiver takes no more; E2BIG where the area does not hold it.
    """
    control = b""
    if fds:
        control += _control(socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))
    if credentials is not None:
        control += _control(socket.SCM_CREDENTIALS, struct.pack("iII", *credentials))
    name, iovec = area.data + _MSGHDR.size, area.data + _MSGHDR.size + 128
    rights = iovec + 16
    content = rights + len(control)
    if content + len(data) > area.data + area.room:
        raise libc.os_error("sendmsg", errno.E2BIG)
    header = _MSGHDR.pack(name if address else 0, len(address), iovec, 1, rights if control else 0, len(control), 0)
    vector = struct.pack("QQ", content, len(data))
    area.tracee.write(area.data, header + address.ljust(128, b"\0") + vector + control + data)
    return area.tracee.call("sendmsg", number, area.data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _control(kind: int, payload: bytes) -> bytes:
    head = struct.pack("QII", _CMSG_HEADER + len(payload), socket.SOL_SOCKET, kind)
    return (head + payload).ljust(socket.CMSG_SPACE(len(payload)), b"\0")


def reopen(fd: int, flags: int) -> int:
    """A new open file description of the file behind ``fd``, also where its name is gone."""
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)
