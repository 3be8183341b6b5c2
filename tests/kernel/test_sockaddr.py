"""Addresses in the kernel's own form."""
from __future__ import annotations

import errno
import socket
import struct

import pytest

from crhpc.kernel import sockaddr

LOOPBACK = next(number for number, name in socket.if_nameindex() if name == "lo")


def four(host: str, port: int) -> bytes:
    return struct.pack("=H", socket.AF_INET) + port.to_bytes(2, "big") + socket.inet_aton(host) + bytes(8)


def six(host: str, port: int, scope: int = 0, flow: int = 0) -> bytes:
    return (struct.pack("=H", socket.AF_INET6) + port.to_bytes(2, "big") + flow.to_bytes(4, "big")
            + socket.inet_pton(socket.AF_INET6, host) + struct.pack("=I", scope))


def test_names_are_read():
    assert sockaddr.parse(four("10.1.2.3", 4567)) == ("10.1.2.3", 4567)
    assert sockaddr.parse(six("::1", 80)) == ("::1", 80)
    assert sockaddr.parse(six("::ffff:10.1.2.3", 80)) == ("::ffff:10.1.2.3", 80)
    assert sockaddr.parse(six("fe80::1", 80, LOOPBACK)) == ("fe80::1%lo", 80)
    assert sockaddr.parse(six("fe80::1", 80)[:24]) == ("fe80::1", 80)


@pytest.mark.parametrize("raw", [
    b"", b"\2", four("10.1.2.3", 4567)[:15], six("::1", 80)[:23], six("fe80::1", 80, 1 << 30),
    struct.pack("=H26x", socket.AF_UNIX), struct.pack("=H26x", socket.AF_UNSPEC)])
def test_what_is_no_name_of_theirs(raw):
    assert sockaddr.parse(raw) is None


def test_names_are_changed_and_nothing_else():
    assert sockaddr.with_name(four("10.1.2.3", 4567), ("10.9.8.7", 1)) == four("10.9.8.7", 1)
    assert sockaddr.with_name(six("fe80::1", 80, 3, 9), ("fe80::2%lo", 81)) == six("fe80::2", 81, 3, 9)
    assert sockaddr.with_name(six("::ffff:10.1.2.3", 80), ("10.9.8.7", 1)) == six("::ffff:10.9.8.7", 1)
    assert sockaddr.with_name(six("::1", 80)[:24], ("::2", 1)) == six("::2", 1)[:24]
    assert sockaddr.with_name(four("10.1.2.3", 4567), ("::1", 1)) is None


def test_calls():
    with socket.socket() as one, socket.socket() as other:
        assert sockaddr.call("bind", one, four("127.0.0.1", 0)) == 0
        assert sockaddr.call("bind", one, four("127.0.0.1", 0)) == errno.EINVAL
        assert sockaddr.call("connect", other, four("127.0.0.1", one.getsockname()[1])) == errno.ECONNREFUSED
        one.listen()
        other.setblocking(False)
        assert sockaddr.call("connect", other, four("127.0.0.1", one.getsockname()[1])) == errno.EINPROGRESS
