"""What kinds work with: the tasks of a pod, and one checkpoint or one restart of it.

The contexts carry what several kinds need (shared objects by id, descriptors that the agent holds for the
pod) and no knowledge of any kind.
"""
from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import stat as modes
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from crhpc.errors import CrhpcError, Unsupported
from crhpc.filepolicy import FilePolicy
from crhpc.image.reader import Shard
from crhpc.image.writer import ShardWriter
from crhpc.kernel import descriptors, pidfd, proc, vm
from crhpc.kernel.libc import PAGE
from crhpc.kernel.namespaces import clock_offsets
from crhpc.kernel.tracee import Area, Tracee
from crhpc.resources.moved import Redirects

R = TypeVar("R")


@dataclass(slots=True, eq=False)
class Task:
    """A process of the pod that stands still. ``pid`` is the pod's own number, ``host`` this node's."""

    pid: int
    host: int
    leader: Tracee
    threads: dict[int, Tracee] = field(default_factory=dict)
    """Every thread by its id in the pod, the leader too."""
    mappings: list[proc.Mapping] = field(default_factory=list)
    zombie: bool = False
    stopped: bool = False
    """Stopped by a signal before we came, as job control does."""
    trap_action: bytes = bytes(32)
    """SIGTRAP's action, read before any batch was run."""
    mapped_area: Area | None = None

    @property
    def area(self) -> Area:
        """The scratch area for batches of remote calls."""
        assert self.mapped_area is not None, "no scratch area is mapped now"
        return self.mapped_area

    def area_of(self, tid: int) -> Area:
        """The scratch area, for calls that one thread of the task makes."""
        return Area(self.threads[tid], self.area.address, self.area.size)

    @property
    def program(self) -> str:
        return proc.program(self.host)

    def call(self, name: str, *args: int) -> int:
        """One remote call in the leader."""
        return self.leader.call(name, *args)


@dataclass(slots=True)
class SharedObject:
    """Memory or a file that several tasks may hold: one inode, known by who maps or opens it."""

    id: int
    device: int
    inode: int
    path: str
    deleted: bool
    mappers: list[tuple[Task, proc.Mapping]] = field(default_factory=list)
    files: list[OpenFile] = field(default_factory=list)
    """Descriptions of it; of a file of the user's, too, which has its own contents."""
    links: list[str] = field(default_factory=list)
    """Other ways to open it: names in /proc."""


@dataclass(frozen=True, slots=True)
class Pod:
    """What a node's share of the job lives in."""

    init: int
    """The first process of the pod, by this node's number."""
    temporary: str
    """The pod's private directory for temporary files, as the job sees it."""
    shm: str = "/dev/shm"
    stdio: tuple[int, int, int] = (0, 1, 2)
    """The agent's copies of the user's standard streams."""
    terminals: tuple[bytes, ...] = ()
    """Of those that are terminals, the settings that the job found (struct termios2); empty for others."""
    redirects: Redirects = field(default_factory=Redirects)
    """Where addresses are now that the job had before it was restarted."""

    @property
    def root(self) -> str:
        """The pod's file tree as this node sees it."""
        return f"/proc/{self.init}/root"

    def clock_ahead(self, name: str = "monotonic") -> int:
        """Nanoseconds that a clock of the pod is ahead of this process's own (time_namespaces(7))."""
        return clock_offsets(self.init)[name] - clock_offsets(os.getpid())[name]

    def outside(self, path: str) -> str:
        """A path of the pod as the agent can open it."""
        return self.root + path

    def stat(self, path: str, *, follow: bool = True) -> os.stat_result:
        """stat(2) of a path of the pod, of any length that the pod itself may use.

        Raises:
            OSError: it leads nowhere.
        """
        root = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return os.stat(path.lstrip("/") or ".", dir_fd=root, follow_symlinks=follow)
        finally:
            os.close(root)

    def is_regular(self, path: str) -> bool:
        """Whether a path leads to a regular file, or nowhere."""
        try:
            return modes.S_ISREG(self.stat(path).st_mode)
        except OSError:
            return True

    def transient(self, path: str) -> bool:
        """Whether a file lies where files are made for a run and removed after it (hier(7)), shared with others.

        A program that uses ``/tmp`` whatever ``$TMPDIR`` says removes its files at its end; a second restart of
        the same image must find them all the same.
        """
        return path.startswith(("/tmp/", "/var/tmp/")) and not self.private(path)

    def private(self, path: str) -> bool:
        """Whether a path lies in a directory that only the pod has."""
        return any(path == place or path.startswith(place + "/") for place in (self.shm, self.temporary))


class Dump:
    """One checkpoint of one pod, from the freeze to the thaw."""

    def __init__(self, writer: ShardWriter, pod: Pod, init: PodInit, tasks: list[Task], zombies: list[Task],
                 memory: dict[str, Any]) -> None:
        self.writer = writer
        self.pod = pod
        self.init = init
        self.tasks = tasks
        self.zombies = zombies
        self.rows: dict[type, list[Any]] = {}
        self.objects: dict[tuple[int, int], SharedObject] = {}
        self._objects_by_name: dict[tuple[int, str], SharedObject] = {}
        self.open_files: dict[int, OpenFile] = {}
        self.carried: dict[int, list[int]] = {}
        """Of an open file, the files that are on their way inside it, in their order; all by id."""
        self.memory = memory
        """What kinds keep from one checkpoint to the next, while the agent lives."""
        self.state: dict[str, Any] = {}
        """What a kind keeps between its own steps."""
        self.closing = contextlib.ExitStack()
        """Closed before the thaw: copies of the job's descriptors above all."""
        self._numbers = {task.host: task.pid for task in [*tasks, *zombies]}
        self._next_id = 1

    def add(self, row: Any) -> None:
        """One more row for the table of the row's type."""
        self.rows.setdefault(type(row), []).append(row)

    def new_id(self) -> int:
        """A number that no other object of this checkpoint has."""
        self._next_id += 1
        return self._next_id - 1

    def pod_pid(self, host: int) -> int:
        """The pod's number of a process that is known by this node's; 1 for the pod's first, 0 if unknown."""
        return 1 if host == self.pod.init else self._numbers.get(host, 0)

    def task(self, pid: int) -> Task | None:
        """The task with a number of the pod's."""
        return next((task for task in self.tasks if task.pid == pid), None)

    def object(self, device: int, inode: int, path: str, *, deleted: bool) -> SharedObject:
        """The shared object of an inode; the same one for everybody who asks. A name that is left wins."""
        if deleted and self._is_named(path + " (deleted)", inode):   # what the kernel adds is a part of its name
            path, deleted = path + " (deleted)", False
        key = (device, inode)
        if key not in self.objects:
            # Some file systems have a device number in /proc/PID/maps that stat(2) does not know (btrfs).
            same = self._objects_by_name.get((inode, path)) if deleted else None
            self.objects[key] = same or SharedObject(self.new_id(), device, inode, path, deleted)
            self._objects_by_name.setdefault((inode, path), self.objects[key])
        shared = self.objects[key]
        if shared.deleted and not deleted:
            shared.path, shared.deleted = path, False
        return shared

    def _is_named(self, path: str, inode: int) -> bool:
        with contextlib.suppress(OSError):
            return path.startswith("/") and self.pod.stat(path).st_ino == inode
        return False

    def take(self, task: Task, fd: int) -> int:
        """A copy of a task's descriptor, closed by itself before the thaw."""
        copy = pidfd.take_fd(task.host, fd)
        self.closing.callback(os.close, copy)
        return copy

    def pod_file(self, path: str) -> str:
        """A file of /proc that shows a task's own namespaces, as the pod sees it."""
        return str(self.init.request({"op": "read", "path": path})["text"])

    def refuse(self, what: str, task: Task, cure: str) -> Unsupported:
        """The error to raise for something that can't be saved."""
        return Unsupported(what=what, pid=task.pid, program=task.program, cure=cure)

    def save_memory(self, name: str, read: Callable[[int, list[tuple[int, int]]], None],
                    pieces: Iterable[tuple[int, int]], *, page_object: int | None = None) -> int:
        """Append pages to the image's log; the id of their page object.

        Args:
            read: fills a local address from (first page, count) pieces, one behind the other.
            pieces: runs of pages, as (first page, count), in any order.
        """
        number = self.writer.object(name) if page_object is None else page_object
        for group in page_groups(pieces):
            buffer = self.writer.take()
            try:
                read(buffer.address, group)
            except BaseException:
                self.writer.release(buffer)
                raise
            self.writer.put(buffer, [(number, first, count) for first, count in group])
        return number

    def save_bytes(self, name: str, content: bytes) -> int:
        """Put bytes that are at hand into the page log; the id of their page object, from page 0 on."""
        def read(local: int, group: list[tuple[int, int]]) -> None:
            for first, count in group:
                part = content[first * PAGE:(first + count) * PAGE]
                vm.local_view(local, count * PAGE)[:] = part.ljust(count * PAGE, b"\0")
                local += count * PAGE
        return self.save_memory(name, read, [(0, -(-len(content) // PAGE))])

    def save_task_memory(self, name: str, host: int, pieces: Iterable[tuple[int, int]], *, base: int = 0,
                         page_object: int | None = None, readable: bool = True) -> int:
        """``save_memory`` of a process's own memory.

        Args:
            base: the address of page 0.
            readable: whether the process itself may read it; the way that does without is slower.
        """
        def read(local: int, group: list[tuple[int, int]]) -> None:
            vm.read_into(host, local, [(base + first * PAGE, count * PAGE) for first, count in group])

        def read_forced(local: int, group: list[tuple[int, int]]) -> None:
            with contextlib.closing(vm.Memory(host)) as memory:
                for first, count in group:
                    memory.read_to(local, base + first * PAGE, count * PAGE)
                    local += count * PAGE
        return self.save_memory(name, read if readable else read_forced, pieces, page_object=page_object)


def page_groups(pieces: Iterable[tuple[int, int]], at_most: int = 256) -> Iterator[list[tuple[int, int]]]:
    """Cut (first page, count) runs into groups of at most ``at_most`` pages together."""
    group: list[tuple[int, int]] = []
    room = at_most
    for first, count in pieces:
        while count:
            part = min(count, room)
            group.append((first, part))
            first, count, room = first + part, count - part, room - part
            if not room:
                yield group
                group, room = [], at_most
    if group:
        yield group


@dataclass(slots=True)
class OpenFile:
    """An open file description of the job, seen through one descriptor that refers to it."""

    id: int
    task: Task
    fd: int
    link: str
    """What ``/proc/PID/fd/N`` points to."""
    info: proc.FdInfo
    stat: os.stat_result
    bearer: Task
    """Whom to name to the user: ``task``, but for a file in a message, which is seen through a descriptor here."""
    holders: list[tuple[Task, int]] = field(default_factory=list)
    """Every (task, descriptor) that refers to it."""
    close_on_exec: set[tuple[int, int]] = field(default_factory=set)
    """Those of them, as (host, descriptor), that an exec closes."""
    locks: list[tuple[Task, int, str]] = field(default_factory=list)
    """Lines of fdinfo about locks, with the descriptors that they stand under."""
    copy: int = -1
    """The agent's own copy, where a kind has taken one."""


class PodInit(Protocol):
    """The first process of a pod, as far as kinds ask it for things."""

    def fork_as(self, pid: int) -> int:
        """An empty task that is the init's child; its number on this node."""

    def request(self, message: dict[str, Any]) -> dict[str, Any]:
        """Anything else that must be done by a process of the pod's."""


class Restore:
    """One restart of one pod, up to the release."""

    def __init__(self, shard: Shard, image: Path, pod: Pod, init: PodInit, control: socket.socket, control_number: int,
                 warn: Callable[[str], None], policy: FilePolicy | None = None) -> None:
        self.shard = shard
        self.image = image
        self.pod = pod
        self.init = init
        self.warn = warn
        self.policy = policy or FilePolicy()
        self.problems: list[CrhpcError] = []
        """What Phase.CHECK has found, beside what it has raised: all of it is told."""
        self.plans: list[str] = []
        """What the restart will do to files of the user's, a line each; for ``--dry-run``."""
        self.tasks: dict[int, Task] = {}
        self.zombies: dict[int, int] = {}
        """This node's numbers of processes that have ended, by the pod's."""
        self.held: dict[int, int] = {}
        """Local descriptors of shared objects, by the object's id."""
        self.open_files: dict[int, int] = {}
        """Local descriptors of open file descriptions, by the file's id."""
        self.control: socket.socket = control
        """The agent's end of a socket whose other end every stub has as ``control_number``."""
        self.control_number = control_number
        self.state: dict[str, Any] = {}
        """What a kind keeps between its own steps."""
        self.after_setsid: list[Callable[[Restore, Task], None]] = []
        """What a new session's leader must do before it has children."""
        self.closing = contextlib.ExitStack()
        self.undo = contextlib.ExitStack()
        """What must be undone where the restart fails."""
        self.notifiers: list[int] = []
        """Local descriptors by which calls of tasks are seen (seccomp_unotify(2)), for whoever will answer these."""
        self.at_end: list[Callable[[], object]] = []
        """What can be done only when the agent has let go of all files, just before the release."""
        self._readonly: dict[int, int] = {}
        self._rows: dict[type, list[Any]] = {}

    def rows(self, record: type[R]) -> list[R]:
        """All rows of a table; none where this image has no such table.

        Fields whose metadata say ``path`` or ``host`` are where they lead to now.
        """
        if record not in self._rows:
            name = table_name(record)
            rows: list[Any] = self.shard.table(record, name) if name in self.shard.tables() else []
            if self.policy.moved or self.pod.redirects.moves:
                rows = [_moved(row, self.policy, self.pod.redirects) for row in rows]
            self._rows[record] = rows
        return self._rows[record]

    def doubt(self, error: CrhpcError) -> None:
        """A reason to refuse that the user may overrule (``--force``)."""
        if self.policy.force:
            self.warn(f"--force: {error}")
        else:
            self.problems.append(error)

    def hold(self, number: int, fd: int) -> int:
        """Keep a shared object's descriptor until the release."""
        self.held[number] = fd
        self.closing.callback(os.close, fd)
        return fd

    def readonly(self, number: int) -> int:
        """A shared object's descriptor that is open for reading only."""
        if number not in self._readonly:
            self._readonly[number] = descriptors.reopen(self.held[number], os.O_RDONLY)
            self.closing.callback(os.close, self._readonly[number])
        return self._readonly[number]

    def hold_file(self, number: int, fd: int) -> None:
        """Keep an open file description until the release."""
        self.open_files[number] = fd
        self.closing.callback(os.close, fd)

    def until_held(self, made: dict[int, int]) -> dict[int, int]:
        """Descriptors that become open files one by one: where a restart fails, the others are closed too."""
        def close_others() -> None:
            for fd in set(made.values()) - set(self.open_files.values()):
                os.close(fd)

        self.closing.callback(close_others)
        return made

    def take(self, task: Task, fd: int) -> int:
        """Take a descriptor out of a stub: the agent's copy, the stub's closed."""
        copy = pidfd.take_fd(task.host, fd)
        task.call("close", fd)
        return copy


def _moved(row: Any, policy: FilePolicy, redirects: Redirects) -> Any:
    changed: dict[str, Any] = {}
    for column in dataclasses.fields(row):
        value = getattr(row, column.name)
        if column.metadata.get("path"):
            changed[column.name] = policy.raw_path(value) if isinstance(value, bytes) else policy.path(value)
        elif column.metadata.get("host"):
            changed[column.name] = redirects.now(value)
    return dataclasses.replace(row, **changed) if changed else row


def table_name(record: type) -> str:
    """The table of a record: its class's name, in small letters with underscores."""
    name = record.__name__
    return "".join("_" + c.lower() if c.isupper() and i else c.lower() for i, c in enumerate(name))
