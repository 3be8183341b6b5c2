"""Where two ends of a connection meet: listeners of the job's and stand-ins."""
from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from crhpc.kernel import tcp
from crhpc.kernel.listeners import Listeners, as_family, connect, family_of, unmapped
from crhpc.kernel.ports import is_any

from .targets import PATIENCE

FOUR, SIX = socket.AF_INET, socket.AF_INET6


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    found = Listeners()
    yield found
    found.close()


def listening(family: int, host: str, port: int = 0, *, shared: bool = False, only_six: bool = False) -> socket.socket:
    sock = socket.socket(family)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if only_six:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind((host, port))
    sock.listen(10)
    return sock


def test_names():
    assert unmapped("::ffff:10.0.0.1") == "10.0.0.1"
    assert unmapped("fe80::1") == "fe80::1"
    assert as_family(SIX, ("10.0.0.1", 5)) == ("::ffff:10.0.0.1", 5)
    assert as_family(FOUR, ("::ffff:10.0.0.1", 5)) == ("10.0.0.1", 5)
    assert as_family(SIX, ("::1", 5)) == ("::1", 5)
    assert (family_of("::ffff:10.0.0.1"), family_of("::1")) == (FOUR, SIX)
    assert is_any("::")
    assert not is_any("::1")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_stand_in(listeners, host):
    family = family_of(host)
    name = listeners.listen(0, (host, 0))
    assert listeners.listen(family, name) == name, "it is there already"
    with socket.socket(family) as near:
        comes_from = connect(near, ("", 0), name, PATIENCE)
        with listeners.accept(family, name, comes_from, PATIENCE) as far:
            near.sendall(b"hello")
            assert far.recv(10) == b"hello"
            assert far.getsockname()[:2] == name
    listeners.close()
    assert listeners.matching(family, name) == []


def test_which_one_it_reaches(listeners):
    """One of that very address before one of all; of IPv4 through IPv6 where that is allowed."""
    with listening(FOUR, "127.0.0.1") as one:
        port = one.getsockname()[1]
        listeners.add(one, FOUR, ("127.0.0.1", port))
        assert listeners.matching(FOUR, ("127.0.0.1", port)) == [one]
        assert listeners.matching(FOUR, ("127.0.0.2", port)) == []
        assert listeners.matching(SIX, ("127.0.0.1", port)) == []
        assert listeners.matching(0, ("::1", port)) == []
    with listening(SIX, "::") as both, listening(SIX, "::", only_six=True) as six:
        for sock in (both, six):
            listeners.add(sock, SIX, ("::", sock.getsockname()[1]))
        assert listeners.matching(0, ("127.0.0.1", both.getsockname()[1])) == [both]
        assert listeners.matching(SIX, ("::ffff:127.0.0.1", both.getsockname()[1])) == [both]
        assert listeners.matching(0, ("127.0.0.1", six.getsockname()[1])) == []
        assert listeners.matching(SIX, ("::1", six.getsockname()[1])) == [six]


def test_a_stranger_is_turned_away(listeners):
    name = listeners.listen(FOUR, ("127.0.0.1", 0))
    with socket.socket() as stranger, socket.socket() as near:
        stranger.connect(name)
        comes_from = connect(near, ("", 0), name, PATIENCE)
        with listeners.accept(FOUR, name, comes_from, PATIENCE):
            assert stranger.recv(1) == b""


def test_nobody_comes(listeners):
    name = listeners.listen(FOUR, ("127.0.0.1", 0))
    with pytest.raises(TimeoutError, match="nothing comes"):
        listeners.accept(FOUR, name, ("127.0.0.1", 1), 0.05)


def test_one_of_several_at_one_address(listeners):
    with listening(FOUR, "127.0.0.1", shared=True) as one:
        name = one.getsockname()
        with listening(FOUR, *name, shared=True) as other, listening(FOUR, *name, shared=True) as third:
            for sock in (one, other, third):
                listeners.add(sock, FOUR, name)
            for sock in (other, third, one):
                with listeners.chosen(sock):
                    clients = [socket.create_connection(name) for _ in range(6)]
                assert tcp.info(sock).waiting == 6
                for client in clients:
                    client.close()
