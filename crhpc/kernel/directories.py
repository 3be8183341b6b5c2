"""Directories and what stands in them: places in a listing (getdents64(2)), closed modes, file systems (statfs(2))."""
from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import stat as modes
import struct

from crhpc.kernel import libc

_BUFFER = 32 << 10
_ENTRY = struct.Struct("=QqH")
"""d_ino, d_off, d_reclen of struct linux_dirent64"""

MQUEUE, NSFS, HUGETLBFS, SECRETMEM, DMA_BUF = 0x19800202, 0x6E736673, 0x958458F6, 0x5345434D, 0x444D4142
SYSFS, DEBUGFS, TRACEFS, BPF = 0x62656572, 0x64626720, 0x74726163, 0xCAFE4A11
PROC, CGROUP, CGROUP2 = 0x9FA0, 0x27E0EB, 0x63677270


def file_system(path: str) -> int:
    """The magic number of the file system that a file is on (linux/magic.h)."""
    room = ctypes.create_string_buffer(256)
    libc.syscall("statfs", ctypes.create_string_buffer(os.fsencode(path)), room)
    return int(struct.unpack_from("Q", room)[0]) & 0xFFFFFFFF


def entries_before(fd: int, position: int) -> int:
    """How many entries of a directory lie before a position; all, where no entry ends at it.

    Args:
        fd: a descriptor that nobody else uses; its position is changed.
    """
    return _pass_entries(fd, lambda count, offset: offset == position)[0]


def position_after(fd: int, count: int) -> int:
    """The position behind so many entries of a directory; ``fd`` as for ``entries_before``."""
    return _pass_entries(fd, lambda passed, offset: passed == count)[1]


def _pass_entries(fd: int, enough) -> tuple[int, int]:  # type: ignore[no-untyped-def]
    os.lseek(fd, 0, os.SEEK_SET)
    room = ctypes.create_string_buffer(_BUFFER)
    passed, offset = 0, 0
    while size := libc.syscall("getdents64", fd, room, _BUFFER):
        at = 0
        while at < size:
            _inode, offset, length = _ENTRY.unpack_from(room, at)
            at += length
            passed += 1
            if enough(passed, offset):
                return passed, offset
    return passed, offset


def open_closed(path: str, flags: int) -> int:
    """Open a file of this user's own even where its mode forbids that; the mode is put back at once."""
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except PermissionError:
        mode = modes.S_IMODE(os.stat(path).st_mode)
        os.chmod(path, mode | 0o600)
        try:
            return os.open(path, flags | os.O_CLOEXEC)
        finally:
            os.chmod(path, mode)


def clear(top: str) -> None:
    """Remove everything below a directory, in directories of any mode too.

    Raises:
        OSError: something does not go.
    """
    for entry in list(os.scandir(top)):
        if entry.is_dir(follow_symlinks=False):
            _open_up(entry.path)
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def remove(top: str) -> None:
    """Remove a directory with everything below it, as far as that is possible."""
    with contextlib.suppress(OSError):
        _open_up(top)
    shutil.rmtree(top, ignore_errors=True)


def _open_up(folder: str) -> None:
    os.chmod(folder, 0o700)
    for entry in list(os.scandir(folder)):
        if entry.is_dir(follow_symlinks=False):
            _open_up(entry.path)
