"""Descriptor tables, open file descriptions, and the kinds of file that these can refer to.

A description (an offset, flags, an owner) may be shared by many descriptors of many processes, after dup,
fork or a message with descriptors: kcmp(2) tells. Each is dumped once, by the first file kind that
recognises it, and made once at restart, held by the agent, then passed to every descriptor that shared it.
"""
from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cmp_to_key
from typing import Any, ClassVar

from crhpc.kernel import descriptors, pidfd, proc
from crhpc.resources import Cut, Kind, Phase, at
from crhpc.resources.context import Dump, OpenFile, Restore, Task

O_PATH = 0o10000000
STATUS_FLAGS = os.O_APPEND | os.O_NONBLOCK | os.O_ASYNC | os.O_DIRECT | os.O_NOATIME
"""What F_SETFL can change (fcntl(2))."""

_F_SETOWN_EX, _F_GETOWN_EX, _F_SETSIG, _F_GETSIG = 15, 16, 10, 11


@dataclass(frozen=True, slots=True)
class File:
    """An open file description."""

    id: int
    kind: str = field(metadata={"doc": "the file kind, whose table has a row with the same id"})
    flags: int = field(metadata={"doc": "as open(2) takes them, without O_CLOEXEC"})
    position: int
    owner_type: int = field(metadata={"doc": "F_OWNER_ constant"})
    owner: int = field(metadata={"doc": "who gets SIGIO and SIGURG: a thread, process or group of the pod; 0: nobody"})
    signal: int
    link: str = field(metadata={"doc": "what /proc/PID/fd/N pointed to"})


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A number in a process's descriptor table."""

    pid: int
    fd: int
    file: int = field(metadata={"ref": "file.id"})
    close_on_exec: bool


class FileKind(Kind):
    """A kind of open file. Subclasses say which files are theirs, and make and remake one description."""

    priority: ClassVar[int] = 0
    """Kinds with a higher one are asked first."""

    def matches(self, file: OpenFile, ctx: Dump) -> bool:
        """Whether this kind of file is it."""
        raise NotImplementedError

    def refusal(self, file: OpenFile, ctx: Dump) -> tuple[str, str] | None:
        """What can't be saved of it, and the cure; asked before anything has been touched."""
        return None

    def dump(self, file: OpenFile, ctx: Dump) -> Any:
        """Its record, a dataclass whose ``id`` is the file's; None where it follows at a later moment."""
        raise NotImplementedError

    def restore(self, record: Any, file: File, ctx: Restore) -> int:
        """A local descriptor of a new description like it; flags and owner are set by the caller.

        A kind that makes its files in a later phase returns -1 and calls ``ctx.hold_file`` then.
        """
        raise NotImplementedError


def file_kinds() -> list[FileKind]:
    """One of each file kind, those to be asked first in front."""
    found = [cls() for cls in Kind.registry if issubclass(cls, FileKind)]
    return sorted(found, key=lambda kind: (-kind.priority, kind.name))


class FilesKind(Kind):
    """The tables themselves; hands each open file to its kind."""

    name = "files"
    records = (File, Descriptor)
    saved = "descriptor tables, sharing of open files by dup and fork, flags, offsets, owners, close-on-exec"
    refused = "descriptor tables shared by several processes (clone with CLONE_FILES)"

    @at(Cut.INSPECT)
    def inspect(self, ctx: Dump) -> None:
        ctx.open_files = {file.id: file for file in open_files(ctx)}
        kinds = file_kinds()
        owners: dict[int, FileKind] = {}
        ctx.state["kind of file"] = owners
        for file in ctx.open_files.values():
            kind = next((kind for kind in kinds if kind.matches(file, ctx)), None)
            if kind is None:
                raise ctx.refuse(f"descriptor {file.fd} ({file.link})", file.task, "close it, or turn off what opens it")
            owners[file.id] = kind
        for file in ctx.open_files.values():
            problem = owners[file.id].refusal(file, ctx)
            if problem is not None:
                raise ctx.refuse(f"descriptor {file.fd}: {problem[0]}", file.task, problem[1])

    @at(Cut.COLLECT)
    def dump(self, ctx: Dump) -> None:
        for file in ctx.open_files.values():
            kind: FileKind = ctx.state["kind of file"][file.id]
            ctx.add(_file_row(ctx, file, kind))
            row = kind.dump(file, ctx)
            if row is not None:
                ctx.add(row)
            for task, fd in file.holders:
                flags = proc.fdinfo(task.host, fd).flags
                ctx.add(Descriptor(task.pid, fd, file.id, bool(flags & os.O_CLOEXEC)))

    @at(Phase.OPEN)
    def open_all(self, ctx: Restore) -> None:
        kinds = {kind.name: kind for kind in file_kinds()}
        for file in ctx.rows(File):
            kind = kinds[file.kind]
            record = next(row for record in kind.records for row in ctx.rows(record) if getattr(row, "id", None) == file.id)
            fd = kind.restore(record, file, ctx)
            if fd >= 0:
                ctx.hold_file(file.id, fd)

    @at(Phase.INSTALL)
    def install(self, ctx: Restore) -> None:
        by_pid: dict[int, list[Descriptor]] = {pid: [] for pid in ctx.tasks}
        for row in ctx.rows(Descriptor):
            by_pid[row.pid].append(row)
        for pid, rows in by_pid.items():
            _install(ctx, ctx.tasks[pid], rows)

    @at(Phase.STATE)
    def close_control(self, ctx: Restore) -> None:
        """Nothing is passed any more."""
        for task in ctx.tasks.values():
            task.call("close", ctx.control_number)

    @at(Phase.STATE)
    def set_flags(self, ctx: Restore) -> None:
        for file in ctx.rows(File):
            if not file.flags & O_PATH:
                _set_flags(ctx, file, ctx.open_files[file.id])


def holder(ctx: Restore, number: int) -> Task:
    """A task that has a file open; the first of all for a file that is only on its way in a message."""
    holders: dict[int, int] | None = ctx.state.get("holders of files")
    if holders is None:
        holders = ctx.state["holders of files"] = {row.file: row.pid for row in reversed(ctx.rows(Descriptor))}
    return ctx.tasks[holders.get(number, min(ctx.tasks))]


def open_files(ctx: Dump) -> list[OpenFile]:
    """Every open file description of the tasks, once."""
    groups: dict[tuple[object, ...], list[OpenFile]] = {}
    found: list[OpenFile] = []
    for task in ctx.tasks:
        for fd in proc.fds(task.host):
            file = _look(ctx, task, fd)
            key = (file.link, file.info.flags & ~os.O_CLOEXEC, file.info.position, file.stat.st_dev, file.stat.st_ino)
            same = _find_or_insert(groups.setdefault(key, []), file)
            if same is file:
                found.append(file)
            same.holders.append((task, fd))
    return found


def _look(ctx: Dump, task: Task, fd: int) -> OpenFile:
    path = f"/proc/{task.host}/fd/{fd}"
    return OpenFile(ctx.new_id(), task, fd, os.readlink(path), proc.fdinfo(task.host, fd), os.stat(path))


def _find_or_insert(ordered: list[OpenFile], file: OpenFile) -> OpenFile:
    """The one in the list that is the same description, else ``file`` itself, now in its place."""
    def compare(a: OpenFile, b: OpenFile) -> int:
        order = pidfd.kcmp(a.task.host, b.task.host, pidfd.KCMP_FILE, a.fd, b.fd)
        return {0: 0, 1: -1, 2: 1}[order]

    key = cmp_to_key(compare)
    place = bisect_left(ordered, key(file), key=key)
    if place < len(ordered) and compare(ordered[place], file) == 0:
        return ordered[place]
    ordered.insert(place, file)
    return file


def _file_row(ctx: Dump, file: OpenFile, kind: FileKind) -> File:
    owner_type, owner, number = 0, 0, 0
    if not file.info.flags & O_PATH:
        raw = fcntl.fcntl(ctx.take(file.task, file.fd), _F_GETOWN_EX, struct.pack("ii", 0, 0))
        owner_type, host = struct.unpack("ii", raw)
        if host:
            owner = _pod_number(ctx, owner_type, host)
            number = fcntl.fcntl(ctx.take(file.task, file.fd), _F_GETSIG)
    return File(file.id, kind.name, file.info.flags & ~os.O_CLOEXEC, file.info.position, owner_type, owner, number, file.link)


def _pod_number(ctx: Dump, owner_type: int, host: int) -> int:
    """The pod's number of a thread (type 0), process (1) or group (2) that is known by this node's."""
    for task in ctx.tasks:
        if owner_type == 0:
            for tid, tracee in task.threads.items():
                if tracee.tid == host:
                    return tid
        elif task.host == host:
            return task.pid
    return 0


def _install(ctx: Restore, task: Task, rows: list[Descriptor]) -> None:
    """Receive each file once, at a number above all that are wanted, then put it where it belongs."""
    files = sorted({row.file for row in rows})
    top = max((row.fd for row in rows), default=0)
    with _room_for_descriptors(ctx, task, top + 1 + len(files)):
        numbers = descriptors.push(ctx.control, task.area, ctx.control_number, [ctx.open_files[number] for number in files])
        with task.area.batch() as batch:
            where: dict[int, int] = {}
            for index, (file, number) in enumerate(zip(files, numbers, strict=True)):
                where[file] = top + 1 + index   # below the control socket's number, see engine/restore.py
                if number != where[file]:
                    batch.call("dup3", number, where[file], 0)
            batch.call("close_range", 0, top, 0)
            for row in rows:
                batch.call("dup3", where[row.file], row.fd, os.O_CLOEXEC if row.close_on_exec else 0)
            batch.call("close_range", top + 1, ctx.control_number - 1, 0)


@contextlib.contextmanager
def _room_for_descriptors(ctx: Restore, task: Task, top: int) -> Any:
    """The stub's own limit of open files must hold twice the descriptors for a moment."""
    import resource

    soft, hard = resource.prlimit(task.host, resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.prlimit(task.host, resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.prlimit(task.host, resource.RLIMIT_NOFILE, (soft, hard))


def _set_flags(ctx: Restore, file: File, fd: int) -> None:
    now = fcntl.fcntl(fd, fcntl.F_GETFL)
    wanted = now & ~STATUS_FLAGS | file.flags & STATUS_FLAGS
    if now != wanted:
        fcntl.fcntl(fd, fcntl.F_SETFL, wanted)
    if file.owner:
        host = _host_number(ctx, file)
        if host:
            fcntl.fcntl(fd, _F_SETOWN_EX, struct.pack("ii", file.owner_type, host))
    if file.signal:
        fcntl.fcntl(fd, _F_SETSIG, file.signal)


def _host_number(ctx: Restore, file: File) -> int:
    for task in ctx.tasks.values():
        if file.owner_type == 0 and file.owner in task.threads:
            return task.threads[file.owner].tid
        if file.owner_type != 0 and task.pid == file.owner:
            return task.host
    return 0


