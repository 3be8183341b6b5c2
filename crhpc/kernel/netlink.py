"""Questions to the kernel over netlink(7) that are answered with a list. No privilege is needed."""
from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

_NLM_F_REQUEST, _NLM_F_DUMP = 1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_AT_ONCE = 1 << 18


def dump(protocol: int, kind: int, payload: bytes) -> Iterator[bytes]:
    """Send one dump request; the payloads of its answers.

    Args:
        protocol: of netlink: NETLINK_ROUTE, NETLINK_SOCK_DIAG.
        kind: of the message.

    Raises:
        OSError: as the kernel answers.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as link:
        head = _HEADER.pack(_HEADER.size + len(payload), kind, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0)
        link.sendto(head + payload, (0, 0))
        while True:
            data = link.recv(_AT_ONCE)
            at = 0
            while at + _HEADER.size <= len(data):
                length, answer, _flags, _sequence, _port = _HEADER.unpack_from(data, at)
                if answer == _NLMSG_DONE:
                    return
                if answer == _NLMSG_ERROR:
                    (number,) = struct.unpack_from("=i", data, at + _HEADER.size)
                    raise OSError(-number, os.strerror(-number), "netlink")
                yield data[at + _HEADER.size:at + length]
                at += (length + 3) & ~3


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes of a message, by their kind (rtnetlink(7))."""
    found: dict[int, bytes] = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            break
        found[kind] = data[4:length]
        data = data[(length + 3) & ~3:]
    return found
