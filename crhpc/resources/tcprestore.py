"""What an image tells of TCP sockets, and making them again.

Connections are made anew between their two ends, through the job's own listeners where these are still there; what was
unread is sent again, then the directions are closed that were closed. An end whose other end is gone gets one for the
moment. Nothing here needs a privilege.
"""
from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from crhpc.errors import CrhpcError, RestartFailed
from crhpc.kernel import ports, sockdiag, sockopt, tcp
from crhpc.kernel.listeners import Listeners, as_family, connect, family_of, name_of, unmapped
from crhpc.kernel.ports import Address, is_any
from crhpc.kernel.tcp import Unread
from crhpc.resources.connections import ENDED, await_end, close_directions
from crhpc.resources.context import Restore
from crhpc.resources.distant import Distant
from crhpc.resources.files import File
from crhpc.resources.moved import ANY, Redirects
from crhpc.resources.sockets import bind_inet, brought_back, no_name, shown_address, user_of

_LISTEN, _SYN_SENT, _CLOSE = sockdiag.TCP_LISTEN, sockdiag.TCP_SYN_SENT, sockdiag.TCP_CLOSE
_READ, _WRITE = 1, 2
_REFILL, _TIME_WAIT, _TIME_WAIT_FAR, _MOMENT, _QUIET, _PIECE = 10.0, 65.0, 10.0, 5.0, 0.5, 32 << 10
_PAUSES = 0.2, 0.4, 0.8, 0.8
_EARLY = frozenset((
    *((socket.SOL_SOCKET, name) for name in (socket.SO_REUSEADDR, socket.SO_REUSEPORT, socket.SO_RCVBUF,
                                             socket.SO_SNDBUF, 25, 36, 10)),
    *((socket.IPPROTO_IP, name) for name in (15, 19, 24)), (socket.IPPROTO_TCP, socket.TCP_MAXSEG),
    *((socket.IPPROTO_IPV6, name) for name in (26, 75, 78)), (socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP)))
"""Options that matter when a socket is bound or connects: sharing, buffers, device, mark, urgent data inline, freebind,
transparent, bind without a port, IPv6 only."""
_OF_THE_PACKET = socket.IPPROTO_IP, socket.IP_MULTICAST_TTL
"""An accepted connection's is that of the first packet; it means nothing to TCP, and can't be set."""


@dataclass(frozen=True, slots=True)
class TcpSocket:
    """A TCP socket."""

    id: int
    family: int
    state: int = field(metadata={"doc": "as in netinet/tcp.h; 7 (CLOSE) for what has no connection, or none any more"})
    local: str = field(metadata={"host": True})
    local_port: int
    bound: bool = field(metadata={"doc": "of what has no connection: the port is its own, as after bind(2)"})
    remote: str = field(metadata={"host": True})
    remote_port: int
    backlog: int
    shutdown: int = field(metadata={"doc": "bit 0: no more reading, bit 1: no more writing"})
    ended: bool = field(metadata={"doc": "the other end has closed its direction"})
    end_read: bool = field(metadata={"doc": "the program knows that already"})
    connected: bool = field(metadata={"doc": "it is, or was, connected"})
    error: int = field(metadata={"doc": "number of the error that the next call gets; 0: none"})
    unread: bytes = field(metadata={"doc": "what is not read yet, where it is little"})
    pages: int = field(metadata={"ref": "objects.id", "doc": "page object of what is not read yet, where it is much"})
    length: int = field(metadata={"doc": "how much is not read yet"})
    arrived: int = field(metadata={"doc": "how much of it had reached the receiver"})
    urgent: int = field(metadata={"doc": "place of the urgent byte in it; -1: none"})
    urgent_read: bool = field(metadata={"doc": "the urgent byte was read already"})
    segment: int = field(metadata={"doc": "largest segment that was asked for (TCP_MAXSEG); 0: as the path allows"})
    options: bytes
    filter: bytes = field(metadata={"doc": "classic filter, as SO_GET_FILTER gives it"})

    @property
    def name(self) -> Address:
        return self.local, self.local_port

    @property
    def peer(self) -> Address:
        return self.remote, self.remote_port


@dataclass(frozen=True, slots=True)
class TcpWaiting:
    """A connection that nobody has accepted yet; those of one listener stand in their order."""

    listener: int = field(metadata={"ref": "file.id"})
    client: int = field(metadata={"ref": "file.id", "doc": "-1: the client has closed its end"})
    family: int
    local: str = field(metadata={"host": True, "doc": "the listener's address that it was made to"})
    local_port: int
    remote: str = field(metadata={"host": True})
    remote_port: int
    ended: bool = field(metadata={"doc": "the client has closed its direction"})
    reset: bool = field(metadata={"doc": "the client has closed it by a reset"})
    unread: bytes
    pages: int = field(metadata={"ref": "objects.id"})
    length: int


@dataclass(slots=True, eq=False)
class _Link:
    """A connection to be made: two ends, of which one may be nobody's any more (None)."""

    server: TcpSocket | None
    client: TcpSocket | None
    family: int
    """Of the accepting end."""
    to: Address
    comes_from: Address
    near: socket.socket = field(default_factory=socket.socket)
    """The connecting end."""
    far: socket.socket = field(default_factory=socket.socket)


class TcpMaker:
    """Makes all TCP sockets of a pod: what is bound, what listens, connections, then what waits for something."""

    def __init__(self, ctx: Restore) -> None:
        self.ctx = ctx
        self.rows = {row.id: row for row in ctx.rows(TcpSocket)}
        self.made: dict[int, socket.socket] = {}
        self.listeners = Listeners()
        self.ports: set[int] = set()
        """Those that the job has, or had."""
        self.moved = Redirects()
        """What is elsewhere since this restart."""
        self.distant = Distant(self, ctx.image)
        self.closing = ctx.closing.enter_context(contextlib.ExitStack())
        self.closing.callback(self._close)

    def _close(self) -> None:
        self.listeners.close()
        self.distant.close()
        for sock in self.made.values():
            sock.close()

    def make_unconnected(self) -> None:
        self.ports = {port for row in self.rows.values() for port in (row.local_port, row.remote_port)}
        self.ports |= {row.remote_port for row in self.ctx.rows(TcpWaiting)}
        ports.forget(ports.left_over(self.ports))
        self.ports |= {port for _, port in self.ctx.pod.redirects.ports}
        bound = [row for row in self.rows.values() if row.state == _LISTEN
                 or (row.state == _CLOSE and not (row.connected or _is_over(row)))]
        for row in bound:
            self.made[row.id] = self.fresh(row)
        for row in [row for row in bound if not self._bind(self.made[row.id], row)]:
            self._move(row)   # when all others have their ports
        for row in bound:
            if row.state == _LISTEN and not self._listen(row):
                self._move(row)
                self._listen(row)
        for row in bound:
            if row.state == _LISTEN:
                name = row.local, self.made[row.id].getsockname()[1]
                self.listeners.add(self.made[row.id], row.family, name)
            elif row.shutdown:
                with contextlib.suppress(OSError):   # ENOTCONN, and is done all the same (inet_shutdown)
                    self.made[row.id].shutdown(socket.SHUT_RD if row.shutdown & _READ else socket.SHUT_WR)

    def connect_all(self) -> None:
        waiting = self.ctx.rows(TcpWaiting)
        links = list(self._links({row.client for row in waiting}))
        self._connect(links)
        for row in self.rows.values():
            if row.state == _CLOSE and not row.connected and _is_over(row):
                self.made[row.id] = self.fresh(row)
                self._fail(row, self.made[row.id])
        self.listeners.close()
        for link in links:
            self._fill(link)
        self.distant.fill()
        for row in self.rows.values():
            if row.state == _LISTEN:
                self._queue(row, [found for found in waiting if found.listener == row.id])
        for row in self.rows.values():
            if row.state != _SYN_SENT:
                self._finish(row)
        for row in self.rows.values():   # now that backlogs are as full as they were
            if row.state == _SYN_SENT:
                self.made[row.id] = self.fresh(row)
                ports.connect_from(self.made[row.id], row.name, as_family(row.family, self._now(row.peer)))
                self._finish(row)
        if any(file.owner and file.id in self.made for file in self.ctx.rows(File)):
            # Whoever gets signals (F_SETOWN) gets none for what was done here.
            tcp.until(lambda: not any(tcp.info(sock).in_flight for sock in self.made.values()), _QUIET)
        for number, sock in self.made.items():
            self.ctx.hold_file(number, sock.detach())
        self.closing.close()

    def fresh(self, row: TcpSocket) -> socket.socket:
        """A socket with the options that matter before it has a name."""
        sock = socket.socket(row.family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sockopt.set_options(sock, row.options, only=_EARLY)
        if row.segment:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, row.segment)
        return sock

    def _bind(self, sock: socket.socket, row: TcpSocket) -> bool:
        """Bind a socket to its name; whether nobody else has it.

        Connections of the job's own that are only just closed are waited out where they must be.
        """
        # Between nodes it is not known whether they ever go: the other end may be without power.
        deadline = time.monotonic() + (_TIME_WAIT_FAR if self.ctx.pod.redirects.others else _TIME_WAIT)
        told = False
        while True:
            try:
                bind_inet(sock, row)
                return True
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise no_name(self.ctx, row, socket.IPPROTO_TCP, error) from None
                reuse = sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
                if reuse and not (ports.only_left_over(row.local_port) and time.monotonic() < deadline):
                    return False
            if not reuse:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                continue
            if not told:
                self.ctx.warn(f"port {row.local_port} is kept by closed connections for a while; waiting")
                told = True
            time.sleep(0.5)
            ports.forget(ports.left_over(self.ports))

    def _listen(self, row: TcpSocket) -> bool:
        """Whether it can: another program may have been quicker at the same port."""
        try:
            self.made[row.id].listen(row.backlog)
            return True
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise no_name(self.ctx, row, socket.IPPROTO_TCP, error) from None
            return False

    def _move(self, row: TcpSocket) -> None:
        """Bind a fresh socket to a port that nobody has and the job doesn't know; all that share one go together."""
        self.made[row.id].close()
        sock = self.made[row.id] = self.fresh(row)
        shared = self.moved.ports.get(_plain(row.name))
        try:
            with contextlib.ExitStack() as unfit:
                sock.bind(ports.resolved(row.family, (row.local, shared[1] if shared else 0)))
                while shared is None and sock.getsockname()[1] in self.ports:
                    unfit.enter_context(sock)
                    sock = self.made[row.id] = self.fresh(row)
                    sock.bind(ports.resolved(row.family, (row.local, 0)))
        except OSError as error:
            raise no_name(self.ctx, row, socket.IPPROTO_TCP, error) from None
        new = row.local, sock.getsockname()[1]
        if shared is None:
            four = is_any(row.local) and row.family == socket.AF_INET6 and not sock.getsockopt(
                socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            for known in (self.moved, self.ctx.pod.redirects):
                known.move(row.name, new)
                if four:
                    known.move((ANY, row.local_port), (ANY, new[1]))
            self.ctx.warn(f"port {row.local_port} is in use ({user_of(row, socket.IPPROTO_TCP)}); the job listens at "
                          f"port {new[1]} instead, and its own connections find it")

    def _now(self, name: Address) -> Address:
        """Where an address of the image is now."""
        return self.moved.of(name) or name

    # -- connections ------------------------------------------------------------------------------
    def _links(self, unaccepted: set[int]) -> Iterator[_Link]:
        elsewhere = unaccepted | self.distant.files
        rows = {row.id: row for row in self.rows.values() if row.connected and row.id not in elsewhere}
        ends = {(_plain(row.name), _plain(row.peer)): row for row in rows.values() if row.state != _CLOSE}
        while rows:
            row = rows.pop(next(iter(rows)))
            other = ends.get((_plain(row.peer), _plain(row.name))) if row.state != _CLOSE else None
            if other is not None:
                rows.pop(other.id, None)
                server, client = (other, row) if self._accepts(other) and not self._accepts(row) else (row, other)
                yield _Link(server, client, server.family, self._now(server.name), client.name)
            elif self._accepts(row):
                name = row.peer if row.remote else (row.local, 0)
                yield _Link(row, None, row.family, self._now(row.name), as_family(family_of(name[0]), name))
            else:
                yield _Link(None, row, 0, self._now(row.peer) if row.remote else (row.local, 0), row.name)

    def _accepts(self, row: TcpSocket) -> bool:
        """Whether a listener has its name: then it was accepted."""
        return bool(self.listeners.matching(row.family, self._now(row.name)))

    def _connect(self, links: list[_Link]) -> None:
        """Those with their old ports first; they wait a moment where it may become free."""
        for pause in (*_PAUSES, 0.0):
            links = [link for link in links if not self._try(link, keep_port=True)]
            in_the_way = ports.left_over({port for link in links for port in (link.comes_from[1], link.to[1])})
            if not pause or not any(self._is_kept(link, in_the_way) for link in links):
                break
            time.sleep(pause)
            ports.forget(ports.left_over(self.ports))
        for link in links:
            self._try(link, keep_port=False)

    def _is_kept(self, link: _Link, in_the_way: list[sockdiag.InetSocket]) -> bool:
        """Whether closed connections keep a name of it: the pair's, or the port that nobody listens at any more."""
        alone = not self.listeners.matching(link.family, link.to)
        return any((row.local, row.remote) == (link.comes_from, link.to) or (alone and row.local[1] == link.to[1])
                   for row in in_the_way)

    def _try(self, link: _Link, *, keep_port: bool) -> bool:
        """Make a connection; whether that was possible with the names that it had."""
        row = link.client or link.server
        assert row is not None
        if not keep_port:
            link.comes_from = link.comes_from[0], 0
            link.to = link.to if link.server is not None else (_own(row), 0)
            if link.client is not None and link.server is not None:
                self.ctx.warn(f"port {row.local_port} of a connection is taken; it has another one now")
        near = self.fresh(link.client) if link.client else socket.socket(family_of(link.comes_from[0]))
        link.near = self.closing.enter_context(near)
        try:
            if link.server is not None and link.server is link.client:   # connected to itself
                if not keep_port:
                    near.bind(ports.resolved(near.family, link.comes_from))
                    link.comes_from = link.to = name_of(near.getsockname())
                    near.setblocking(False)
                connect(near, link.comes_from, link.to, _MOMENT)
                link.far = near
                return True
            link.to = self._meeting_place(link, row, keep_port=keep_port)
            comes_from = connect(near, link.comes_from, as_family(near.family, link.to), _MOMENT)
            link.far = self.closing.enter_context(self.listeners.accept(link.family, link.to, comes_from, _MOMENT))
            return True
        except OSError as error:
            near.close()
            if keep_port:
                return False
            raise self._not_connected(row, link, error) from error

    def _meeting_place(self, link: _Link, row: TcpSocket, *, keep_port: bool) -> Address:
        """Where somebody listens for a connection: where it was accepted, in the last resort elsewhere.

        Raises:
            OSError: it can't be had.
        """
        try:
            return self.listeners.listen(link.family, link.to)
        except OSError as error:
            if keep_port or error.errno != errno.EADDRINUSE:
                raise
        self.ctx.warn(f"port {row.local_port} of a connection is taken; it has another one now")
        return self.listeners.listen(link.family, (link.to[0], 0))

    def _not_connected(self, row: TcpSocket, link: _Link, error: OSError) -> CrhpcError:
        if error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
            return no_name(self.ctx, link.server or row, socket.IPPROTO_TCP, error)
        return RestartFailed(image=self.ctx.image, why=f"the connection of {shown_address(*link.comes_from)} to "
                             f"{shown_address(*link.to)} can't be made again ({error.strerror})",
                             cure="see whether a firewall stops connections on this machine")

    def _fill(self, link: _Link) -> None:
        """Send what was unread and close what was closed."""
        ends = [(link.server, link.far, link.near), (link.client, link.near, link.far)]
        for row, own, other in ends[link.near is link.far:]:
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)   # nothing waits for an acknowledgement
            other.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if row is not None:
                self.made[row.id] = own
                self._send(row, own, other)
        for row, own, other in ends[link.near is link.far:]:
            if row is None:
                continue
            if row.state == _CLOSE:
                _close_like(row, own, other)
            else:
                close_directions(own, row)
        for row, own, _ in ends:
            if row is None:
                own.close()
        for row, own, _ in ends:
            if row is not None and row.state != _CLOSE:
                await_end(own, row, _MOMENT)

    def _send(self, row: TcpSocket, own: socket.socket, other: socket.socket) -> None:
        what = Unread(brought_back(self.ctx.shard, row.unread, row.pages, row.length), row.urgent, row.urgent_read)
        if not what.data:
            return
        if row.arrived > _PIECE:
            tcp.offer_window(own, row.arrived)
        tcp.send_unread(other, own, what, _REFILL)
        tcp.until(lambda: tcp.unread(own) >= (row.arrived if row.urgent < 0 else row.urgent), 0.5)
        if row.urgent_read:
            own.recv(1, socket.MSG_OOB)

    def _fail(self, row: TcpSocket, sock: socket.socket) -> None:
        """A socket whose connection was refused, or that the program has disconnected."""
        with socket.socket(row.family) as deaf:
            deaf.bind(ports.resolved(row.family, (_own(row), 0)))
            name = name_of(deaf.getsockname())
            if row.bound:
                bind_inet(sock, row)
            if not row.shutdown:
                deaf.listen()
            with contextlib.suppress(OSError):   # as it should; from another port where its own is taken
                connect(sock, (row.local, 0 if row.bound else row.local_port), name, _MOMENT, take_error=False)
            if not row.shutdown:
                ports.disconnect(sock, keep_error=True)
            elif not row.error:
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def _queue(self, row: TcpSocket, waiting: list[TcpWaiting]) -> None:
        """Let clients connect that are not accepted."""
        sock = self.made[row.id]
        sock.listen(max(row.backlog, len(waiting)))
        with self.listeners.chosen(sock) if waiting else contextlib.nullcontext():
            for place, found in enumerate(waiting):
                client = self.rows.get(found.client)
                near = self.fresh(client) if client else socket.socket(family_of(found.remote))
                comes_from = as_family(near.family, (found.remote, found.remote_port))
                to = as_family(near.family, self._now((found.local, found.local_port)))
                try:
                    connect(near, comes_from, to, _MOMENT)
                except OSError:
                    connect(near, (comes_from[0], 0), to, _MOMENT)
                tcp.refill(near, brought_back(self.ctx.shard, found.unread, found.pages, found.length), _REFILL)
                tcp.until(lambda place=place: tcp.info(sock).waiting > place, _MOMENT)   # type: ignore[misc]
                if found.reset:
                    tcp.reset(near)
                elif found.ended:
                    near.shutdown(socket.SHUT_WR)
                if client is None:
                    near.close()
                else:
                    self.made[client.id] = near
        sock.listen(row.backlog)

    def _finish(self, row: TcpSocket) -> None:
        sock = self.made[row.id]
        if row.filter:
            sockopt.attach_filter(sock, row.filter)
        failed = [option for option in sockopt.set_options(sock, row.options)
                  if option not in (*sockopt.OPTIONS_UNCONNECTED, _OF_THE_PACKET)]
        if failed:
            self.ctx.warn(f"options of a TCP socket can't be set: {sockopt.shown_options(failed)}")


def _is_over(row: TcpSocket) -> bool:
    """Whether there has been a try to connect; one way alone is shut by a program that was too early."""
    return row.shutdown == _READ | _WRITE or row.error != 0


def _close_like(row: TcpSocket, own: socket.socket, ghost: socket.socket) -> None:
    """Let the other end close a connection that is over, in the way that leaves the same behind."""
    if row.ended:
        ghost.shutdown(socket.SHUT_WR)
        tcp.until(lambda: tcp.info(own).state in ENDED, _MOMENT)
    tcp.reset(ghost)
    tcp.until(lambda: tcp.info(own).state == _CLOSE, _MOMENT)
    if not row.error:
        own.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def _plain(name: Address) -> Address:
    return unmapped(name[0]), name[1]


def _own(row: TcpSocket) -> str:
    if is_any(row.local):
        return "127.0.0.1" if row.family == socket.AF_INET else "::1"
    return row.local
