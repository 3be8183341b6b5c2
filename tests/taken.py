"""Another program at the ports of a job that has been killed."""
from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterable, Iterator

from kernel.targets import until

from crhpc.kernel import proc, sockdiag
from crhpc.kernel.ports import Address, forget, resolved

Names = list[tuple[int, Address]]
"""Families and addresses."""


def listening(pids: Iterable[int]) -> Names:
    """What processes listen at."""
    links = set()
    for pid in pids:
        with contextlib.suppress(OSError):   # it has ended
            links |= {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in proc.fds(pid)}
    return [(row.family, row.local) for row in sockdiag.inet_sockets()
            if row.state == sockdiag.TCP_LISTEN and f"socket:[{row.inode}]" in links]


@contextlib.contextmanager
def taken(names: Names) -> Iterator[None]:
    """Another program listens there, and nobody comes to it."""
    with contextlib.ExitStack() as stack:
        foreign = []
        for family, name in dict.fromkeys(names):   # several may listen at one
            sock = stack.enter_context(socket.socket(family))
            if family == socket.AF_INET6 and (socket.AF_INET, ("0.0.0.0", name[1])) in names:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            until(lambda sock=sock, name=name: _binds(sock, name), "the killed job's connections stay")
            sock.listen()
            foreign.append(sock)
        yield
        assert not select.select(foreign, [], [], 0)[0], "a connection went to another program"


def _binds(sock: socket.socket, name: Address) -> bool:
    forget([row for row in sockdiag.inet_sockets() if not row.inode and row.local[1] == name[1]])
    with contextlib.suppress(OSError):
        sock.bind(resolved(sock.family, name))
        return True
    return False
