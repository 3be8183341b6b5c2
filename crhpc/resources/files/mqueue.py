"""POSIX message queues (mq_overview(7)): all of the pod's, and the descriptors of them.

The queues of an IPC namespace are the files of a file system (mqueue), which the pod's first process mounts nowhere
and the agent looks into. A message can't be peeked at: all are taken out and sent again in the order in which they
came, while nothing of the job runs. Who is to be notified of a message (mq_notify(3)) would be by that.

A queue whose name is gone is made under another for as long as it takes to open it.
"""
from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat as modes
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from crhpc.errors import OtherMachine
from crhpc.kernel import directories, libc
from crhpc.resources import Chapter, Cut, Phase, at
from crhpc.resources.context import Dump, OpenFile, Pod, PodInit, Restore
from crhpc.resources.files import File, FileKind, holder
from crhpc.resources.inside import call_inside

_ATTRIBUTES = struct.Struct("4q32x")
"""struct mq_attr: flags, most messages, most bytes of each, messages now."""
_O_LARGEFILE = 0o100000
"""The kernel's own: set by open(2), not by mq_open(2)."""
_CREATE, _MOUNT_CLOEXEC = 6, 1
"""FSCONFIG_CMD_CREATE, FSMOUNT_CLOEXEC"""
_CURE = "let it wait in mq_receive(3), or in poll(2)"


@dataclass(frozen=True, slots=True)
class PosixQueue:
    """A message queue of the pod."""

    id: int
    name: bytes = field(metadata={"doc": "without a slash; empty: it has none any more"})
    mode: int
    uid: int
    gid: int
    messages: int = field(metadata={"doc": "how many it holds at most"})
    size: int = field(metadata={"doc": "of the longest that it takes"})


@dataclass(frozen=True, slots=True)
class PosixMessage:
    """A message that nobody has taken yet; rows are in the order in which they are received."""

    queue: int = field(metadata={"ref": "posix_queue.id"})
    priority: int
    data: bytes


@dataclass(frozen=True, slots=True)
class PosixQueueEnd:
    """An open file description of a queue."""

    id: int
    queue: int = field(metadata={"ref": "posix_queue.id"})


class MessageQueueKind(FileKind):
    name = "mqueue"
    chapter = Chapter.IPC
    priority = 20
    records = (PosixQueueEnd, PosixQueue, PosixMessage)
    saved = ("POSIX message queues, open or not, also those whose name is gone: sizes, modes, owners, messages with "
             "priorities in their order; descriptors of them; calls that wait for a message, or for room")
    refused = (
        ("a queue of which a process is to be notified (mq_notify)", _CURE),
    )
    afterwards = ("times of a queue are those of the restart. A checkpoint takes messages out and puts them back: who "
                  "watches a queue by epoll's edge (EPOLLET) may be told once more. Of several that wait for the same "
                  "message another one may get it")

    @at(Cut.INSPECT)
    def inspect(self, ctx: Dump) -> None:
        for name, way in _all(ctx):
            with _opened(way) as fd:
                host = _notified(fd)
            if host:
                task = next((task for task in ctx.tasks if task.host == host), ctx.tasks[0])
                raise ctx.refuse(f"a notification of message queue /{name} (mq_notify)", task, _CURE)

    def matches(self, file: OpenFile, ctx: Dump) -> bool:
        if not modes.S_ISREG(file.stat.st_mode):
            return False
        known: dict[int, bool] = ctx.state.setdefault("devices with message queues", {})
        if file.stat.st_dev not in known:
            known[file.stat.st_dev] = directories.file_system(_of(file)) == directories.MQUEUE
        return known[file.stat.st_dev]

    def refusal(self, file: OpenFile, ctx: Dump) -> tuple[str, str] | None:
        with _opened(_of(file)) as fd:
            return (f"a notification of message queue {file.link} (mq_notify)", _CURE) if _notified(fd) else None

    @at(Cut.REGISTERS)
    def read_all(self, ctx: Dump) -> None:
        ways = {os.stat(way).st_ino: (os.fsencode(name), way) for name, way in _all(ctx)}
        for file in ctx.open_files.values():
            if self.matches(file, ctx):
                ways.setdefault(file.stat.st_ino, (b"", _of(file)))
        numbers = ctx.state["message queues"] = {}
        for inode, (name, way) in ways.items():
            numbers[inode] = number = ctx.new_id()
            stat = os.stat(way)
            with _opened(way) as fd:
                most, size, count = _attributes(fd)
                ctx.add(PosixQueue(number, name, modes.S_IMODE(stat.st_mode), stat.st_uid, stat.st_gid, most, size))
                for priority, data in _peek(fd, size, count):
                    ctx.add(PosixMessage(number, priority, data))

    def dump(self, file: OpenFile, ctx: Dump) -> PosixQueueEnd:
        return PosixQueueEnd(file.id, ctx.state["message queues"][file.stat.st_ino])

    @at(Phase.OBJECTS)
    def create(self, ctx: Restore) -> None:
        for row in ctx.rows(PosixQueue):
            attributes = _ATTRIBUTES.pack(0, row.messages, row.size, 0)
            try:
                fd, _ = call_inside(ctx.init, "mq_open", _name(row) + b"\0", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600,
                                    attributes)
            except OSError as error:
                what = f"message queue /{os.fsdecode(row.name)} can't be made ({error.strerror})"
                raise OtherMachine(image=ctx.image, what=what, cure="raise the limits in fs.mqueue (sysctl), and the "
                                   "user's (ulimit -q)") from None
            call_inside(ctx.init, "close", fd)
            with _opened(_again(ctx, row)) as own:
                for message in (message for message in ctx.rows(PosixMessage) if message.queue == row.id):
                    _send(own, message.priority, message.data)

    def restore(self, record: PosixQueueEnd, file: File, ctx: Restore) -> int:
        """By a task, as mq_open(2) looks for names in the caller's namespace."""
        row = next(row for row in ctx.rows(PosixQueue) if row.id == record.queue)
        flags = file.flags & (os.O_ACCMODE | os.O_NONBLOCK)
        if file.flags & _O_LARGEFILE:   # it was opened by a path, where the pod has them mounted
            way = ctx.pod.outside(file.link)
            return os.open(way if os.path.lexists(way) else _again(ctx, row), flags | os.O_CLOEXEC)
        task = holder(ctx, file.id)
        task.leader.write(task.area.data, _name(row) + b"\0")
        return ctx.take(task, task.call("mq_open", task.area.data, flags, 0, 0))

    @at(Phase.STATE)
    def set_modes(self, ctx: Restore) -> None:
        for row in ctx.rows(PosixQueue):
            way = _again(ctx, row)
            with contextlib.suppress(PermissionError):
                os.chown(way, row.uid, row.gid)
            os.chmod(way, row.mode)
            if not row.name:
                os.unlink(way)


def _all(ctx: Dump) -> list[tuple[str, str]]:
    """The names of the queues that have one, and where they can be opened."""
    try:
        place = _file_system(ctx.memory, ctx.pod, ctx.init)
    except OSError as error:
        if error.errno == errno.ENODEV:   # a kernel without CONFIG_POSIX_MQUEUE
            return []
        raise
    return [(name, f"/proc/self/fd/{place}/{name}") for name in os.listdir(place)]


def _again(ctx: Restore, row: PosixQueue) -> str:
    """Where a queue that has been made again can be opened."""
    return f"/proc/self/fd/{_file_system(ctx.state, ctx.pod, ctx.init)}/{os.fsdecode(_name(row))}"


def _name(row: PosixQueue) -> bytes:
    return row.name or b"crhpc-%d" % row.id


def _of(file: OpenFile) -> str:
    return f"/proc/{file.task.host}/fd/{file.fd}"


# -- the file system --------------------------------------------------------------------------------------
class _Directory:
    """A descriptor of a directory that closes itself."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __del__(self) -> None:
        os.close(self.fd)


def _file_system(keep: dict[str, object], pod: Pod, init: PodInit) -> int:
    """The pod's queues as files: a descriptor of their directory.

    Args:
        keep: where it is kept for the next time.
    """
    if "directory of message queues" not in keep:
        kind, _ = call_inside(init, "fsopen", b"mqueue\0", 1)
        call_inside(init, "fsconfig", kind, _CREATE, 0, 0, 0)
        place, _ = call_inside(init, "fsmount", kind, _MOUNT_CLOEXEC, 0)
        keep["directory of message queues"] = _Directory(f"/proc/{pod.init}/fd/{place}")
        for fd in (kind, place):
            call_inside(init, "close", fd)
    found = keep["directory of message queues"]
    assert isinstance(found, _Directory)
    return found.fd


@contextlib.contextmanager
def _opened(way: str) -> Iterator[int]:
    """A descriptor of the agent's own, whatever the queue's mode."""
    flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(way, flags)
    except PermissionError:
        mode = modes.S_IMODE(os.stat(way).st_mode)
        os.chmod(way, mode | 0o600)
        try:
            fd = os.open(way, flags)
        finally:
            os.chmod(way, mode)
    try:
        yield fd
    finally:
        os.close(fd)


# -- messages ---------------------------------------------------------------------------------------------
def _notified(fd: int) -> int:
    """Who is to be notified, by this node's number, or 0: what the file holds tells."""
    return int(os.pread(fd, 256, 0).decode().partition("NOTIFY_PID:")[2] or 0)


def _attributes(fd: int) -> tuple[int, int, int]:
    """Most messages, most bytes of each, and messages in it now."""
    room = ctypes.create_string_buffer(_ATTRIBUTES.size)
    libc.syscall("mq_getsetattr", fd, None, room)
    _flags, most, size, count = _ATTRIBUTES.unpack(room.raw)
    return most, size, count


def _peek(fd: int, size: int, count: int) -> list[tuple[int, bytes]]:
    """The messages in a queue with their priorities; it holds the same as before."""
    found: list[tuple[int, bytes]] = []
    room, priority = ctypes.create_string_buffer(size), ctypes.create_string_buffer(4)
    try:
        for _ in range(count):
            length = libc.syscall("mq_timedreceive", fd, room, size, priority, None)
            found.append((int.from_bytes(priority.raw, "little"), room.raw[:length]))
    finally:
        for message in found:
            _send(fd, *message)
    return found


def _send(fd: int, priority: int, data: bytes) -> None:
    libc.syscall("mq_timedsend", fd, ctypes.create_string_buffer(data, len(data)), len(data), priority, None)
