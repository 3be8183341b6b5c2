"""What a restart takes away from files of the user's is kept beside the image: the ends that it cuts off, and what
it writes over. It goes with the image (retention.py)."""
from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from crhpc.kernel import directories
from crhpc.resources.contents import data_ranges
from crhpc.resources.context import Restore

TAIL, WAS = "tail", "was"
"""ckpt-000005.tail-NAME, the end of a file; ckpt-000005.was-NAME, all of it."""
_LONGEST = 200
"""Bytes of a name, so that there is room for what is put before and behind it."""
_AT_ONCE = 1 << 20


def keep(ctx: Restore, fd: int, start: int, word: str, path: str) -> None:
    """Copy a file from ``start`` on, with its holes, into a new one that is on disk when this returns.

    Args:
        fd: may be for writing only.
        path: what the file is called.

    Raises:
        OSError: naming the new file; nothing is left of it.
    """
    with contextlib.ExitStack() as stack:
        source = directories.open_closed(f"/proc/self/fd/{fd}", os.O_RDONLY)
        stack.callback(os.close, source)
        target, name = _new(ctx.image, word, os.fsencode(os.path.basename(path))[:_LONGEST])
        stack.callback(os.close, target)
        try:
            size = os.fstat(source).st_size
            for low, high in data_ranges(source, start, size):
                _copy(source, low, high, target, start)
            os.ftruncate(target, size - start)
            os.fsync(target)
        except OSError as error:
            os.unlink(name)
            raise OSError(error.errno, error.strerror, os.fspath(name)) from None


def _copy(source: int, low: int, high: int, target: int, start: int) -> None:
    while low < high:
        block = os.pread(source, min(high - low, _AT_ONCE), low)
        if not block:
            return
        view = memoryview(block)
        while view:
            done = os.pwrite(target, view, low - start)
            view, low = view[done:], low + done


def _new(image: Path, word: str, name: bytes) -> tuple[int, Path]:
    """A new file; a number is added where there are others of the name."""
    number, plain = 1, image.parent / f"{image.name}.{word}-{os.fsdecode(name)}"
    path = plain
    while True:
        try:
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), path
        except FileExistsError:
            number += 1
            path = plain.with_name(f"{plain.name}.{number}")


@contextlib.contextmanager
def written_anywhere(fd: int) -> Iterator[int]:
    """A description with nothing in the way of writes of any length at any place, for the moment."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~(os.O_APPEND | os.O_DIRECT | os.O_NONBLOCK))
    try:
        yield fd
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
