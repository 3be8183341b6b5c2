"""Full windows between two nodes, at a checkpoint: what the receiver's queue does not take stays with the sender.

No agent can read what a sender's kernel holds, so the receiver's agent reads its socket empty, again and again, until
all senders have nothing left. What it has read it gives back to the sender's agent, which sends it once more: then both
ends are as they were. All agents do this at the same time, since two full directions may wait for each other.
"""
from __future__ import annotations

import socket
import time
from collections.abc import Sequence

from crhpc.kernel import tcp
from crhpc.kernel.sockdiag import InetSocket
from crhpc.kernel.tcp import Unread
from crhpc.resources.connections import Name, Network, Queued, names_of
from crhpc.resources.context import Dump
from crhpc.resources.sockets import silenced

_PIECE, _QUIET, _REFILL = 1 << 20, 0.002, 60.0


class Windows:
    """What one node does about them."""

    def __init__(self, ctx: Dump) -> None:
        self._network = Network.of(ctx)
        self._read: dict[int, bytearray] = {}
        """By inode of the receiver."""

    def full(self) -> list[tuple[Name, Name]]:
        """Senders of this node, by their own and the other end's name."""
        return [names_of(row) for row in self._network.full]

    def expect(self, senders: Sequence[tuple[Name, Name]]) -> int:
        """Find the receivers of this node; how many there are.

        Raises:
            Unsupported: one of them can't be read empty now; nothing has been read.
        """
        wanted = {(remote, local) for local, remote in senders}
        for row in self._network.rows.values():
            if names_of(row) in wanted:
                with self._network.borrowed(row) as sock:
                    if tcp.at_mark(sock) or tcp.unread(sock) < row.rqueue:
                        raise self._network.passing("urgent data in a TCP connection whose window is full", row)
                self._read[row.inode] = bytearray()
        return len(self._read)

    def drain(self) -> bool:
        """Read what has arrived; whether the senders of this node have nothing left."""
        network = self._network
        for inode, data in self._read.items():
            row = network.rows[inode]
            with silenced([network.files[inode]]), network.borrowed(row) as sock, tcp.untouched(sock):
                _read_all(sock, data)
        senders = {row.inode for row in network.full}
        if senders:
            time.sleep(_QUIET)
            network.look()
        return not any(row.wqueue for row in network.rows.values() if row.inode in senders)

    def taken(self) -> list[tuple[Name, Name, bytes]]:
        """What was read, by the sender's own and the receiver's name; it has to be sent again."""
        network, found = self._network, []
        for inode, data in self._read.items():
            row = network.rows[inode]
            local, remote = names_of(row)
            found.append((remote, local, bytes(data)))
            network.queues[network.files[inode].id] = Queued(Unread(bytes(data)), min(row.rqueue, len(data)))
        self._read.clear()
        return found

    def refill(self, returned: Sequence[tuple[Name, Name, bytes]]) -> None:
        """Send again what receivers of other nodes have read.

        Raises:
            TimeoutError: it doesn't fit.
        """
        senders: dict[tuple[Name, Name], InetSocket] = {names_of(row): row for row in self._network.full}
        for local, remote, data in returned:
            row = senders[local, remote]
            with silenced([self._network.files[row.inode]]), self._network.borrowed(row) as sock:
                tcp.refill(sock, data, _REFILL)


def _read_all(sock: socket.socket, into: bytearray) -> None:
    last = time.monotonic()
    while time.monotonic() < last + _QUIET:
        try:
            data = sock.recv(_PIECE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            time.sleep(0.0002)
            continue
        if not data:   # the other end has closed its direction
            return
        into += data
        last = time.monotonic()
