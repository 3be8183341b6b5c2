"""Calls of another process that are led elsewhere: a child of ours connects and binds when told to."""
from __future__ import annotations

import errno
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from kernel.targets import Target, scratch, stopped, target, until

from crhpc.engine.redirect import Redirector
from crhpc.kernel import pidfd, seccomp, waiting
from crhpc.kernel.libc import NR
from crhpc.resources.moved import ANY, Redirects
from crhpc.resources.redirects import CALLS

_CALLER = """
libc = ctypes.CDLL(None, use_errno=True)
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.siginterrupt(signal.SIGUSR1, False)
signal.signal(signal.SIGUSR2, lambda *_: None)
def call(name, host, port):
    raw = socket.AF_INET.to_bytes(2, 'little') + int(port).to_bytes(2, 'big') + socket.inet_aton(host) + bytes(8)
    return ctypes.get_errno() if getattr(libc, name)(sock.fileno(), raw, 16) else 0
say('ready')
while True:
    name, *words = wait().split()
    if name == 'socket':
        sock = socket.socket(socket.AF_INET, int(words[0]))
        say(sock.fileno())
    elif name == 'names':
        peer = sock.getpeername() if words else ('', 0)
        say(*sock.getsockname(), *peer)
    elif name == 'error':
        say(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
    else:
        say(call(name, *words))
"""


@contextmanager
def redirected(redirects: Redirects) -> Iterator[tuple[Target, Redirector]]:
    with target(_CALLER) as subject:
        subject.hear()
        with stopped(subject.pid) as tracee, scratch(tracee) as area:
            tracee.call("prctl", 38, 1, 0, 0, 0)   # PR_SET_NO_NEW_PRIVS, instead of CAP_SYS_ADMIN
            number = seccomp.install(area, CALLS)
            listener = pidfd.take_fd(subject.pid, number)
            tracee.call("close", number)
        redirector = Redirector(redirects, [listener])
        redirector.start()
        try:
            yield subject, redirector
        finally:
            subject.end()
            redirector.stop()


@pytest.fixture
def goal() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        yield sock


def fresh_port() -> int:
    """One that nobody has."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def leading_to(goal: socket.socket) -> tuple[Redirects, int]:
    port, redirects = fresh_port(), Redirects()
    redirects.move(("127.0.0.1", port), goal.getsockname())
    return redirects, port


def tell(subject: Target, *words: object) -> None:
    subject.tell(" ".join(map(str, words)))


def asked(subject: Target, *words: object) -> int:
    tell(subject, *words)
    return subject.numbers()[0]


def await_call(subject: Target, name: str) -> None:
    def in_call() -> bool:
        seen = waiting.waiting(subject.pid, subject.pid)
        return seen is not None and seen.number == NR[name]
    until(in_call, f"it does not wait in {name}")


def test_a_connection(goal):
    redirects, port = leading_to(goal)
    with redirected(redirects) as (subject, _):
        tell(subject, "socket", int(socket.SOCK_STREAM))
        subject.hear()
        assert asked(subject, "connect", "127.0.0.1", port) == 0
        assert asked(subject, "connect", "127.0.0.1", port) == errno.EISCONN
        tell(subject, "names", "too")
        assert subject.hear().split()[3] == str(goal.getsockname()[1])
        goal.accept()[0].close()


def test_one_that_does_not_wait(goal):
    redirects, port = leading_to(goal)
    with redirected(redirects) as (subject, _):
        tell(subject, "socket", int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        subject.hear()
        assert asked(subject, "connect", "127.0.0.1", port) == errno.EINPROGRESS
        goal.accept()[0].close()
        assert asked(subject, "error") == 0


def test_nobody_is_there(goal):
    redirects, port = leading_to(goal)
    goal.close()
    with redirected(redirects) as (subject, _):
        for kind, code in ((socket.SOCK_STREAM, errno.ECONNREFUSED),
                           (socket.SOCK_STREAM | socket.SOCK_NONBLOCK, errno.EINPROGRESS)):
            tell(subject, "socket", int(kind))
            subject.hear()
            assert asked(subject, "connect", "127.0.0.1", port) == code
        assert asked(subject, "error") == errno.ECONNREFUSED


@pytest.mark.parametrize(("number", "result"), [(signal.SIGUSR1, 0), (signal.SIGUSR2, errno.EINTR)])
def test_a_signal_while_it_waits_for_us(goal, number, result):
    redirects, port = leading_to(goal)
    with redirected(redirects) as (subject, redirector):
        tell(subject, "socket", int(socket.SOCK_STREAM))
        subject.hear()
        redirector.pause()
        redirector.pause()
        tell(subject, "connect", "127.0.0.1", port)
        await_call(subject, "connect")
        os.kill(subject.pid, number)
        if result:   # else it waits again
            assert subject.numbers() == [result]
        redirector.resume()
        if result:
            tell(subject, "connect", "127.0.0.1", port)
        assert subject.numbers() == [0]


@pytest.mark.parametrize(("number", "result"), [(signal.SIGUSR1, 0), (signal.SIGUSR2, errno.EINTR)])
def test_a_signal_while_it_waits_for_the_connection(goal, number, result):
    redirects, port = leading_to(goal)
    with redirected(redirects) as (subject, _), socket.create_connection(goal.getsockname()):
        tell(subject, "socket", int(socket.SOCK_STREAM))
        subject.hear()
        tell(subject, "connect", "127.0.0.1", port)   # the backlog is full: nobody answers
        await_call(subject, "connect")
        time.sleep(0.05)   # either wait may be interrupted
        os.kill(subject.pid, number)
        if result:
            assert subject.numbers() == [result]
        goal.accept()[0].close()
        if result:
            tell(subject, "connect", "127.0.0.1", port)
        assert subject.numbers() == [0]


@pytest.mark.parametrize(("kind", "result"), [
    (socket.SOCK_STREAM, 0), (socket.SOCK_STREAM | socket.SOCK_NONBLOCK, errno.EINPROGRESS)])
def test_a_signal_just_before_the_answer(goal, monkeypatch, kind, result):
    """The call is made again, and comes to what it has come to."""
    redirects, port = leading_to(goal)
    answer, delivered = seccomp.answer, []

    def late(listener: int, call: seccomp.Notification, error: int) -> bool:
        if not delivered:
            os.kill(call.tid, signal.SIGUSR1)
            until(lambda: not seccomp.still_waits(listener, call), "the signal does not interrupt it")
        delivered.append(answer(listener, call, error))
        return delivered[-1]
    monkeypatch.setattr(seccomp, "answer", late)
    with redirected(redirects) as (subject, _):
        tell(subject, "socket", int(kind))
        subject.hear()
        assert asked(subject, "connect", "127.0.0.1", port) == result
        until(lambda: len(delivered) == 2, "it is not answered again")
        assert delivered == [False, True]
        goal.accept()[0].close()


def test_a_port_that_is_bound_anew_is_the_jobs_own(goal):
    redirects, port = leading_to(goal)
    redirects.move((ANY, port), (ANY, goal.getsockname()[1]))
    with redirected(redirects) as (subject, _):
        tell(subject, "socket", int(socket.SOCK_STREAM))
        subject.hear()
        assert asked(subject, "bind", "127.0.0.1", 0) == 0
        assert redirects.has_port(port)
        tell(subject, "socket", int(socket.SOCK_STREAM))
        subject.hear()
        assert asked(subject, "bind", "127.0.0.1", port) == 0
        assert not redirects
        tell(subject, "names")
        assert subject.hear().split()[1] == str(port)
        tell(subject, "socket", int(socket.SOCK_STREAM))   # and the other one is closed
        subject.hear()
        assert asked(subject, "connect", "127.0.0.1", port) == errno.ECONNREFUSED


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_machines_that_have_other_addresses(kind):
    redirects = Redirects(hosts={"127.0.0.5": "127.0.0.1"})
    with redirected(redirects) as (subject, _), socket.socket(type=kind) as there:
        there.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            there.listen()
        tell(subject, "socket", int(kind))
        subject.hear()
        assert asked(subject, "bind", "127.0.0.5", 0) == 0
        assert asked(subject, "connect", "127.0.0.5", there.getsockname()[1]) == 0
        tell(subject, "names", "too")
        words = subject.hear().split()
        assert (words[0], words[2], words[3]) == ("127.0.0.1", "127.0.0.1", str(there.getsockname()[1]))
