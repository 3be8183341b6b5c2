"""Contents of files: into the image while the pod stands still, and back. Nothing here decides whose they are."""
from __future__ import annotations

import ctypes
import errno
import os
import stat as modes
from collections.abc import Callable, Iterator, Mapping

from crhpc.kernel import directories
from crhpc.kernel.libc import PAGE
from crhpc.resources.context import Dump, Restore, SharedObject

MEMFD, ANONYMOUS, UNLINKED, PRIVATE, PLAIN = "memfd", "anonymous", "unlinked", "private", "plain"
_AT_ONCE = 256
"""Pages that are compared at once."""


def place_of(ctx: Dump, shared: SharedObject) -> str:
    """What sort of object it is; decides how it comes back."""
    if shared.path.startswith("/memfd:"):
        return MEMFD
    if shared.deleted:
        return ANONYMOUS if shared.path == "/dev/zero" else UNLINKED
    return PRIVATE if ctx.pod.private(shared.path) else PLAIN


def written_by_mapping(shared: SharedObject) -> bool:
    """Whether some mapping can write to it."""
    return any(mapping.shared and "mw" in mapping.flags for _, mapping in shared.mappers)


def open_object(ctx: Dump, shared: SharedObject, *, force: bool) -> int:
    """A descriptor of the object for reading, -1 where there is no way to one (map_files is for root).

    Args:
        force: where its mode forbids reading, change that for the moment.
    """
    ways = [f"/proc/{file.task.host}/fd/{file.fd}" for file in shared.files]
    if not shared.deleted:
        ways.append(ctx.pod.outside(shared.path))
    ways += [f"/proc/{task.host}/map_files/{mapping.start:x}-{mapping.end:x}" for task, mapping in shared.mappers]
    for way in [*ways, *shared.links]:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = directories.open_closed(way, flags) if force else os.open(way, flags)
        except OSError:
            continue
        stat = os.fstat(fd)
        if stat.st_ino == shared.inode and modes.S_ISREG(stat.st_mode):
            return fd
        os.close(fd)
    return -1


def save(ctx: Dump, name: str, fd: int, size: int) -> int:
    """Put a file's contents into the page log, without its holes; the id of their page object."""
    return ctx.save_memory(name, _reader(fd), _data_pages(fd, size))


def _reader(fd: int) -> Callable[[int, list[tuple[int, int]]], None]:
    """Fill memory from pages of a file; what lies behind its end reads as zeros."""
    def read(local: int, group: list[tuple[int, int]]) -> None:
        for first, count in group:
            size = count * PAGE
            view = memoryview((ctypes.c_char * size).from_address(local)).cast("B")
            done = 0
            while done < size:
                got = os.preadv(fd, [view[done:]], first * PAGE + done)
                if got == 0:
                    ctypes.memset(local + done, 0, size - done)
                    break
                done += got
            local += size
    return read


def _data_pages(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The pages of a file that are no hole, as (first page, count)."""
    behind = 0
    for start, end in data_ranges(fd, 0, size):
        first = max(start // PAGE, behind)   # two ranges may share a page
        behind = -(-end // PAGE)
        if behind > first:
            yield (first, behind - first)


def data_ranges(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """What lies between two offsets and is no hole (lseek(2), SEEK_DATA), as (start, end)."""
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:   # only a hole is left
                return
            raise
        if start >= end:
            return
        behind = min(os.lseek(fd, start, os.SEEK_HOLE), end)
        yield start, behind
        start = behind


# -- restore --------------------------------------------------------------------------------------------
def fill(ctx: Restore, files: Mapping[int, tuple[int, int]]) -> None:
    """Write contents to files that hold nothing yet, or what must stay.

    Args:
        files: for each page object a descriptor and the file's length.
    """
    if not files:
        return
    for number, first, data in ctx.shard.walk(set(files)):
        fd, length = files[number]
        offset = first * PAGE
        view = memoryview(data)[:max(length - offset, 0)]
        while view:
            done = os.pwrite(fd, view, offset)
            view, offset = view[done:], offset + done


def holds(ctx: Restore, pages: int, fd: int, size: int) -> bool:
    """Whether the first ``size`` bytes of a file are what is in the image."""
    for start in range(0, size, _AT_ONCE * PAGE):
        length = min(size - start, _AT_ONCE * PAGE)
        wanted = ctx.shard.pages(pages, start // PAGE, -(-length // PAGE))[:length]
        done = 0
        while done < len(wanted):
            block = os.pread(fd, len(wanted) - done, start + done)
            if not block or block != wanted[done:done + len(block)]:
                return False
            done += len(block)
    return True
