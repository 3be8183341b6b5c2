"""Messages and descriptors between processes of one machine."""
from __future__ import annotations

import errno
import json
import os
import socket
import struct
import threading

import pytest

from crhpc import channel as module
from crhpc.channel import Channel, ChannelClosed


@pytest.fixture
def ends():
    """Two connected ends."""
    a, b = Channel.pair()
    yield a, b
    a.close()
    b.close()


@pytest.fixture
def files():
    """``files(n)``: descriptors of n pipes' reading ends, each with its number in it."""
    made: list[int] = []

    def make(count: int) -> list[int]:
        found = []
        for number in range(count):
            reader, writer = os.pipe()
            os.write(writer, str(number).encode())
            os.close(writer)
            found.append(reader)
        made.extend(found)
        return found
    yield make
    for fd in made:
        os.close(fd)


def read(fds: list[int]) -> list[int]:
    """What is in such descriptors, which are closed."""
    found = [int(os.read(fd, 10)) for fd in fds]
    for fd in fds:
        os.close(fd)
    return found


def opened() -> int:
    return len(os.listdir("/proc/self/fd"))


def frame(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


# -- messages -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("message", [
    {}, {"op": "x", "list": [1, -2.5, None, True, "", {"deep": [[]]}]}, {"number": 1 << 70},
    {"path": os.fsdecode(b"/\xff\xfe/\xc3\xa4"), "\u00e4\0\n": "\U0001f600"}, {"inf": float("inf")}])
def test_a_message_comes_as_it_was(ends, message):
    a, b = ends
    a.send(message)
    assert b.receive() == (message, [])
    b.send(message)
    assert a.receive() == (message, [])


def test_messages_keep_their_order_and_their_borders(ends):
    a, b = ends
    for number in range(100):
        a.send({"number": number, "more": "x" * number})
    for number in range(100):
        assert b.receive()[0] == {"number": number, "more": "x" * number}


def test_a_long_message(ends):
    """Longer than what the kernel keeps: it is sent and received in pieces."""
    a, b = ends
    text = "".join(map(chr, range(32, 1000))) * 2000
    sender = threading.Thread(target=a.send, args=({"text": text},))
    sender.start()
    assert b.receive() == ({"text": text}, [])
    sender.join()


def test_a_frame_that_comes_byte_by_byte(ends):
    a, b = ends
    raw = frame(b'{"op": "slow"}')

    def trickle() -> None:
        for byte in raw:
            a.socket.sendall(bytes([byte]))
    sender = threading.Thread(target=trickle)
    sender.start()
    assert b.receive()[0] == {"op": "slow"}
    sender.join()


def test_what_a_frame_is(ends):
    """32 bits of length, the lowest byte first, and JSON in ASCII; other programs may speak it."""
    a, b = ends
    a.send({"b": "\u00e4", "a": 1})
    assert b.socket.recv(100) == b"\x14\0\0\0" + b'{"b":"\\u00e4","a":1}'


# -- descriptors --------------------------------------------------------------------------------------
def test_descriptors_come_with_their_message(ends, files):
    """Also where several messages wait: none gets another's."""
    a, b = ends
    numbers = files(6)
    a.send({"n": 0}, numbers[:1])
    a.send({"n": 1})
    a.send({"n": 2}, numbers[1:4])
    a.send({"n": 3}, numbers[4:])
    assert [(message["n"], read(fds)) for message, fds in (b.receive() for _ in range(4))] == [
        (0, [0]), (1, []), (2, [1, 2, 3]), (3, [4, 5])]


def test_they_are_duplicates_that_no_child_inherits(ends):
    a, b = ends
    before = opened()
    a.send({}, [a.fileno()])
    _, (copy,) = b.receive()
    assert copy != a.fileno()
    assert os.fstat(copy).st_ino == os.fstat(a.fileno()).st_ino
    assert not os.get_inheritable(copy)
    os.close(copy)
    assert opened() == before


def test_as_many_as_a_message_takes(ends, files):
    a, b = ends
    numbers = files(250)
    a.send({"op": "many"}, numbers)
    message, fds = b.receive()
    assert (message, read(fds)) == ({"op": "many"}, list(range(250)))
    with pytest.raises(ValueError, match="251 descriptors is too large"):
        a.send({"op": "more"}, [*numbers, 0])
    a.send({"op": "after"})
    assert b.receive()[0] == {"op": "after"}


def test_a_long_message_with_descriptors(ends, files):
    a, b = ends
    text = "x" * (3 << 20)
    sender = threading.Thread(target=a.send, args=({"text": text}, files(3)))
    sender.start()
    message, fds = b.receive()
    sender.join()
    assert message["text"] == text
    assert read(fds) == [0, 1, 2]


def test_who_leaves_when_it_has_read_all(monkeypatch):
    """The very moment after: nothing was lost, so nothing is wrong."""
    ours, theirs = Channel.pair()
    send = socket.send_fds

    def send_and_close(*arguments):
        sent = send(*arguments)
        theirs.receive()
        theirs.close()
        return sent

    monkeypatch.setattr(module.socket, "send_fds", send_and_close)
    ours.send({"op": "here"}, [2])
    ours.close()


def test_a_descriptor_that_is_not_open(ends):
    """Said to who gave it; the other side gets nothing."""
    a, b = ends
    gone = os.dup(0)
    os.close(gone)
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        a.send({"op": "bad"}, [gone])
    assert caught.value.errno == errno.EBADF
    a.send({"op": "good"})
    assert b.receive()[0] == {"op": "good"}


# -- the other side -----------------------------------------------------------------------------------
def test_who_is_gone(ends):
    a, b = ends
    a.send({"op": "last"})
    a.close()
    assert b.receive()[0] == {"op": "last"}
    with pytest.raises(ChannelClosed, match="end of file"):
        b.receive()
    with pytest.raises(ChannelClosed):
        b.send({"op": "late"})


def test_who_is_gone_and_did_not_listen(ends):
    """The kernel calls that a reset."""
    a, b = ends
    a.send({"op": "unheard"})
    b.close()
    with pytest.raises(ChannelClosed):
        a.receive()


def test_who_goes_in_the_middle_of_a_frame(ends, files):
    a, b = ends
    before = opened()
    socket.send_fds(a.socket, [frame(b'{"op": "half"}')[:9]], files(2))
    a.close()
    with pytest.raises(ChannelClosed):
        b.receive()
    assert opened() == before - 1 + 2, "the pipes are ours, their duplicates are closed"


@pytest.mark.parametrize("raw", [
    frame(b"no JSON"), frame(b"[1, 2]"), frame(b'"text"'), frame(b"null"), frame(b""), frame(b'{"x": "\xff"}'),
    struct.pack("<I", (64 << 20) + 1) + b"{}", b"GET / HTTP/1.0\r\n\r\n", frame(b"[" * 100_000)],
    ids=lambda raw: repr(raw[:16]))
def test_bytes_that_are_no_message(ends, files, raw):
    """However wrong, it is the end of the channel and of nothing else."""
    a, b = ends
    numbers = files(2)
    before = opened()
    socket.send_fds(a.socket, [raw], numbers)
    with pytest.raises(ChannelClosed):
        b.receive()
    assert opened() == before


def test_a_message_that_is_too_long(ends, monkeypatch):
    a, b = ends
    monkeypatch.setattr(module, "_MAX_FRAME", 100)
    with pytest.raises(ValueError, match="is too large"):
        a.send({"text": "x" * 100})
    a.send({"text": "x" * 80})
    assert len(b.receive()[0]["text"]) == 80


def test_what_is_no_json_is_not_sent(ends):
    a, b = ends
    with pytest.raises(TypeError):
        a.send({"bytes": b"x"})
    a.send({"op": "good"})
    assert b.receive()[0] == {"op": "good"}


def test_the_user_at_the_other_end(ends):
    assert [end.peer_uid() for end in ends] == [os.getuid()] * 2


def test_it_can_be_waited_for(ends):
    a, b = ends
    assert (a.fileno(), b.fileno()) == (a.socket.fileno(), b.socket.fileno())
    assert json.loads(json.dumps(a.fileno())) >= 0
    a.close()
    assert a.fileno() == -1
