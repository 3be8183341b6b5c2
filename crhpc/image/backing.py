"""The file below an HDF5 file, and the hash of its bytes.

HDF5 does not survive a failed write: with the library's own file driver, a full disk met while it flushed
a table ended the process with SIGSEGV (h5py 3.16, HDF5 2.0). So files are handed to h5py as objects: an error
of the system is kept, further writes are dropped, HDF5 never learns of it, and whoever called HDF5 asks for
the error afterwards. When reading, it makes sure that HDF5 reads the very file that was checked.
"""
from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from crhpc.image.format import Span, open_file

_BLOCK = 1 << 20


class BackingFile:
    """A file object for h5py's ``fileobj`` driver, over one descriptor.

    Not for several threads at once; h5py's lock sees to that.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """Open ``path`` for reading, or create it (mode 0600; it must not exist).

        Raises:
            OSError: what open(2) says.
        """
        self.path = path
        self.error: OSError | None = None
        if create:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self.fd = os.open(path, flags, 0o600)
        else:
            self.fd = open_file(path)
        self.size = os.fstat(self.fd).st_size
        self._position = 0

    @property
    def failure(self) -> OSError | None:
        """The error that HDF5 was not told of, with the path."""
        if self.error is None:
            return None
        failure = OSError(self.error.errno, self.error.strerror, str(self.path))
        failure.__cause__ = self.error
        return failure

    def check(self) -> None:
        """Raise the error that HDF5 was not told of, if there is one."""
        if self.error is not None:
            raise self.failure or self.error

    def drop_writes(self) -> None:
        """From now on the contents do not matter: nothing is written any more."""
        self.error = self.error or OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))

    def sync(self) -> None:
        """Make the contents durable (fsync(2))."""
        os.fsync(self.fd)

    def close(self) -> None:
        """Close the descriptor; again is harmless."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    # -- what h5py calls ----------------------------------------------------------------------------
    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[:len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        size = max(0, self.size - self._position) if size < 0 else size
        try:
            data = pread(self.fd, size, self._position)
        except OSError as error:
            self.error = self.error or error
            data = b""
        # Past the end of what was written HDF5 may read what it allocated: zeros, as from a hole. What
        # it gets after an error does not matter.
        if self._position + size <= self.size or self.error is not None:
            data = data.ljust(size, b"\0")
        self._position += len(data)
        return data

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        position, self._position = self._position, self._position + len(view)
        self.size = max(self.size, self._position)
        length = len(view)
        try:
            while self.error is None and len(view):
                done = os.pwrite(self.fd, view, position)
                view, position = view[done:], position + done
        except OSError as error:
            self.error = error
        return length

    def truncate(self, size: int) -> int:
        try:
            if self.error is None:
                os.ftruncate(self.fd, size)
        except OSError as error:
            self.error = error
        self.size = size
        return size

    def flush(self) -> None:
        """Nothing is buffered here."""


def pread(fd: int, size: int, offset: int) -> bytes:
    """Read ``size`` bytes at ``offset``; fewer only at the end of the file.

    Raises:
        OSError: what pread(2) says.
    """
    data = os.pread(fd, size, offset)
    if len(data) == size or not data:
        return data
    parts, done = [data], len(data)
    while done < size and (data := os.pread(fd, size - done, offset + done)):
        parts.append(data)
        done += len(data)
    return b"".join(parts)


def digest(fd: int, size: int, skip: Iterable[Span] = ()) -> str:
    """SHA-256, in hexadecimal, of a file's first ``size`` bytes without those in ``skip`` (ascending).

    Raises:
        EOFError: the file is shorter.
        OSError: what pread(2) says.
    """
    hashed = hashlib.sha256()
    for start, end in _outside(size, skip):
        for offset in range(start, end, _BLOCK):
            want = min(_BLOCK, end - offset)
            data = pread(fd, want, offset)
            if len(data) != want:
                raise EOFError(f"the file ends at {offset + len(data)} of {size} bytes")
            hashed.update(data)
    return hashed.hexdigest()


def _outside(size: int, skip: Iterable[Span]) -> Iterator[Span]:
    """(start, end) of what is left between the spans."""
    start = 0
    for offset, length in skip:
        if offset > start:
            yield start, offset
        start = offset + length
    if size > start:
        yield start, size
