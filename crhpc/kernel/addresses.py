"""The addresses of this machine's interfaces (rtnetlink(7), RTM_GETADDR). No privilege is needed."""
from __future__ import annotations

import contextlib
import socket
import struct

from crhpc.kernel.netlink import attributes, dump

_NETLINK_ROUTE, _RTM_GETADDR = 0, 22
_IFADDRMSG = struct.Struct("=BBBBI")
"""family, prefix length, flags, scope, interface (struct ifaddrmsg)"""
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RT_SCOPE_LINK = 253


def own_addresses() -> list[str]:
    """Those that other machines can know this one by: neither loopback's nor link-local ones; IPv4 first."""
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        for row in dump(_NETLINK_ROUTE, _RTM_GETADDR, _IFADDRMSG.pack(family, 0, 0, 0, 0)):
            its_family, _prefix, _flags, scope, _interface = _IFADDRMSG.unpack_from(row)
            has = attributes(row[_IFADDRMSG.size:])
            packed = has.get(_IFA_LOCAL) or has.get(_IFA_ADDRESS)
            if its_family == family and scope < _RT_SCOPE_LINK and packed:
                found.append(socket.inet_ntop(family, packed))
    return list(dict.fromkeys(found))


def known_by(name: str) -> list[str]:
    """The same, those first that a name of this machine stands for."""
    own = own_addresses()
    found: list[str] = []
    with contextlib.suppress(OSError):
        found = [str(address[0]) for *_, address in socket.getaddrinfo(name, 9, type=socket.SOCK_STREAM)]
    return list(dict.fromkeys([*(address for address in found if address in own), *own]))
