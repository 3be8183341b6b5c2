"""TCP connections between two nodes, at a restart: each end is made by its own node's agent.

One end listens where it was, the other one connects from where it was; then each sends what the other had not read,
which it finds in the other node's shard, and closes what was closed.
"""
from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from crhpc.errors import RestartFailed
from crhpc.image.reader import Image, Shard
from crhpc.kernel import ports, tcp
from crhpc.kernel.listeners import Listeners, as_family, connect, is_own
from crhpc.kernel.ports import Address
from crhpc.resources.connections import await_end, close_directions
from crhpc.resources.context import table_name
from crhpc.resources.sockets import brought_back, shown_address

if TYPE_CHECKING:
    from crhpc.resources.tcprestore import TcpSocket

_MOMENT, _REFILL, _PIECE = 10.0, 30.0, 32 << 10

Link = dict[str, int]
"""number, file, node and far (the other end's node and file), offers"""


class Maker(Protocol):
    """What makes a pod's TCP sockets."""

    rows: dict[int, TcpSocket]
    made: dict[int, socket.socket]
    listeners: Listeners

    def fresh(self, row: TcpSocket) -> socket.socket: ...


class Distant:
    """The connections of a pod with pods on other nodes."""

    def __init__(self, maker: Maker, image: Path) -> None:
        self._maker = maker
        self._image = image
        self._offered: dict[int, Address] = {}
        self._links: dict[int, Link] = {}
        self._sockets: dict[int, socket.socket] = {}
        """By file."""

    @property
    def files(self) -> set[int]:
        return set(self._sockets)

    def offer(self, links: Sequence[Link]) -> dict[str, tuple[str, int]]:
        """Listen for those that this end offers; where, by number.

        Raises:
            RestartFailed: it can't be done.
        """
        for link in links:
            if link["offers"]:
                self._offered[link["number"]] = self._listen(self._maker.rows[link["file"]])
        return {str(number): name for number, name in self._offered.items()}

    def _listen(self, row: TcpSocket) -> Address:
        """At the old port, or where that is taken at another."""
        for name in (row.name, (row.local, 0)):
            try:
                return self._maker.listeners.listen(row.family, name)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not name[1]:
                    raise self._failed(row, error) from error
        raise AssertionError

    def reach(self, links: Sequence[Link], offers: dict[str, Any]) -> dict[str, tuple[str, int]]:
        """Connect to what the others offer, from the old port where that is free; from where, by number.

        Raises:
            RestartFailed: it can't be done.
        """
        names: dict[str, tuple[str, int]] = {}
        for link in [link for link in links if not link["offers"]]:
            row, number = self._maker.rows[link["file"]], str(link["number"])
            host, port = offers[number]
            for comes_from in (row.name, (row.local, 0)):
                sock = self._maker.fresh(row)
                try:
                    names[number] = connect(sock, comes_from, as_family(row.family, (host, port)), _MOMENT)
                except OSError as error:
                    sock.close()
                    if not comes_from[1]:
                        raise self._failed(row, error) from error
                else:
                    self._keep(link, sock)
                    break
        return names

    def accept(self, links: Sequence[Link], names: dict[str, Any]) -> None:
        """Take what the others have connected to here.

        Raises:
            RestartFailed: one does not come.
        """
        for link in [link for link in links if link["offers"]]:
            row = self._maker.rows[link["file"]]
            host, port = names[str(link["number"])]
            try:
                self._keep(link, self._maker.listeners.accept(row.family, self._offered[link["number"]], (host, port),
                                                              _MOMENT))
            except OSError as error:
                raise self._failed(row, error) from error

    def _keep(self, link: Link, sock: socket.socket) -> None:
        self._links[link["file"]] = link
        self._sockets[link["file"]] = sock

    def _failed(self, row: TcpSocket, error: OSError) -> RestartFailed:
        return RestartFailed(image=self._image, why=f"the connection of {shown_address(*row.name)} with another node, "
                             f"{shown_address(*row.peer)}, can't be made again ({error.strerror})",
                             cure="see whether the nodes reach each other, and who has the port")

    def fill(self) -> None:
        """Send what the other ends had not read, and close what was closed."""
        if not self._sockets:
            return
        with Image(self._image) as image:
            for file, sock in self._sockets.items():
                self._maker.made[file] = sock
                row, link = self._maker.rows[file], self._links[file]
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)   # nothing waits for an acknowledgement
                if row.arrived > _PIECE:
                    tcp.offer_window(sock, row.arrived)
                tcp.refill(sock, _unread(image.node(link["node"]), type(row), link["far"]), _REFILL)
        for file, sock in self._sockets.items():
            close_directions(sock, self._maker.rows[file])
        for file, sock in self._sockets.items():
            self._await(self._maker.rows[file], sock)
        self._sockets.clear()

    def _await(self, row: TcpSocket, sock: socket.socket) -> None:
        """What the other end sends, and its end."""
        tcp.until(lambda: tcp.unread(sock) >= row.arrived, 2.0)
        with contextlib.suppress(OSError):
            await_end(sock, row, _MOMENT)

    def close(self) -> None:
        for sock in self._sockets.values():
            sock.close()


# -- what is left of an earlier life ------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class LeftBehind:
    """Of a connection between two nodes that is closed: it keeps the port of one end for a minute."""

    family: int
    local: Address
    remote: Address


def left_behind(shard: Shard, record: type[TcpSocket]) -> list[LeftBehind]:
    """What connections with other nodes have left at ports that a pod needs."""
    name = table_name(record)
    wanted = {row.local_port for row in shard.table(record, name)} if name in shard.tables() else set()
    return [LeftBehind(row.family, row.local, row.remote) for row in ports.left_over(wanted)
            if not is_own(row.remote[0].partition("%")[0])]


def forget(rows: Sequence[LeftBehind]) -> None:
    """End what is left elsewhere of connections whose other end was on this machine: nobody else can."""
    ports.forget([row for row in rows if is_own(row.remote[0].partition("%")[0])])


def _unread(shard: Shard, record: type[TcpSocket], file: int) -> bytes:
    """What a socket of another node had not read."""
    row = next(row for row in shard.table(record, table_name(record)) if row.id == file)
    return brought_back(shard, row.unread, row.pages, row.length)
