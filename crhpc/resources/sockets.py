"""What kinds of socket share: copies of the job's sockets, their names at restart, and what is in their queues."""
from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import ipaddress
import os
import select
import socket
import stat as modes
import struct
from collections.abc import Iterable, Iterator
from typing import Protocol

from crhpc.errors import CrhpcError, FileGone, ImageDamaged, OtherMachine, PortTaken
from crhpc.image.reader import Shard
from crhpc.kernel import ports, proc, sockdiag, sockopt
from crhpc.kernel.libc import PAGE
from crhpc.kernel.ports import is_any
from crhpc.resources.context import Dump, OpenFile, Restore, Task

FAMILY = struct.pack("=H", socket.AF_UNIX)
"""What a raw unix address starts with."""


@contextlib.contextmanager
def borrow(file: OpenFile, ctx: Dump) -> Iterator[socket.socket]:
    """The agent's copy of the socket as an object that does not close it."""
    if file.copy < 0:
        file.copy = ctx.take(file.task, file.fd)
    sock = socket.socket(fileno=os.dup(file.copy))
    try:
        yield sock
    finally:
        sock.close()


def identity(file: OpenFile, ctx: Dump) -> tuple[int, int, int]:
    """Family, type and protocol of a socket; zeros for what is none."""
    known: dict[int, tuple[int, int, int]] = ctx.state.setdefault("identities of sockets", {})
    if file.id not in known:
        known[file.id] = (0, 0, 0)
        if modes.S_ISSOCK(file.stat.st_mode) and not file.info.flags & os.O_PATH:
            with borrow(file, ctx) as sock:
                known[file.id] = (sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN), sock.type,
                                  sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL))
    return known[file.id]


def events(sock: socket.socket) -> int:
    """What poll(2) tells of a socket now."""
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN | select.POLLOUT | select.POLLRDHUP)
    return next((found for _, found in poll.poll(0)), 0)


@contextlib.contextmanager
def silenced(files: Iterable[OpenFile]) -> Iterator[bool]:
    """Nobody gets SIGIO or SIGURG for what is done to the files; their owners are put back (F_SETOWN in fcntl(2)).

    Whether there are any.
    """
    owners = []
    for file in files:
        owner = fcntl.fcntl(file.copy, _F_GETOWN_EX, bytes(8))
        if any(owner[4:]):
            owners.append((file.copy, owner))
            fcntl.fcntl(file.copy, _F_SETOWN_EX, struct.pack("ii", 1, 0))   # a process of no number: nobody
    try:
        yield bool(owners)
    finally:
        for copy, owner in owners:
            fcntl.fcntl(copy, _F_SETOWN_EX, owner)


_F_SETOWN_EX, _F_GETOWN_EX = 15, 16


def shown(name: bytes) -> str:
    """A unix address for people."""
    return "@" + os.fsdecode(name[1:]) if name[:1] == b"\0" else os.fsdecode(name) or "a process"


class Named(Protocol):
    """What a row tells of a socket's name."""

    @property
    def id(self) -> int: ...
    @property
    def name(self) -> bytes: ...
    @property
    def directory(self) -> str: ...
    @property
    def name_exists(self) -> bool: ...
    @property
    def name_mode(self) -> int: ...


class SocketNames:
    """Binds sockets to their names, and knows how to reach each until the restart is over."""

    def __init__(self, ctx: Restore) -> None:
        self.ctx = ctx
        self.foreign = {row.file for row in sockdiag.unix_sockets().values()}
        self.closing = ctx.closing.enter_context(contextlib.ExitStack())
        self._reach: dict[int, tuple[str, str]] = {}

    def bind(self, task: Task, number: int, row: Named) -> None:
        """Let a task bind its socket ``number`` to the name of a row."""
        if row.name[:1] == b"\0":
            try:
                call_with_name(task, "bind", number, row.name)
            except OSError:
                address = f"the abstract address {shown(row.name)}"
                raise PortTaken(image=self.ctx.image, address=address) from None
            return
        path = os.path.join(row.directory, os.fsdecode(row.name))
        folder, name = os.path.split(path)
        self._make_way(folder, path)
        _enter(task, row.directory or "/")
        call_with_name(task, "bind", number, row.name)
        if row.name_exists:
            self.closing.callback(os.chmod, self.ctx.pod.outside(path), row.name_mode)
        else:
            name = f".crhpc-{row.id}"
            hidden = self.ctx.pod.outside(os.path.join(folder, name))
            os.rename(self.ctx.pod.outside(path), hidden)
            self.closing.callback(os.unlink, hidden)
        self._reach[row.id] = (folder, name)

    def _make_way(self, folder: str, path: str) -> None:
        """Remove the socket file that the job left; never one that somebody uses."""
        missing = folder
        while not os.path.isdir(self.ctx.pod.outside(missing)):
            self.closing.callback(os.rmdir, self.ctx.pod.outside(missing))
            missing = os.path.dirname(missing)
        os.makedirs(self.ctx.pod.outside(folder), 0o700, exist_ok=True)
        try:
            stat = os.lstat(self.ctx.pod.outside(path))
        except FileNotFoundError:
            return
        if not modes.S_ISSOCK(stat.st_mode):
            raise FileGone(image=self.ctx.image, path=path, why="is no socket any more", pid=0, program="a socket")
        if (stat.st_dev, stat.st_ino) in self.foreign:
            raise PortTaken(image=self.ctx.image, address=path)
        os.unlink(self.ctx.pod.outside(path))

    def enter(self, task: Task, row: Named) -> bytes:
        """The name of a bound socket for a call in a task, which is put where the name leads to it."""
        if row.name[:1] == b"\0":
            return row.name
        folder, name = self._reach[row.id]
        _enter(task, folder)
        return os.fsencode(name)

    def local(self, row: Named) -> str | bytes:
        """The address of a bound socket for this process, however long its path is."""
        if row.name[:1] == b"\0":
            return row.name
        folder, name = self._reach[row.id]
        number = os.open(self.ctx.pod.outside(folder), os.O_PATH | os.O_CLOEXEC)
        self.closing.callback(os.close, number)
        return f"/proc/self/fd/{number}/{name}"


def _enter(task: Task, folder: str) -> None:
    task.leader.write(task.area.data, os.fsencode(folder) + b"\0")
    task.call("chdir", task.area.data)


def call_with_name(task: Task, call: str, number: int, name: bytes) -> None:
    """bind or connect with a unix address; an abstract name is not ended by a zero."""
    raw = FAMILY + name + (b"" if name[:1] == b"\0" else b"\0")
    task.leader.write(task.area.data, raw)
    task.call(call, number, task.area.data, len(raw))


# -- internet sockets -----------------------------------------------------------------------------------
_SO_NETNS_COOKIE, _IP_RECVERR, _IPV6_RECVERR = 71, 11, 25
_INLINE = 4096
"""What is queued of up to so many bytes stands in the table itself."""


class InetName(Protocol):
    """What a row tells of an internet socket's own name."""

    @property
    def family(self) -> int: ...
    @property
    def local(self) -> str: ...
    @property
    def local_port(self) -> int: ...


def unsavable(sock: socket.socket) -> tuple[str, str] | None:
    """What can't be saved of any internet socket, and the cure."""
    with contextlib.suppress(OSError):   # Linux 5.14
        if sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8) != _own_network():
            return "a socket of another network namespace", "let the job make its sockets in its own"
    try:
        sockopt.read_filter(sock)
    except PermissionError:
        return "a socket with an eBPF program as its filter", "run it without the filter"
    if sock.getsockopt(socket.SOL_SOCKET, sockopt.SO_ZEROCOPY):
        return "a socket that sends without copying (SO_ZEROCOPY)", "turn off zero-copy sends"
    if events(sock) & select.POLLERR and _notes_errors(sock):
        return "messages in a socket's error queue that are not read yet", "let the program read them (MSG_ERRQUEUE)"
    return None


@functools.lru_cache(1)
def _own_network() -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)


def _notes_errors(sock: socket.socket) -> bool:
    options = [(socket.IPPROTO_IP, _IP_RECVERR), (socket.SOL_SOCKET, sockopt.SO_TIMESTAMPING)]
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_INET6:
        options.append((socket.IPPROTO_IPV6, _IPV6_RECVERR))
    return any(sock.getsockopt(*option) for option in options)


def put_aside(ctx: Dump, name: str, content: bytes) -> tuple[bytes, int, int]:
    """What is queued, for a row: in the table or in the page log. Its bytes, page object (-1: none) and length."""
    if len(content) <= _INLINE:
        return content, -1, len(content)
    return b"", ctx.save_bytes(name, content), len(content)


def brought_back(shard: Shard, inline: bytes, pages: int, length: int) -> bytes:
    """What ``put_aside`` was given, on the node of a shard."""
    return inline if pages < 0 else shard.pages(pages, 0, -(-length // PAGE))[:length]


def check_inet(ctx: Restore, row: InetName, *addresses: tuple[int, str, int], options: bytes) -> None:
    """What an image says of a socket.

    Args:
        addresses: more names than its own, as family, address and port.

    Raises:
        ImageDamaged: no socket is so.
    """
    try:
        for family, host, port in ((row.family, row.local, row.local_port), *addresses):
            if family not in (socket.AF_INET, socket.AF_INET6) or not 0 <= port < 1 << 16:
                raise ValueError(f"no address: family {family}, port {port}")
            if host and ipaddress.ip_address(host).version != (4 if family == socket.AF_INET else 6):
                raise ValueError(f"{host!r} is of another family")
        for _ in sockopt.unpack_options(options):
            pass
    except ValueError as error:
        raise ImageDamaged(image=ctx.image, what=f"an internet socket: {error}") from None


def bind_inet(sock: socket.socket, row: InetName) -> None:
    """Bind a socket to its old name; one that had none gets none.

    Raises:
        OSError: it can't be had; ``no_name`` tells why.
    """
    if row.local_port or not is_any(row.local):
        sock.bind(ports.resolved(row.family, (row.local, row.local_port)))


def no_name(ctx: Restore, row: InetName, protocol: int, error: OSError) -> CrhpcError:
    """Why a socket can't have its old name, in the user's words."""
    if error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV):
        return OtherMachine(image=ctx.image, what=f"{row.local} is not an address of this machine",
                            cure="restart it on the node where it ran")
    name = shown_address(row.local, row.local_port)
    if error.errno == errno.EADDRINUSE:
        return PortTaken(image=ctx.image, address=f"{name} ({user_of(row, protocol)})")
    return OtherMachine(image=ctx.image, what=f"a socket can't be bound to {name} ({error.strerror})",
                        cure="run it as the user who ran it then")


def shown_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def user_of(row: InetName, protocol: int) -> str:
    """Who uses a port, as far as this user may see that."""
    rows = sockdiag.inet_sockets(protocol)
    inodes = {f"socket:[{found.inode}]" for found in rows if found.local[1] == row.local_port and found.inode}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), os.scandir(f"/proc/{entry}/fd") as listing:
            if any(os.readlink(fd.path) in inodes for fd in listing):
                return f"pid {entry}, {proc.program(int(entry))}"
    return "a process of another user" if inodes else "closed connections"
