"""Ports that connections come from, and those that closed ones keep."""
from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest

from crhpc.kernel import ports, sockdiag
from crhpc.kernel.listeners import connect

from .targets import PATIENCE, until

FAMILIES = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(5)
        yield sock


def free_port(host: str = "127.0.0.1", family: int = socket.AF_INET) -> int:
    with socket.socket(family) as sock:
        sock.bind((host, 0))
        return int(sock.getsockname()[1])


def left(port: int) -> list[sockdiag.InetSocket]:
    return [row for row in sockdiag.inet_sockets() if row.local[1] == port and not row.inode]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9"])
@pytest.mark.parametrize("low", [False, True])
def test_connect_from(listener, host, low):
    """From any address and port, also one that no socket would get by itself."""
    port = 20_000 + free_port() % 10_000 if low else free_port()
    with socket.socket() as sock:
        assert connect(sock, (host, port), listener.getsockname(), PATIENCE) == (host, port)
        accepted, name = listener.accept()
        with accepted:
            assert name == (host, port)
            assert sock.getsockopt(socket.IPPROTO_IP, 24) == 0   # IP_BIND_ADDRESS_NO_PORT


def test_one_port_for_two_connections(listener):
    with socket.socket() as second, socket.socket() as one, socket.socket() as other:
        second.bind(("127.0.0.1", 0))
        second.listen()
        name = "127.0.0.1", free_port()
        assert connect(one, name, listener.getsockname(), PATIENCE) == name
        assert connect(other, name, second.getsockname(), PATIENCE) == name


def test_a_port_that_is_taken(listener):
    with socket.socket() as taken, socket.socket() as sock:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match="in use") as caught:
            connect(sock, taken.getsockname(), listener.getsockname(), PATIENCE)
        assert caught.value.errno == errno.EADDRINUSE


def test_nobody_listens():
    with socket.socket() as sock, pytest.raises(ConnectionRefusedError):
        connect(sock, ("127.0.0.1", free_port()), ("127.0.0.1", free_port()), PATIENCE)


@pytest.mark.parametrize("blocking", [True, False])
def test_the_same_connection_once_more(listener, blocking):
    """With the same socket; it stays as it was but for what the first connection had."""
    with socket.socket() as sock:
        sock.connect(listener.getsockname())
        name = sock.getsockname()
        listener.accept()[0].close()
        sock.setblocking(blocking)
        ports.disconnect(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        ports.connect_again(sock, name, listener.getsockname())
        accepted, peer = listener.accept()
        with accepted:
            assert peer == name
            assert sock.getblocking() == blocking
            sock.sendall(b"again")
            assert accepted.recv(10) == b"again"


@pytest.mark.parametrize(("family", "host"), FAMILIES)
@pytest.mark.parametrize("who", ["client", "server"])
def test_what_is_left_of_a_closed_connection_goes(family, host, who):
    """Else its port would be kept for a minute."""
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        listener.listen()
        port = listener.getsockname()[1]
        near = socket.socket(family)
        near.connect(listener.getsockname())
        far, _ = listener.accept()
    first, second = (near, far) if who == "client" else (far, near)
    kept = first.getsockname()[1]
    first.close()
    until(lambda: sockdiag.TCP_FIN_WAIT2 in [row.state for row in left(kept)], "it is not half closed")
    second.close()
    until(lambda: [row.state for row in left(kept)] == [sockdiag.TCP_TIME_WAIT], "it does not wait")
    ports.forget(left(kept))
    assert left(kept) == []
    with socket.socket(family) as sock:
        sock.bind((host, port))
        sock.listen()


def test_several_at_one_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        clients = [socket.create_connection(listener.getsockname()) for _ in range(20)]
        accepted = [listener.accept()[0] for _ in clients]
    for i, (near, far) in enumerate(zip(clients, accepted, strict=True)):
        for sock in (near, far) if i % 2 else (far, near):
            sock.close()
    wanted = {port, *[row.remote[1] for row in left(port)]}
    until(lambda: not any(row.state != sockdiag.TCP_TIME_WAIT for row in left(port)), "they are not closed")
    ports.forget([row for number in wanted for row in left(number)])
    assert left(port) == []


def test_of_other_machines_nothing_is_forgotten():
    """What it can't end stays, and is no error."""
    row = sockdiag.InetSocket(0, socket.AF_INET, sockdiag.TCP_TIME_WAIT, ("127.0.0.1", 5), ("192.0.2.99", 6), 0, 0, 0,
                              0, 0, 0, 0, 0)
    ports.forget([row])


def test_scopes():
    assert ports.resolved(socket.AF_INET6, ("fe80::1%lo", 7)) == ("fe80::1", 7, 0, socket.if_nametoindex("lo"))
    assert ports.resolved(socket.AF_INET, ("127.0.0.1", 7)) == ("127.0.0.1", 7)
    with pytest.raises(OSError, match="interface"):
        ports.resolved(socket.AF_INET6, ("fe80::1%none0", 7))
