"""Sockets by inode: what the kernel says of sockets of ours."""
from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator

import pytest

from crhpc.kernel import netlink, sockdiag
from crhpc.kernel.sockdiag import InetSocket, UnixSocket

from .targets import until

New = Callable[..., socket.socket]


@pytest.fixture
def new() -> Iterator[New]:
    """socket.socket, closed at the end."""
    made: list[socket.socket] = []

    def make(*arguments: int) -> socket.socket:
        made.append(socket.socket(*arguments))
        return made[-1]
    yield make
    for sock in made:
        sock.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    a, b = socket.socketpair()
    with a, b:
        yield a, b


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def row(sock: socket.socket) -> UnixSocket:
    return sockdiag.unix_sockets()[inode(sock)]


# -- unix ---------------------------------------------------------------------------------------------
def test_a_pair(pair):
    a, b = pair
    b.sendall(b"12345")
    assert row(a) == UnixSocket(inode(a), socket.SOCK_STREAM, sockdiag.TCP_ESTABLISHED, b"", inode(b), row(a).queued,
                                row(a).backlog, (0, 0), 0, ())
    assert row(a).queued == 5
    assert row(b).peer == inode(a)
    assert row(b).queued == 0


@pytest.mark.parametrize(("how", "ours", "theirs"), [
    (socket.SHUT_RD, 1, 2), (socket.SHUT_WR, 2, 1), (socket.SHUT_RDWR, 3, 3)])
def test_directions_that_were_closed(pair, how, ours, theirs):
    a, b = pair
    a.shutdown(how)
    assert (row(a).shutdown, row(b).shutdown) == (ours, theirs)


def test_an_end_whose_other_end_is_gone(pair):
    a, b = pair
    b.close()
    assert row(a).peer == 0


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_names(new, tmp_path, kind):
    path = os.fsencode(tmp_path) + b"/name \xff"
    named, abstract, automatic = (new(socket.AF_UNIX, kind) for _ in range(3))
    named.bind(path)
    abstract.bind(b"\0crhpc\0" + os.fsencode(tmp_path)[-60:])
    automatic.bind("")
    assert row(named).name == path
    stat = os.stat(path)
    assert row(named).file == (stat.st_dev, stat.st_ino)
    assert row(abstract).name == b"\0crhpc\0" + os.fsencode(tmp_path)[-60:]
    assert row(abstract).file == (0, 0)
    assert row(automatic).name == automatic.getsockname()
    assert row(named).kind == kind


def test_a_listening_socket(new, tmp_path):
    listener = new(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "name"))
    listener.listen(7)
    waiting = [new(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(3)]
    for sock in waiting:
        sock.connect(str(tmp_path / "name"))
    found = row(listener)
    assert (found.state, found.queued, found.backlog) == (sockdiag.TCP_LISTEN, 3, 7)
    assert found.waiting == tuple(inode(sock) for sock in waiting)


# -- internet -----------------------------------------------------------------------------------------
FAMILIES = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]


def only(address: tuple[str, int], protocol: int = socket.IPPROTO_TCP) -> list[InetSocket]:
    """The rows with an address at either end."""
    return [found for found in sockdiag.inet_sockets(protocol) if address in (found.local, found.remote)]


@pytest.mark.parametrize(("family", "host"), FAMILIES)
def test_a_connection(new, family, host):
    listener = new(family, socket.SOCK_STREAM)
    listener.bind((host, 0))
    listener.listen(9)
    name = listener.getsockname()[:2]
    near = new(family, socket.SOCK_STREAM)
    near.connect(listener.getsockname())
    (waiting,) = [found for found in only(name) if found.local == name and found.remote[1]]
    assert waiting.inode == 0, "not accepted yet"
    far, _ = listener.accept()
    with far:
        near.sendall(b"1234567")
        until(lambda: next(f for f in only(name) if f.inode == inode(far)).rqueue == 7, "the bytes don't arrive")
        rows = {found.inode: found for found in only(name)}
        assert set(rows) == {inode(listener), inode(near), inode(far)}
        assert rows[inode(listener)].state == sockdiag.TCP_LISTEN
        assert rows[inode(listener)].wqueue == 9
        assert (rows[inode(near)].local, rows[inode(near)].remote) == (near.getsockname()[:2], name)
        assert (rows[inode(far)].local, rows[inode(far)].remote) == (name, near.getsockname()[:2])
        assert {found.state for found in rows.values()} == {sockdiag.TCP_LISTEN, sockdiag.TCP_ESTABLISHED}
        assert {(found.family, found.uid) for found in rows.values()} == {(family, os.getuid())}


def test_states(new):
    listener = new()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    near = new()
    near.connect(listener.getsockname())
    far, _ = listener.accept()
    with far:
        near.shutdown(socket.SHUT_WR)
        until(lambda: {f.inode: f.state for f in only(near.getsockname())} == {
            inode(near): sockdiag.TCP_FIN_WAIT2, inode(far): sockdiag.TCP_CLOSE_WAIT}, "the states are others")
    near.close()


def test_datagrams(new):
    bound = new(socket.AF_INET, socket.SOCK_DGRAM)
    bound.bind(("127.0.0.1", 0))
    (found,) = only(bound.getsockname(), socket.IPPROTO_UDP)
    assert (found.inode, found.remote) == (inode(bound), ("0.0.0.0", 0))


def test_one_family_alone(new):
    assert {found.family for found in sockdiag.inet_sockets(families=(socket.AF_INET6,))} <= {socket.AF_INET6}
    listener = new(socket.AF_INET6, socket.SOCK_STREAM)
    listener.bind(("::1", 0))
    listener.listen()
    port = listener.getsockname()[1]
    assert not [f for f in sockdiag.inet_sockets(families=(socket.AF_INET,)) if f.local == ("::1", port)]


def test_an_error_of_the_kernels():
    with pytest.raises(OSError, match="netlink") as caught:
        list(netlink.dump(4, 20, bytes([255]) + bytes(55)))   # sock_diag(7), an unknown family
    assert caught.value.errno


def test_many_sockets_come_in_many_messages():
    pairs = [socket.socketpair() for _ in range(800)]
    try:
        found = sockdiag.unix_sockets()
        assert all(found[inode(a)].peer == inode(b) for a, b in pairs)
    finally:
        for a, b in pairs:
            a.close()
            b.close()
