"""Groups that a socket has joined: asked for, and joined again by another socket."""
from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest

from crhpc.kernel import multicast
from crhpc.kernel.multicast import Membership

FAMILIES = [(socket.AF_INET, "239.77.7.1", ("127.0.0.8", "127.0.0.9")),
            (socket.AF_INET6, "ff15::77:7", ("::2", "::3"))]


@pytest.fixture
def sockets(request) -> Iterator[list[socket.socket]]:
    found = [socket.socket(request.param[0], socket.SOCK_DGRAM) for _ in range(2)]
    yield found
    for sock in found:
        sock.close()


@pytest.mark.parametrize(("sockets", "case"), [(case, case) for case in FAMILIES], indirect=["sockets"])
@pytest.mark.parametrize(("wanted", "some"), [(False, False), (False, True), (True, True)])
def test_a_membership_is_carried_over(sockets, case, wanted, some):
    family, group, sources = case
    membership = Membership("lo", group, wanted, sources if some else ())
    for sock in sockets:
        assert multicast.memberships(sock, family, multicast.groups(family)) == []
        multicast.join(sock, family, membership)
        (found,) = multicast.memberships(sock, family, multicast.groups(family))
        assert (found.interface, found.group, found.wanted) == ("lo", group, wanted)
        assert sorted(found.sources) == sorted(membership.sources)


def test_groups():
    assert (socket.if_nametoindex("lo"), "224.0.0.1") in multicast.groups(socket.AF_INET)
    assert (socket.if_nametoindex("lo"), "ff02::1") in multicast.groups(socket.AF_INET6)


def test_as_programs_join_mostly():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("4s4s", socket.inet_aton("239.77.7.9"), socket.inet_aton("127.0.0.1"))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        found = multicast.memberships(sock, socket.AF_INET, multicast.groups(socket.AF_INET))
        assert found == [Membership("lo", "239.77.7.9", False)]


def test_an_interface_that_is_not_there():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(OSError, match="interface"):
        multicast.join(sock, socket.AF_INET, Membership("none0", "239.77.7.9", False))
