"""Socket options that a program may have set: read all, set again those that differ from a fresh socket's.

Options that say what the socket is doing now (a segment size that was negotiated, the processor of the last
packet) are read of sockets without a connection only, where they are the program's own choice.
"""
from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from crhpc.kernel import libc

Option = tuple[int, int]

_SOL, _IP, _IPV6, _TCP, _UDP = (socket.SOL_SOCKET, socket.IPPROTO_IP, socket.IPPROTO_IPV6, socket.IPPROTO_TCP,
                                socket.IPPROTO_UDP)
SO_ATTACH_FILTER, SO_BUF_LOCK, SO_TIMESTAMPING, SO_ZEROCOPY = 26, 72, 37, 60
_SNDBUF_LOCK, _RCVBUF_LOCK = 1, 2
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_TCP_CONGESTION, TCP_ULP = 13, 31

OPTIONS_SOCKET: tuple[Option, ...] = tuple((_SOL, name) for name in (
    socket.SO_KEEPALIVE, socket.SO_LINGER, socket.SO_REUSEADDR, socket.SO_REUSEPORT, socket.SO_BROADCAST,
    socket.SO_RCVLOWAT, 20, 21, 12, 10, socket.SO_PASSCRED, 29, socket.SO_DONTROUTE, 42, 34, 76,
    # SO_NO_CHECK, SO_BINDTODEVICE, SO_TIMESTAMPNS, SO_MARK, SO_TIMESTAMPING, SO_RXQ_OVFL, SO_LOCK_FILTER,
    # SO_SELECT_ERR_QUEUE, SO_BUSY_POLL, SO_MAX_PACING_RATE, SO_TXTIME, SO_PREFER_BUSY_POLL, SO_BUSY_POLL_BUDGET,
    # SO_TXREHASH, SO_RCVMARK, SO_RCVPRIORITY, SO_PASSRIGHTS
    11, 25, 35, 36, SO_TIMESTAMPING, 40, 44, 45, 46, 47, 61, 69, 70, 74, 75, 82, 83))
"""Those of every socket; buffer sizes are handled apart. The numbers are asm-generic/socket.h's."""

OPTIONS_INET: tuple[Option, ...] = tuple((_IP, name) for name in (
    1, 2, 4, 6, 7, 8, 10, 11, 12, 13, 15, 18, 19, 20, 21, 23, 24, 25, 26, 32, 33, 34, 49, 50, 51))
"""linux/in.h: TOS, TTL, OPTIONS, RECVOPTS, RETOPTS, PKTINFO, MTU_DISCOVER, RECVERR, RECVTTL, RECVTOS, FREEBIND,
PASSSEC, TRANSPARENT, RECVORIGDSTADDR, MINTTL, CHECKSUM, BIND_ADDRESS_NO_PORT, RECVFRAGSIZE, RECVERR_RFC4884,
MULTICAST_IF, MULTICAST_TTL, MULTICAST_LOOP, MULTICAST_ALL, UNICAST_IF, LOCAL_PORT_RANGE."""

OPTIONS_INET6: tuple[Option, ...] = tuple((_IPV6, name) for name in (
    2, 3, 4, 5, 8, 11, 16, 17, 18, 19, 23, 25, 26, 29, 30, 31, 33, 49, 51, 53, 54, 55, 56, 57, 58, 59, 60, 62, 66, 67,
    70, 72, 73, 74, 75, 76, 77, 78))
"""linux/in6.h: what RFC 2292 and RFC 3542 ask to be received (2-5, 8, 49-60, 66), hop limits, multicast, extension
headers to be sent (54, 55, 57, 59), V6ONLY, MTU_DISCOVER, DONTFRAG, TCLASS, flow labels, source addresses."""

OPTIONS_TCP: tuple[Option, ...] = tuple((_TCP, name) for name in (
    socket.TCP_NODELAY, socket.TCP_CORK, socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT,
    socket.TCP_SYNCNT, socket.TCP_LINGER2, socket.TCP_QUICKACK, _TCP_CONGESTION, 16, 17, socket.TCP_USER_TIMEOUT,
    socket.TCP_NOTSENT_LOWAT, 34, 36, 37, 44, 45, 46))
"""Behind TCP_NOTSENT_LOWAT: FASTOPEN_NO_COOKIE, INQ, TX_DELAY, RTO_MAX_MS, RTO_MIN_US, DELACK_MAX_US (linux/tcp.h)."""

OPTIONS_UNCONNECTED: tuple[Option, ...] = (
    (_SOL, 49), (_TCP, socket.TCP_MAXSEG), (_TCP, socket.TCP_DEFER_ACCEPT), (_TCP, socket.TCP_WINDOW_CLAMP),
    (_TCP, socket.TCP_FASTOPEN), (_TCP, 27), (_TCP, 30))
"""Choices that only a socket without a connection shows: SO_INCOMING_CPU, and TCP's SAVE_SYN and FASTOPEN_CONNECT."""

OPTIONS_UDP: tuple[Option, ...] = tuple((_UDP, name) for name in (1, 100, 101, 102, 103, 104))
"""linux/udp.h: CORK, ENCAP, NO_CHECK6_TX, NO_CHECK6_RX, SEGMENT, GRO."""

_BUFFERS = ((_SOL, socket.SO_SNDBUF), (_SOL, socket.SO_RCVBUF))
_KNOWN = frozenset((*OPTIONS_SOCKET, *OPTIONS_INET, *OPTIONS_INET6, *OPTIONS_TCP, *OPTIONS_UNCONNECTED, *OPTIONS_UDP,
                    *_BUFFERS))
_RAW = frozenset([(_SOL, name) for name in (socket.SO_LINGER, 20, 21, 25, SO_TIMESTAMPING, 47, 61)]
                 + [(_IP, 4), (_TCP, _TCP_CONGESTION)] + [(_IPV6, name) for name in (54, 55, 57, 59)])
"""Those that are no int."""
_INDEX = {(_IPV6, 17): "=I", (_IPV6, 76): "!I", (_IP, 50): "!I"}
"""Those that are the number of an interface, which another boot may number otherwise: stored by name."""

_ENTRY = struct.Struct("<iiI")
_ROOM = 256


@dataclass(slots=True)
class _Plan:
    """Of the options that were asked for, those that sockets of one kind have."""

    ints: list[Option]
    others: list[Option]
    flat: list[int]
    """Level, name, length and room for the value of each int."""
    layout: struct.Struct


_plans: dict[tuple[int, int, int, tuple[Option, ...]], _Plan] = {}


def read_options(sock: socket.socket, wanted: tuple[Option, ...]) -> bytes:
    """The options' values, packed as (level, name, length, value); those that the socket lacks are left out."""
    key = (sock.family, sock.type, sock.proto, wanted)
    plan = _plans.get(key) or _plan(sock, wanted)
    try:
        found = _read(sock, plan)
    except OSError:   # the state of this socket is another
        plan = _plan(sock, wanted)
        found = _read(sock, plan)
    _plans[key] = plan
    return found + _read_buffers(sock)


def _read(sock: socket.socket, plan: _Plan) -> bytes:
    get = sock.getsockopt
    plan.flat[3::4] = [get(level, name) for level, name in plan.ints]
    found = [plan.layout.pack(*plan.flat)]
    for level, name in plan.others:
        value = _named_interface((level, name), get(level, name, _ROOM))
        found.append(_ENTRY.pack(level, name, len(value)) + value)
    return b"".join(found)


def _plan(sock: socket.socket, wanted: tuple[Option, ...]) -> _Plan:
    ints: list[Option] = []
    others: list[Option] = []
    for option in wanted:
        with contextlib.suppress(OSError):
            sock.getsockopt(*option, _ROOM)
            (others if option in _RAW or option in _INDEX else ints).append(option)
    flat = [number for level, name in ints for number in (level, name, 4, 0)]
    return _Plan(ints, others, flat, struct.Struct("<" + "iiIi" * len(ints)))


def _named_interface(option: Option, value: bytes) -> bytes:
    if option not in _INDEX:
        return value
    (number,) = struct.unpack(_INDEX[option], value)
    return socket.if_indextoname(number).encode() if number else b""


def _read_buffers(sock: socket.socket) -> bytes:
    """Buffer sizes, where the program has fixed them (SO_BUF_LOCK, Linux 5.14); else the kernel tunes them."""
    found = b""
    with contextlib.suppress(OSError):
        lock = sock.getsockopt(_SOL, SO_BUF_LOCK)
        for bit, name in ((_SNDBUF_LOCK, socket.SO_SNDBUF), (_RCVBUF_LOCK, socket.SO_RCVBUF)):
            if lock & bit:
                half = sock.getsockopt(_SOL, name) // 2   # the kernel doubles what is set
                found += _ENTRY.pack(_SOL, name, 4) + struct.pack("i", half)
    return found


def unpack_options(packed: bytes) -> Iterator[tuple[Option, bytes]]:
    """What ``read_options`` gave.

    Raises:
        ValueError: it did not.
    """
    at = 0
    while at < len(packed):
        if at + _ENTRY.size > len(packed):
            raise ValueError("socket options are cut off")
        level, name, length = _ENTRY.unpack_from(packed, at)
        at += _ENTRY.size
        if (level, name) not in _KNOWN or at + length > len(packed):
            raise ValueError(f"no socket option: {name} of level {level}")
        yield (level, name), packed[at:at + length]
        at += length


def set_options(sock: socket.socket, packed: bytes, *, only: Iterable[Option] | None = None) -> list[Option]:
    """Set the options that differ from what the socket has now; those that could not be set.

    Some change others (IP_TOS sets SO_PRIORITY too, ip(7)): what was set is looked at again.

    Raises:
        ValueError: ``packed`` is not what ``read_options`` gives.
    """
    wanted = [(option, value) for option, value in unpack_options(packed) if only is None or option in only]
    for option, value in wanted:
        if option in _BUFFERS:
            set_buffer(sock, option[1], int.from_bytes(value[:4], "little"))
    for attempt in range(3):
        differ = [(option, value) for option, value in wanted if not _has(sock, option, value)]
        if not differ or attempt == 2:
            break
        for option, value in differ:
            with contextlib.suppress(OSError):
                sock.setsockopt(*option, _numbered_interface(option, value))
    return [option for option, _ in differ]


def _has(sock: socket.socket, option: Option, value: bytes) -> bool:
    """Whether the socket has the value, or lacks the option."""
    if option in _BUFFERS:
        return True
    try:
        now = sock.getsockopt(*option, _ROOM)
    except OSError:
        return not any(value)
    return now == value or now == _numbered_interface(option, value)


def _numbered_interface(option: Option, value: bytes) -> bytes:
    if option not in _INDEX:
        return value
    try:
        return struct.pack(_INDEX[option], socket.if_nametoindex(value.decode()) if value else 0)
    except (OSError, UnicodeDecodeError):
        return value   # no such interface here


def shown_options(options: Iterable[Option]) -> str:
    """Options for people: SO_MARK, 19 of level 0."""
    names = {value: name for name, value in vars(socket).items() if name.startswith("SO_")}
    return ", ".join(names.get(name, str(name)) if level == _SOL else f"{name} of level {level}"
                     for level, name in options)


def set_buffer(sock: socket.socket, name: int, size: int) -> None:
    """Set SO_SNDBUF or SO_RCVBUF; past the system's limit where that is allowed (root). The kernel doubles it."""
    force = _SO_SNDBUFFORCE if name == socket.SO_SNDBUF else _SO_RCVBUFFORCE
    try:
        sock.setsockopt(_SOL, force, size)
    except PermissionError:
        sock.setsockopt(_SOL, name, size)


def grow_send_buffer(sock: socket.socket) -> tuple[int, int]:
    """Double the send buffer; what ``restore_send_buffer`` takes."""
    size = sock.getsockopt(_SOL, socket.SO_SNDBUF)
    lock = sock.getsockopt(_SOL, SO_BUF_LOCK)
    set_buffer(sock, socket.SO_SNDBUF, size)   # doubled by the kernel
    return size, lock


def restore_send_buffer(sock: socket.socket, before: tuple[int, int]) -> None:
    """The size that it had, tuned by the kernel again where it was."""
    size, lock = before
    set_buffer(sock, socket.SO_SNDBUF, size // 2)
    sock.setsockopt(_SOL, SO_BUF_LOCK, lock)


# -- options that read what they are given ---------------------------------------------------------------
_getsockopt = libc.function("getsockopt", ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p,
                            ctypes.c_void_p)


def get_by_key(sock: socket.socket, option: Option, key: bytes, room: int) -> bytes:
    """An option whose buffer says first what is asked for; as much of the buffer as the kernel has filled.

    Raises:
        OSError: what getsockopt(2) failed with.
    """
    buffer = ctypes.create_string_buffer(key, room)
    length = ctypes.c_uint(room)
    if _getsockopt(sock.fileno(), *option, buffer, ctypes.byref(length)) < 0:
        raise libc.os_error("getsockopt")
    return buffer.raw[:length.value]


def read_filter(sock: socket.socket) -> bytes:
    """The classic filter of a socket (SO_GET_FILTER in socket(7)), 8 bytes an instruction; empty where there is none.

    Raises:
        PermissionError: it is an extended one (eBPF), which can't be read.
    """
    count = ctypes.c_uint(0)   # of instructions, not of bytes
    if _getsockopt(sock.fileno(), _SOL, SO_ATTACH_FILTER, None, ctypes.byref(count)) < 0:
        raise libc.os_error("getsockopt")
    room = ctypes.create_string_buffer(8 * count.value)
    if count.value and _getsockopt(sock.fileno(), _SOL, SO_ATTACH_FILTER, room, ctypes.byref(count)) < 0:
        raise libc.os_error("getsockopt")
    return room.raw[:8 * count.value]


def attach_filter(sock: socket.socket, code: bytes, *, how: int = SO_ATTACH_FILTER) -> None:
    """Attach a classic filter; ``how`` is the option to use.

    Raises:
        OSError: EINVAL where it is none.
    """
    room = ctypes.create_string_buffer(code, len(code))
    sock.setsockopt(_SOL, how, struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(room)))
