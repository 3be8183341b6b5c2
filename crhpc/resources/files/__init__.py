"""Descriptor tables, open file descriptions, and the kinds of file that these can refer to.

A description (an offset, flags, an owner) may be shared by many descriptors of many processes, after dup,
fork or a message with descriptors: kcmp(2) tells. Each is dumped once, by the first file kind that
recognises it, and made once at restart, held by the agent, then passed to every descriptor that shared it.
Files that are only on their way in a message are found through the kind that carries them.
"""
from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import socket
import stat as modes
import struct
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cmp_to_key
from typing import Any, ClassVar

from crhpc.errors import OtherMachine
from crhpc.kernel import descriptors, pidfd, proc
from crhpc.kernel.tracee import Tracee
from crhpc.resources import Chapter, Cut, Kind, Phase, at, unsavable
from crhpc.resources.context import Dump, OpenFile, Restore, Task
from crhpc.resources.sharing import SharedTable, sharers, threads_apart

O_PATH = 0o10000000
STATUS_FLAGS = os.O_APPEND | os.O_NONBLOCK | os.O_ASYNC | os.O_DIRECT | os.O_NOATIME
"""What F_SETFL can change (fcntl(2))."""

_F_SETOWN_EX, _F_GETOWN_EX, _F_SETSIG, _F_GETSIG = 15, 16, 10, 11
_F_OWNER_TID, _F_OWNER_PGRP = 0, 2


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
    status_flags: ClassVar[int] = STATUS_FLAGS
    """Those that are set anew."""

    def matches(self, file: OpenFile, ctx: Dump) -> bool:
        """Whether this kind of file is it."""
        raise NotImplementedError

    def refusal(self, file: OpenFile, ctx: Dump) -> tuple[str, str] | None:
        """What can't be saved of it, and the cure; asked before anything has been touched."""
        return None

    def carried(self, file: OpenFile, ctx: Dump) -> list[int]:
        """Local descriptors of files that are on their way inside this one; the caller closes them.

        Asked before anything has been touched; ``ctx.carried`` then has the ids of the files, in this order.
        """
        return []

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
    chapter = Chapter.FILES
    records = (File, Descriptor)
    saved = ("descriptor tables; open files that descriptors share after dup, fork or a message; flags, offsets, "
             "close-on-exec, who gets SIGIO or SIGURG and which signal instead (F_SETOWN, F_SETSIG)")
    refused = (
        *unsavable.REFUSED,
        ("a thread with a descriptor table of its own", "run it without unshare(CLONE_FILES)"),
        ("a file system that the job serves itself (`/dev/fuse`)", "mount file systems of FUSE outside the job"),
        ("a file whose path is longer than 4095 bytes", "keep files in directories that are less deep"),
    )
    afterwards = "a restart is refused where the hard limit of open files is below the job's highest descriptor"

    @at(Cut.INSPECT)
    def inspect(self, ctx: Dump) -> None:
        for task in ctx.tasks:
            if threads_apart(task, "files"):
                raise ctx.refuse("a thread with a descriptor table of its own", task,
                                 "run it without unshare(CLONE_FILES)")
        _check_served(ctx)
        files = _OpenFiles(ctx)
        kinds = file_kinds()
        owners: dict[int, FileKind] = {}
        ctx.state["kind of file"] = owners
        for file in files.of_tasks():
            kind = next((kind for kind in kinds if kind.matches(file, ctx)), None)
            if kind is None:
                what, cure = _described(ctx, file)
                raise ctx.refuse(f"descriptor {file.fd} ({what})", file.bearer, cure)
            owners[file.id] = kind
            files.add_carried(file, kind.carried(file, ctx))
        ctx.open_files = {file.id: file for file in files.found}
        for file in ctx.open_files.values():
            problem = owners[file.id].refusal(file, ctx)
            if problem is not None:
                raise ctx.refuse(f"descriptor {file.fd}: {problem[0]}", file.bearer, problem[1])

    @at(Cut.COLLECT)
    def dump(self, ctx: Dump) -> None:
        for file in ctx.open_files.values():
            kind: FileKind = ctx.state["kind of file"][file.id]
            ctx.add(_file_row(ctx, file, kind))
            row = kind.dump(file, ctx)
            if row is not None:
                ctx.add(row)
            for task, fd in file.holders:
                ctx.add(Descriptor(task.pid, fd, file.id, (task.host, fd) in file.close_on_exec))

    @at(Phase.CHECK)
    def check(self, ctx: Restore) -> None:
        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max((row.fd for row in ctx.rows(Descriptor)), default=0)
        if highest >= hard:
            raise OtherMachine(image=ctx.image,
                               what=f"the job has a descriptor {highest}, no more than {hard} are allowed",
                               cure="raise the hard limit of open files (ulimit -Hn)")

    @at(Phase.OPEN)
    def open_all(self, ctx: Restore) -> None:
        kinds = {kind.name: kind for kind in file_kinds()}
        records: dict[tuple[str, int], Any] = {}
        for kind in kinds.values():
            for record in kind.records:
                rows: list[Any] = ctx.rows(record)
                records |= {(kind.name, row.id): row for row in rows if hasattr(row, "id")}
        for file in ctx.rows(File):
            fd = kinds[file.kind].restore(records[file.kind, file.id], file, ctx)
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
        shared = {row.pid for row in ctx.rows(SharedTable) if row.table == "files"}
        for pid, task in ctx.tasks.items():
            if pid not in shared:
                task.call("close", ctx.control_number)

    @at(Phase.STATE)
    def set_flags(self, ctx: Restore) -> None:
        kinds = {kind.name: kind for kind in file_kinds()}
        first: dict[int, Descriptor] = {}
        for row in ctx.rows(Descriptor):
            first.setdefault(row.file, row)
        for file in ctx.rows(File):
            if not file.flags & O_PATH:
                _set_flags(ctx, file, kinds[file.kind].status_flags, first.get(file.id))


def holder(ctx: Restore, number: int) -> Task:
    """A task that has a file open; the first of all for a file that is only on its way in a message."""
    holders: dict[int, int] | None = ctx.state.get("holders of files")
    if holders is None:
        holders = ctx.state["holders of files"] = {row.file: row.pid for row in reversed(ctx.rows(Descriptor))}
    return ctx.tasks[holders.get(number, min(ctx.tasks))]


# -- dump -----------------------------------------------------------------------------------------------
def _check_served(ctx: Dump) -> None:
    """Refuse a file system that the job serves itself, before any file is looked at: it would not answer now."""
    for task in ctx.tasks:
        for fd in proc.fds(task.host):
            with contextlib.suppress(OSError):   # a path that is too long
                if os.readlink(f"/proc/{task.host}/fd/{fd}") == "/dev/fuse":
                    raise ctx.refuse(f"descriptor {fd} (/dev/fuse)", task, "mount file systems of FUSE outside the job")


class _OpenFiles:
    """Gathers descriptions, each once; more may be found on the way while they are walked."""

    def __init__(self, ctx: Dump) -> None:
        self.ctx = ctx
        self.found: list[OpenFile] = []
        self._groups: dict[tuple[object, ...], list[OpenFile]] = {}

    def of_tasks(self) -> Iterator[OpenFile]:
        """Every description of the tasks, then those that ``add_carried`` was given meanwhile."""
        shared = sharers(self.ctx, "files")
        for task in self.ctx.tasks:
            for fd in proc.fds(task.host) if task.host not in shared else ():
                file = self._add(task, fd, task)
                file.holders.append((task, fd))
        at = 0
        while at < len(self.found):
            yield self.found[at]
            at += 1

    def add_carried(self, carrier: OpenFile, fds: list[int]) -> None:
        """Files in messages, as local descriptors; these are this process's, and so is their task."""
        if not fds:
            return
        for fd in fds:
            self.ctx.closing.callback(os.close, fd)
        me = Task(carrier.bearer.pid, os.getpid(), Tracee(os.getpid(), os.getpid()))
        self.ctx.carried[carrier.id] = [self._add(me, fd, carrier.bearer).id for fd in fds]

    def _add(self, task: Task, fd: int, bearer: Task) -> OpenFile:
        info, stat = proc.fdinfo(task.host, fd), os.stat(f"/proc/{task.host}/fd/{fd}")
        file = OpenFile(self.ctx.new_id(), task, fd, self._link(task, fd, bearer), info, stat, bearer)
        key = (file.link, info.flags & ~os.O_CLOEXEC, info.position, stat.st_dev, stat.st_ino)
        same = _find_or_insert(self._groups.setdefault(key, []), file)
        if same is file:
            self.found.append(file)
        if info.flags & os.O_CLOEXEC:
            same.close_on_exec.add((task.host, fd))
        same.locks += [(task, fd, line) for line in info.all("lock")]
        return same

    def _link(self, task: Task, fd: int, bearer: Task) -> str:
        try:
            return os.readlink(f"/proc/{task.host}/fd/{fd}")
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:   # the kernel has a page for it (fs/proc/base.c)
                raise
            raise self.ctx.refuse(f"descriptor {fd}: a file whose path is longer than 4095 bytes", bearer,
                                  "keep files in directories that are less deep") from None


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


def _described(ctx: Dump, file: OpenFile) -> tuple[str, str]:
    """What a file is that no kind knows, and how to do without."""
    if not modes.S_ISSOCK(file.stat.st_mode) or file.info.flags & O_PATH:
        return file.link, unsavable.cure_of_file(file.link)
    with socket.socket(fileno=os.dup(ctx.take(file.task, file.fd))) as sock:
        family = getattr(sock.family, "name", f"family {sock.family}")
        what = f"a socket of type {family}, {getattr(sock.type, 'name', sock.type)}, protocol {sock.proto}"
        return what, unsavable.cure_of_socket(sock.family)


def _file_row(ctx: Dump, file: OpenFile, kind: FileKind) -> File:
    owner_type, owner, number = 0, 0, 0
    if not file.info.flags & O_PATH:
        with copied(file) as fd:
            owner_type, host = struct.unpack("ii", fcntl.fcntl(fd, _F_GETOWN_EX, struct.pack("ii", 0, 0)))
            owner = _pod_number(ctx, owner_type, host) if host else 0
            number = fcntl.fcntl(fd, _F_GETSIG)
    return File(file.id, kind.name, file.info.flags & ~os.O_CLOEXEC, file.info.position, owner_type, owner, number,
                file.link)


@contextlib.contextmanager
def copied(file: OpenFile) -> Iterator[int]:
    """A descriptor of the file for a moment; the one that a kind has taken anyway, where there is one."""
    if file.copy >= 0:
        yield file.copy
        return
    fd = pidfd.take_fd(file.task.host, file.fd)
    try:
        yield fd
    finally:
        os.close(fd)


def _pod_number(ctx: Dump, owner_type: int, host: int) -> int:
    """The pod's number of a thread, process or group that is known by this node's."""
    for task in ctx.tasks:
        if owner_type == _F_OWNER_TID:
            for tid, tracee in task.threads.items():
                if tracee.tid == host:
                    return tid
        elif owner_type == _F_OWNER_PGRP:
            if proc.stat(task.host).pgrp == host:
                return proc.status(task.host).inner("NSpgid")
        elif task.host == host:
            return task.pid
    return 0


# -- restore --------------------------------------------------------------------------------------------
def _install(ctx: Restore, task: Task, rows: list[Descriptor]) -> None:
    """Receive each file once, at the lowest numbers, then put each where it belongs.

    A file that sits where another belongs makes way first; no number above those that are wanted is needed.
    """
    files = sorted({row.file for row in rows})
    wanted = {row.fd for row in rows}
    with _room_for_descriptors(task):
        numbers = descriptors.push(ctx.control, task.area, ctx.control_number, [ctx.open_files[n] for n in files])
        where = dict(zip(files, numbers, strict=True))
        taken = dict(zip(numbers, files, strict=True))
        spare = (n for n in range(1 << 30) if n not in wanted and n not in numbers and n != ctx.control_number)
        used: list[int] = []
        with task.area.batch() as batch:
            for row in rows:
                other = taken.get(row.fd)
                if other is not None and other != row.file and where[other] == row.fd:
                    used.append(next(spare))
                    batch.call("dup3", row.fd, used[-1], 0)
                    where[other] = used[-1]
                flags = os.O_CLOEXEC if row.close_on_exec else 0
                if where[row.file] != row.fd:
                    batch.call("dup3", where[row.file], row.fd, flags)
                elif flags:
                    batch.call("fcntl", row.fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
            for number in {*numbers, *used} - wanted:
                batch.call("close", number)


@contextlib.contextmanager
def _room_for_descriptors(task: Task) -> Iterator[None]:
    """The stub's own limit of open files must hold all for a moment."""
    soft, hard = resource.prlimit(task.host, resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.prlimit(task.host, resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.prlimit(task.host, resource.RLIMIT_NOFILE, (soft, hard))


def _set_flags(ctx: Restore, file: File, settable: int, row: Descriptor | None) -> None:
    fd = ctx.open_files[file.id]
    now = fcntl.fcntl(fd, fcntl.F_GETFL)
    wanted = now & ~settable | file.flags & settable
    if now | os.O_ASYNC != wanted | os.O_ASYNC:
        fcntl.fcntl(fd, fcntl.F_SETFL, wanted & ~os.O_ASYNC)
    if file.owner:
        host = _host_number(ctx, file)
        if host:
            fcntl.fcntl(fd, _F_SETOWN_EX, struct.pack("ii", file.owner_type, host))
    if file.signal:
        fcntl.fcntl(fd, _F_SETSIG, file.signal)
    if wanted & os.O_ASYNC and row is not None:   # by the task: its number is what si_fd will show
        ctx.tasks[row.pid].call("fcntl", row.fd, fcntl.F_SETFL, wanted)


def _host_number(ctx: Restore, file: File) -> int:
    for task in ctx.tasks.values():
        if file.owner_type == _F_OWNER_TID:
            if file.owner in task.threads:
                return task.threads[file.owner].tid
        elif file.owner_type == _F_OWNER_PGRP:
            if proc.status(task.host).inner("NSpgid") == file.owner:
                return proc.stat(task.host).pgrp
        elif task.pid == file.owner:
            return task.host
    return 0
