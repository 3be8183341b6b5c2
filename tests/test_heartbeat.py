"""Heartbeats between a supervisor and agents: who is silent is lost, on both sides, and strangers are not heard."""
from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from crhpc.heartbeat import OWN_SHARE, Monitor, Pulse, address_towards

SECRET = "ab" * 32
LIMIT = 1.5


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    monitor = Monitor("127.0.0.1", SECRET, 3, LIMIT)
    yield monitor
    monitor.close()


def turn_until(monitor: Monitor, condition: Callable[[], bool], seconds: float = 10.0) -> list[int]:
    """Turn until a condition holds. Returns: the ranks that were lost meanwhile."""
    lost: list[int] = []
    deadline = time.monotonic() + seconds
    while not condition():
        lost += monitor.turn()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return lost


def turn_for(monitor: Monitor, seconds: float) -> list[int]:
    end = time.monotonic() + seconds
    return turn_until(monitor, lambda: time.monotonic() > end)


class Agent:
    """A pulse in another thread's care, as its constructor waits for the answer."""

    def __init__(self, monitor: Monitor, rank: int, secret: str = SECRET) -> None:
        self.gone = threading.Event()
        self.beats = 0
        self.error: OSError | None = None
        self.pulse: Pulse | None = None
        thread = threading.Thread(target=self._connect, args=(monitor.name, rank, secret))
        thread.start()
        self.lost = turn_until(monitor, lambda: not thread.is_alive())

    def _connect(self, name: str, rank: int, secret: str) -> None:
        try:
            self.pulse = Pulse(name, rank, secret, LIMIT, self.gone.set)
        except OSError as error:
            self.error = error
            return
        self.pulse.also(self._beat)

    def _beat(self) -> None:
        self.beats += 1

    def stop(self) -> None:
        if self.pulse is not None:
            self.pulse.stop()


@pytest.fixture
def agent(monitor: Monitor) -> Iterator[Callable[..., Agent]]:
    agents: list[Agent] = []

    def new(rank: int, secret: str = SECRET) -> Agent:
        agents.append(Agent(monitor, rank, secret))
        return agents[-1]

    yield new
    for found in agents:
        found.stop()


def test_who_beats_is_there(monitor, agent):
    first, second = agent(0), agent(2)
    assert monitor.connected == {0, 2}
    assert turn_for(monitor, 2 * LIMIT) == []
    assert not first.gone.is_set()
    assert not second.gone.is_set()
    assert first.beats >= 2, "what else is to beat does"


def test_an_agent_that_ends_is_lost_at_once(monitor, agent):
    lost = agent(1)
    lost.stop()
    assert turn_until(monitor, lambda: not monitor.connected) == [1]
    assert not lost.gone.is_set(), "it knew"


def test_the_end_of_the_supervisor_is_told(monitor, agent):
    left = agent(0)
    monitor.close()
    assert left.gone.wait(10)


def test_an_agent_leaves_before_it_is_taken_for_lost(monitor, agent):
    """The supervisor falls silent, as behind a broken link: the agent acts first."""
    left = agent(0)
    begun = time.monotonic()
    assert left.gone.wait(10)
    assert time.monotonic() - begun >= LIMIT * OWN_SHARE * 0.9
    assert turn_until(monitor, lambda: not monitor.connected) == [0]


def test_a_silent_agent_is_lost():
    """One that is stopped whole, its heart too."""
    code = ("import sys, time; from crhpc.heartbeat import Pulse\n"
            f"Pulse(sys.argv[1], 1, {SECRET!r}, 60, lambda: None)\nprint('up', flush=True)\ntime.sleep(60)")
    monitor = Monitor("127.0.0.1", SECRET, 2, LIMIT)
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with subprocess.Popen([sys.executable, "-c", code, monitor.name], stdout=subprocess.PIPE,
                          env=os.environ | {"PYTHONPATH": root}) as process:
        try:
            assert process.stdout is not None
            turn_until(monitor, lambda: monitor.connected == {1})
            assert process.stdout.readline() == b"up\n"
            assert turn_for(monitor, 0.5) == []
            process.send_signal(signal.SIGSTOP)
            assert turn_until(monitor, lambda: not monitor.connected) == [1]
        finally:
            process.kill()
            monitor.close()


def test_a_wrong_secret_is_refused(monitor, agent):
    assert agent(0, "cd" * 32).error is not None
    assert monitor.connected == set()


def test_an_impossible_rank_is_refused(monitor, agent):
    assert agent(3).error is not None


def test_a_second_agent_of_a_rank_is_refused(monitor, agent):
    first = agent(1)
    assert agent(1).error is not None
    assert monitor.connected == {1}
    assert not first.gone.is_set()


def test_a_stranger_who_says_nothing_is_let_go(monitor):
    with socket.create_connection(("127.0.0.1", int(monitor.name.split()[1]))) as stranger:
        assert turn_for(monitor, LIMIT + 0.5) == []
        stranger.settimeout(5)
        assert stranger.recv(1) == b""


@pytest.mark.parametrize("words", [b"x", b"GET / HTTP/1.1\r\n\r\n", bytes(68), b"\xff" * 4096])
def test_a_stranger_who_talks_nonsense_is_let_go(monitor, words):
    with socket.create_connection(("127.0.0.1", int(monitor.name.split()[1]))) as stranger:
        stranger.sendall(words)
        stranger.settimeout(0.01)

        def read() -> bool:
            try:
                return stranger.recv(1) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        assert turn_until(monitor, read) == []
        assert monitor.connected == set()


def test_the_own_address_towards_a_host():
    assert address_towards("127.0.0.1") == "127.0.0.1"
    with pytest.raises(OSError):
        address_towards("no.such.host.invalid")
