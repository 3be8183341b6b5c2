"""What is queued in a connection: looked at, waited for, taken out and sent again."""
from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from crhpc.kernel import sockdiag, tcp

from .targets import PATIENCE, until

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(5)
        yield sock


@pytest.fixture
def pair(listener) -> Iterator[Pair]:
    near = socket.socket()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    near.connect(listener.getsockname())
    far, _ = listener.accept()
    with near, far:
        yield near, far


def fill(sock: socket.socket) -> bytes:
    """Write until nothing more fits; what was written."""
    sock.setblocking(False)
    written = bytearray()
    for _ in range(20):   # a window may open once more
        try:
            while True:
                piece = os.urandom(65536)
                written += piece[:sock.send(piece)]
        except BlockingIOError:
            threading.Event().wait(0.002)
    sock.setblocking(True)
    return bytes(written)


def test_unread(pair):
    near, far = pair
    assert tcp.unread(near) == 0
    assert tcp.peek(near) == b""
    far.sendall(b"1234567")
    until(lambda: tcp.unread(near) == 7, "the bytes don't arrive")
    assert tcp.peek(near) == b"1234567"
    assert tcp.unread(near) == 7, "a look takes nothing"
    assert near.recv(100) == b"1234567"


def test_of_a_listening_socket(listener):
    assert tcp.unread(listener) == 0
    assert tcp.unacknowledged(listener) == 0
    assert tcp.peek(listener) == b""


def test_of_a_closed_direction(pair):
    near, far = pair
    far.sendall(b"last")
    far.shutdown(socket.SHUT_WR)
    until(lambda: tcp.info(near).state == sockdiag.TCP_CLOSE_WAIT, "the end does not arrive")
    assert tcp.peek(near) == b"last", "the end of the stream is no byte"


def test_info(listener, pair):
    near, far = pair
    assert tcp.info(near).state == sockdiag.TCP_ESTABLISHED
    assert tcp.info(listener) == tcp.Info(sockdiag.TCP_LISTEN, 0, 5)
    others = [socket.socket() for _ in range(3)]
    try:
        for sock in others:
            sock.connect(listener.getsockname())
        assert tcp.info(listener).waiting == 3
    finally:
        for sock in others:
            sock.close()
    far.close()
    until(lambda: tcp.info(near).state == sockdiag.TCP_CLOSE_WAIT, "the end does not arrive")


def test_what_was_sent_arrives(pair):
    near, far = pair
    far.sendall(b"x" * 1000)
    assert tcp.settle([near, far], PATIENCE) == []
    assert tcp.unread(near) == 1000


def test_a_full_window_is_told(pair):
    near, far = pair
    fill(far)
    assert tcp.settle([near, far], 0.05) == [far]
    assert tcp.unacknowledged(far) > 0


def test_drain_and_refill(pair):
    """Both directions full: all comes out, and goes in again in the same order."""
    near, far = pair
    sent = {near: fill(near), far: fill(far)}
    ends = [(near, far), (far, near)]
    taken = tcp.drain(ends, PATIENCE)
    assert taken == [sent[near], sent[far]]
    assert not any(tcp.unread(sock) or tcp.unacknowledged(sock) for sock in pair)
    tcp.refill(near, taken[0], PATIENCE)
    tcp.refill(far, taken[1], PATIENCE)
    assert tcp.drain(ends, PATIENCE) == taken


def test_drain_of_nothing(pair):
    assert tcp.drain([pair, pair[::-1]], PATIENCE) == [b"", b""]
    assert tcp.drain([], PATIENCE) == []


def test_bytes_that_go_elsewhere(pair, listener):
    """A sender and a receiver that are not connected: the bytes never come."""
    _, far = pair
    fill(far)
    with socket.socket() as other:
        other.connect(listener.getsockname())
        with pytest.raises(TimeoutError, match="under way"):
            tcp.drain([(far, other)], 0.05)


def test_more_than_fits(pair):
    _, far = pair
    with pytest.raises(TimeoutError, match="don't fit"):
        tcp.refill(far, bytes(256 << 20), 0.2)


def test_a_refill_may_need_a_larger_buffer(pair):
    near, far = pair
    far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    data = os.urandom(100_000)
    tcp.refill(far, data, PATIENCE)
    assert tcp.drain([(far, near)], PATIENCE) == [data]
