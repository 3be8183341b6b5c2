"""Datagrams in a queue, looked at with their headers, and sent again."""
from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from crhpc.kernel.messages import Datagram, peek_datagrams, send_datagram

Pair = tuple[socket.socket, socket.socket]
FAMILIES = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]


@pytest.fixture(params=FAMILIES, ids=["4", "6"])
def pair(request) -> Iterator[Pair]:
    family, host = request.param
    with socket.socket(family, socket.SOCK_DGRAM) as sender, socket.socket(family, socket.SOCK_DGRAM) as receiver:
        sender.bind((host, 0))
        receiver.bind((host, 0))
        yield sender, receiver


def test_nothing(pair):
    assert peek_datagrams(pair[1]) == []


def test_all_that_waits(pair):
    sender, receiver = pair
    sent = [b"one", b"two", bytes(30_000), b"4"]
    for data in sent:
        sender.sendto(data, receiver.getsockname())
    for _ in range(2):
        found = peek_datagrams(receiver)
        assert [datagram.data for datagram in found] == sent
        assert {(d.sender, d.destination, d.ttl, d.tos) for d in found} == {
            (sender.getsockname(), receiver.getsockname()[0], 64, 0)}
    assert [receiver.recv(50_000) for _ in sent] == sent, "a look takes nothing"


def test_what_the_program_asks_for_is_left(pair):
    sender, receiver = pair
    receiver.setsockopt(socket.IPPROTO_IP, 12, 1)   # IP_RECVTTL
    options = [(socket.IPPROTO_IP, name) for name in (8, 12, 13)] + [(socket.SOL_SOCKET, 42)]
    before = [receiver.getsockopt(*option) for option in options]
    sender.sendto(b"x", receiver.getsockname())
    assert len(peek_datagrams(receiver)) == 1
    assert [receiver.getsockopt(*option) for option in options] == before


def test_empty_ones_are_shown_once(pair):
    sender, receiver = pair
    for data in (b"", b"", b"one", b"", b"two"):
        sender.sendto(data, receiver.getsockname())
    assert [datagram.data for datagram in peek_datagrams(receiver)] == [b"", b"", b"one", b"", b"two"]
    assert [datagram.data for datagram in peek_datagrams(receiver)] == [b"", b"one", b"two"], "but the very first"
    assert [receiver.recv(10) for _ in range(5)] == [b"", b"", b"one", b"", b"two"]


def test_sent_again_with_its_header(pair):
    sender, receiver = pair
    wanted = Datagram(b"data", sender.getsockname(), receiver.getsockname()[0], 33, 0x28)
    send_datagram(sender, wanted, receiver.getsockname())
    assert peek_datagrams(receiver) == [wanted]


def test_sent_from_an_address_that_the_socket_does_not_have():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender, socket.socket(
            socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        sender.bind(("0.0.0.0", 0))
        receiver.bind(("127.0.0.1", 0))
        send_datagram(sender, Datagram(b"x", ()), receiver.getsockname(), "127.0.0.44")
        assert peek_datagrams(receiver)[0].sender == ("127.0.0.44", sender.getsockname()[1])
