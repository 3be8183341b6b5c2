"""The user's own standard streams: what the supervisor was started with, whatever that is.

They are not part of the job: a restart connects the job to the streams of the new supervisor. Where one is a
regular file, its length and contents at the checkpoint are kept, so that output written after it does not
stand there twice and output cut off by the shell's ``>`` comes back (crhpc/stdio.py). Standard error, where it
is a file of its own, is only added to.
"""
from __future__ import annotations

import os
import stat as modes
from dataclasses import dataclass, field

from crhpc import stdio
from crhpc.errors import FileChanged
from crhpc.filepolicy import Files
from crhpc.kernel import pidfd
from crhpc.kernel.libc import PAGE
from crhpc.resources import Chapter, Cut, Phase, at
from crhpc.resources.context import Dump, OpenFile, Restore
from crhpc.resources.files import Descriptor, File, FileKind

_STANDARD_ERROR = 2


@dataclass(frozen=True, slots=True)
class StandardStream:
    """One of the user's streams, and what it held where it is a regular file."""

    id: int
    stream: int = field(metadata={"doc": "0, 1 or 2"})
    regular: bool
    path: str
    device: int
    inode: int
    length: int
    position: int
    append: bool
    writable: bool
    modified: int = field(metadata={"doc": "nanoseconds"})
    pages: int = field(metadata={"doc": "page object of the first bytes; -1 where they are not kept"})
    digest: str = field(metadata={"doc": "SHA-256 of the first bytes where they are too many to be kept"})


class StdioKind(FileKind):
    name = "stdio"
    chapter = Chapter.FILES
    priority = 100
    status_flags = os.O_NONBLOCK | os.O_ASYNC
    records = (StandardStream,)
    saved = ("which descriptors are the user's own standard streams; of a stream that is a regular file, length and "
             "contents, up to 64 MiB")
    afterwards = ("the job has the streams of the new `crhpc run`; a regular file is cut back or written again, so "
                  "that it holds what an uninterrupted run writes ([cli.md](cli.md#standard-streams))")

    def matches(self, file: OpenFile, ctx: Dump) -> bool:
        return _stream(file, ctx) >= 0

    def dump(self, file: OpenFile, ctx: Dump) -> StandardStream | None:
        stream = _stream(file, ctx)
        marked = stdio.mark(ctx.pod.stdio[stream])
        if marked is None:
            return StandardStream(file.id, stream, False, file.link, 0, 0, 0, 0, False, False, 0, -1, "")
        ctx.state.setdefault("standard streams", []).append((file.id, stream, marked))
        return None

    @at(Cut.LATER)
    def read_contents(self, ctx: Dump) -> None:
        """The job adds to its output; what it had written by the cut stays."""
        for number, stream, marked in ctx.state.get("standard streams", []):
            saved = stdio.fill(ctx.pod.stdio[stream], marked)
            pages = -1 if saved.contents is None else ctx.save_bytes(saved.path, saved.contents)
            ctx.add(StandardStream(number, stream, True, saved.path, saved.device, saved.inode, saved.length,
                                   saved.position, saved.append, saved.writable, saved.modified_ns, pages,
                                   saved.digest or ""))

    def restore(self, record: StandardStream, file: File, ctx: Restore) -> int:
        return os.dup(ctx.pod.stdio[record.stream])

    @at(Phase.CHECK)
    def check(self, ctx: Restore) -> None:
        """Only with ``--files strict`` a difference is a reason to refuse."""
        for record in ctx.rows(StandardStream):
            if record.regular and record.stream != _STANDARD_ERROR and ctx.policy.files is Files.STRICT:
                fd = ctx.pod.stdio[record.stream]
                why = stdio.difference(fd, _saved(ctx, record))
                if why:
                    pid = next((row.pid for row in ctx.rows(Descriptor) if row.file == record.id), 0)
                    ctx.problems.append(FileChanged(
                        image=ctx.image, path=os.readlink(f"/proc/self/fd/{fd}"), why=why, pid=pid,
                        program="a standard stream", cure="redirect to the file that it was (>>), or --files rollback"))

    @at(Phase.LAST)
    def bring_back(self, ctx: Restore) -> None:
        """As late as can be: a restart that fails must leave the user's files alone."""
        for record in ctx.rows(StandardStream):
            fd = ctx.open_files[record.id]
            if record.regular and record.writable and ctx.policy.files is Files.KEEP:
                stdio.go_on_at_end(fd)
            elif record.regular and not _keeps_all(record, fd):
                tail = ctx.image.parent / f"{ctx.image.name}.tail-{os.path.basename(record.path)}"
                line = stdio.reconcile(fd, _saved(ctx, record), tail)
                if line:
                    ctx.warn(line)


def _keeps_all(record: StandardStream, fd: int) -> bool:
    """Standard error is a log, of crhpc's own messages too: it is added to, and only mended where it was cut."""
    stat = os.fstat(fd)
    if record.stream != _STANDARD_ERROR or not modes.S_ISREG(stat.st_mode) or stat.st_size < record.length:
        return False
    os.lseek(fd, 0, os.SEEK_END)
    return True


def _stream(file: OpenFile, ctx: Dump) -> int:
    if "standard streams' inodes" not in ctx.state:
        ctx.state["standard streams' inodes"] = {os.fstat(fd).st_ino for fd in ctx.pod.stdio}
    if file.stat.st_ino not in ctx.state["standard streams' inodes"]:
        return -1
    for stream, fd in enumerate(ctx.pod.stdio):
        if pidfd.kcmp(os.getpid(), file.task.host, pidfd.KCMP_FILE, fd, file.fd) == 0:
            return stream
    return -1


def _saved(ctx: Restore, record: StandardStream) -> stdio.SavedStream:
    contents = None
    if record.pages >= 0:
        contents = ctx.shard.pages(record.pages, 0, -(-record.length // PAGE))[:record.length]
    return stdio.SavedStream(record.path, record.device, record.inode, record.length, record.position, record.append,
                             record.writable, record.modified, contents, record.digest or None)
