"""Watches of files, inotify(7): system calls that Python does not have, and what fdinfo tells of an instance."""
from __future__ import annotations

import array
import ctypes
import fcntl
import os
import termios
from dataclasses import dataclass

from crhpc.kernel import libc, proc

IN_DELETE_SELF, IN_ONLYDIR, IN_DONT_FOLLOW = 0x400, 0x01000000, 0x02000000
_IN_NONBLOCK, _IN_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Watch:
    """A line of fdinfo."""

    number: int
    mask: int
    inode: int
    target: str
    """All that tells which file it is; the same for the same file, whoever asks."""


def watches(info: proc.FdInfo) -> list[Watch]:
    """Those of an inotify instance, by number."""
    found = []
    for line in info.all("inotify"):
        fields = dict(word.partition(":")[::2] for word in line.split())
        target = " ".join(f"{name}:{value}" for name, value in fields.items()
                          if name not in ("wd", "mask", "ignored_mask"))
        found.append(Watch(int(fields["wd"], 16), int(fields["mask"], 16), int(fields["ino"], 16), target))
    return sorted(found, key=lambda watch: watch.number)


def create() -> int:
    """A new instance that does not block."""
    return libc.syscall("inotify_init1", _IN_NONBLOCK | _IN_CLOEXEC)


def add(fd: int, path: str, mask: int) -> int:
    """Watch what a path leads to; a link itself with IN_DONT_FOLLOW. Where it is watched already, the mask changes.

    Raises:
        OSError: EACCES where it can't be read, ENOSPC above fs.inotify.max_user_watches.
    """
    return libc.syscall("inotify_add_watch", fd, ctypes.create_string_buffer(os.fsencode(path)), mask)


def remove(fd: int, number: int) -> None:
    """Away with a watch; this leaves an event."""
    libc.syscall("inotify_rm_watch", fd, number)


def unread(fd: int) -> int:
    """Bytes of events that wait."""
    room = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, room)
    return room[0]


def drain(fd: int) -> None:
    """Take all events that wait."""
    while size := unread(fd):
        os.read(fd, size)


def target_of(scratch: int, path: str, *, follow: bool) -> str:
    """What fdinfo would say of a path; empty where it can't be watched. Nobody else notices.

    Args:
        scratch: an instance that has no watch.
    """
    try:
        number = add(scratch, path, IN_DELETE_SELF | (0 if follow else IN_DONT_FOLLOW))
    except OSError:
        return ""
    (watch,) = watches(proc.fdinfo(os.getpid(), scratch))
    remove(scratch, number)
    drain(scratch)
    return watch.target
