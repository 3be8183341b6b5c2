"""Sockets by inode: unix_diag and inet_diag over netlink (sock_diag(7)). No privilege is needed.

Two requests only; they are answered for the network namespace of the caller.
"""
from __future__ import annotations

import functools
import os
import socket
import struct
from dataclasses import dataclass

from crhpc.kernel.netlink import attributes, dump

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_UDIAG_SHOW_NAME, _UDIAG_SHOW_VFS, _UDIAG_SHOW_PEER, _UDIAG_SHOW_ICONS, _UDIAG_SHOW_RQLEN = 1, 2, 4, 8, 16
_UNIX_NAME, _UNIX_VFS, _UNIX_PEER, _UNIX_ICONS, _UNIX_RQLEN, _UNIX_SHUTDOWN = 0, 1, 2, 3, 4, 6

_INET_DIAG_INFO, _INET_DIAG_SHUTDOWN = 2, 8
_INET_DIAG_INFO_BIT = 1 << _INET_DIAG_INFO - 1

TCP_ESTABLISHED, TCP_SYN_SENT, TCP_SYN_RECV, TCP_FIN_WAIT1, TCP_FIN_WAIT2 = 1, 2, 3, 4, 5
TCP_TIME_WAIT, TCP_CLOSE, TCP_CLOSE_WAIT, TCP_LAST_ACK, TCP_LISTEN, TCP_CLOSING = 6, 7, 8, 9, 10, 11


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """One row of unix_diag. ``kind`` is SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET."""

    inode: int
    kind: int
    state: int
    name: bytes
    """As bound: a path, or a zero byte and an abstract name; empty where not bound."""
    peer: int
    """The inode of the other end, 0 where there is none."""
    queued: int
    """Bytes to read; of a listening socket, connections waiting."""
    backlog: int
    """Of a listening socket: how many may wait."""
    file: tuple[int, int]
    """(device, inode) of the path that it is bound to, as stat(2) knows them; zeros where there is none."""
    shutdown: int
    """Bit 0: no more reading, bit 1: no more writing."""
    waiting: tuple[int, ...]
    """Of a listening socket: the inodes of the connecting ends that wait to be accepted."""


@dataclass(frozen=True, slots=True)
class InetSocket:
    """One row of inet_diag. What has no descriptor any more, or none yet, has inode 0."""

    inode: int
    family: int
    state: int
    local: tuple[str, int]
    remote: tuple[str, int]
    rqueue: int
    """Bytes to read, the end of the stream counts one; of a listening socket, connections waiting."""
    wqueue: int
    """Bytes sent and not acknowledged; of a listening socket, how many may wait."""
    uid: int
    interface: int
    """The number of the interface that it is bound to; 0: none."""
    shutdown: int
    """Bit 0: no more reading, as the other end has closed or it is not wanted; bit 1: no more writing."""
    acknowledged: int
    """TCP: of the stream that was sent; the first packet of whoever made the connection counts one."""
    received: int
    """TCP: of the stream of the other end, its end counts one."""
    quiet: int
    """TCP: milliseconds since something was received; of a fresh connection, since it was made."""


def unix_sockets() -> dict[int, UnixSocket]:
    """All unix sockets of this network namespace, by inode."""
    show = _UDIAG_SHOW_NAME | _UDIAG_SHOW_VFS | _UDIAG_SHOW_PEER | _UDIAG_SHOW_ICONS | _UDIAG_SHOW_RQLEN
    # struct unix_diag_req: family, protocol, pad, states, inode, show, cookie[2]
    request = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, show, 0xFFFFFFFF, 0xFFFFFFFF)
    found: dict[int, UnixSocket] = {}
    for row in dump(_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, request):
        _family, kind, state, _pad, inode, _c0, _c1 = struct.unpack_from("=BBBBIII", row)
        more = attributes(row[16:])
        waiting = more.get(_UNIX_ICONS, b"")
        (peer,) = struct.unpack("=I", more.get(_UNIX_PEER, bytes(4)))
        queued, backlog = struct.unpack("=II", more.get(_UNIX_RQLEN, bytes(8)))
        vfs_inode, vfs_device = struct.unpack("=II", more.get(_UNIX_VFS, bytes(8)))
        device = os.makedev(vfs_device >> 20, vfs_device & 0xFFFFF)   # the kernel's own dev_t
        name = more.get(_UNIX_NAME, b"")
        if name[:1] != b"\0":
            name = name.partition(b"\0")[0]   # a path ends with a zero
        found[inode] = UnixSocket(inode, kind, state, name, peer, queued, backlog,
                                  (device if vfs_inode else 0, vfs_inode), more.get(_UNIX_SHUTDOWN, b"\0")[0],
                                  struct.unpack(f"={len(waiting) // 4}I", waiting))
    return found


def inet_sockets(protocol: int = socket.IPPROTO_TCP,
                 families: tuple[int, ...] = (socket.AF_INET, socket.AF_INET6)) -> list[InetSocket]:
    """All sockets of a protocol in this network namespace that have a port; those waiting to be accepted too."""
    found: list[InetSocket] = []
    for family in families:
        # struct inet_diag_req_v2: family, protocol, ext, pad, states, then inet_diag_sockid of 48 bytes
        request = struct.pack("=BBBBI", family, protocol, _INET_DIAG_INFO_BIT, 0, 0xFFFFFFFF) + bytes(40) + b"\xff" * 8
        found += map(_inet_row, dump(_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, request))
    return found


def _inet_row(row: bytes) -> InetSocket:
    family, state = row[0], row[1]
    sport, dport = struct.unpack_from("!HH", row, 4)
    size = 4 if family == socket.AF_INET else 16
    (interface,) = struct.unpack_from("=I", row, 40)
    _expires, rqueue, wqueue, uid, inode = struct.unpack_from("=IIIII", row, 52)
    shutdown = acknowledged = received = quiet = 0
    at = 72
    while at + 4 <= len(row):
        length, kind = struct.unpack_from("=HH", row, at)
        if kind == _INET_DIAG_SHUTDOWN:
            shutdown = row[at + 4]
        elif kind == _INET_DIAG_INFO and length >= 4 + 136:   # struct tcp_info, up to tcpi_bytes_received
            (quiet,) = struct.unpack_from("=I", row, at + 4 + 52)
            acknowledged, received = struct.unpack_from("=QQ", row, at + 4 + 120)
        at += max((length + 3) & ~3, 4)
    return InetSocket(inode, family, state, (_address(family, row[8:8 + size]), sport),
                      (_address(family, row[24:24 + size]), dport), rqueue, wqueue, uid, interface, shutdown,
                      acknowledged, received, quiet)


@functools.lru_cache(4096)
def _address(family: int, packed: bytes) -> str:
    return socket.inet_ntop(family, packed)
