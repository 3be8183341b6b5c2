"""TCP and UDP sockets over IPv4 and IPv6 (tcp(7), udp(7)).

A connection inside the job is recorded at both ends. What is unread is peeked at; where a window is full both
directions are drained and sent again. At restart the agent makes a fresh connection between the two ends,
through the job's own listener where the port is one's, sends again what was unread, and then closes the
directions that were closed. Nothing here needs a privilege.
"""
from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat as modes
import time
from dataclasses import dataclass, field
from typing import Any

from crhpc.errors import PortTaken
from crhpc.kernel import sockdiag, tcp
from crhpc.kernel.sockopt import (
    OPTIONS_INET,
    OPTIONS_INET6,
    OPTIONS_SOCKET,
    OPTIONS_TCP,
    read_options,
    set_options,
)
from crhpc.resources import Cut, Phase, at
from crhpc.resources.context import Dump, OpenFile, Restore
from crhpc.resources.files import File, FileKind

_SETTLE, _DRAIN, _REFILL, _TIME_WAIT = 0.2, 5.0, 10.0, 65.0
_EARLY = ((socket.SOL_SOCKET, socket.SO_RCVBUF), (socket.SOL_SOCKET, socket.SO_SNDBUF))
_OPTIONS = OPTIONS_SOCKET + OPTIONS_INET + OPTIONS_INET6 + OPTIONS_TCP
_HALF_CLOSED = (sockdiag.TCP_FIN_WAIT1, sockdiag.TCP_FIN_WAIT2, sockdiag.TCP_CLOSING, sockdiag.TCP_LAST_ACK)
_CONNECTED = (sockdiag.TCP_ESTABLISHED, sockdiag.TCP_CLOSE_WAIT, *_HALF_CLOSED)


@dataclass(frozen=True, slots=True)
class InetSocket:
    """A TCP or UDP socket."""

    id: int
    family: int
    type: int
    protocol: int
    state: int = field(metadata={"doc": "TCP state as in netinet/tcp.h; 7 (CLOSE) for what has no connection"})
    local: str
    local_port: int
    remote: str
    remote_port: int
    only_v6: bool
    backlog: int
    unread: bytes
    options: bytes


class InetKind(FileKind):
    name = "inet"
    records = (InetSocket,)
    saved = ("TCP over IPv4 and IPv6: listening, connected, half closed, unread data, full windows, options; UDP bound "
             "and connected")
    refused = ("a connection that leaves the job; a connection that is just being made; connections with data that are "
               "not accepted yet; UDP datagrams that are not read yet")

    def matches(self, file: OpenFile, ctx: Dump) -> bool:
        if not modes.S_ISSOCK(file.stat.st_mode):
            return False
        with _borrow(file, ctx) as sock:
            return (sock.family in (socket.AF_INET, socket.AF_INET6)
                    and sock.type in (socket.SOCK_STREAM, socket.SOCK_DGRAM))

    def refusal(self, file: OpenFile, ctx: Dump) -> tuple[str, str] | None:
        with _borrow(file, ctx) as sock:
            if sock.type == socket.SOCK_DGRAM:
                return _refuse_udp(sock)
            about = tcp.info(sock)
            if about.state in (sockdiag.TCP_SYN_SENT, sockdiag.TCP_SYN_RECV):
                return "a TCP connection that is just being made", "try again a moment later"
            if about.state == sockdiag.TCP_LISTEN and about.waiting and _waiting_data(sock):
                return "connections with data that are not accepted yet", "try again a moment later"
            return None

    def dump(self, file: OpenFile, ctx: Dump) -> InetSocket:
        with _borrow(file, ctx) as sock:
            state = tcp.info(sock).state if sock.type == socket.SOCK_STREAM else sockdiag.TCP_CLOSE
            backlog = tcp.info(sock).backlog if state == sockdiag.TCP_LISTEN else 0
            local, remote = sock.getsockname()[:2], _peer(sock)
            only_v6 = sock.family == socket.AF_INET6 and bool(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))
            unread = ctx.state.get("unread", {}).get(file.id, b"")
            row = InetSocket(file.id, sock.family, sock.type, sock.proto, state, local[0], local[1], remote[0],
                             remote[1], only_v6, backlog, unread, read_options(sock, _OPTIONS))
            _let_port_be_reused(sock)
            return row

    @at(Cut.REGISTERS)
    def read_queues(self, ctx: Dump) -> None:
        """All queues of the pod, before any record is made: draining needs both ends at once."""
        ends: dict[int, socket.socket] = {}
        for file in ctx.open_files.values():
            if isinstance(ctx.state["kind of file"][file.id], InetKind) and (sock := _connected(file, ctx)) is not None:
                ctx.closing.callback(sock.close)
                ends[file.id] = sock
        full = tcp.settle(list(ends.values()), _SETTLE)
        unread = {number: tcp.peek(sock) for number, sock in ends.items()}
        if full:
            unread |= _drain_full(ends, full)
        ctx.state["unread"] = unread

    def restore(self, record: InetSocket, file: File, ctx: Restore) -> int:
        """Listeners and unconnected sockets; connections follow when all listeners are there."""
        if record.type == socket.SOCK_STREAM and record.state in _CONNECTED:
            return -1
        sock = _fresh(record)
        if record.local_port:
            _bind(ctx, sock, record)
        if record.state == sockdiag.TCP_LISTEN:
            sock.listen(record.backlog)
        if record.type == socket.SOCK_DGRAM and record.remote_port:
            sock.connect((record.remote, record.remote_port))
        _set_all(sock, record)
        return sock.detach()

    @at(Phase.CONNECT)
    def connect(self, ctx: Restore) -> None:
        rows = {row.id: row for row in ctx.rows(InetSocket)
                if row.type == socket.SOCK_STREAM and row.state in _CONNECTED}
        done: set[int] = set()
        for row in rows.values():
            if row.id not in done:
                other = _other_end(row, rows)
                _connect(ctx, row, other)
                done |= {row.id} | ({other.id} if other else set())


@contextlib.contextmanager
def _borrow(file: OpenFile, ctx: Dump):  # type: ignore[no-untyped-def]
    """The agent's copy of the socket as an object that does not close it."""
    if file.copy < 0:
        file.copy = ctx.take(file.task, file.fd)
    sock = socket.socket(fileno=os.dup(file.copy))
    try:
        yield sock
    finally:
        sock.close()


def _let_port_be_reused(sock: socket.socket) -> None:
    """Mark a socket of the running job so that the job, killed, can be restarted at once.

    What is left of a closed connection (TIME_WAIT) keeps its port for a minute, unless the connection had
    SO_REUSEADDR while it lived. Accepted sockets inherit it from their listener. Another program still can't
    bind the port while the listener lives, so nothing else changes.
    """
    if sock.type == socket.SOCK_STREAM:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def _peer(sock: socket.socket) -> tuple[str, int]:
    try:
        name = sock.getpeername()
        return name[0], name[1]
    except OSError:
        return "", 0


def _connected(file: OpenFile, ctx: Dump) -> socket.socket | None:
    with _borrow(file, ctx) as sock:
        if sock.type == socket.SOCK_STREAM and tcp.info(sock).state in _CONNECTED:
            return socket.socket(fileno=os.dup(sock.fileno()))
    return None


def _refuse_udp(sock: socket.socket) -> tuple[str, str] | None:
    try:
        sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    except OSError:
        return None
    return "a UDP datagram that is not read yet", "try again a moment later"


def _waiting_data(sock: socket.socket) -> bool:
    local = sock.getsockname()[1]
    return any(row.inode == 0 and row.local[1] == local and row.rqueue and row.state == sockdiag.TCP_ESTABLISHED
               for row in sockdiag.inet_sockets(families=(sock.family,)))


def _drain_full(ends: dict[int, socket.socket], full: list[socket.socket]) -> dict[int, bytes]:
    """Take out and send again what is under way in connections whose window is full; what it was, by receiver."""
    names = {(sock.getsockname()[:2], _peer(sock)): number for number, sock in ends.items()}
    pairs = []
    for sock in full:
        receiver = names.get((_peer(sock), sock.getsockname()[:2]))
        if receiver is not None:
            pairs.append((sock, receiver))
    drained = tcp.drain([(sender, ends[receiver]) for sender, receiver in pairs], _DRAIN)
    for (sender, _receiver), data in zip(pairs, drained, strict=True):
        tcp.refill(sender, data, _REFILL)
    return {receiver: data for (_sender, receiver), data in zip(pairs, drained, strict=True)}


def endpoints(ctx: Dump) -> list[dict[str, Any]]:
    """The ends of TCP connections and what listens, as plain rows for whoever matches them over all pods.

    Read by inet_diag, so that it can be asked of a pod that runs, too.
    """
    files = {file.stat.st_ino: file for file in ctx.open_files.values() if modes.S_ISSOCK(file.stat.st_mode)}
    return [{"file": files[row.inode].id, "state": row.state, "local": [_plain(row.local[0]), row.local[1]],
             "remote": [_plain(row.remote[0]), row.remote[1]], "pid": files[row.inode].task.pid,
             "program": files[row.inode].task.program}
            for row in sockdiag.inet_sockets() if row.inode in files and row.state != sockdiag.TCP_CLOSE]


# -- restore --------------------------------------------------------------------------------------------
def _fresh(record: InetSocket) -> socket.socket:
    sock = socket.socket(record.family, record.type, record.protocol)
    if record.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, record.only_v6)
    return sock


def _bind(ctx: Restore, sock: socket.socket, record: InetSocket) -> None:
    """Bind to the old address; what is left of the job's own earlier connections is waited out."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    deadline = time.monotonic() + _TIME_WAIT
    told = False
    while True:
        try:
            sock.bind((record.local, record.local_port))
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline or not _only_left_over(record):
                address = f"{record.local}:{record.local_port} ({error.strerror})"
                raise PortTaken(image=ctx.image, address=address) from None
        if not told:
            ctx.warn(f"port {record.local_port} is kept by closed connections for up to a minute; waiting")
            told = True
        time.sleep(0.5)


def _only_left_over(record: InetSocket) -> bool:
    """Whether the port is held by nothing but connections that nobody has open any more, as in TIME_WAIT."""
    rows = [row for row in sockdiag.inet_sockets(record.protocol) if row.local[1] == record.local_port]
    return bool(rows) and all(row.inode == 0 and row.state != sockdiag.TCP_LISTEN for row in rows)


def _set_all(sock: socket.socket, record: InetSocket) -> None:
    set_options(sock, record.options)
    _let_port_be_reused(sock)


def _other_end(row: InetSocket, rows: dict[int, InetSocket]) -> InetSocket | None:
    wanted = (_plain(row.remote), row.remote_port, _plain(row.local), row.local_port)
    return next((other for other in rows.values() if other is not row and
                 (_plain(other.local), other.local_port, _plain(other.remote), other.remote_port) == wanted), None)


def _plain(address: str) -> str:
    """An IPv4 address that an IPv6 socket shows as mapped is the IPv4 one."""
    return address.removeprefix("::ffff:") if "." in address else address


def _connect(ctx: Restore, row: InetSocket, other: InetSocket | None) -> None:
    """Make one connection; the end whose port is a listener's is the accepted one."""
    listeners = {(record.local_port, record.family): record for record in ctx.rows(InetSocket)
                 if record.state == sockdiag.TCP_LISTEN}
    server, client = row, other
    if (other is not None and (row.local_port, row.family) not in listeners
            and (other.local_port, other.family) in listeners):
        server, client = other, row
    listening = listeners.get((server.local_port, server.family))
    with contextlib.ExitStack() as stack:
        if listening is not None:
            listener = socket.socket(fileno=os.dup(ctx.open_files[listening.id]))
        else:
            listener = _fresh(server)
            _bind(ctx, listener, server)
            listener.listen(1)
        stack.callback(listener.close)
        near = _connect_client(server, client)
        far = _accept_from(listener, near)
    _fill(ctx, server, client, far, near)


def _connect_client(server: InetSocket, client: InetSocket | None) -> socket.socket:
    """Connect from the old port where it is free, else from any."""
    like = client or server
    for keep_port in (True, False):
        sock = _fresh(like)
        set_options(sock, like.options, only=_EARLY)
        try:
            if keep_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((server.remote if client is None else client.local, server.remote_port))
            sock.connect((server.local if client is None else client.remote, server.local_port))
            return sock
        except OSError:
            sock.close()
            if not keep_port:
                raise
    raise AssertionError


def _accept_from(listener: socket.socket, near: socket.socket) -> socket.socket:
    """Accept the connection that we made ourselves; anybody else's is not the job's."""
    listener.settimeout(5)
    try:
        while True:
            far, peer = listener.accept()
            if (_plain(peer[0]), peer[1]) == (_plain(near.getsockname()[0]), near.getsockname()[1]):
                far.setblocking(True)
                return far
            far.close()
    finally:
        listener.setblocking(True)


def _fill(ctx: Restore, server: InetSocket, client: InetSocket | None, far: socket.socket, near: socket.socket) -> None:
    """Send what was unread, close what was closed, set the options, and hand the ends over."""
    tcp.refill(near, server.unread, _REFILL)
    if client is not None:
        tcp.refill(far, client.unread, _REFILL)
    for record, sock in ((server, far), (client, near)):
        if record is None:
            sock.close()
            continue
        _set_all(sock, record)
        if record.state in _HALF_CLOSED:
            sock.shutdown(socket.SHUT_WR)
        ctx.hold_file(record.id, sock.detach())
