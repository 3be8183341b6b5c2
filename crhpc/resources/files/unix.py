"""Unix sockets: streams, datagrams and packets; named, abstract, in pairs, listening (unix(7)).

Who is connected to whom is asked by unix_diag. Queued data is peeked at with SO_PEEK_OFF, which takes nothing
and is put back; descriptors in it are open files like others. The calls by which the kernel notes credentials
(listen, connect, socketpair) are made at restart by the task that made them first, so that SO_PEERCRED tells
the same. A socket whose path leads elsewhere by now is made under it all the same and unlinked last.
"""
from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import stat as modes
import struct
import termios
from dataclasses import dataclass, field, replace

from crhpc.errors import PASSING
from crhpc.kernel import descriptors, messages, sockdiag
from crhpc.kernel.messages import Message
from crhpc.kernel.sockopt import OPTIONS_SOCKET, grow_send_buffer, read_options, restore_send_buffer, set_options
from crhpc.resources import Chapter, Phase, at
from crhpc.resources.context import Dump, OpenFile, Restore, Task
from crhpc.resources.files import File, FileKind, holder
from crhpc.resources.sockets import FAMILY, SocketNames, borrow, call_with_name, shown

_ESTABLISHED, _LISTEN = sockdiag.TCP_ESTABLISHED, sockdiag.TCP_LISTEN
_RCV_SHUTDOWN, _SEND_SHUTDOWN = 1, 2
_BUFFERS = ((socket.SOL_SOCKET, socket.SO_SNDBUF), (socket.SOL_SOCKET, socket.SO_RCVBUF))
_PIECE = 64 << 10


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """A unix socket."""

    id: int
    inode: int
    type: int = field(metadata={"doc": "SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET"})
    listening: bool
    name: bytes = field(metadata={"doc": "as bound: a path, or a zero byte and an abstract name", "path": True})
    directory: str = field(metadata={"doc": "where a relative path starts", "path": True})
    name_exists: bool = field(metadata={"doc": "the path still leads to this socket"})
    name_inode: int = field(metadata={"doc": "of the path, shared by a listener and what it has accepted"})
    name_mode: int
    peer: int = field(metadata={"doc": "inode of the socket at the other end; 0: none, or it is closed"})
    peer_name: bytes = field(metadata={"doc": "of the socket at the other end, where that is closed", "path": True})
    connected: bool
    shutdown: int = field(metadata={"doc": "bit 0: no more reading, bit 1: no more writing"})
    reset: bool = field(metadata={"doc": "the next call fails with ECONNRESET"})
    backlog: int
    waiting: tuple[int, ...] = field(metadata={"doc": "inodes of clients that are not accepted yet, in order"})
    maker: int = field(metadata={"doc": "process whose credentials the peer sees; 0: gone"})
    options: bytes


@dataclass(frozen=True, slots=True)
class UnixMessage:
    """What a unix socket has not read yet: a datagram or packet, or bytes of a stream."""

    socket: int = field(metadata={"ref": "file.id"})
    sender: bytes = field(metadata={"doc": "the sender's name; datagrams only", "path": True})
    data: bytes
    files: tuple[int, ...] = field(metadata={"doc": "ids of open files that it carries"})
    pid: int = field(metadata={"doc": "the sender, where the receiver asks for that (SO_PASSCRED); else 0"})
    uid: int
    gid: int


class UnixKind(FileKind):
    name = "unix"
    chapter = Chapter.CHANNELS
    records = (UnixSocket, UnixMessage)
    saved = ("unix sockets of all three types, named, abstract, in pairs, listening: names with their modes, peers, "
             "directions that are shut down, queued data with the descriptors in it, connections that are not "
             "accepted yet, options, credentials that the peer sees")
    refused = (
        ("a unix connection to a process outside the job", "turn off the service that the program talks to"),
        ("a unix socket of another network namespace", "let the job make its sockets in its own"),
        ("an empty datagram that is not read yet; a connection that is not accepted yet from a client that has sent "
         "something or is gone; packets that are not read yet behind an error", PASSING),
    )
    afterwards = "a restart is refused where somebody uses the same path or abstract name"

    def matches(self, file: OpenFile, ctx: Dump) -> bool:
        if not modes.S_ISSOCK(file.stat.st_mode):
            return False
        with borrow(file, ctx) as sock:
            return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_UNIX)

    def carried(self, file: OpenFile, ctx: Dump) -> list[int]:
        """Also where the queues are read, for good: nothing of the job runs."""
        row = _rows(ctx).get(file.stat.st_ino)
        queues: dict[int, list[Message] | None] = ctx.state.setdefault("unix queues", {})
        queues[file.id] = []
        if row is None or row.state == _LISTEN or (not row.queued and row.kind != socket.SOCK_DGRAM):
            return []
        with borrow(file, ctx) as sock:
            if row.kind != socket.SOCK_STREAM and _failed(sock):   # it would be taken by a look at what is queued
                ctx.state.setdefault("failed unix sockets", set()).add(file.id)
                return []
            try:
                found = messages.peek_messages(sock)
            except messages.EmptyMessage:
                queues[file.id] = None
                return []
        queues[file.id] = found
        return [fd for message in found for fd in message.fds]

    def refusal(self, file: OpenFile, ctx: Dump) -> tuple[str, str] | None:
        row = _rows(ctx).get(file.stat.st_ino)
        if row is None:
            return "a unix socket of another network namespace", "let the job make its sockets in its own"
        if ctx.state["unix queues"][file.id] is None:
            return "an empty datagram that is not read yet", PASSING
        if file.id in ctx.state.get("failed unix sockets", ()):
            return "packets, and an error before them, that are not read yet", PASSING
        inside = _inside(ctx)
        if row.peer and row.peer not in inside:
            name = shown(_rows(ctx)[row.peer].name) if row.peer in _rows(ctx) else "a process"
            return f"a unix connection to {name} outside the job", "turn off the service that the program talks to"
        for inode in row.waiting:
            if inode not in inside or _unsent(inside[inode], ctx):
                return f"a connection to {shown(row.name)} that is not accepted yet", PASSING
        return None

    def dump(self, file: OpenFile, ctx: Dump) -> UnixSocket:
        row = _rows(ctx)[file.stat.st_ino]
        carried = iter(ctx.carried.get(file.id, []))
        for message in ctx.state["unix queues"][file.id]:
            sender = os.fsencode(message.sender) if isinstance(message.sender, str) else message.sender
            files = tuple(next(carried) for _ in message.fds)
            pid = ctx.pod_pid(message.pid)
            ctx.add(UnixMessage(file.id, sender, message.data, files, pid, message.uid, message.gid))
        with borrow(file, ctx) as sock:
            host, _uid, _gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            directory, exists, mode = _path_state(row, file, ctx)
            peer_name = _peer_name(sock)   # of datagram sockets the state does not tell
            connected = row.state == _ESTABLISHED and peer_name is not None
            return UnixSocket(
                id=file.id, inode=row.inode, type=row.kind, listening=row.state == _LISTEN, name=row.name,
                directory=directory, name_exists=exists, name_inode=row.file[1], name_mode=mode, peer=row.peer,
                peer_name=b"" if row.peer else peer_name or b"", connected=connected,
                shutdown=row.shutdown, reset=connected and not row.peer and _failed(sock), backlog=row.backlog,
                waiting=row.waiting, maker=ctx.pod_pid(host), options=read_options(sock, OPTIONS_SOCKET))

    def restore(self, record: UnixSocket, file: File, ctx: Restore) -> int:
        return -1   # made in make(): the order among them matters

    @at(Phase.OPEN)
    def make(self, ctx: Restore) -> None:
        maker = ctx.state["unix maker"] = _Maker(ctx)
        maker.make_all()

    @at(Phase.INSTALL)
    def fill(self, ctx: Restore) -> None:
        """When all files are there that messages can carry."""
        ctx.state.pop("unix maker").fill_all()


def _rows(ctx: Dump) -> dict[int, sockdiag.UnixSocket]:
    rows: dict[int, sockdiag.UnixSocket] | None = ctx.state.get("unix sockets")
    if rows is None:
        rows = ctx.state["unix sockets"] = sockdiag.unix_sockets()
    return rows


def _inside(ctx: Dump) -> dict[int, OpenFile]:
    """The sockets of the pod by inode."""
    found: dict[int, OpenFile] | None = ctx.state.get("sockets by inode")
    if found is None:
        found = ctx.state["sockets by inode"] = {
            file.stat.st_ino: file for file in ctx.open_files.values() if modes.S_ISSOCK(file.stat.st_mode)}
    return found


def _unsent(file: OpenFile, ctx: Dump) -> int:
    """Bytes, with the kernel's own around them, that a socket has sent and that are not read yet."""
    with borrow(file, ctx) as sock:
        return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0])


def _failed(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock.fileno(), 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _peer_name(sock: socket.socket) -> bytes | None:
    """Of a closed peer too; None where there is none."""
    try:
        name = sock.getpeername()
    except OSError:
        return None
    return os.fsencode(name) if isinstance(name, str) else bytes(name)


def _path_state(row: sockdiag.UnixSocket, file: OpenFile, ctx: Dump) -> tuple[str, bool, int]:
    """Where the path that a socket is bound to starts, whether it still leads to this socket, and its mode."""
    if not row.name or row.name[:1] == b"\0":
        return "", False, 0
    folders = _likely_folders(file, ctx) if row.name[:1] != b"/" else [""]
    for folder in folders:
        try:
            stat = os.lstat(ctx.pod.outside(os.path.join(folder, os.fsdecode(row.name))))
        except OSError:
            continue
        if (stat.st_dev, stat.st_ino) == row.file:
            return folder, True, modes.S_IMODE(stat.st_mode)
    return folders[0], False, 0


def _likely_folders(file: OpenFile, ctx: Dump) -> list[str]:
    """Where a relative path may start: the kernel doesn't tell where its process was when it bound the socket."""
    tasks = [*(task for task, _fd in file.holders), *ctx.tasks]
    found = list(dict.fromkeys(os.readlink(f"/proc/{task.host}/cwd") for task in tasks))
    for folder in list(found):
        found.append(os.path.dirname(folder))
        with contextlib.suppress(OSError), os.scandir(ctx.pod.outside(folder)) as listing:
            found += [entry.path.removeprefix(ctx.pod.root) for entry in listing if entry.is_dir(follow_symlinks=False)]
    return found


# -- restore --------------------------------------------------------------------------------------------
class _Maker:
    """Makes all unix sockets of a pod, what others connect to first; later fills them."""

    def __init__(self, ctx: Restore) -> None:
        self.ctx = ctx
        self.names = SocketNames(ctx)
        self.rows = ctx.rows(UnixSocket)
        self.by_inode = {row.inode: row for row in self.rows}
        self.made: dict[int, socket.socket] = {}
        self.far: dict[int, socket.socket] = {}
        """The other ends of those whose peer is closed, by the id of these."""
        self.pairs: set[tuple[int, int]] = set()
        self.stand_ins: dict[tuple[bytes, int], tuple[socket.socket, UnixSocket]] = {}

    def make_all(self) -> None:
        waiting = {inode for row in self.rows for inode in row.waiting}
        for row in self.rows:
            if not row.connected:
                self._make_single(row)
        datagrams = [row for row in self.rows if row.connected and row.type == socket.SOCK_DGRAM]
        for row in datagrams:
            other = self.by_inode.get(row.peer)
            mutual = other is not None and other.peer == row.inode and row.maker
            if row.id not in self.made and (other is None or not other.name or mutual):
                self._make_pair(row, other)
        for row in datagrams:
            if row.id not in self.made:
                self._make_single(row)
        for row in self.rows:
            if row.id not in self.made and row.inode not in waiting:
                self._make_connected(row)
        for row in self.rows:
            for inode in row.waiting:
                client = self.by_inode[inode]
                self._keep(client, self._connect(holder(self.ctx, client.id), client, row))
        for row in self.rows:
            self.ctx.hold_file(row.id, os.dup(self.made[row.id].fileno()))

    def _keep(self, row: UnixSocket, sock: socket.socket) -> None:
        self.made[row.id] = sock
        self.names.closing.enter_context(sock)

    def _task(self, pid: int, row: UnixSocket) -> Task:
        return self.ctx.tasks.get(pid) or holder(self.ctx, abs(row.id))

    def _make_single(self, row: UnixSocket) -> None:
        self._keep(row, self._bound(self._task(row.maker, row), row))

    def _bound(self, task: Task, row: UnixSocket) -> socket.socket:
        number = task.call("socket", socket.AF_UNIX, row.type, 0)
        if row.name:
            self.names.bind(task, number, row)
        if row.listening:
            task.call("listen", number, row.backlog)
        return socket.socket(fileno=self.ctx.take(task, number))

    def _make_pair(self, row: UnixSocket, other: UnixSocket | None) -> None:
        task = self._task(row.maker, row)
        room = task.area.data
        task.call("socketpair", socket.AF_UNIX, row.type, 0, room)
        numbers = struct.unpack("ii", task.leader.read(room, 8))
        for number, end in zip(numbers, (row, other), strict=True):
            if end is not None and end.name:
                self.names.bind(task, number, end)
        mine, theirs = (socket.socket(fileno=self.ctx.take(task, number)) for number in numbers)
        self._keep(row, mine)
        if other is not None:
            self._keep(other, theirs)
            self.pairs |= {(row.id, other.id), (other.id, row.id)}
        else:
            self.far[row.id] = self.names.closing.enter_context(theirs)

    def _make_connected(self, row: UnixSocket) -> None:
        """A stream or packets: a pair, or by a listener, whose name an accepted socket has."""
        other = self.by_inode.get(row.peer)
        if not (row.name or row.peer_name or (other is not None and other.name)):
            self._make_pair(row, other)
            return
        ghost = other or self._ghost(row)
        server, client = (row, ghost) if self._serves(row, ghost) else (ghost, row)
        listener, name = self._listener(server, client)
        near = self._connect(self._task(server.maker, client), client, name)
        far = listener.accept()[0]
        for end, sock in ((client, near), (server, far)):
            if end is ghost and other is None:
                self.far[row.id] = self.names.closing.enter_context(sock)
            else:
                self._keep(end, sock)

    def _ghost(self, row: UnixSocket) -> UnixSocket:
        """The closed socket at the other end. A path that is still there stays."""
        path = self.ctx.pod.outside(os.path.join(row.directory or "/", os.fsdecode(row.peer_name)))
        exists = bool(row.peer_name) and row.peer_name[:1] != b"\0" and os.path.lexists(path)
        return replace(row, id=-row.id, name=row.peer_name, name_exists=exists, name_inode=0, name_mode=0o600)

    def _serves(self, row: UnixSocket, other: UnixSocket) -> bool:
        """Whether ``row`` is the accepted one of two."""
        for server, client in ((row, other), (other, row)):
            if server.name and any(self._listens(known, server) for known in self.rows):
                return server is row
            if server.name and not client.name:
                return server is row
        return True

    def _listens(self, row: UnixSocket, server: UnixSocket) -> bool:
        return row.listening and row.name == server.name and server.name_inode in (0, row.name_inode)

    def _listener(self, server: UnixSocket, client: UnixSocket) -> tuple[socket.socket, UnixSocket]:
        """The listener that a socket was accepted from; where that is closed, one that stands in for it."""
        for row in self.rows:
            if self._listens(row, server):
                return self.made[row.id], row
        key = (server.name, server.name_inode)
        if key not in self.stand_ins:
            row = replace(server, listening=True, backlog=1)
            sock = self.names.closing.enter_context(self._bound(self._task(client.maker, client), row))
            self.stand_ins[key] = sock, row
        return self.stand_ins[key]

    def _connect(self, task: Task, client: UnixSocket, to: UnixSocket) -> socket.socket:
        number = task.call("socket", socket.AF_UNIX, client.type, 0)
        if client.name:
            self.names.bind(task, number, client)
        call_with_name(task, "connect", number, self.names.enter(task, to))
        return socket.socket(fileno=self.ctx.take(task, number))

    # -- what was queued --------------------------------------------------------------------------
    def fill_all(self) -> None:
        rows = {row.id: row for row in self.rows}
        for row in self.rows:
            set_options(self.made[row.id], row.options, only=_BUFFERS)
        for message in self.ctx.rows(UnixMessage):
            self._send(rows[message.socket], message)
        for row in self.rows:
            peer = self.by_inode.get(row.peer)
            paired = peer is not None and (row.id, peer.id) in self.pairs
            if row.type == socket.SOCK_DGRAM and row.connected and peer is not None and not paired:
                self.made[row.id].connect(self.names.local(peer))
            if row.reset:
                self.made[row.id].send(b"x")   # lost unread: the peer's end is a reset then
        for sock in [*self.far.values(), *(sock for sock, _ in self.stand_ins.values())]:
            sock.close()
        for row in self.rows:
            if row.shutdown:   # of a listener, too: it takes no more connections
                with contextlib.suppress(OSError):
                    self.made[row.id].shutdown((socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR)[row.shutdown - 1])
            set_options(self.made[row.id], row.options)
        self.names.closing.close()

    def _send(self, row: UnixSocket, message: UnixMessage) -> None:
        sender, connected = self._sender(row, message)
        task = self.ctx.tasks.get(message.pid)
        fds = [self.ctx.open_files[number] for number in message.files]
        before: tuple[int, int] | None = None
        data = message.data
        while data or fds:
            part = data[:_PIECE] if row.type == socket.SOCK_STREAM else data
            try:
                if task is not None:
                    done = self._send_as(task, sender, part, fds, message, None if connected else row)
                else:
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
                    address = () if connected else (self.names.local(row),)
                    done = sender.sendmsg([part], rights, socket.MSG_DONTWAIT, *address)
            except BlockingIOError:
                size, lock = grow_send_buffer(sender)
                before = before or (size, lock)
                if sender.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= size:
                    raise
                continue
            data, fds = data[done:], []
        if before is not None:
            restore_send_buffer(sender, before)

    def _sender(self, row: UnixSocket, message: UnixMessage) -> tuple[socket.socket, bool]:
        """What to send a message from, and whether it is connected to the receiver."""
        peer = next((other for other in self.rows if (other.id, row.id) in self.pairs), None)
        if row.type != socket.SOCK_DGRAM and row.peer in self.by_inode:
            return self.made[self.by_inode[row.peer].id], True
        if row.id in self.far and not (message.sender and row.name):
            return self.far[row.id], True
        if peer is not None and message.sender == peer.name:
            return self.made[peer.id], True
        named = next((other for other in self.rows if message.sender and other.name == message.sender), None)
        if named is not None:
            return self.made[named.id], False
        sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        if message.sender:
            sender.close()
            gone = replace(row, id=-row.id, name=message.sender, name_exists=False, listening=False)
            sender = self._bound(holder(self.ctx, row.id), gone)
        return self.names.closing.enter_context(sender), False

    def _send_as(self, task: Task, sender: socket.socket, data: bytes, fds: list[int], message: UnixMessage,
                 to: UnixSocket | None) -> int:
        """In the name of the task that sent it first, as the receiver asks for the sender's credentials."""
        numbers = descriptors.push(self.ctx.control, task.area, self.ctx.control_number, [sender.fileno(), *fds])
        address = FAMILY + self.names.enter(task, to) if to is not None else b""
        if address and address[2:3] != b"\0":
            address += b"\0"
        try:
            return descriptors.send(task.area, numbers[0], data, address=address, fds=tuple(numbers[1:]),
                                    credentials=(message.pid, message.uid, message.gid))
        finally:
            for number in numbers:
                task.call("close", number)
