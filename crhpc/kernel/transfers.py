"""Calls that move bytes and had moved a part of them when they were interrupted.

write(2) to a pipe, a terminal or a stream socket that is full waits for room as often as it takes, and so does recv(2)
with MSG_WAITALL for data; interrupted, they return how much they had moved (pipe(7), socket(7)). ``partly`` says
which calls would have gone on, and ``rest`` makes of one the call for what is left.
"""
from __future__ import annotations

import contextlib
import os
import socket
import stat as modes
import struct
import termios
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from crhpc.kernel import pidfd, proc
from crhpc.kernel.calls import EAGAIN, ON_SOCKETS, RECEIVING, Call, Read
from crhpc.kernel.libc import NAME, NR

_MSG_DONTWAIT = 0x40
_RWF_NOWAIT = 8
_MOST = 0x7FFFF000
"""What one call moves at most (MAX_RW_COUNT)."""
_IOV, _IOV_MAX = struct.Struct("QQ"), 1024
_HEADER = 56
"""struct msghdr: iov, iovlen, control and controllen are the words from the third on."""
_EINPROGRESS = 115
_ENDLESS = {os.makedev(1, minor) for minor in (5, 8, 9)}
"""/dev/zero, random and urandom: they look for signals every few pages."""


@dataclass(frozen=True, slots=True)
class _Shape:
    form: Literal["buffer", "vector", "message", "file", "random"]
    sends: bool
    flags: int | None = None
    """Which argument has the flags of send(2) or recv(2)."""


_SHAPES: dict[str, _Shape] = {
    "read": _Shape("buffer", False), "write": _Shape("buffer", True),
    "recvfrom": _Shape("buffer", False, 3), "sendto": _Shape("buffer", True, 3),
    "readv": _Shape("vector", False), "writev": _Shape("vector", True),
    "preadv2": _Shape("vector", False), "pwritev2": _Shape("vector", True),
    "recvmsg": _Shape("message", False, 2), "sendmsg": _Shape("message", True, 2),
    "sendfile": _Shape("file", True), "getrandom": _Shape("random", False)}
MOVING = {NR[name] for name in _SHAPES}
"""The numbers of calls that may have moved a part."""


@dataclass(frozen=True, slots=True)
class Rest:
    """What must be different for the call that moves the rest."""

    arguments: dict[int, int]
    patches: list[tuple[int, bytes]] = field(default_factory=list)
    """(address, content) of the program's memory, as long as the call lasts."""


def partly(host: int, number: int, args: tuple[int, ...], moved: int, read: Read) -> Call | None:
    """The call that would have gone on had it not been interrupted when it had moved so much; None where not.

    Args:
        host: the process whose descriptors they are.

    Raises:
        OSError: what its arguments point to is not there.
    """
    shape = _SHAPES[NAME[number]]
    asked = min(_asked(shape, args, read), _MOST)
    if not 0 < moved < asked:
        return None
    if shape.form == "random":
        return Call(number, moved, asked)
    flags = args[shape.flags] if shape.flags is not None else 0
    if NAME[number] in ("preadv2", "pwritev2") and (args[3] != (1 << 64) - 1 or args[5] & _RWF_NOWAIT):
        return None
    fd = args[0] & 0xFFFFFFFF
    if flags & _MSG_DONTWAIT or proc.fdinfo(host, fd).flags & os.O_NONBLOCK:
        return None
    if flags & socket.MSG_PEEK:
        return Call(number)   # nothing has been taken: all of it again
    wanted = _wanted(host, fd, shape, flags, asked)
    return Call(number, moved, wanted) if moved < wanted else None


def _asked(shape: _Shape, args: tuple[int, ...], read: Read) -> int:
    match shape.form:
        case "buffer":
            return args[2]
        case "file":
            return args[3]
        case "random":
            return args[1]
    return sum(size for _, size in _pieces(shape, args, read)[1])


def _pieces(shape: _Shape, args: tuple[int, ...], read: Read) -> tuple[int, list[tuple[int, int]]]:
    """Where a vector lies, and its (address, size) pairs."""
    where, count = args[1], args[2]
    if shape.form == "message":
        where, count = struct.unpack_from("QQ", read(args[1], _HEADER), 16)
    count = min(count, _IOV_MAX)
    return where, list(_IOV.iter_unpack(read(where, count * _IOV.size))) if count else []


def _wanted(host: int, fd: int, shape: _Shape, flags: int, asked: int) -> int:
    """After how many bytes a call on a descriptor is over; 0 where it never waits for more than the first."""
    stat = os.stat(f"/proc/{host}/fd/{fd}")
    if modes.S_ISFIFO(stat.st_mode):   # sendfile(2) fills a pipe once
        return asked if shape.sends and shape.form != "file" else 0
    if stat.st_rdev in _ENDLESS:
        return 0 if shape.sends else asked
    if not (modes.S_ISCHR(stat.st_mode) or modes.S_ISSOCK(stat.st_mode)):
        return 0
    with _taken(host, fd) as local:
        if modes.S_ISCHR(stat.st_mode):
            return _wanted_of_terminal(local, sends=shape.sends, asked=asked)
        with socket.socket(fileno=os.dup(local)) as sock:
            return _wanted_of_socket(sock, shape, flags, asked)


def _wanted_of_socket(sock: socket.socket, shape: _Shape, flags: int, asked: int) -> int:
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) != socket.SOCK_STREAM:
        return 0
    if shape.sends:
        return asked
    unix = sock.family == socket.AF_UNIX
    if not flags & socket.MSG_WAITALL:   # TCP would wake nobody for less than SO_RCVLOWAT (tcp_data_ready)
        return min(asked, sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)) if unix else 0
    # Descriptors on their way end a message (unix(7)): what comes behind them is another one.
    return 0 if unix and shape.form == "message" else asked


def _wanted_of_terminal(fd: int, *, sends: bool, asked: int) -> int:
    try:
        mode, control = (termios.tcgetattr(fd)[i] for i in (3, 6))
    except termios.error:
        return 0
    if sends:
        return asked
    if mode & termios.ICANON or control[termios.VTIME]:   # numbers, where the mode is not canonical
        return 0
    return min(asked, int(control[termios.VMIN]))


@contextlib.contextmanager
def _taken(host: int, fd: int) -> Iterator[int]:
    local = pidfd.take_fd(host, fd)
    try:
        yield local
    finally:
        os.close(local)


def limit(host: int, number: int, args: tuple[int, ...]) -> int | None:
    """How long a call on a socket may wait (SO_RCVTIMEO, SO_SNDTIMEO), in nanoseconds; None: for ever.

    Raises:
        OSError: the descriptor is closed.
    """
    path = f"/proc/{host}/fd/{args[0] & 0xFFFFFFFF}"
    if number not in ON_SOCKETS or not modes.S_ISSOCK(os.stat(path).st_mode):
        return None
    option = socket.SO_RCVTIMEO if number in RECEIVING else socket.SO_SNDTIMEO
    with _taken(host, args[0] & 0xFFFFFFFF) as local, socket.socket(fileno=os.dup(local)) as sock:
        seconds, microseconds = struct.unpack("qq", sock.getsockopt(socket.SOL_SOCKET, option, 16))
    return (int(seconds) * 10**6 + int(microseconds)) * 1000 or None


def out_of_time(number: int) -> int:
    """What a call returns whose socket's limit is over."""
    return -_EINPROGRESS if number == NR["connect"] else -EAGAIN


def rest(call: Call, args: tuple[int, ...], read: Read) -> Rest:
    """What to change of a call for the bytes that are not through.

    Raises:
        OSError: what its arguments point to is not there.
    """
    shape = _SHAPES[call.name]
    left = call.wanted - call.moved
    match shape.form:
        case "buffer":
            return Rest({1: args[1] + call.moved, 2: left})
        case "file":
            return Rest({3: left})
        case "random":
            return Rest({0: args[0] + call.moved, 1: left})
    where, pieces = _pieces(shape, args, read)
    skipped, kept = _behind(pieces, call.moved, left)
    first = where + skipped * _IOV.size
    patches = [(first, b"".join(_IOV.pack(*piece) for piece in kept))]
    if shape.form == "vector":
        return Rest({1: first, 2: len(kept)}, patches)
    header = bytearray(read(args[1], _HEADER))
    struct.pack_into("QQ", header, 16, first, len(kept))
    struct.pack_into("Q", header, 40, 0)   # control messages went with the first part
    return Rest({}, [*patches, (args[1], bytes(header))])


def _behind(pieces: list[tuple[int, int]], moved: int, left: int) -> tuple[int, list[tuple[int, int]]]:
    """How many pieces are through, and the others up to so many bytes."""
    kept: list[tuple[int, int]] = []
    skipped = 0
    for address, size in pieces:
        if not kept and moved >= size:
            moved -= size
            skipped += 1
        elif left:
            part = min(size - moved, left)
            kept.append((address + moved, part))
            moved, left = 0, left - part
    return skipped, kept
