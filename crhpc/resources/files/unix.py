"""Unix sockets: streams, datagrams and packets; named, abstract, in pairs, listening (unix(7)).

Who is connected to whom is asked by unix_diag. Queued data is peeked at with SO_PEEK_OFF, which takes nothing
and is put back. The calls by which the kernel notes credentials (listen, connect, socketpair) are made at
restart by the task that made them first, so that SO_PEERCRED tells the same.
"""
from __future__ import annotations

import contextlib
import os
import socket
import stat as modes
import struct
from dataclasses import dataclass, field

from crhpc.kernel import sockdiag
from crhpc.resources import Phase, at
from crhpc.resources.context import Dump, OpenFile, Restore, Task
from crhpc.resources.files import Descriptor, File, FileKind
from crhpc.kernel.sockopt import OPTIONS_SOCKET, read_options, set_options

_SO_PEEK_OFF = 42
_OWN_ADDRESS = struct.Struct("=H")
_ESTABLISHED, _LISTEN = sockdiag.TCP_ESTABLISHED, sockdiag.TCP_LISTEN
_RCV_SHUTDOWN, _SEND_SHUTDOWN = 1, 2
_ANY_SIZE = 1 << 20


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """A unix socket."""

    id: int
    inode: int
    type: int = field(metadata={"doc": "SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET"})
    listening: bool
    name: bytes = field(metadata={"doc": "as bound: a path, or a zero byte and an abstract name"})
    name_exists: bool = field(metadata={"doc": "the path still leads to this socket"})
    name_mode: int
    peer: int = field(metadata={"doc": "inode of the socket at the other end; 0: none"})
    connected: bool
    shutdown: int = field(metadata={"doc": "bit 0: no more reading, bit 1: no more writing"})
    backlog: int
    maker: int = field(metadata={"doc": "process whose credentials the peer sees; 0: gone"})
    options: bytes


@dataclass(frozen=True, slots=True)
class UnixMessage:
    """What a unix socket has not read yet: a datagram or packet, or all the bytes of a stream."""

    socket: int = field(metadata={"ref": "file.id"})
    sender: bytes = field(metadata={"doc": "the sender's name; datagrams only"})
    data: bytes


class UnixKind(FileKind):
    name = "unix"
    records = (UnixSocket, UnixMessage)
    saved = ("unix sockets of all types: names, peers, half-closed directions, queued data, options, credentials of peers")
    refused = "a connection to a process outside the job; descriptors in flight; connections not accepted yet"

    def matches(self, file: OpenFile, ctx: Dump) -> bool:
        if not modes.S_ISSOCK(file.stat.st_mode):
            return False
        with _borrow(file, ctx) as sock:
            return sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_UNIX

    def refusal(self, file: OpenFile, ctx: Dump) -> tuple[str, str] | None:
        row = _rows(ctx).get(file.stat.st_ino)
        if row is None:
            return "a unix socket of another network namespace", "let the job make its sockets in its own"
        inside = {other.stat.st_ino for other in ctx.open_files.values()}
        if row.state == _LISTEN and row.queued:
            return f"{row.queued} connections to {_shown(row.name)} that are not accepted yet", "try again a moment later"
        if row.peer and row.peer not in inside:
            name = _shown(_rows(ctx)[row.peer].name) if row.peer in _rows(ctx) else "a process"
            return f"a unix connection to {name} outside the job", "turn off the service that the program talks to"
        return None

    def dump(self, file: OpenFile, ctx: Dump) -> UnixSocket:
        row = _rows(ctx)[file.stat.st_ino]
        with _borrow(file, ctx) as sock:
            for sender, data in _queued(sock, row, file, ctx):
                ctx.add(UnixMessage(file.id, sender, data))
            host, _uid, _gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            exists, mode = _path_state(row, file, ctx)
            return UnixSocket(
                id=file.id, inode=row.inode, type=row.kind, listening=row.state == _LISTEN, name=row.name,
                name_exists=exists, name_mode=mode, peer=row.peer, connected=row.state == _ESTABLISHED,
                shutdown=row.shutdown, backlog=row.backlog, maker=ctx.pod_pid(host), options=read_options(sock, OPTIONS_SOCKET))

    def restore(self, record: UnixSocket, file: File, ctx: Restore) -> int:
        return -1   # made in connect(): the order among them matters

    @at(Phase.CONNECT)
    def connect(self, ctx: Restore) -> None:
        _Maker(ctx).make_all()


def _rows(ctx: Dump) -> dict[int, sockdiag.UnixSocket]:
    rows: dict[int, sockdiag.UnixSocket] | None = ctx.state.get("unix sockets")
    if rows is None:
        rows = ctx.state["unix sockets"] = sockdiag.unix_sockets()
    return rows


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


def _shown(name: bytes) -> str:
    return "@" + os.fsdecode(name[1:]) if name[:1] == b"\0" else os.fsdecode(name) or "a process"


def _queued(sock: socket.socket, row: sockdiag.UnixSocket, file: OpenFile, ctx: Dump) -> list[tuple[bytes, bytes]]:
    """The messages that wait to be read, the sender's name beside each."""
    if row.state == _LISTEN or not row.queued and row.kind != socket.SOCK_DGRAM:
        return []
    before = sock.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF)
    found: list[tuple[bytes, bytes]] = []
    offset = 0
    try:
        while True:
            sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, offset)
            data, ancillary, _flags, sender = sock.recvmsg(
                _ANY_SIZE, socket.CMSG_SPACE(4 * 253), socket.MSG_PEEK | socket.MSG_DONTWAIT)
            _refuse_descriptors(ancillary, file, ctx)
            if not data:
                break
            found.append((os.fsencode(sender) if isinstance(sender, str) else sender or b"", data))
            offset += len(data)
    except BlockingIOError:
        pass
    finally:
        sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, before)
    if row.kind == socket.SOCK_STREAM:
        return [(b"", b"".join(data for _, data in found))] if found else []
    return found


def _refuse_descriptors(ancillary: list[tuple[int, int, bytes]], file: OpenFile, ctx: Dump) -> None:
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            for (fd,) in struct.iter_unpack("i", payload):
                os.close(fd)
            raise ctx.refuse(f"descriptor {file.fd}: a message with descriptors that is not read yet", file.task,
                             "try again a moment later")


def _path_state(row: sockdiag.UnixSocket, file: OpenFile, ctx: Dump) -> tuple[bool, int]:
    """Whether the path that a socket is bound to still leads to it, and the mode of it."""
    if not row.name or row.name[:1] == b"\0":
        return False, 0
    path = os.path.join(os.readlink(f"/proc/{file.task.host}/cwd"), os.fsdecode(row.name))
    try:
        stat = os.lstat(ctx.pod.outside(path))
    except OSError:
        return False, 0
    return stat.st_ino == row.file[1], modes.S_IMODE(stat.st_mode)


class _Maker:
    """Makes all unix sockets of a pod: first those that others connect to, then pairs, then what was queued."""

    def __init__(self, ctx: Restore) -> None:
        self.ctx = ctx
        self.rows = ctx.rows(UnixSocket)
        self.by_inode = {row.inode: row for row in self.rows}
        self.made: dict[int, socket.socket] = {}
        self.holders = {row.file: row.pid for row in reversed(ctx.rows(Descriptor))}

    def make_all(self) -> None:
        for row in self.rows:
            if not row.connected or row.type == socket.SOCK_DGRAM and row.name:
                self._make_single(row)
        for row in self.rows:
            if row.id not in self.made:
                self._make_connected(row)
        for row in self.rows:
            if row.type == socket.SOCK_DGRAM and row.name and row.peer in self.by_inode:
                self._connect_datagram(row)
        for row in self.rows:
            set_options(self.made[row.id], row.options)
        self._send_messages()
        for row in self.rows:
            self._shut_down(row)
            self.ctx.hold_file(row.id, self.made[row.id].detach())

    def _task(self, pid: int, row: UnixSocket) -> Task:
        return self.ctx.tasks.get(pid) or self.ctx.tasks[self.holders[row.id]]

    def _make_single(self, row: UnixSocket) -> None:
        task = self._task(row.maker, row)
        number = task.call("socket", socket.AF_UNIX, row.type, 0)
        if row.name:
            self._bind(task, number, row)
        if row.listening:
            task.call("listen", number, row.backlog)
        self.made[row.id] = socket.socket(fileno=self.ctx.take(task, number))

    def _bind(self, task: Task, number: int, row: UnixSocket) -> None:
        holder = self.ctx.tasks[self.holders[row.id]]
        path = ""
        if row.name[:1] != b"\0":
            path = os.path.join(os.readlink(f"/proc/{holder.host}/cwd"), os.fsdecode(row.name))
            with contextlib.suppress(FileNotFoundError):
                if modes.S_ISSOCK(os.lstat(self.ctx.pod.outside(path)).st_mode):
                    os.unlink(self.ctx.pod.outside(path))
        _call_with_address(task, "bind", number, row.name)
        if path and row.name_exists:
            os.chmod(self.ctx.pod.outside(path), row.name_mode)
        elif path:
            os.unlink(self.ctx.pod.outside(path))

    def _make_connected(self, row: UnixSocket) -> None:
        other = self.by_inode.get(row.peer)
        if other is None or not (row.name or other.name):
            self._make_pair(row, other)
        else:
            server, client = (row, other) if row.name else (other, row)
            self._make_by_listener(server, client)

    def _make_pair(self, row: UnixSocket, other: UnixSocket | None) -> None:
        task = self._task(row.maker, row)
        room = task.area.data
        task.call("socketpair", socket.AF_UNIX, row.type, 0, room)
        numbers = struct.unpack("ii", task.leader.read(room, 8))
        mine, theirs = (socket.socket(fileno=self.ctx.take(task, number)) for number in numbers)
        self.made[row.id] = mine
        if other is not None:
            self.made[other.id] = theirs
        else:
            for message in self.ctx.rows(UnixMessage):
                if message.socket == row.id:
                    theirs.send(message.data, socket.MSG_DONTWAIT)
            theirs.close()

    def _make_by_listener(self, server: UnixSocket, client: UnixSocket) -> None:
        """An accepted socket has its listener's name, which only accept(2) gives."""
        listening = next((row for row in self.rows if row.listening and row.name == server.name), None)
        temporary = None
        if listening is None:
            task = self._task(client.maker, client)
            number = task.call("socket", socket.AF_UNIX, server.type, 0)
            self._bind(task, number, server)
            task.call("listen", number, 1)
            temporary = socket.socket(fileno=self.ctx.take(task, number))
        listener = temporary or self.made[listening.id]   # type: ignore[union-attr]
        task = self._task(server.maker, client)
        number = task.call("socket", socket.AF_UNIX, client.type, 0)
        if client.name:
            self._bind(task, number, client)
        _call_with_address(task, "connect", number, server.name)
        self.made[client.id] = socket.socket(fileno=self.ctx.take(task, number))
        self.made[server.id] = listener.accept()[0]
        if temporary is not None:
            temporary.close()

    def _connect_datagram(self, row: UnixSocket) -> None:
        peer = self.by_inode[row.peer]
        if peer.name:
            self.made[row.id].connect(peer.name)

    def _send_messages(self) -> None:
        names = {row.name: row for row in self.rows if row.name}
        for message in self.ctx.rows(UnixMessage):
            row = next(row for row in self.rows if row.id == message.socket)
            other = self.by_inode.get(row.peer)
            if row.type != socket.SOCK_DGRAM or other is not None and not row.name:
                if other is not None:
                    _send_all(self.made[other.id], message.data, row.type)
                continue
            sender = names.get(message.sender)
            if sender is not None:
                self.made[sender.id].sendto(message.data, socket.MSG_DONTWAIT, row.name)
            else:
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nobody:
                    nobody.sendto(message.data, row.name)

    def _shut_down(self, row: UnixSocket) -> None:
        if row.connected and row.peer in self.by_inode:
            if row.shutdown & _SEND_SHUTDOWN:
                self.made[row.id].shutdown(socket.SHUT_WR)
            if row.shutdown & _RCV_SHUTDOWN:
                self.made[row.id].shutdown(socket.SHUT_RD)


def _send_all(sock: socket.socket, data: bytes, kind: int) -> None:
    if kind != socket.SOCK_STREAM:
        sock.send(data, socket.MSG_DONTWAIT)
        return
    view = memoryview(data)
    while view:
        view = view[sock.send(view, socket.MSG_DONTWAIT):]


def _call_with_address(task: Task, call: str, number: int, name: bytes) -> None:
    """bind or connect with a unix address; an abstract name is not ended by a zero."""
    raw = _OWN_ADDRESS.pack(socket.AF_UNIX) + name
    if name[:1] != b"\0":
        raw += b"\0"
    task.leader.write(task.area.data, raw)
    task.call(call, number, task.area.data, len(raw))
