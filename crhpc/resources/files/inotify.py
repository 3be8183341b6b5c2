"""Watches of files and directories (inotify(7)).

The kernel tells which inode is watched, not by what name: that is looked for where it is likely. Watches come back
under their numbers, which are given out one after another, so that those in between are made and removed. Until
the release they watch for nothing that the restart does. Events that wait to be read can neither be peeked at nor
be put back.
"""
from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from crhpc.errors import PASSING, FileGone, ImageDamaged, OtherMachine
from crhpc.kernel import inotify, proc
from crhpc.resources import Chapter, Phase, at
from crhpc.resources.context import Dump, OpenFile, Restore
from crhpc.resources.files import File, FileKind, copied

_HIGHEST = 1 << 17
"""A number above it would take a second to be reached."""
_LOOKED_AT = 20000
"""Entries of directories in which a watched file is looked for."""
_DEEP = 4
_USUAL = ("/", "/etc", "/dev", "/run", "/run/udev", "/tmp", "/var/tmp", "/usr/share")


@dataclass(frozen=True, slots=True)
class Inotify:
    """An inotify instance."""

    id: int


@dataclass(frozen=True, slots=True)
class InotifyWatch:
    """What one watches."""

    inotify: int = field(metadata={"ref": "file.id"})
    number: int
    mask: int = field(metadata={"doc": "IN_ constants, as fdinfo shows them"})
    path: str = field(metadata={"path": True, "doc": "empty where file tells"})
    file: int = field(metadata={"ref": "file.id", "doc": "an open file of what is watched; -1: there is none"})


class InotifyKind(FileKind):
    name = "inotify"
    chapter = Chapter.EVENTS
    records = (Inotify, InotifyWatch)
    saved = "inotify instances with the numbers and masks of their watches"
    refused = (
        ("inotify events that are not read yet", PASSING),
        ("a watch of a file whose name can't be found: not open, not in or above a directory that the job has to do "
         "with, not named on a command line or in the environment",
         "let the job watch what is in its working directory or in a directory that it has open"),
        ("numbers of watches above 131072", "make a new inotify instance"),
    )
    afterwards = ("numbers of watches that were removed may be given out again. A checkpoint reads the files that it "
                  "saves, and directories in which a watched file may be, as watches for IN_OPEN, IN_ACCESS and "
                  "IN_CLOSE_NOWRITE are told. A restart is refused where a watched file is gone")

    def matches(self, file: OpenFile, ctx: Dump) -> bool:
        return file.link == "anon_inode:inotify"

    def refusal(self, file: OpenFile, ctx: Dump) -> tuple[str, str] | None:
        with copied(file) as fd:
            if inotify.unread(fd):
                return "inotify events that are not read yet", PASSING
        found = _targets(ctx)
        for watch in inotify.watches(file.info):
            if watch.target not in found:
                return (f"inotify watch {watch.number} of a file whose name can't be found ({watch.target.split()[0]})",
                        "let the job watch what is in its working directory or in a directory that it has open")
            if watch.number > _HIGHEST:
                return f"inotify watch {watch.number}: numbers that high take too long", "make a new inotify instance"
        return None

    def dump(self, file: OpenFile, ctx: Dump) -> Inotify:
        found = _targets(ctx)
        for watch in inotify.watches(file.info):
            path, number = found[watch.target]
            ctx.add(InotifyWatch(file.id, watch.number, watch.mask, path, number))
        return Inotify(file.id)

    def restore(self, record: Inotify, file: File, ctx: Restore) -> int:
        return inotify.create()

    @at(Phase.INSTALL)
    def watch(self, ctx: Restore) -> None:
        """When all is made and open, but before anybody is told of events by a signal (O_ASYNC)."""
        for record in ctx.rows(Inotify):
            rows = [row for row in ctx.rows(InotifyWatch) if row.inotify == record.id]
            if any(not 0 < row.number <= _HIGHEST for row in rows):
                raise ImageDamaged(image=ctx.image, what="it has impossible numbers of watches")
            _watch_all(ctx, ctx.open_files[record.id], sorted(rows, key=lambda row: row.number))


# -- dump -----------------------------------------------------------------------------------------------
def _targets(ctx: Dump) -> dict[str, tuple[str, int]]:
    """Of all that is watched, as fdinfo tells it: its path, or the id of an open file of it."""
    found: dict[str, tuple[str, int]] | None = ctx.state.get("watched files")
    if found is None:
        found = ctx.state["watched files"] = _Search(ctx).run()
    return found


class _Search:
    """Looks for the names of watched files: all of a pod's at once, the most likely places first."""

    def __init__(self, ctx: Dump) -> None:
        self.ctx = ctx
        self.left: dict[int, set[str]] = {}
        """inode -> targets"""
        self.found: dict[str, tuple[str, int]] = {}
        """What tells it to a restart: a path, or the id of an open file."""
        self.tried: set[str] = set()
        self.scratch = inotify.create()

    def run(self) -> dict[str, tuple[str, int]]:
        for file in self.ctx.open_files.values():
            if file.link == "anon_inode:inotify":
                for watch in inotify.watches(file.info):
                    self.left.setdefault(watch.inode, set()).add(watch.target)
        known: dict[str, str] = self.ctx.memory.setdefault("watched files", {})
        try:
            self._try_files()
            self._try(iter([*known.values()]))
            folders = list(dict.fromkeys(_folders(self.ctx)))
            self._try(_named(self.ctx))
            self._try(iter(folders))
            self._try(_entries(self.ctx, folders))
        finally:
            os.close(self.scratch)
        known |= {target: path for target, (path, number) in self.found.items() if number < 0}
        return self.found

    def _try_files(self) -> None:
        """An open file leads to it whatever it is called."""
        for file in self.ctx.open_files.values():
            if file.stat.st_ino in self.left:
                self._take(f"/proc/{file.task.host}/fd/{file.fd}", file.stat.st_ino, "", file.id, follow=True)

    def _try(self, paths: Iterator[str]) -> None:
        while self.left and (path := next(paths, None)) is not None:
            if path in self.tried:
                continue
            self.tried.add(path)
            with contextlib.suppress(OSError):
                inode = self.ctx.pod.stat(path, follow=False).st_ino
                if inode in self.left:
                    self._take(self.ctx.pod.outside(path), inode, path, -1)

    def _take(self, outside: str, inode: int, path: str, number: int, *, follow: bool = False) -> None:
        target = inotify.target_of(self.scratch, outside, follow=follow)
        if target in self.left[inode]:
            self.found[target] = path, number
            self.left[inode].discard(target)
            if not self.left[inode]:
                del self.left[inode]


def _named(ctx: Dump) -> Iterator[str]:
    """What stands on command lines and in environments."""
    for task in ctx.tasks:
        folder = os.readlink(f"/proc/{task.host}/cwd")
        words = proc.read(f"/proc/{task.host}/cmdline").split(b"\0")
        for pair in proc.read(f"/proc/{task.host}/environ").split(b"\0"):
            words += pair.partition(b"=")[2].split(b":")
        for word in map(os.fsdecode, words):
            if word and len(word) < 4096:
                yield os.path.normpath(os.path.join(folder, word))


def _folders(ctx: Dump) -> Iterator[str]:
    """Directories that the job has to do with, and those above them."""
    for task in ctx.tasks:
        yield from _upwards(os.readlink(f"/proc/{task.host}/cwd"))
    for file in ctx.open_files.values():
        if file.link.startswith("/"):
            yield from _upwards(file.link)
    for task in ctx.tasks:
        for path in {mapping.path for mapping in task.mappings if mapping.inode}:
            yield from _upwards(os.path.dirname(path))
    yield from (ctx.pod.temporary, ctx.pod.shm, *_USUAL)


def _upwards(path: str) -> Iterator[str]:
    while path.startswith("/"):
        yield path
        if path == "/":
            return
        path = os.path.dirname(path)


def _entries(ctx: Dump, folders: Iterable[str]) -> Iterator[str]:
    """What is in directories, and a few levels below."""
    queue, seen, count = [(folder, 0) for folder in folders], set(folders), 0
    while queue:
        folder, depth = queue.pop(0)
        with contextlib.suppress(OSError), os.scandir(ctx.pod.outside(folder)) as listing:
            for entry in listing:
                path = os.path.join(folder, entry.name)
                count += 1
                if count > _LOOKED_AT:
                    return
                yield path
                if depth < _DEEP and path not in seen and entry.is_dir(follow_symlinks=False):
                    seen.add(path)
                    queue.append((path, depth + 1))


# -- restore --------------------------------------------------------------------------------------------
def _watch_all(ctx: Restore, instance: int, rows: list[InotifyWatch]) -> None:
    last = 0
    own = _Descriptor(os.dup(instance))
    stand_in = _Descriptor(os.memfd_create("watched"))
    for row in rows:
        while last + 1 < row.number:
            last = inotify.add(own.fileno(), stand_in.path, inotify.IN_DELETE_SELF)
            inotify.remove(own.fileno(), last)
            if last % 1000 == 0:
                inotify.drain(own.fileno())
        target = _Descriptor(os.dup(ctx.open_files[row.file])) if row.file >= 0 else None
        last = _add(ctx, own, row, target, inotify.IN_DELETE_SELF)
        if last != row.number:
            raise FileGone(image=ctx.image, path=row.path, why="is another file by now", pid=0, program="a watch")
        ctx.at_end.append(partial(_add, ctx, own, row, target, row.mask))
    inotify.drain(own.fileno())


class _Descriptor:
    """One of our own, which closes itself; of a directory too, which io.FileIO refuses."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __del__(self) -> None:
        os.close(self._fd)

    def fileno(self) -> int:
        return self._fd

    @property
    def path(self) -> str:
        return f"/proc/self/fd/{self.fileno()}"


def _add(ctx: Restore, instance: _Descriptor, row: InotifyWatch, target: _Descriptor | None, mask: int) -> int:
    try:
        if target is not None:
            return inotify.add(instance.fileno(), target.path, mask)
        return inotify.add(instance.fileno(), ctx.pod.outside(row.path), mask | inotify.IN_DONT_FOLLOW)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OtherMachine(image=ctx.image, what="the job watches more files than are allowed",
                               cure="raise fs.inotify.max_user_watches (sysctl)") from None
        raise FileGone(image=ctx.image, path=row.path, why=f"cannot be watched ({error.strerror})", pid=0,
                       program="a watch") from None
