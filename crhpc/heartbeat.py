"""Signs of life between the supervisor and the agents, so that neither waits for a node that is gone.

An agent connects to the supervisor, shows the job's secret, and from then on each side sends a byte ten times within
the limit of silence. The network says nothing of a node without power, and MPI may wait for minutes; a side that hears
nothing for too long acts by itself. An agent ends its pod after ``OWN_SHARE`` of the time after which the supervisor
takes it for lost: when the job is restarted elsewhere no part of its earlier life runs any more, also behind a broken
link.
"""
from __future__ import annotations

import hmac
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

SECONDS = 10.0
"""Silence after which a node is lost."""
OWN_SHARE = 0.6
_BEATS = 10
"""Within the limit."""
_HELLO = struct.Struct("<I64s")
"""rank, secret"""
_ACCEPTED = b"\x06"
_BEAT = b"."
_AT_ONCE = 4096


def address_towards(host: str) -> str:
    """This machine's own address as another host sees it; no packet is sent.

    Raises:
        OSError: the host has no address, or no way leads there.
    """
    family, kind, protocol, _, goal = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as sock:
        sock.connect(goal)
        return str(sock.getsockname()[0])


# -- the supervisor's side ----------------------------------------------------------------------------------
@dataclass(slots=True)
class _Peer:
    sock: socket.socket
    heard: float
    rank: int = -1


class Monitor:
    """Listens for the agents; ``fileno`` becomes readable, and ``turn`` is to be called, also when time is up."""

    def __init__(self, address: str, secret: str, ranks: int, limit: float = SECONDS) -> None:
        self.limit = limit
        self._secret = secret.encode()
        self._ranks = ranks
        self._server = socket.create_server((address, 0), family=_family(address))
        self._server.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._peers: dict[socket.socket, _Peer] = {}
        self._period = limit / _BEATS
        self._due = time.monotonic() + self._period
        self.silent: set[int] = set()
        """The ranks that were lost without a word: their machines are, or the way there. Others were only ended."""

    @property
    def name(self) -> str:
        """What an agent connects to: address and port."""
        address, port = self._server.getsockname()[:2]
        return f"{address} {port}"

    def fileno(self) -> int:
        return self._selector.fileno()

    @property
    def due(self) -> float:
        """When ``turn`` must be called again (time.monotonic)."""
        return self._due

    def turn(self) -> list[int]:
        """Take what has come, send what is due. Returns: the ranks that are lost, each once."""
        lost: list[int] = []
        for key, _ in self._selector.select(0):
            if key.fileobj is self._server:
                self._accept()
            elif not self._read(self._peers[key.fileobj]):   # type: ignore[index]
                lost += self._drop(self._peers[key.fileobj])   # type: ignore[index]
        now = time.monotonic()
        if now >= self._due:
            self._due = now + self._period
            for peer in [peer for peer in self._peers.values() if peer.rank >= 0]:
                with suppress(OSError):
                    peer.sock.send(_BEAT, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        for peer in [peer for peer in self._peers.values() if now - peer.heard > self.limit]:
            lost += self._drop(peer)
            self.silent |= {peer.rank} - {-1}
        return lost

    def _accept(self) -> None:
        with suppress(OSError):
            sock, _ = self._server.accept()
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._peers[sock] = _Peer(sock, time.monotonic())
            self._selector.register(sock, selectors.EVENT_READ)

    def _read(self, peer: _Peer) -> bool:
        try:
            data = peer.sock.recv(_HELLO.size if peer.rank < 0 else _AT_ONCE)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if peer.rank < 0 and data and not self._greet(peer, data):
            return False
        peer.heard = time.monotonic()
        return bool(data)

    def _greet(self, peer: _Peer, hello: bytes) -> bool:
        """A stranger is not told what was wrong."""
        if len(hello) != _HELLO.size:
            return False
        rank, secret = _HELLO.unpack(hello)
        known = hmac.compare_digest(secret.rstrip(b"\0"), self._secret)
        if not known or not 0 <= rank < self._ranks or any(other.rank == rank for other in self._peers.values()):
            return False
        peer.rank = rank
        with suppress(OSError):
            peer.sock.send(_ACCEPTED, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return True

    def _drop(self, peer: _Peer) -> list[int]:
        self._selector.unregister(peer.sock)
        del self._peers[peer.sock]
        peer.sock.close()
        return [peer.rank] if peer.rank >= 0 else []

    @property
    def connected(self) -> set[int]:
        """The ranks that live, as far as one knows."""
        return {peer.rank for peer in self._peers.values()} - {-1}

    def dismiss(self) -> set[int]:
        """Have all agents end, and wait until they have; the ranks of those of which nothing is heard any more."""
        for peer in self._peers.values():
            with suppress(OSError):
                peer.sock.shutdown(socket.SHUT_WR)
        while self.connected:
            self._selector.select(self._period)
            self.turn()
        return self.silent

    def close(self) -> None:
        """The end of the connections tells the agents to end."""
        for peer in list(self._peers.values()):
            self._drop(peer)
        self._selector.close()
        self._server.close()


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


# -- an agent's side ----------------------------------------------------------------------------------------
class Pulse:
    """Beats in a thread of its own while the agent is busy, and tells when the supervisor is gone."""

    def __init__(self, name: str, rank: int, secret: str, limit: float, gone: Callable[[], None]) -> None:
        """Connect and start.

        Args:
            name: the monitor's.
            limit: of silence, as the supervisor counts it.
            gone: called once, in the thread, when the supervisor is gone; the agent has to end its pod at once.

        Raises:
            OSError: nobody is there, or the secret is wrong.
        """
        address, port = name.split()
        self._patience = limit * OWN_SHARE
        self._period = limit / _BEATS
        self._gone = gone
        self._sock = socket.create_connection((address, int(port)), timeout=limit)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock.sendall(_HELLO.pack(rank, secret.encode()))
        if self._sock.recv(1) != _ACCEPTED:
            raise ConnectionRefusedError(111, os.strerror(111), "heartbeat")
        self._pods: list[Callable[[], None]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="crhpc-pulse", daemon=True)
        self._thread.start()

    def also(self, beat: Callable[[], None]) -> None:
        """Call something at every beat: a pod's first process wants to know that its agent lives."""
        self._pods.append(beat)

    def stop(self) -> None:
        """The job is over: nobody is to be told of the silence."""
        self._over.set()
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._sock.close()

    def _run(self) -> None:
        self._sock.settimeout(self._period)
        heard = time.monotonic()
        due = heard
        while not self._over.is_set():
            now = time.monotonic()
            if now >= due:
                due = now + self._period
                with suppress(OSError):
                    self._sock.send(_BEAT, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                for beat in self._pods:
                    beat()
            try:
                data = self._sock.recv(_AT_ONCE)
            except TimeoutError:
                data = _BEAT if time.monotonic() - heard < self._patience else b""
            except OSError:
                data = b""
            else:
                heard = time.monotonic()
            if not data:
                break
        if not self._over.is_set():
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            self._gone()
