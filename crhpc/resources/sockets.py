"""What kinds of socket share: copies of the job's sockets, and the names of unix sockets at restart."""
from __future__ import annotations

import contextlib
import os
import socket
import stat as modes
import struct
from collections.abc import Iterator
from typing import Protocol

from crhpc.errors import FileGone, PortTaken
from crhpc.kernel import sockdiag
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
