"""Multicast groups that a socket has joined (ip(7), ipv6(7)).

No list of a socket's own groups can be had; but a socket tells of any one group on any one interface whether it
has joined that, and whose datagrams it wants (MCAST_MSFILTER, RFC 3678). So it is asked about all groups that
somebody on this machine has joined.
"""
from __future__ import annotations

import contextlib
import errno
import socket
import struct
from dataclasses import dataclass

from crhpc.kernel.sockopt import get_by_key

_MCAST_JOIN_GROUP, _MCAST_BLOCK_SOURCE, _MCAST_JOIN_SOURCE_GROUP, _MCAST_MSFILTER = 42, 43, 46, 48
_STORAGE = 128
_FILTER = struct.Struct("=I4x128sII")
"""struct group_filter: interface, group, mode, number of sources that follow."""
_EXCLUDE = 0
_MOST_SOURCES = 128


@dataclass(frozen=True, slots=True)
class Membership:
    """A group that a socket has joined on an interface, with the senders that it wants, or that it does not."""

    interface: str
    group: str
    wanted: bool
    sources: tuple[str, ...] = ()


def groups(family: int) -> list[tuple[int, str]]:
    """The groups that somebody on this machine has joined: number of the interface and address."""
    found: list[tuple[int, str]] = []
    name = "igmp" if family == socket.AF_INET else "igmp6"
    with contextlib.suppress(FileNotFoundError), open(f"/proc/net/{name}", encoding="ascii") as file:
        index = 0
        for line in file:
            words = line.split()
            if family == socket.AF_INET6:
                found.append((int(words[0]), socket.inet_ntop(family, bytes.fromhex(words[2]))))
            elif not line[0].isspace():
                index = int(words[0]) if words[0].isdigit() else 0
            else:
                found.append((index, socket.inet_ntop(family, bytes.fromhex(words[0])[::-1])))
    return found


def memberships(sock: socket.socket, family: int, known: list[tuple[int, str]]) -> list[Membership]:
    """Those of ``known`` groups that a socket has joined."""
    found = []
    for index, group in known:
        key = _FILTER.pack(index, _packed(family, group), 0, _MOST_SOURCES)
        try:
            raw = get_by_key(sock, (_level(family), _MCAST_MSFILTER), key, _FILTER.size + _MOST_SOURCES * _STORAGE)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.ENOPROTOOPT, errno.EINVAL):
                raise
            continue
        _, _, mode, count = _FILTER.unpack_from(raw)
        sources = tuple(_unpacked(raw[at:at + _STORAGE])
                        for at in range(_FILTER.size, _FILTER.size + min(count, _MOST_SOURCES) * _STORAGE, _STORAGE))
        found.append(Membership(socket.if_indextoname(index), group, mode != _EXCLUDE, sources))
    return found


def join(sock: socket.socket, family: int, membership: Membership) -> None:
    """Join a group as it was joined.

    Raises:
        OSError: ENODEV, there is no such interface; ENOBUFS, too many groups.
    """
    request = struct.pack("=I4x", socket.if_nametoindex(membership.interface)) + _packed(family, membership.group)
    if not membership.wanted or not membership.sources:
        sock.setsockopt(_level(family), _MCAST_JOIN_GROUP, request)
    for source in membership.sources:
        option = _MCAST_JOIN_SOURCE_GROUP if membership.wanted else _MCAST_BLOCK_SOURCE
        sock.setsockopt(_level(family), option, request + _packed(family, source))


def _level(family: int) -> int:
    return socket.IPPROTO_IP if family == socket.AF_INET else socket.IPPROTO_IPV6


def _packed(family: int, address: str) -> bytes:
    """A struct sockaddr_storage."""
    raw = socket.inet_pton(family, address)
    return struct.pack("=H2x4s" if family == socket.AF_INET else "=H6x16s", family, raw).ljust(_STORAGE, b"\0")


def _unpacked(storage: bytes) -> str:
    (family,) = struct.unpack_from("=H", storage)
    return socket.inet_ntop(family, storage[4:8] if family == socket.AF_INET else storage[8:24])
