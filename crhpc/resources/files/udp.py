"""UDP sockets over IPv4 and IPv6 (udp(7)).

Queued datagrams are peeked at, with what their headers tell, and sent again at restart from where they came: by the
job's own socket of that name, or by one that has it for the moment. Of several sockets that share a port, the one
that is filled is connected to the sender meanwhile: the kernel prefers it then.
"""
from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import select
import socket
import struct
from dataclasses import dataclass, field

from crhpc.errors import PASSING, CrhpcError, ImageDamaged, OtherMachine
from crhpc.kernel import messages, multicast, ports, sockdiag, sockopt
from crhpc.kernel.listeners import as_family, is_own, name_of, unmapped
from crhpc.kernel.messages import Datagram
from crhpc.kernel.multicast import Membership
from crhpc.kernel.ports import Address, is_any
from crhpc.resources import Chapter, Cut, Phase, at
from crhpc.resources.context import Dump, OpenFile, Restore
from crhpc.resources.files import File, FileKind
from crhpc.resources.sockets import (
    bind_inet,
    borrow,
    brought_back,
    check_inet,
    events,
    identity,
    no_name,
    put_aside,
    shown_address,
    unsavable,
)

_SIOCOUTQ = 0x5411
_OPTIONS = (*sockopt.OPTIONS_SOCKET, *sockopt.OPTIONS_INET, *sockopt.OPTIONS_UDP, (socket.SOL_SOCKET, 49))
_OPTIONS6 = (*_OPTIONS, *sockopt.OPTIONS_INET6)
_EARLY = frozenset((
    *((socket.SOL_SOCKET, name) for name in (socket.SO_REUSEADDR, socket.SO_REUSEPORT, 25, 36)),
    *((socket.IPPROTO_IP, name) for name in (15, 19, 24)), *((socket.IPPROTO_IPV6, name) for name in (26, 75, 78))))
"""Options that matter when a socket is bound: sharing, device, mark, freebind, transparent, IPv6 only."""
_TELLING = ((socket.IPPROTO_IP, 8), (socket.IPPROTO_IP, 20), (socket.IPPROTO_IPV6, 49), (socket.IPPROTO_IPV6, 74))
"""Options by which a program sees where a datagram was sent to: PKTINFO and ORIGDSTADDR."""


@dataclass(frozen=True, slots=True)
class UdpSocket:
    """A UDP socket."""

    id: int
    family: int
    local: str = field(metadata={"host": True})
    local_port: int
    remote: str = field(metadata={"host": True})
    remote_port: int = field(metadata={"doc": "0: not connected"})
    shutdown: int = field(metadata={"doc": "bit 0: no more reading, bit 1: no more writing"})
    refused: bool = field(metadata={"doc": "the next call fails with ECONNREFUSED"})
    unread: bytes = field(metadata={"doc": "all datagrams one after another, where that is little"})
    pages: int = field(metadata={"ref": "objects.id", "doc": "page object of all datagrams, where it is much"})
    length: int
    options: bytes
    filter: bytes = field(metadata={"doc": "classic filter, as SO_GET_FILTER gives it"})

    @property
    def name(self) -> Address:
        return self.local, self.local_port


@dataclass(frozen=True, slots=True)
class UdpMessage:
    """A datagram that is not read yet; those of one socket stand in their order."""

    socket: int = field(metadata={"ref": "file.id"})
    length: int
    source: str = field(metadata={"host": True})
    source_port: int
    destination: str = field(metadata={"host": True})
    ttl: int
    tos: int


@dataclass(frozen=True, slots=True)
class UdpMembership:
    """A multicast group that a socket has joined."""

    socket: int = field(metadata={"ref": "file.id"})
    interface: str = field(metadata={"host": True})
    group: str
    wanted: bool = field(metadata={"doc": "only from the sources; else from all but them"})
    sources: tuple[str, ...]


class UdpKind(FileKind):
    name = "udp"
    chapter = Chapter.CHANNELS
    records = (UdpSocket, UdpMessage, UdpMembership)
    saved = ("UDP over IPv4 and IPv6: bound and connected, queued datagrams with their senders and headers, "
             "multicast memberships, options, classic filters, a refusal that is not taken yet")
    refused = (
        ("unread datagrams from outside the job, empty ones, or multicast ones where the program sees where they were "
         "sent to; a datagram that is being put together (UDP_CORK, MSG_MORE); an error that is not taken yet "
         "together with datagrams", PASSING),
        ("a socket of another network namespace", "let the job make its sockets in its own"),
        ("an eBPF program as a filter", "run it without the filter"),
        ("sending without copying (SO_ZEROCOPY)", "turn off zero-copy sends"),
        ("messages in an error queue that are not read yet", "let the program read them (MSG_ERRQUEUE)"),
    )
    afterwards = ("a restart is refused where an address or interface is not one of this machine, a port is taken, "
                  "or what is queued does not fit")

    def matches(self, file: OpenFile, ctx: Dump) -> bool:
        family, kind, protocol = identity(file, ctx)
        return (family in (socket.AF_INET, socket.AF_INET6) and kind == socket.SOCK_DGRAM
                and protocol == socket.IPPROTO_UDP)

    def refusal(self, file: OpenFile, ctx: Dump) -> tuple[str, str] | None:
        with borrow(file, ctx) as sock:
            if found := unsavable(sock):
                return found
            if struct.unpack("i", fcntl.ioctl(sock.fileno(), _SIOCOUTQ, bytes(4)))[0]:
                return "a UDP datagram that is not sent yet", PASSING
            seen = events(sock)
            if seen & select.POLLERR and seen & select.POLLIN:
                return "a UDP socket with an error that is not taken yet, and datagrams", PASSING
        return None

    @at(Cut.REGISTERS)
    def read_queues(self, ctx: Dump) -> None:
        """Before anything else of the job is touched: some datagrams can't be saved."""
        mine = [file for file in ctx.open_files.values() if self.matches(file, ctx)]
        reader = _Reader(ctx, mine) if mine else None
        ctx.state["udp queues"] = {file.id: reader.read(file) for file in mine} if reader else {}

    def dump(self, file: OpenFile, ctx: Dump) -> UdpSocket:
        reader: _Reader = ctx.state["udp reader"]
        queue: list[Datagram] = ctx.state["udp queues"][file.id]
        unread, pages, length = put_aside(ctx, "udp queue", b"".join(datagram.data for datagram in queue))
        for datagram in queue:
            ctx.add(UdpMessage(file.id, len(datagram.data), *name_of(datagram.sender), datagram.destination,
                               datagram.ttl, datagram.tos))
        row = reader.rows.get(file.stat.st_ino)
        with borrow(file, ctx) as sock:
            family = identity(file, ctx)[0]
            for joined in multicast.memberships(sock, family, reader.groups(family)):
                ctx.add(UdpMembership(file.id, joined.interface, joined.group, joined.wanted, joined.sources))
            local, remote = name_of(sock.getsockname()), ("", 0)
            with contextlib.suppress(OSError):
                remote = name_of(sock.getpeername())
            return UdpSocket(
                file.id, family, *local, *remote, shutdown=row.shutdown if row else 0, unread=unread, pages=pages,
                length=length, refused=bool(remote[1] and events(sock) & select.POLLERR),
                options=sockopt.read_options(sock, _OPTIONS6 if family == socket.AF_INET6 else _OPTIONS),
                filter=sockopt.read_filter(sock))

    @at(Phase.CHECK)
    def check(self, ctx: Restore) -> None:
        rows = {row.id: row for row in ctx.rows(UdpSocket)}
        left = {row.id: row.length for row in rows.values()}
        for row in rows.values():
            check_inet(ctx, row, (row.family, row.remote, row.remote_port), options=row.options)
        for message in ctx.rows(UdpMessage):
            known = rows.get(message.socket)
            if known is None or not 0 <= message.length <= left[known.id]:
                raise ImageDamaged(image=ctx.image, what="UDP datagrams are not as their sockets have them")
            left[known.id] -= message.length
            check_inet(ctx, known, (known.family, message.source, message.source_port), options=b"")

    def restore(self, record: UdpSocket, file: File, ctx: Restore) -> int:
        return -1   # made in make() and fill(): they send to each other

    @at(Phase.OPEN)
    def make(self, ctx: Restore) -> None:
        ctx.state["udp maker"] = _Maker(ctx)

    @at(Phase.CONNECT)
    def fill(self, ctx: Restore) -> None:
        ctx.state.pop("udp maker").finish_all()


# -- dump -----------------------------------------------------------------------------------------------
class _Reader:
    """Reads the queues of all UDP sockets of a pod."""

    def __init__(self, ctx: Dump, mine: list[OpenFile]) -> None:
        self.ctx = ctx
        ctx.state["udp reader"] = self
        self.everybody = sockdiag.inet_sockets(socket.IPPROTO_UDP)
        inodes = {file.stat.st_ino for file in mine}
        self.rows = {row.inode: row for row in self.everybody if row.inode in inodes}
        self.seen: dict[int, list[Datagram]] = ctx.memory.setdefault("datagrams", {})
        """What was queued at the last checkpoint, by inode."""
        self._groups: dict[int, list[tuple[int, str]]] = {}

    def groups(self, family: int) -> list[tuple[int, str]]:
        if family not in self._groups:
            self._groups[family] = multicast.groups(family)
        return self._groups[family]

    def read(self, file: OpenFile) -> list[Datagram]:
        """What is queued.

        Raises:
            Unsupported: not all of it can be sent again.
        """
        with borrow(file, self.ctx) as sock:
            if not events(sock) & select.POLLIN:
                self.seen.pop(file.stat.st_ino, None)
                return []
            found = _with_those_seen(self.seen.get(file.stat.st_ino, []), messages.peek_datagrams(sock))
            if found is None:
                raise self._refuse(file, "empty datagrams that are not read yet")
            self.seen[file.stat.st_ino] = found
            told = any(self._has(sock, option) for option in _TELLING)
            name = name_of(sock.getsockname())
        for datagram in found:
            source = name_of(datagram.sender)
            if not self._can_come_from(source):
                sender = shown_address(*source)
                raise self._refuse(file, f"a datagram from {sender} outside the job that is not read yet")
            if _is_for_many(datagram.destination) and (told or unmapped(name[0]) == unmapped(datagram.destination)):
                raise self._refuse(file, f"a datagram to {datagram.destination} that is not read yet")
        return found

    def _has(self, sock: socket.socket, option: tuple[int, int]) -> bool:
        try:
            return bool(sock.getsockopt(*option))
        except OSError:   # an option of IPv6
            return False

    def _refuse(self, file: OpenFile, what: str) -> CrhpcError:
        return self.ctx.refuse(f"descriptor {file.fd}: {what}", file.bearer, PASSING)

    def _can_come_from(self, source: Address) -> bool:
        """Whether a socket of the job's, or none at all, has an address of this machine."""
        holders = [row for row in self.everybody if row.local[1] == source[1]
                   and (is_any(row.local[0]) or unmapped(row.local[0]) == unmapped(source[0].partition("%")[0]))]
        return is_own(source[0]) and (not holders or any(row.inode in self.rows for row in holders))


def _with_those_seen(before: list[Datagram], shown: list[Datagram]) -> list[Datagram] | None:
    """A queue of which the kernel hides the empty datagrams that it has shown once; None where it can't be told.

    Args:
        before: what was queued at the last look; the program may have read some of it since.
        shown: what it shows now: the very first, and what is not empty or is new.
    """
    if all(datagram.data for datagram in before):
        return shown
    for first in range(len(before) + 1):
        left = before[first:]
        visible = left[:1] + [datagram for datagram in left[1:] if datagram.data]
        if shown[:len(visible)] == visible:
            # one empty datagram more or less in front would look the same
            ambiguous = left and not left[0].data and left[1:2] == left[:1]
            return None if ambiguous else left + shown[len(visible):]
    return None


def _is_for_many(host: str) -> bool:
    """Whether an address is a group's, or a network's broadcast address."""
    host = unmapped(host)
    if not host or ipaddress.ip_address(host).is_multicast:
        return bool(host)
    with socket.socket(socket.AF_INET if "." in host else socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        return sock.connect_ex((host, 9)) == errno.EACCES


# -- restore --------------------------------------------------------------------------------------------
class _Maker:
    """Makes all UDP sockets of a pod, then lets them send to each other what was queued."""

    def __init__(self, ctx: Restore) -> None:
        self.ctx = ctx
        self.rows = ctx.rows(UdpSocket)
        self.made: dict[int, socket.socket] = {}
        self.senders: dict[Address, socket.socket] = {}
        self.closing = ctx.closing.enter_context(contextlib.ExitStack())
        for row in self.rows:
            sock = self.closing.enter_context(socket.socket(row.family, socket.SOCK_DGRAM, socket.IPPROTO_UDP))
            self.made[row.id] = sock
            sockopt.set_options(sock, row.options, only=_EARLY)
            try:
                bind_inet(sock, row)
            except OSError as error:
                raise no_name(ctx, row, socket.IPPROTO_UDP, error) from None

    def finish_all(self) -> None:
        queues: dict[int, list[UdpMessage]] = {row.id: [] for row in self.rows}
        for message in self.ctx.rows(UdpMessage):
            queues[message.socket].append(message)
        for row in self.rows:
            if queues[row.id]:
                self._fill(row, queues[row.id])
        for joined in self.ctx.rows(UdpMembership):
            self._join(joined)
        for row in self.rows:
            self._finish(row)
        for number, sock in self.made.items():
            self.ctx.hold_file(number, sock.detach())
        self.closing.close()

    def _fill(self, row: UdpSocket, queue: list[UdpMessage]) -> None:
        sock = self.made[row.id]
        content = memoryview(brought_back(self.ctx.shard, row.unread, row.pages, row.length))
        shared = sum(other.local_port == row.local_port for other in self.rows) > 1
        lock, size = sock.getsockopt(socket.SOL_SOCKET, sockopt.SO_BUF_LOCK), sock.getsockopt(
            socket.SOL_SOCKET, socket.SO_RCVBUF)
        sockopt.set_buffer(sock, socket.SO_RCVBUF, size)   # doubled by the kernel
        for message in queue:
            data, content = bytes(content[:message.length]), content[message.length:]
            source = message.source, message.source_port
            sender, by = self._sender(source)
            to = self._destination(row, message)
            if shared:
                sock.connect(ports.resolved(row.family, as_family(row.family, source)))
            datagram = Datagram(data, (), message.destination, message.ttl, message.tos)
            messages.send_datagram(sender, datagram, ports.resolved(sender.family, as_family(sender.family, to)), by)
        if shared:
            ports.disconnect(sock)
        (drops,) = struct.unpack_from("I", sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36), 32)
        if drops:
            raise OtherMachine(image=self.ctx.image, what=f"{len(queue)} queued datagrams don't fit into a socket",
                               cure="raise net.core.rmem_max (sysctl)")
        sockopt.set_buffer(sock, socket.SO_RCVBUF, size // 2)
        sock.setsockopt(socket.SOL_SOCKET, sockopt.SO_BUF_LOCK, lock)

    def _sender(self, source: Address) -> tuple[socket.socket, str]:
        """A socket that sends from an address, and the address where that must be said each time."""
        plain = unmapped(source[0]), source[1]
        for row in self.rows:
            if row.local_port == source[1] and unmapped(row.local) == plain[0]:
                return self.made[row.id], ""
        for row in self.rows:
            four = "." in plain[0]
            if row.local_port == source[1] and is_any(row.local) and (four or row.family == socket.AF_INET6):
                return self.made[row.id], plain[0]
        if plain not in self.senders:
            family = socket.AF_INET if "." in plain[0] else socket.AF_INET6
            sock = self.closing.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            try:
                sock.bind(ports.resolved(family, plain))
            except OSError as error:
                raise no_name(self.ctx, _Name(family, *plain), socket.IPPROTO_UDP, error) from None
            self.senders[plain] = sock
        return self.senders[plain], ""

    def _destination(self, row: UdpSocket, message: UdpMessage) -> Address:
        """Where to send a datagram to; one that was for many goes to this socket alone."""
        if not is_any(row.local):
            return row.name
        many = not message.destination or _is_for_many(message.destination)
        return message.source if many else message.destination, row.local_port

    def _join(self, joined: UdpMembership) -> None:
        sock = self.made[joined.socket]
        family = socket.AF_INET if "." in joined.group else socket.AF_INET6
        try:
            multicast.join(sock, family, Membership(joined.interface, joined.group, joined.wanted, joined.sources))
        except OSError as error:
            why = f"multicast group {joined.group} can't be joined on {joined.interface} ({error.strerror})"
            raise OtherMachine(image=self.ctx.image, what=why, cure="restart it on the node where it ran") from None

    def _finish(self, row: UdpSocket) -> None:
        sock = self.made[row.id]
        if row.refused:
            self._be_refused(row, sock)
        if row.remote_port:
            sock.connect(ports.resolved(row.family, (row.remote, row.remote_port)))
        if row.shutdown:
            with contextlib.suppress(OSError):   # one that is not connected: said, and done
                sock.shutdown((socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR)[(row.shutdown & 3) - 1])
        if row.filter:
            sockopt.attach_filter(sock, row.filter)
        failed = sockopt.set_options(sock, row.options)
        if failed:
            self.ctx.warn(f"options of a UDP socket can't be set: {sockopt.shown_options(failed)}")

    def _be_refused(self, row: UdpSocket, sock: socket.socket) -> None:
        """Send to a port that nobody has."""
        with socket.socket(row.family, socket.SOCK_DGRAM) as other:
            other.bind(ports.resolved(row.family, (row.local, 0)))
            name = other.getsockname()
        sock.connect(name)
        sock.send(b"")


@dataclass(frozen=True, slots=True)
class _Name:
    family: int
    local: str
    local_port: int


_SO_MEMINFO = 55
