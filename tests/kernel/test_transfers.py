"""Which calls would have gone on after a part of their bytes, and the calls for the rest."""
from __future__ import annotations

import ctypes
import os
import pty
import socket
import struct
import termios
import tty

import pytest

from crhpc.kernel import transfers
from crhpc.kernel.calls import Call
from crhpc.kernel.libc import NR

ME = os.getpid()
WAITALL, PEEK, DONTWAIT = 0x100, 2, 0x40


def read(address: int, size: int) -> bytes:
    return ctypes.string_at(address, size)


def args(*values: int) -> tuple[int, ...]:
    return (*values, *[0] * (6 - len(values)))


def partly(name: str, moved: int, *values: int) -> tuple[int, int] | None:
    call = transfers.partly(ME, NR[name], args(*values), moved, read)
    return None if call is None else (call.moved, call.wanted)


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


@pytest.fixture
def pair():
    ends = socket.socketpair()
    yield ends
    for sock in ends:
        sock.close()


def test_pipes(pipe):
    reader, writer = pipe
    assert partly("write", 5, writer, 0, 10) == (5, 10)
    assert partly("write", 10, writer, 0, 10) is None
    assert partly("read", 5, reader, 0, 10) is None
    assert partly("sendfile", 5, writer, 0, 0, 10) is None
    os.set_blocking(writer, False)
    assert partly("write", 5, writer, 0, 10) is None


def test_sockets(pair):
    sock, _other = pair
    fd = sock.fileno()
    assert partly("write", 5, fd, 0, 10) == (5, 10)
    assert partly("sendfile", 5, fd, 0, 0, 10) == (5, 10)
    assert partly("sendto", 5, fd, 0, 10, DONTWAIT) is None
    assert partly("read", 5, fd, 0, 10) is None
    assert partly("recvfrom", 5, fd, 0, 10, 0) is None
    assert partly("recvfrom", 5, fd, 0, 10, WAITALL) == (5, 10)
    assert partly("recvfrom", 5, fd, 0, 10, WAITALL | DONTWAIT) is None
    assert partly("recvfrom", 5, fd, 0, 10, WAITALL | PEEK) == (0, 0), "all of it again"
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 7)
    assert partly("read", 5, fd, 0, 10) == (5, 7)
    assert partly("read", 7, fd, 0, 10) is None
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        assert partly("sendto", 5, datagrams.fileno(), 0, 10, 0) is None
    with socket.socket() as tcp:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 7)
        assert partly("read", 5, tcp.fileno(), 0, 10) is None
        assert partly("recvfrom", 5, tcp.fileno(), 0, 10, WAITALL) == (5, 10)


def test_terminals():
    master, terminal = pty.openpty()
    try:
        assert partly("write", 5, terminal, 0, 10) == (5, 10)
        assert partly("read", 5, terminal, 0, 10) is None, "a line is a line"
        tty.setraw(terminal)
        mode = termios.tcgetattr(terminal)
        mode[6][termios.VMIN] = 8
        termios.tcsetattr(terminal, termios.TCSANOW, mode)
        assert partly("read", 5, terminal, 0, 10) == (5, 8)
        mode[6][termios.VTIME] = 1
        termios.tcsetattr(terminal, termios.TCSANOW, mode)
        assert partly("read", 5, terminal, 0, 10) is None
    finally:
        os.close(master)
        os.close(terminal)


def test_files_and_devices(tmp_path):
    with open(tmp_path / "file", "wb") as file, open("/dev/zero", "rb") as zero, open("/dev/null", "wb") as null:
        assert partly("write", 5, file.fileno(), 0, 10) is None
        assert partly("read", 5, zero.fileno(), 0, 10) == (5, 10)
        assert partly("write", 5, null.fileno(), 0, 10) is None
    assert partly("getrandom", 5, 0, 10, 0) == (5, 10)
    with pytest.raises(OSError, match="No such file"):
        partly("write", 5, 99999, 0, 10)


def vector(*pieces: tuple[int, int]) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(b"".join(struct.pack("QQ", *piece) for piece in pieces), 16 * len(pieces))


def test_the_rest_of_a_buffer():
    assert transfers.rest(Call(NR["write"], 30, 100), args(1, 5000, 100), read).arguments == {1: 5030, 2: 70}
    assert transfers.rest(Call(NR["sendfile"], 30, 100), args(1, 2, 0, 100), read).arguments == {3: 70}
    assert transfers.rest(Call(NR["getrandom"], 30, 100), args(5000, 100), read).arguments == {0: 5030, 1: 70}


def test_the_rest_of_a_vector(pipe):
    pieces = vector((1000, 10), (2000, 0), (3000, 30), (4000, 40))
    where = ctypes.addressof(pieces)
    assert partly("writev", 25, pipe[1], where, 4) == (25, 80)
    rest = transfers.rest(Call(NR["writev"], 25, 80), args(1, where, 4), read)
    assert rest.arguments == {1: where + 32, 2: 2}
    assert rest.patches == [(where + 32, struct.pack("4Q", 3015, 15, 4000, 40))]
    rest = transfers.rest(Call(NR["readv"], 10, 30), args(1, where, 4), read)
    assert rest.patches == [(where + 32, struct.pack("2Q", 3000, 20))], "up to what it waits for"


def test_the_rest_of_a_message(pair):
    pieces = vector((1000, 10), (3000, 30))
    where = ctypes.addressof(pieces)
    header = ctypes.create_string_buffer(struct.pack("QIxxxxQQQQi4x", 0, 0, where, 2, 7000, 24, 0), 56)
    at = ctypes.addressof(header)
    fd = pair[0].fileno()
    assert partly("sendmsg", 15, fd, at, 0) == (15, 40)
    assert partly("recvmsg", 15, fd, at, WAITALL) is None, "descriptors on their way end a message"
    rest = transfers.rest(Call(NR["sendmsg"], 15, 40), args(fd, at, 0), read)
    assert rest.arguments == {}
    (first, piece), (second, changed) = rest.patches
    assert (first, piece, second) == (where + 16, struct.pack("2Q", 3005, 25), at)
    assert struct.unpack("QIxxxxQQQQi4x", changed) == (0, 0, where + 16, 1, 7000, 0, 0)


def test_limits_of_sockets(pair, pipe):
    fd = pair[0].fileno()
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("qq", 3, 0))
    assert transfers.limit(ME, NR["read"], args(fd)) == 3 * 10**9
    assert transfers.limit(ME, NR["accept"], args(fd)) == 3 * 10**9
    assert transfers.limit(ME, NR["write"], args(fd)) is None
    assert transfers.limit(ME, NR["read"], args(pipe[0])) is None
    assert transfers.limit(ME, NR["poll"], args(fd)) is None
    assert transfers.out_of_time(NR["read"]) == -11
    assert transfers.out_of_time(NR["connect"]) == -115
