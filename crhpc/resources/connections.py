"""What a pod's TCP sockets are connected to, and what is under way between them, while the pod stands still.

inet_diag tells of all sockets at once, also of ends that have no descriptor any more (the program has closed them)
or none yet (nobody has accepted them). What is under way arrives by itself in a moment. Where a window is full it
does not: then the receiver is read empty and the sender sends the same again. A sender that has closed its direction
can't do that: there the window is opened until all has arrived.

A connection that waits to be accepted can be read by nobody. Where something is in it that must be read, it is
accepted here, and made once more by the client's own socket, from the same port, with the same data.
"""
from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from crhpc.errors import PASSING, Unsupported
from crhpc.kernel import ports, sockdiag, tcp
from crhpc.kernel.listeners import is_own, name_of, unmapped
from crhpc.kernel.ports import is_any
from crhpc.kernel.sockdiag import InetSocket
from crhpc.kernel.tcp import Unread
from crhpc.resources.context import Dump, OpenFile
from crhpc.resources.sockets import borrow, identity, silenced

ENDED = (sockdiag.TCP_CLOSE_WAIT, sockdiag.TCP_LAST_ACK, sockdiag.TCP_CLOSING, sockdiag.TCP_TIME_WAIT)
"""States in which the other end has closed its direction."""
CONNECTED = (sockdiag.TCP_ESTABLISHED, sockdiag.TCP_FIN_WAIT1, sockdiag.TCP_FIN_WAIT2, *ENDED)
_CLOSING = (sockdiag.TCP_FIN_WAIT1, sockdiag.TCP_FIN_WAIT2, sockdiag.TCP_CLOSING, sockdiag.TCP_LAST_ACK,
            sockdiag.TCP_TIME_WAIT)
_PAUSE, _ROUNDS, _LOOKS, _SETTLE, _DRAIN, _REFILL = 0.0005, 4, 10, 0.2, 60.0, 60.0
_READ, _WRITE = 1, 2

Name = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Queued:
    """What a socket has not read."""

    unread: Unread
    arrived: int
    """How much of it was in the receive queue; the rest still with the sender."""


@dataclass(slots=True)
class Waiting:
    """A connection that waits to be accepted."""

    listener: int
    """The file's id; so is ``client``, -1 where that end is closed."""
    client: int
    local: Name
    remote: Name
    data: bytes = b""
    ended: bool = False
    reset: bool = False


class Network:
    """The TCP sockets of one checkpoint."""

    def __init__(self, ctx: Dump) -> None:
        self.ctx = ctx
        self.files = {file.stat.st_ino: file for file in ctx.open_files.values()
                      if identity(file, ctx)[1:] == (socket.SOCK_STREAM, socket.IPPROTO_TCP)}
        self.rows: dict[int, InetSocket] = {}
        """Ours, by inode."""
        self.others: list[InetSocket] = []
        """Without an inode."""
        self.shows_bound: bool | None = None
        """Whether the kernel also tells of sockets that are only bound (Linux 6.8)."""
        self.queues: dict[int, Queued] = {}
        """By the file's id, where it had to be taken out."""
        self.waiting: list[Waiting] = []
        self._by_name: dict[tuple[Name, Name], InetSocket] = {}
        self._of_others: set[tuple[Name, Name]] = set()
        """Ends that another pod has, as far as one knows, where the job has several: it may be on this machine."""
        self._own: dict[str, bool] = {}
        self.full: list[InetSocket] = []
        """Senders to other nodes whose window is full."""
        self.look()

    @classmethod
    def of(cls, ctx: Dump) -> Network:
        """The one of this checkpoint."""
        if "network" not in ctx.state:
            ctx.state["network"] = cls(ctx)
        network: Network = ctx.state["network"]
        return network

    def look(self) -> None:
        """Ask the kernel anew."""
        if not self.files:
            return
        if self.shows_bound is None:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                name = probe.getsockname()
                found = sockdiag.inet_sockets()
            self.shows_bound = any(row.local == name and row.state == sockdiag.TCP_CLOSE for row in found)
        else:
            found = sockdiag.inet_sockets()
        self.rows = {row.inode: row for row in found if row.inode in self.files}
        self.others = [row for row in found if not row.inode]
        connected = {names_of(row): row for row in found if row.remote[1]}
        if self.ctx.pod.redirects.others:
            self._of_others = {names for names, row in connected.items() if row.inode and row.inode not in self.files}
        self._by_name = {names: row for names, row in connected.items() if names not in self._of_others}

    def peer(self, row: InetSocket) -> InetSocket | None:
        """The other end, whoever has it; None where it is gone, or on another node."""
        local, remote = names_of(row)
        return self._by_name.get((remote, local))

    def is_distant(self, row: InetSocket) -> bool:
        """Whether its other end is on another node, or in another pod on this one."""
        local, remote = names_of(row)
        if (remote, local) in self._of_others:
            return True
        host = unmapped(row.remote[0])
        if host not in self._own:
            self._own[host] = is_own(host)
        return not self._own[host]

    @property
    def has_distant(self) -> bool:
        return any(row.remote[1] and self.is_distant(row) for row in self.rows.values())

    def file(self, row: InetSocket) -> OpenFile | None:
        return self.files.get(row.inode) if row.inode else None

    @contextlib.contextmanager
    def borrowed(self, row: InetSocket) -> Iterator[socket.socket]:
        """The agent's copy of one of ours."""
        with borrow(self.files[row.inode], self.ctx) as sock:
            yield sock

    # -- listening --------------------------------------------------------------------------------
    def listeners(self, name: Name, family: int = 0) -> list[InetSocket]:
        """Ours that a connection to a name may wait in; the kernel prefers those that listen on that very address.

        Args:
            family: of the accepted end, where that is known.
        """
        found = [row for row in self.rows.values() if row.state == sockdiag.TCP_LISTEN and row.local[1] == name[1]
                 and family in (0, row.family)]
        return ([row for row in found if unmapped(row.local[0]) == unmapped(name[0])]
                or [row for row in found if is_any(row.local[0])])

    def unaccepted(self) -> list[InetSocket]:
        """The ends, without a descriptor yet, that wait in listeners of ours."""
        return [row for row in self.others if row.state in (sockdiag.TCP_ESTABLISHED, sockdiag.TCP_CLOSE_WAIT)
                and self.listeners(row.local, row.family)]

    def is_connecting(self, row: InetSocket) -> bool:
        """Whether a client is, though it may not know: the listener has not made a connection of it yet.

        As long as its backlog is full, or no data has come where it waits for that (TCP_DEFER_ACCEPT).
        """
        if row.state != sockdiag.TCP_ESTABLISHED or not self.listeners(row.remote):
            return row.state == sockdiag.TCP_SYN_SENT
        peer = self.peer(row)
        return peer is None or peer.state == sockdiag.TCP_SYN_RECV

    def strangers(self) -> Iterator[InetSocket]:
        """Those of them whose client is open and none of ours."""
        for row in self.unaccepted():
            client = self.peer(row)
            if row.state == sockdiag.TCP_ESTABLISHED if client is None else client.inode not in (0, *self.files):
                yield row

    # -- what is under way ------------------------------------------------------------------------
    def settle(self) -> list[tuple[InetSocket, InetSocket]]:
        """Wait until what was sent has arrived; the connections in which it does not."""
        self.look()
        deadline = time.monotonic() + _SETTLE
        quiet, before = 0, None
        while left := list(self._unsettled()):
            if before is None:
                for row in {row.inode: row for pair in left for row in pair if self.file(row)}.values():
                    if row.state in CONNECTED:
                        with self.borrowed(row) as sock:
                            tcp.push(sock)
            now = [(row.state, row.received, row.acknowledged) for pair in left for row in pair]
            quiet = quiet + 1 if now == before else 0
            if quiet >= _ROUNDS or time.monotonic() > deadline:
                break
            before = now
            time.sleep(_PAUSE)
            self.look()
        return left

    def _unsettled(self) -> Iterator[tuple[InetSocket, InetSocket]]:
        """Connections in which something is under way, or whose two rows were not read at one moment."""
        for row in self.rows.values():
            peer = self.peer(row)
            if row.state == sockdiag.TCP_SYN_SENT:
                if any(found.rqueue <= found.wqueue for found in self.listeners(row.remote)):
                    yield row, row
            elif peer is None or row.state not in CONNECTED:
                if row.wqueue and row.state in CONNECTED and self.is_distant(row):
                    yield row, row
            elif peer.inode in self.files:
                if row.inode <= peer.inode and not tcp.all_arrived(row, peer):
                    yield row, peer
            elif not peer.inode and peer.state in _CLOSING:
                if row.state not in ENDED:
                    yield row, peer
            elif not peer.inode and row.acknowledged + row.wqueue - peer.received != 1:   # not accepted yet
                yield row, peer
        for row in self.unaccepted():
            client = self.peer(row)
            if client is not None and client.state in _CLOSING and not client.inode and row.state not in ENDED:
                yield row, client

    def empty(self) -> None:
        """Look into all that can't be peeked at: full windows, and connections that wait to be accepted.

        Raises:
            Unsupported: not now; the job is as it was.
            OSError: bytes were lost under way; the connection is reset.
        """
        moved = False
        for row, peer in self.settle():
            if peer is row and self.is_distant(row):
                if row.shutdown & _WRITE:
                    raise self.passing("a TCP connection that is being closed with more under way than fits", row)
                self.full.append(row)   # the agents of both nodes see to it together
                continue
            if self.file(row) and row.state in CONNECTED and (self.file(peer) or peer.state in _CLOSING):
                moved = True
                for sender, receiver in {(row, peer), (peer, row)}:
                    if sender.wqueue and self.file(receiver):
                        self._let_arrive(sender, receiver)
        if any(self.strangers()):
            raise self.passing("a connection from outside the job that is not accepted yet",
                                self.listeners(next(self.strangers()).local)[0])
        for row in self.rows.values():
            if row.wqueue and row.state == sockdiag.TCP_ESTABLISHED and self.is_connecting(row):
                raise self.passing("a TCP connection that is just being made, with data under way", row)
        for group in self._groups():
            moved |= self._look_into_backlog(*group)
        if moved:
            self.look()

    def _let_arrive(self, sender: InetSocket, receiver: InetSocket) -> None:
        held = [self.files[row.inode] for row in (sender, receiver) if row.inode]
        with silenced(held) as heard, self.borrowed(receiver) as into:
            if sender.inode and not sender.shutdown & _WRITE:
                with self.borrowed(sender) as out:
                    self._take_out(receiver, out, into)
                    if heard:
                        tcp.until(lambda: not tcp.info(out).in_flight, 0.5)
            else:
                self._open_window(sender, receiver, into)

    def _take_out(self, receiver: InetSocket, out: socket.socket, into: socket.socket) -> None:
        arrived = receiver.rqueue
        if tcp.at_mark(into) or tcp.unread(into) < arrived:
            raise self.passing("urgent data in a TCP connection whose window is full", receiver)
        try:
            (data,) = tcp.drain([(out, into)], _DRAIN)
            tcp.refill(out, data, _REFILL, receiver=into)
        except TimeoutError:
            ports.disconnect(out)   # a program must not go on as if nothing was missing
            raise
        self.queues[self.files[receiver.inode].id] = Queued(Unread(data), arrived)
        tcp.until(lambda: tcp.unread(into) >= min(arrived, len(data)), 0.1)

    def _open_window(self, sender: InetSocket, receiver: InetSocket, into: socket.socket) -> None:
        with tcp.window_opened(into, receiver.rqueue + sender.wqueue):
            def has_ended() -> bool:
                tcp.offer_window(into, 1)
                return tcp.info(into).state in (*ENDED, sockdiag.TCP_CLOSE)
            if not tcp.until(has_ended, 2.0):
                raise self.passing("a TCP connection that is being closed with more under way than fits", receiver)

    def passing(self, what: str, row: InetSocket) -> Unsupported:
        """The error to raise for what is over in a moment."""
        file = self.files[row.inode]
        return self.ctx.refuse(f"descriptor {file.fd}: {what}", file.bearer, PASSING)

    # -- connections that wait to be accepted -----------------------------------------------------
    def _groups(self) -> Iterator[tuple[list[InetSocket], list[InetSocket]]]:
        """Listeners with the same name, and what waits in them; the kernel does not tell in which."""
        groups: dict[tuple[int, ...], tuple[list[InetSocket], list[InetSocket]]] = {}
        for row in self.rows.values():
            if row.state == sockdiag.TCP_LISTEN and row.rqueue:
                same = [other for other in self.listeners(row.local, row.family) if other.rqueue]
                groups.setdefault(tuple(sorted(other.inode for other in same)), (same, []))
        for child in self.unaccepted():
            for inodes, (_, children) in groups.items():
                if any(listener.inode in inodes for listener in self.listeners(child.local, child.family)):
                    children.append(child)
                    break
        yield from groups.values()

    def _look_into_backlog(self, listeners: list[InetSocket], children: list[InetSocket]) -> bool:
        """Note what waits in listeners; whether it had to be accepted for that."""
        count = sum(listener.rqueue for listener in listeners)
        content = any(child.received - (child.state == sockdiag.TCP_CLOSE_WAIT) for child in children)
        clients = [self.peer(child) for child in children]
        sending = any(client is not None and client.wqueue for client in clients)
        if count != len(children) or content or sending:
            for listener in listeners:
                self._accept_and_queue_again(listener)
            return True
        places = [listener for listener in listeners for _ in range(listener.rqueue)]
        for child, listener in zip(self._oldest_first(children), places, strict=True):
            mine = self._client(child)
            self.waiting.append(Waiting(self.files[listener.inode].id, mine.id if mine else -1, child.local,
                                        child.remote, ended=child.state == sockdiag.TCP_CLOSE_WAIT))
        return False

    def _client(self, child: InetSocket) -> OpenFile | None:
        peer = self.peer(child)
        return self.file(peer) if peer is not None else None

    def _oldest_first(self, children: list[InetSocket]) -> list[InetSocket]:
        """In the order in which they were made, as far as the kernel's ticks tell; else in the clients' order."""
        before: list[int] = []
        for _ in range(_LOOKS):   # the clock goes on while one after another tells its age
            children = [row for row in self.others if names_of(row) in {names_of(child) for child in children}]
            now = [row.quiet - children[0].quiet for row in children]
            if now == before or len(children) < 2:
                break
            before = now
            self.look()
        ids = {child: file.id if (file := self._client(child)) else -1 for child in children}
        return sorted(children, key=lambda child: (-child.quiet, ids[child]))

    def _accept_and_queue_again(self, listener: InetSocket) -> None:
        name = self.files[listener.inode]
        with self.borrowed(listener) as sock, silenced([name]), contextlib.ExitStack() as stack:
            taken = []
            while _readable(sock):
                number, address = sock._accept()   # type: ignore[attr-defined]
                taken.append((stack.enter_context(socket.socket(fileno=number)), name_of(address)))
            sock.listen(listener.wqueue + len(taken) + 1)   # those that still try to connect must not come first
            try:
                for place, (accepted, remote) in enumerate(taken):
                    self._queue_again(listener, accepted, remote)
                    tcp.until(lambda place=place: tcp.info(sock).waiting > place, 1.0)   # type: ignore[misc]
            finally:
                sock.listen(listener.wqueue)

    def _queue_again(self, listener: InetSocket, accepted: socket.socket, remote: Name) -> None:
        local = name_of(accepted.getsockname())
        client = self._by_name.get(((unmapped(remote[0]), remote[1]), (unmapped(local[0]), local[1])))
        mine = self.file(client) if client is not None else None
        waiting = Waiting(self.files[listener.inode].id, mine.id if mine else -1, local, remote)
        if mine is not None and client is not None:
            with borrow(mine, self.ctx) as own, silenced([mine]):
                (waiting.data,) = tcp.drain([(own, accepted)], _DRAIN)
                waiting.ended = tcp.info(accepted).state in ENDED
                ports.disconnect(own)
                ports.connect_again(own, client.local, client.remote)
                tcp.until(lambda: tcp.info(own).state == sockdiag.TCP_ESTABLISHED, 1.0)
                _finish(own, waiting, client.shutdown & _READ if client.state not in ENDED else 0)
        elif client is not None and client.inode:   # it came this very moment, from outside
            tcp.reset(accepted)
            return
        else:
            waiting.data, waiting.reset = _read_to_end(accepted)
            waiting.ended = not waiting.reset
            tcp.reset(accepted)   # what is left of the client goes, and its port is free
            with socket.socket(accepted.family) as ghost:
                ports.connect_from(ghost, remote, local)
                tcp.until(lambda: tcp.info(ghost).state == sockdiag.TCP_ESTABLISHED, 1.0)
                _finish(ghost, waiting, 0)
        self.waiting.append(waiting)


def _finish(sock: socket.socket, waiting: Waiting, shutdown: int) -> None:
    """Bring a client's end, connected again, to where it was."""
    tcp.refill(sock, waiting.data, _REFILL)
    if waiting.reset:
        tcp.reset(sock)
    elif waiting.ended:
        sock.shutdown(socket.SHUT_WR)
    if shutdown:
        sock.shutdown(socket.SHUT_RD)


class Half(Protocol):
    """What a closed end has to come back with; as in the record of a TCP socket."""

    @property
    def shutdown(self) -> int: ...
    @property
    def ended(self) -> bool: ...
    @property
    def end_read(self) -> bool: ...


def close_directions(sock: socket.socket, row: Half) -> None:
    """Close the directions of a connection made anew that its program had closed."""
    if row.shutdown & _WRITE:
        sock.shutdown(socket.SHUT_WR)
    if row.shutdown & _READ and not row.ended:
        sock.shutdown(socket.SHUT_RD)


def await_end(sock: socket.socket, row: Half, timeout: float) -> None:
    """Wait until the other end has closed its direction, where it had, and take note where the program had."""
    if row.ended:
        tcp.until(lambda: tcp.info(sock).state in (*ENDED, sockdiag.TCP_CLOSE), timeout)
        if row.end_read:
            sock.recv(1, socket.MSG_DONTWAIT)


def _read_to_end(sock: socket.socket) -> tuple[bytes, bool]:
    """All that a closed client has sent, and whether its end was a reset."""
    parts: list[bytes] = []
    deadline = time.monotonic() + _DRAIN
    while time.monotonic() < deadline:
        try:
            part = sock.recv(1 << 20, socket.MSG_DONTWAIT)
        except BlockingIOError:
            time.sleep(_PAUSE)
            continue
        except OSError:
            return b"".join(parts), True
        if not part:
            return b"".join(parts), tcp.info(sock).state == sockdiag.TCP_CLOSE
        parts.append(part)
    raise TimeoutError("bytes stay under way in a TCP connection that waits to be accepted")


def names_of(row: InetSocket) -> tuple[Name, Name]:
    """Both ends, IPv4 addresses as such."""
    return (unmapped(row.local[0]), row.local[1]), (unmapped(row.remote[0]), row.remote[1])


def _readable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))
