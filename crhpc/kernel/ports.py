"""Which port a connection comes from, and ports that closed connections still keep (ip(7), tcp(7)).

A socket that connects gets a port by itself; where IP_LOCAL_PORT_RANGE (Linux 6.3) leaves it one choice it gets
that one, also where other connections to elsewhere have it too, which bind(2) would refuse.

What is left of a closed connection (TIME_WAIT, FIN_WAIT2) keeps its port for a minute. It goes at once when its
other end says that it knows nothing of the connection (a reset, RFC 1337); and a fresh socket at the other end's
address says so as soon as it is answered as if it were the old one.
"""
from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import socket
import struct
from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

from crhpc.kernel import libc, sockdiag

_IP_BIND_ADDRESS_NO_PORT, _IP_LOCAL_PORT_RANGE = 24, 51
Address = tuple[str, int]
"""An address, with the name of its interface behind % where that matters (RFC 4007), and a port."""


@functools.lru_cache(1)
def _ephemeral() -> range:
    """The ports that sockets get by themselves."""
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
        low, high = map(int, file.read().split())
    return range(low, high + 1)


def is_any(host: str) -> bool:
    """Whether it stands for all addresses of the machine."""
    return host in ("", "0.0.0.0", "::", "::ffff:0.0.0.0")


def resolved(family: int, address: Address) -> tuple[str, int] | tuple[str, int, int, int]:
    """An address as bind(2) and connect(2) take it.

    Raises:
        OSError: ENODEV, no interface here has the name.
    """
    host, _, interface = address[0].partition("%")
    if family == socket.AF_INET:
        return host, address[1]
    return host, address[1], 0, socket.if_nametoindex(interface) if interface else 0


def connect_from(sock: socket.socket, local: Address, remote: Address) -> None:
    """Begin a connection from an address and port; the socket does not wait from then on.

    Args:
        local: where the port is 0, any port of the address.

    Raises:
        OSError: EADDRINUSE or EADDRNOTAVAIL where that port or address can't be had, or why it was refused.
    """
    sock.setblocking(False)
    if not local[1]:
        _bind_address(sock, local[0], remote)
        _begin(sock, remote)
        return
    with _one_choice(sock, local[1]) as chosen:
        if chosen:
            _bind_address(sock, local[0], remote)
            try:
                _begin(sock, remote)
                return
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)   # a port that was asked for, and is shared
    sock.bind(resolved(sock.family, local))
    _begin(sock, remote)


def _bind_address(sock: socket.socket, host: str, remote: Address) -> None:
    """Bind a socket to an address, its port is chosen later; not where it has a name, or will have that one anyway."""
    if is_any(host) or sock.getsockname()[1] or (host == remote[0] and _chosen_for(sock.family, remote) == host):
        return
    sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
    sock.bind(resolved(sock.family, (host, 0)))
    sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 0)


def _chosen_for(family: int, remote: Address) -> str:
    """The address that the kernel chooses for a connection; 127.0.0.1 for all of loopback's, for one."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(resolved(family, remote))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def connect_again(sock: socket.socket, local: Address, remote: Address) -> None:
    """Begin a connection with a socket that had one between the same addresses and is disconnected now.

    Raises:
        OSError: as ``connect_from``.
    """
    flags = fcntl.fcntl(sock, fcntl.F_GETFL)
    fcntl.fcntl(sock, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    try:
        with _one_choice(sock, local[1]):   # one that was chosen by bind(2) is its own still
            _begin(sock, remote)
    finally:
        fcntl.fcntl(sock, fcntl.F_SETFL, flags)
    if sock.getsockname()[1] != local[1]:
        raise OSError(errno.EADDRINUSE, f"port {local[1]} was taken in between", "connect")


def _begin(sock: socket.socket, remote: Address) -> None:
    number = sock.connect_ex(resolved(sock.family, remote))
    if number not in (0, errno.EINPROGRESS):
        raise OSError(number, f"{os.strerror(number)}: {remote[0]}:{remote[1]}", "connect")


@contextlib.contextmanager
def _one_choice(sock: socket.socket, port: int) -> Iterator[bool]:
    """Leave a socket that connects one port only; whether that is possible."""
    if port not in _ephemeral():
        yield False
        return
    try:
        before = sock.getsockopt(socket.IPPROTO_IP, _IP_LOCAL_PORT_RANGE, 4)
        sock.setsockopt(socket.IPPROTO_IP, _IP_LOCAL_PORT_RANGE, struct.pack("I", port | port << 16))
    except OSError:   # an older kernel
        yield False
        return
    try:
        yield True
    finally:
        sock.setsockopt(socket.IPPROTO_IP, _IP_LOCAL_PORT_RANGE, before)


_LEFT_OVER = (sockdiag.TCP_TIME_WAIT, sockdiag.TCP_FIN_WAIT1, sockdiag.TCP_FIN_WAIT2, sockdiag.TCP_CLOSING,
              sockdiag.TCP_LAST_ACK)


def left_over(wanted: Collection[int]) -> list[sockdiag.InetSocket]:
    """What closed connections, that nobody has open any more, have left here at ports."""
    wanted = {*wanted} - {0}
    return [row for row in sockdiag.inet_sockets() if not row.inode and row.local[1] in wanted
            and row.state in _LEFT_OVER] if wanted else []


def only_left_over(port: int) -> bool:
    """Whether a port is kept by nothing else."""
    rows = [row for row in sockdiag.inet_sockets() if row.local[1] == port]
    return bool(rows) and all(not row.inode and row.state in _LEFT_OVER for row in rows)


class Ends(Protocol):
    """What is left of a closed connection."""

    @property
    def family(self) -> int: ...
    @property
    def local(self) -> Address: ...
    @property
    def remote(self) -> Address: ...


def forget(rows: Sequence[Ends]) -> None:
    """End what is left of closed connections, here or elsewhere, where the other end was on this machine.

    Not possible at once where something is left of both ends: on loopback after a second (tcp_tw_reuse). What it
    can't end, ends by itself. A port that several connections had is free for that when the others are gone.
    """
    while rows:
        left = [row for row in rows if not _forget(row)]
        if len(left) == len(rows):
            return
        rows = left


def _forget(row: Ends) -> bool:
    with socket.socket(row.family, socket.SOCK_STREAM) as sock:
        if row.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            connect_from(sock, row.remote, row.local)
        except OSError:
            return False
        return True


def disconnect(sock: socket.socket, *, keep_error: bool = False) -> None:
    """Make a socket one that was never connected (AF_UNSPEC in connect(2)); the other end of TCP gets a reset."""
    libc.syscall("connect", sock.fileno(), ctypes.create_string_buffer(struct.pack("=H14x", socket.AF_UNSPEC), 16), 16)
    if not keep_error:
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)   # it leaves ECONNRESET there
