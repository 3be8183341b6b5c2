"""What is queued in a connection: looked at, waited for, taken out and sent again."""
from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator

import pytest
from need import need

from crhpc.kernel import sockdiag, tcp
from crhpc.kernel.messages import SO_PEEK_OFF
from crhpc.kernel.sockopt import SO_BUF_LOCK
from crhpc.kernel.tcp import Unread

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


def state(sock: socket.socket) -> int:
    return tcp.info(sock).state


def row(sock: socket.socket) -> sockdiag.InetSocket:
    inode = os.fstat(sock.fileno()).st_ino
    return next(found for found in sockdiag.inet_sockets() if found.inode == inode)


# -- what is unread -----------------------------------------------------------------------------------
def test_unread(pair):
    near, far = pair
    assert tcp.unread(near) == 0
    assert tcp.peek(near, 0) == Unread()
    far.sendall(b"1234567")
    until(lambda: tcp.unread(near) == 7, "the bytes don't arrive")
    assert tcp.peek(near, 7) == Unread(b"1234567")
    assert tcp.unread(near) == 7, "a look takes nothing"
    assert near.recv(100) == b"1234567"


def test_of_a_listening_socket(listener):
    assert tcp.unread(listener) == 0
    assert tcp.unacknowledged(listener) == 0


def test_the_end_of_a_stream_is_no_byte(pair):
    near, far = pair
    far.sendall(b"last")
    far.shutdown(socket.SHUT_WR)
    until(lambda: state(near) == sockdiag.TCP_CLOSE_WAIT, "the end does not arrive")
    assert row(near).rqueue == 5, "the kernel counts it"
    assert tcp.peek(near, 5) == Unread(b"last")


def test_a_look_leaves_the_programs_own_place(pair):
    near, far = pair
    far.sendall(b"1234567")
    until(lambda: tcp.unread(near) == 7, "the bytes don't arrive")
    need(has_peek_offset(near), "this kernel has no SO_PEEK_OFF for TCP (Linux 6.9)")
    near.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 3)
    assert tcp.peek(near, 7) == Unread(b"1234567")
    assert near.recv(2, socket.MSG_PEEK) == b"45"
    assert near.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF) == 5


def has_peek_offset(sock: socket.socket) -> bool:
    try:
        sock.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize(("front", "rest"), [(b"front", b"rest"), (b"", b"rest"), (b"front", b""), (b"", b"")])
def test_urgent_data(pair, front, rest, inline):
    """It is found wherever it stands, and can be sent again so that the receiver sees the same."""
    near, far = pair
    need(has_peek_offset(near), "this kernel has no SO_PEEK_OFF for TCP (Linux 6.9)")
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    near.setsockopt(socket.SOL_SOCKET, 10, inline)   # SO_OOBINLINE
    size = len(front) + 1 + len(rest)
    tcp.send_unread(far, near, Unread(front + b"!" + rest, len(front)), PATIENCE)
    until(lambda: row(near).rqueue == size, "the bytes don't arrive")
    assert tcp.peek(near, size) == Unread(front + b"!" + rest, len(front))
    assert tcp.at_mark(near) == (not front)
    if not inline:
        assert near.recv(1, socket.MSG_OOB) == b"!"
        if rest or not front:
            assert tcp.peek(near, size) == Unread(front + b"\0" + rest, len(front), urgent_read=True)


@pytest.mark.parametrize("size", [0, 5, 5000, 100_000])
@pytest.mark.parametrize("end", [False, True])
def test_what_is_left_of_a_connection_that_was_reset(pair, size, end):
    """The error that the program has not seen yet stays."""
    near, far = pair
    data = os.urandom(size)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    tcp.refill(far, data, PATIENCE, receiver=near)
    if end:
        far.shutdown(socket.SHUT_WR)
        until(lambda: state(near) == sockdiag.TCP_CLOSE_WAIT, "the end does not arrive")
    until(lambda: tcp.unread(near) == size, "the bytes don't arrive")
    tcp.reset(far)
    until(lambda: state(near) == sockdiag.TCP_CLOSE, "the reset does not arrive")
    assert tcp.peek_closed(near) == (Unread(data), end)
    assert near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == (errno.EPIPE if end else errno.ECONNRESET)


def test_what_is_left_of_a_connection_that_both_have_closed(pair):
    near, far = pair
    far.sendall(b"last")
    far.shutdown(socket.SHUT_WR)
    near.shutdown(socket.SHUT_WR)
    until(lambda: state(near) == sockdiag.TCP_CLOSE, "the end does not arrive")
    assert tcp.peek_closed(near) == (Unread(b"last"), True)
    assert near.recv(10) == b"last"
    assert tcp.peek_closed(near) == (Unread(), True)


def test_what_was_never_connected():
    with socket.socket() as sock:
        assert tcp.peek_closed(sock) == (Unread(), False)


# -- states -------------------------------------------------------------------------------------------
def test_info(listener, pair):
    near, far = pair
    about = tcp.info(near)
    assert (about.state, about.connected, about.answered, about.retried) == (
        sockdiag.TCP_ESTABLISHED, True, True, False)
    about = tcp.info(listener)
    assert (about.state, about.waiting, about.backlog, about.connected) == (sockdiag.TCP_LISTEN, 0, 5, False)
    others = [socket.socket() for _ in range(3)]
    try:
        for sock in others:
            sock.connect(listener.getsockname())
        assert tcp.info(listener).waiting == 3
    finally:
        for sock in others:
            sock.close()
    far.close()
    until(lambda: state(near) == sockdiag.TCP_CLOSE_WAIT, "the end does not arrive")


def test_a_connect_that_was_refused_is_told_from_a_connection_that_was_reset():
    with socket.socket() as nobody, socket.socket() as sock:
        nobody.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        sock.connect_ex(nobody.getsockname())
        until(lambda: state(sock) == sockdiag.TCP_CLOSE, "no refusal comes")
        assert (tcp.info(sock).connected, tcp.info(sock).answered) == (False, True)


def test_a_segment_size_that_was_asked_for(listener, pair):
    near, far = pair
    assert (tcp.info(near).segment, tcp.info(far).segment) == (0, 0)
    with socket.socket() as small:
        small.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 800)
        small.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            assert (tcp.info(small).segment, tcp.info(accepted).segment) == (800, 0)


# -- what is under way --------------------------------------------------------------------------------
def test_what_was_sent_has_arrived(pair):
    """Known long before it is acknowledged."""
    near, far = pair
    far.sendall(b"x" * 1000)
    until(lambda: tcp.all_arrived(row(near), row(far)), "it does not arrive")
    assert tcp.unread(near) == 1000
    far.shutdown(socket.SHUT_WR)
    until(lambda: tcp.all_arrived(row(near), row(far)), "the end does not arrive")
    assert state(near) == sockdiag.TCP_CLOSE_WAIT


def test_a_full_window_is_told(pair):
    near, far = pair
    fill(far)
    assert not tcp.all_arrived(row(near), row(far))
    assert tcp.unacknowledged(far) > 0


def test_what_waits_for_more_is_pushed(pair):
    near, far = pair
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    far.sendall(b"waits")
    assert tcp.unread(near) == 0
    tcp.push(far)
    until(lambda: tcp.unread(near) == 5, "the bytes don't arrive")
    assert far.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK) == 1
    assert far.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0


def test_a_window_is_opened_for_what_can_not_be_sent_again(pair):
    """The size that the program has fixed is back afterwards; what has arrived stays."""
    near, far = pair
    sent = fill(far)
    far.shutdown(socket.SHUT_WR)
    size, lock = near.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF), near.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK)
    with tcp.window_opened(near, len(sent)):
        def ended() -> bool:
            tcp.offer_window(near, 1)
            return state(near) == sockdiag.TCP_CLOSE_WAIT
        until(ended, "it does not arrive")
    assert near.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == size
    assert near.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK) == lock
    assert tcp.peek(near, len(sent)) == Unread(sent)


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


def test_a_drain_does_not_tune_buffers(pair):
    """Else the kernel would take it for a program that reads fast."""
    near, far = pair
    sizes = [sock.getsockopt(socket.SOL_SOCKET, name) for sock in pair for name in (socket.SO_SNDBUF, socket.SO_RCVBUF)]
    far.sendall(b"x" * 60_000)
    (data,) = tcp.drain([(far, near)], PATIENCE)
    tcp.refill(far, data, PATIENCE)
    assert sizes == [sock.getsockopt(socket.SOL_SOCKET, name)
                     for sock in pair for name in (socket.SO_SNDBUF, socket.SO_RCVBUF)]


def test_a_drain_in_one_direction_leaves_the_other(pair):
    near, far = pair
    sent = {near: fill(near), far: fill(far)}
    (data,) = tcp.drain([(near, far)], PATIENCE)
    assert data == sent[near]
    assert tcp.unread(near) > 0


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


def test_a_refill_leaves_the_send_buffer_to_the_kernel(pair):
    near, far = pair
    near.setsockopt(socket.SOL_SOCKET, SO_BUF_LOCK, 0)
    data = os.urandom(12 << 20)
    tcp.refill(far, data, PATIENCE, receiver=near)
    assert far.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK) == 0
    assert tcp.drain([(far, near)], PATIENCE) == [data]


# -- closing ------------------------------------------------------------------------------------------
def test_reset(pair):
    near, far = pair
    tcp.reset(far)
    with pytest.raises(ConnectionResetError):
        near.recv(1)


def test_until():
    assert tcp.until(lambda: True, 0)
    assert not tcp.until(lambda: False, 0.01)
