"""TCP sockets over IPv4 and IPv6 (tcp(7)).

What is unread is peeked at; what can't be peeked at is in crhpc/resources/connections.py, and how a socket is made
again in crhpc/resources/tcprestore.py.
"""
from __future__ import annotations

import contextlib
import errno
import select
import socket
from typing import Any

from crhpc.errors import PASSING, ImageDamaged
from crhpc.image.reader import Shard
from crhpc.kernel import sockdiag, sockopt, tcp
from crhpc.kernel.listeners import name_of, unmapped
from crhpc.kernel.ports import Address
from crhpc.kernel.tcp import Unread
from crhpc.resources import Chapter, Cut, Phase, at
from crhpc.resources import distant as distantly
from crhpc.resources.connections import CONNECTED, ENDED, Network, Queued
from crhpc.resources.context import Dump, OpenFile, Restore
from crhpc.resources.distant import Distant, LeftBehind
from crhpc.resources.files import File, FileKind
from crhpc.resources.sockets import borrow, check_inet, events, identity, put_aside, shown_address, unsavable
from crhpc.resources.tcprestore import TcpMaker, TcpSocket, TcpWaiting
from crhpc.resources.windows import Windows

_MPTCP = 262
_LISTEN, _SYN_SENT, _CLOSE = sockdiag.TCP_LISTEN, sockdiag.TCP_SYN_SENT, sockdiag.TCP_CLOSE
_READ, _WRITE = 1, 2
_OPTIONS = (*sockopt.OPTIONS_SOCKET, *sockopt.OPTIONS_INET, *sockopt.OPTIONS_TCP)
_OPTIONS6 = (*_OPTIONS, *sockopt.OPTIONS_INET6)


class TcpKind(FileKind):
    name = "tcp"
    chapter = Chapter.CHANNELS
    records = (TcpSocket, TcpWaiting)
    saved = ("TCP over IPv4 and IPv6 where both ends are the job's: bound, listening with connections that are not "
             "accepted yet, connecting, connected, half closed, closed and reset, with errors that are not taken "
             "yet; what is unread or under way, full windows, urgent data; options and classic filters")
    refused = (
        ("a connection that leaves the job", "close it during the run, or keep both of its ends in the job"),
        ("a connection from outside the job that is not accepted yet", "end the program that connects to the job"),
        ("a Multipath TCP socket", "let the program use plain TCP (in Go: GODEBUG=multipathtcp=0)"),
        ("TLS or another upper layer in the kernel", "let the program do that itself"),
        ("a closed socket with an error that is not taken yet and can't be made again",
         "let the program take it (SO_ERROR)"),
        ("a socket of another network namespace", "let the job make its sockets in its own"),
        ("an eBPF program as a filter", "run it without the filter"),
        ("sending without copying (SO_ZEROCOPY)", "turn off zero-copy sends"),
        ("messages in an error queue that are not read yet", "let the program read them (MSG_ERRQUEUE)"),
        ("urgent data in a full window; a connection that is being closed with more under way than fits", PASSING),
    )
    afterwards = ("what is under way may be in the queue of the other end, as windows grow; a sender whose end of "
                  "transmission was not confirmed (FIN_WAIT1) has it confirmed. A port that somebody has taken is "
                  "another one, with a warning, and connections follow (see redirects); where an address is not one "
                  "of this machine, a restart is refused")

    def matches(self, file: OpenFile, ctx: Dump) -> bool:
        family, kind, protocol = identity(file, ctx)
        return (family in (socket.AF_INET, socket.AF_INET6) and kind == socket.SOCK_STREAM
                and protocol in (socket.IPPROTO_TCP, _MPTCP))

    def refusal(self, file: OpenFile, ctx: Dump) -> tuple[str, str] | None:
        if identity(file, ctx)[2] == _MPTCP:
            return "a Multipath TCP socket", "let the program use plain TCP (in Go: GODEBUG=multipathtcp=0)"
        with borrow(file, ctx) as sock:
            layer = sock.getsockopt(socket.IPPROTO_TCP, sockopt.TCP_ULP, 16).strip(b"\0").decode(errors="replace")
            if layer:
                return f"a TCP socket with {layer} in the kernel", "let the program do that itself"
            if found := unsavable(sock):
                return found
            about = tcp.info(sock)
            if about.state == _CLOSE and _error(sock, about) < 0:
                return "a TCP socket with an error that is not taken yet", "let the program take it (SO_ERROR)"
            if about.state == _LISTEN and about.waiting:
                return _stranger(Network.of(ctx), file)
        return None

    @at(Cut.REGISTERS)
    def read_queues(self, ctx: Dump) -> None:
        """All queues of the pod, before any record is made: it takes both ends at once."""
        network = Network.of(ctx)
        network.empty()
        for waiting in network.waiting:
            unread, pages, length = put_aside(ctx, "tcp queue", waiting.data)
            family = socket.AF_INET6 if ":" in waiting.remote[0] else socket.AF_INET
            ctx.add(TcpWaiting(waiting.listener, waiting.client, family, *waiting.local, *waiting.remote, waiting.ended,
                               waiting.reset, unread, pages, length))

    def dump(self, file: OpenFile, ctx: Dump) -> TcpSocket:
        network = Network.of(ctx)
        row = network.rows.get(file.stat.st_ino)
        with borrow(file, ctx) as sock:
            name = name_of(sock.getsockname())
            if row is None or row.state == _CLOSE:
                return _closed(ctx, file, sock, name, row, bound=row is not None or not network.shows_bound)
            state = _SYN_SENT if network.is_connecting(row) else row.state
            ended = state in ENDED
            queued = network.queues.get(file.id) or _peeked(sock, row)
            peer = ("", 0) if state == _LISTEN else (_scoped(row, sock), row.remote[1])
            return _record(ctx, file, sock, state, name, queued, bound=state == _LISTEN, remote=peer[0],
                           remote_port=peer[1], backlog=row.wqueue if state == _LISTEN else 0, ended=ended,
                           shutdown=row.shutdown, connected=state in CONNECTED, error=0,
                           end_read=ended and not row.rqueue, segment=tcp.info(sock).segment)

    @at(Phase.CHECK)
    def check(self, ctx: Restore) -> None:
        for row in ctx.rows(TcpSocket):
            check_inet(ctx, row, (row.family, row.remote, row.remote_port), options=row.options)
            if row.state not in (*CONNECTED, _LISTEN, _SYN_SENT, _CLOSE) or row.urgent >= row.length:
                raise ImageDamaged(image=ctx.image, what=f"TCP socket {row.id} is in no state that a socket has")
        for waiting in ctx.rows(TcpWaiting):
            check_inet(ctx, waiting, (waiting.family, waiting.remote, waiting.remote_port), options=b"")

    def restore(self, record: TcpSocket, file: File, ctx: Restore) -> int:
        return -1   # made in make() and connect(): the order among them matters

    @at(Phase.OPEN)
    def make(self, ctx: Restore) -> None:
        maker = ctx.state["tcp maker"] = TcpMaker(ctx)
        maker.make_unconnected()

    @at(Phase.CONNECT)
    def connect(self, ctx: Restore) -> None:
        ctx.state.pop("tcp maker").connect_all()


def distant(ctx: Restore) -> Distant:
    """The connections with other nodes, between Phase.OPEN and Phase.CONNECT."""
    maker: TcpMaker = ctx.state["tcp maker"]
    return maker.distant


def left_behind(shard: Shard) -> list[LeftBehind]:
    """What closed connections with other nodes keep of a pod's ports."""
    return distantly.left_behind(shard, TcpSocket)


def windows(ctx: Dump) -> Windows:
    """The full windows between this node and others, between Cut.REGISTERS and Cut.COLLECT."""
    if "windows" not in ctx.state:
        ctx.state["windows"] = Windows(ctx)
    found: Windows = ctx.state["windows"]
    return found


def look_again(ctx: Dump) -> None:
    """Now that other nodes have sent all."""
    network: Network | None = ctx.state.get("network")
    if network is not None and network.has_distant:
        network.look()


def endpoints(ctx: Dump) -> list[dict[str, Any]]:
    """The ends of TCP connections and what listens, as plain rows for whoever matches them over all pods.

    Read by inet_diag, so that it can be asked of a pod that runs, too.
    """
    network = Network.of(ctx)
    found = []
    for row in network.rows.values():
        if row.state != _CLOSE:
            file, peer = network.files[row.inode], network.peer(row)
            found.append({"file": file.id, "state": row.state, "local": [unmapped(row.local[0]), row.local[1]],
                          "remote": [unmapped(row.remote[0]), row.remote[1]], "pid": file.bearer.pid,
                          "program": file.bearer.program,
                          "stranger": peer is not None and peer.inode not in (0, *network.files)})
    return found


# -- dump -----------------------------------------------------------------------------------------------
def _stranger(network: Network, file: OpenFile) -> tuple[str, str] | None:
    for row in network.strangers():
        if any(listener.inode == file.stat.st_ino for listener in network.listeners(row.local, row.family)):
            return (f"a TCP connection from {shown_address(*row.remote)} outside the job that is not accepted yet",
                    "end the program that connects to the job")
    return None


def _error(sock: socket.socket, about: tcp.Info) -> int:
    """The error of a closed connection that nobody has taken; told by what came before, as a look would take it.

    0 where there is none, -1 where it can't be told.
    """
    seen = events(sock)
    if not seen & select.POLLERR:
        return 0
    if not seen & select.POLLRDHUP:
        return errno.ECONNRESET   # the program has ended the connection itself, by connect(2) with AF_UNSPEC
    if not about.answered or about.retried:
        return -1   # a time-out, or what a router said
    if not about.connected:
        return errno.ECONNREFUSED
    return errno.EPIPE if tcp.peek_closed(sock)[1] else errno.ECONNRESET


def _closed(ctx: Dump, file: OpenFile, sock: socket.socket, name: Address, row: sockdiag.InetSocket | None,
            *, bound: bool) -> TcpSocket:
    """What has no connection, or none any more."""
    about = tcp.info(sock)
    over = bool(events(sock) & select.POLLRDHUP)
    shutdown = row.shutdown if row is not None else _READ | _WRITE if over else 0
    unread, ended = tcp.peek_closed(sock)
    port = name[1] if bound or over else 0   # else a number that the kernel has left there
    return _record(ctx, file, sock, _CLOSE, (name[0], port), Queued(unread, len(unread.data)),
                   bound=bound and name[1] > 0, remote="", remote_port=0, backlog=0, ended=ended, end_read=False,
                   segment=0, shutdown=shutdown, connected=about.connected,
                   error=_error(sock, about))


def _record(ctx: Dump, file: OpenFile, sock: socket.socket, state: int, name: Address, queued: Queued,
            **fields: Any) -> TcpSocket:
    unread, pages, length = put_aside(ctx, "tcp queue", queued.unread.data)
    family = identity(file, ctx)[0]
    wanted = _OPTIONS6 if family == socket.AF_INET6 else _OPTIONS
    if state in (_CLOSE, _LISTEN):
        wanted += sockopt.OPTIONS_UNCONNECTED
    return TcpSocket(id=file.id, family=family, state=state, local=name[0], local_port=name[1], unread=unread,
                     pages=pages, length=length, arrived=min(queued.arrived, length), urgent=queued.unread.urgent,
                     urgent_read=queued.unread.urgent_read, options=sockopt.read_options(sock, wanted),
                     filter=sockopt.read_filter(sock), **fields)


def _peeked(sock: socket.socket, row: sockdiag.InetSocket) -> Queued:
    """Of a connection in which nothing is under way."""
    if row.state not in CONNECTED:
        return Queued(Unread(), 0)
    found = tcp.peek(sock, max(row.rqueue - (row.state in ENDED), tcp.unread(sock)))
    return Queued(found, len(found.data))


def _scoped(row: sockdiag.InetSocket, sock: socket.socket) -> str:
    """The other end's address, with its interface where that matters."""
    with contextlib.suppress(OSError):   # one that is just connecting
        return name_of(sock.getpeername())[0]
    return row.remote[0]
