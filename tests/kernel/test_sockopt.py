"""Options of sockets: read from one, set on a fresh one."""
from __future__ import annotations

import socket
import struct

import pytest
from need import filters_are_allowed, offered

from crhpc.kernel import sockopt
from crhpc.kernel.sockopt import OPTIONS_INET, OPTIONS_INET6, OPTIONS_SOCKET, OPTIONS_TCP, read_options, set_options

ALL = (*OPTIONS_SOCKET, *OPTIONS_INET, *OPTIONS_TCP)
SOL, TCP, IP = socket.SOL_SOCKET, socket.IPPROTO_TCP, socket.IPPROTO_IP


@pytest.fixture
def fresh():
    """New TCP sockets."""
    made: list[socket.socket] = []

    def make(family: int = socket.AF_INET) -> socket.socket:
        made.append(socket.socket(family))
        return made[-1]
    yield make
    for sock in made:
        sock.close()


CHANGES = [
    (SOL, socket.SO_KEEPALIVE, 1), (SOL, socket.SO_REUSEADDR, 1), (SOL, socket.SO_LINGER, struct.pack("ii", 1, 17)),
    (SOL, 20, struct.pack("qq", 3, 500000)), (SOL, socket.SO_RCVLOWAT, 77), (SOL, 10, 1), (SOL, 12, 3),
    (TCP, socket.TCP_NODELAY, 1), (TCP, socket.TCP_CORK, 1), (TCP, socket.TCP_KEEPIDLE, 99),
    (TCP, socket.TCP_USER_TIMEOUT, 1234), (TCP, socket.TCP_NOTSENT_LOWAT, 4096), (IP, 1, 8), (IP, 2, 33)]


@pytest.mark.parametrize(("level", "name", "value"), CHANGES)
def test_a_change_is_carried_over(fresh, level, name, value):
    one, other = fresh(), fresh()
    default = one.getsockopt(level, name, 64)
    one.setsockopt(level, name, value)
    wanted = one.getsockopt(level, name, 64)
    assert wanted != default, "the test would see nothing"
    set_options(other, read_options(one, ALL))
    assert other.getsockopt(level, name, 64) == wanted


def test_all_of_them_together(fresh):
    one, other = fresh(), fresh()
    for level, name, value in CHANGES:
        one.setsockopt(level, name, value)
    set_options(other, read_options(one, ALL))
    assert read_options(other, ALL) == read_options(one, ALL)


def test_of_ipv6(fresh):
    one, other = fresh(socket.AF_INET6), fresh(socket.AF_INET6)
    one.setsockopt(socket.IPPROTO_IPV6, 67, 16)   # IPV6_TCLASS
    one.setsockopt(socket.IPPROTO_IPV6, 16, 44)   # IPV6_UNICAST_HOPS
    set_options(other, read_options(one, OPTIONS_INET6))
    assert [other.getsockopt(socket.IPPROTO_IPV6, name) for name in (67, 16)] == [16, 44]


def test_options_that_a_socket_lacks_are_left_out():
    a, b = socket.socketpair()
    with a, b:
        found = read_options(a, ALL)
        names = _names(found)
        assert (SOL, socket.SO_KEEPALIVE) in names
        assert not [level for level, _ in names if level in (TCP, IP)]
        set_options(b, found)


def _names(packed: bytes) -> list[tuple[int, int]]:
    found = []
    while packed:
        level, name, length = struct.unpack_from("<iiI", packed)
        found.append((level, name))
        packed = packed[12 + length:]
    return found


def test_buffers_that_the_kernel_tunes_are_left_to_it(fresh):
    assert not {(SOL, socket.SO_SNDBUF), (SOL, socket.SO_RCVBUF)} & set(_names(read_options(fresh(), ALL)))


@pytest.mark.parametrize("name", [socket.SO_SNDBUF, socket.SO_RCVBUF])
def test_buffers_that_were_fixed(fresh, name):
    one, other, third = fresh(), fresh(), fresh()
    one.setsockopt(SOL, name, 30000)
    set_options(other, read_options(one, ALL))
    assert other.getsockopt(SOL, name) == one.getsockopt(SOL, name) == 60000
    set_options(third, read_options(other, ALL))
    assert third.getsockopt(SOL, name) == 60000, "it does not grow from one generation to the next"


def test_a_buffer_past_the_systems_limit_does_not_fail(fresh):
    huge = sockopt._ENTRY.pack(SOL, socket.SO_RCVBUF, 4) + struct.pack("i", 1 << 29)
    sock = fresh()
    set_options(sock, huge)
    assert sock.getsockopt(SOL, socket.SO_RCVBUF) > 60000


def test_only_some(fresh):
    one, other = fresh(), fresh()
    for level, name, value in CHANGES:
        one.setsockopt(level, name, value)
    set_options(other, read_options(one, ALL), only=((TCP, socket.TCP_NODELAY),))
    assert other.getsockopt(TCP, socket.TCP_NODELAY) == 1
    assert other.getsockopt(SOL, socket.SO_KEEPALIVE) == 0


def test_one_that_cannot_be_set_does_not_stop_the_rest(fresh):
    """It is told."""
    wrong = sockopt._ENTRY.pack(TCP, socket.TCP_KEEPCNT, 4) + struct.pack("i", 1 << 20)
    sock = fresh()
    one = fresh()
    one.setsockopt(TCP, socket.TCP_NODELAY, 1)
    assert set_options(sock, wrong + read_options(one, ((TCP, socket.TCP_NODELAY),))) == [(TCP, socket.TCP_KEEPCNT)]
    assert sock.getsockopt(TCP, socket.TCP_NODELAY) == 1


@pytest.mark.parametrize("packed", [
    sockopt._ENTRY.pack(SOL, 12345, 4) + bytes(4), sockopt._ENTRY.pack(TCP, 1, 5) + bytes(4), bytes(11)])
def test_what_is_no_options(fresh, packed):
    with pytest.raises(ValueError, match="option"):
        set_options(fresh(), packed)


def test_an_option_that_changes_another(fresh):
    one, other = fresh(), fresh()
    one.setsockopt(IP, socket.IP_TOS, 0x10)   # sets SO_PRIORITY, too
    one.setsockopt(SOL, 12, 1)
    assert set_options(other, read_options(one, ALL)) == []
    assert (other.getsockopt(SOL, 12), other.getsockopt(IP, socket.IP_TOS)) == (1, 0x10)


def test_interfaces_are_stored_by_name():
    six = socket.IPPROTO_IPV6
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as one, socket.socket(
            socket.AF_INET6, socket.SOCK_DGRAM) as other:
        lo = socket.if_nametoindex("lo")
        one.setsockopt(six, socket.IPV6_MULTICAST_IF, lo)
        one.setsockopt(six, 76, socket.htonl(lo))   # IPV6_UNICAST_IF
        packed = read_options(one, OPTIONS_INET6)
        assert dict(sockopt.unpack_options(packed))[six, socket.IPV6_MULTICAST_IF] == b"lo"
        assert set_options(other, packed) == []
        assert other.getsockopt(six, socket.IPV6_MULTICAST_IF) == lo
        assert other.getsockopt(six, 76) == socket.htonl(lo)


def test_names_for_people():
    assert sockopt.shown_options([(SOL, socket.SO_KEEPALIVE), (IP, 19)]) == "SO_KEEPALIVE, 19 of level 0"


# -- filters ------------------------------------------------------------------------------------------
PASS_ALL = struct.pack("=HBBI", 6, 0, 0, 0xFFFFFFFF)


def test_filters(fresh):
    offered(filters_are_allowed(), "plain users get no filters for sockets at the moment")
    one, other = fresh(), fresh()
    assert sockopt.read_filter(one) == b""
    sockopt.attach_filter(one, PASS_ALL)
    assert sockopt.read_filter(one) == PASS_ALL
    sockopt.attach_filter(other, sockopt.read_filter(one))
    assert sockopt.read_filter(other) == PASS_ALL


def test_what_is_no_filter(fresh):
    offered(filters_are_allowed(), "plain users get no filters for sockets at the moment")
    with pytest.raises(OSError, match="Invalid argument"):
        sockopt.attach_filter(fresh(), b"\xff" * 8)
