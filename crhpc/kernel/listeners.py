"""Where the two ends of a TCP connection that is made anew meet: listening sockets, each end by itself.

The connecting end and the accepting end need to know no more of each other than two names, so they can as well be
made by two processes on two machines.
"""
from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

from crhpc.kernel import sockopt
from crhpc.kernel.ports import Address, connect_from, is_any, resolved

_SO_ATTACH_REUSEPORT_CBPF, _SO_DETACH_REUSEPORT_BPF = 51, 68
_BPF_RETURN = 6
_BACKLOG = 128


def unmapped(host: str) -> str:
    """An IPv4 address that an IPv6 socket shows as mapped (RFC 4291, 2.5.5.2) is the IPv4 one."""
    return host.removeprefix("::ffff:") if "." in host else host


def family_of(host: str) -> int:
    """The family of an address; a mapped one's is IPv4."""
    return socket.AF_INET if "." in host else socket.AF_INET6


def as_family(family: int, name: Address) -> Address:
    """An address as a socket of a family writes it."""
    host = unmapped(name[0])
    return f"::ffff:{host}" if family == socket.AF_INET6 and "." in host else host, name[1]


def is_own(host: str) -> bool:
    """Whether an address is one of this machine's."""
    with socket.socket(family_of(unmapped(host)), socket.SOCK_DGRAM) as sock:
        try:
            sock.bind(resolved(sock.family, (unmapped(host), 0)))
            return True
        except OSError:
            return False


def name_of(address: tuple[object, ...]) -> Address:
    """An address as the socket module gives it: with the name of its interface, where that matters."""
    host, port = str(address[0]).partition("%")[0], int(str(address[1]))
    scope = address[3] if len(address) > 3 else 0
    if isinstance(scope, int) and scope:
        host += f"%{socket.if_indextoname(scope)}"
    return host, port


@dataclass(slots=True)
class _Listener:
    family: int
    name: Address
    sock: socket.socket

    @property
    def takes_four(self) -> bool:
        """Whether connections over IPv4 reach it."""
        return not (self.family == socket.AF_INET6 and self.sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))


class Listeners:
    """Listening sockets of the job, and stand-ins for those that it has closed."""

    def __init__(self) -> None:
        self._known: list[_Listener] = []
        self._stand_ins: list[_Listener] = []

    def add(self, sock: socket.socket, family: int, name: Address) -> None:
        """One of the job's, that listens from now on; those of one name in the order in which they began to."""
        self._known.append(_Listener(family, name, sock))

    def matching(self, family: int, name: Address) -> list[socket.socket]:
        """Those that a connection to a name may be accepted from, as a socket of a family; 0: of any."""
        four = "." in name[0]
        found = [known for known in (*self._known, *self._stand_ins) if known.name[1] == name[1]
                 and family in (0, known.family) and (known.takes_four if four else known.family == socket.AF_INET6)]
        exact = [known.sock for known in found if unmapped(known.name[0]) == unmapped(name[0])]
        return exact or [known.sock for known in found if is_any(known.name[0])]

    def listen(self, family: int, name: Address) -> Address:
        """See to it that somebody listens at an address; the address.

        Raises:
            OSError: EADDRINUSE or EADDRNOTAVAIL.
        """
        if name[1] and self.matching(family, name):
            return name
        family = family or family_of(name[0])
        name = as_family(family, name)
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(resolved(family, name))
            sock.listen(_BACKLOG)
            name = name_of(sock.getsockname())
        except OSError:
            sock.close()
            raise
        self._stand_ins.append(_Listener(family, name, sock))
        return name

    def accept(self, family: int, name: Address, comes_from: Address, timeout: float) -> socket.socket:
        """Accept the connection from an address; anybody else's is not the job's and is closed.

        Raises:
            TimeoutError: it does not come.
        """
        poll = select.poll()
        found = {sock.fileno(): sock for sock in self.matching(family, name)}
        for number in found:
            poll.register(number, select.POLLIN)
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            for number, _ in poll.poll(left * 1000):
                sock, address = found[number].accept()
                if unmapped(str(address[0]).partition("%")[0]) == unmapped(comes_from[0].partition("%")[0]) \
                        and address[1] == comes_from[1]:
                    return sock
                sock.close()
        raise TimeoutError(errno.ETIMEDOUT, f"nothing comes from {comes_from[0]}:{comes_from[1]}", "accept")

    @contextlib.contextmanager
    def chosen(self, sock: socket.socket) -> Iterator[None]:
        """Let connections go to one of several that listen at the same address (SO_REUSEPORT in socket(7))."""
        mine = next(known for known in self._known if known.sock is sock)
        same = [known.sock for known in self._known if (known.family, known.name) == (mine.family, mine.name)]
        if len(same) < 2:
            yield
            return
        code = struct.pack("=HBBI", _BPF_RETURN, 0, 0, same.index(sock))
        sockopt.attach_filter(sock, code, how=_SO_ATTACH_REUSEPORT_CBPF)
        try:
            yield
        finally:
            sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_REUSEPORT_BPF, 0)

    def close(self) -> None:
        """End the stand-ins."""
        while self._stand_ins:
            self._stand_ins.pop().sock.close()


def connect(sock: socket.socket, comes_from: Address, to: Address, timeout: float, *,
            take_error: bool = True) -> Address:
    """Make the connecting end; the address that it has now. The socket stays one that has not asked for the result.

    Args:
        comes_from: where the port is 0, any; where the address is none in particular, the one that the kernel chooses.
        take_error: else the socket keeps it, for whoever asks next (SO_ERROR).

    Raises:
        OSError: the address can't be had, or why it failed.
        TimeoutError: nobody answers.
    """
    connect_from(sock, comes_from, to)
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLOUT)
    if not poll.poll(timeout * 1000):
        raise TimeoutError(errno.ETIMEDOUT, f"{to[0]}:{to[1]} does not answer", "connect")
    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if take_error else 0
    if number:
        raise OSError(number, f"{os.strerror(number)}: {to[0]}:{to[1]}", "connect")
    return name_of(sock.getsockname())
