"""Addresses of internet sockets as programs hand them to the kernel: struct sockaddr_in and sockaddr_in6."""
from __future__ import annotations

import contextlib
import ctypes
import errno
import socket

from crhpc.kernel import libc
from crhpc.kernel.listeners import as_family, name_of
from crhpc.kernel.ports import Address

LONGEST = 28
"""struct sockaddr_in6"""
_FOUR, _SIX_WITHOUT_SCOPE = 16, 24
"""The least that the kernel takes (SIN6_LEN_RFC2133)."""


def parse(raw: bytes) -> Address | None:
    """The address in a struct sockaddr, with its interface where that matters; None for other families."""
    family = int.from_bytes(raw[:2], "little")
    port = int.from_bytes(raw[2:4], "big")
    if family == socket.AF_INET and len(raw) >= _FOUR:
        return socket.inet_ntop(family, raw[4:8]), port
    if family == socket.AF_INET6 and len(raw) >= _SIX_WITHOUT_SCOPE:
        scope = int.from_bytes(raw[24:28], "little")
        with contextlib.suppress(OSError):   # no interface has that number
            return name_of((socket.inet_ntop(family, raw[8:24]), port, 0, scope))
    return None


def with_name(raw: bytes, name: Address) -> bytes | None:
    """A struct sockaddr for another address, else as it was; None where its family has no such address."""
    family, port = int.from_bytes(raw[:2], "little"), name[1].to_bytes(2, "big")
    host = as_family(family, name)[0].partition("%")[0]
    if family == socket.AF_INET:
        return None if ":" in host else raw[:2] + port + socket.inet_pton(family, host) + raw[8:]
    return raw[:2] + port + raw[4:8] + socket.inet_pton(family, host) + raw[24:]


def call(name: str, sock: socket.socket, raw: bytes) -> int:
    """bind(2) or connect(2) as it is, without the waiting of Python's own; 0 or an error number."""
    try:
        libc.syscall(name, sock.fileno(), ctypes.create_string_buffer(raw, len(raw)), len(raw))
    except OSError as error:
        return error.errno or errno.EIO
    return 0
