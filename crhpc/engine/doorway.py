"""Where connections of other nodes come in, for commands that the job's remote shell starts on this one."""
from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from crhpc.errors import NotAllowed
from crhpc.kernel.listeners import family_of

_PATIENCE = 10.0
_CURE = "see whether a firewall stands between the hosts, and name them by addresses that the others reach"


class Doorway:
    """One listening socket for a moment; who comes from elsewhere than announced is turned away."""

    def __init__(self) -> None:
        self._server: socket.socket | None = None

    def open(self, address: str) -> int:
        """Listen at an address of this node's; the port.

        Raises:
            NotAllowed: it is none.
        """
        self.close()
        try:
            self._server = socket.create_server((address, 0), family=family_of(address))
        except OSError as error:
            raise NotAllowed(what=f"a connection to {address}", why=error.strerror or error, cure=_CURE) from None
        return int(self._server.getsockname()[1])

    @contextmanager
    def taken(self, peers: list[tuple[str, int]]) -> Iterator[list[int]]:
        """The connections from certain addresses and ports, in that order, then closed here.

        Raises:
            NotAllowed: they don't come.
        """
        with ExitStack() as stack:
            stack.callback(self.close)
            found: dict[tuple[str, int], socket.socket] = {}
            deadline = time.monotonic() + _PATIENCE
            while set(peers) - set(found):
                accepted = self._accept(deadline)
                if accepted is None:
                    raise NotAllowed(what="a connection from another host", why="it did not come", cure=_CURE)
                sock, name = accepted
                stack.enter_context(sock)
                found[name] = sock
            yield [found[peer].fileno() for peer in peers]

    def _accept(self, deadline: float) -> tuple[socket.socket, tuple[str, int]] | None:
        left = deadline - time.monotonic()
        if self._server is None or left <= 0:
            return None
        self._server.settimeout(left)
        with suppress(OSError):
            sock, name = self._server.accept()
            return sock, (name[0], name[1])
        return None

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
