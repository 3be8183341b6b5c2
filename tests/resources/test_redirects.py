"""Ports of the job that other programs have taken when it restarts: it comes back, and finds itself."""
from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel.targets import until
from need import need
from pods import PROGRAMS, Subject, compile_program
from taken import Names, taken
from taken import listening as listening_processes

from crhpc.errors import ImageDamaged, PortTaken, Unsupported
from crhpc.kernel import proc, sockdiag, waiting
from crhpc.kernel.libc import NR
from crhpc.resources.redirects import Redirect, RedirectsKind

from .forking import FILTER, forking


@pytest.fixture
def new_subject(tmp_path: Path) -> Iterator[type[Subject]]:
    """A program of tests/programs by its name, in a pod and set up."""
    need(shutil.which("gcc"), "there is no C compiler (gcc)")
    subjects: list[Subject] = []

    def new(name: str) -> Subject:
        place = tmp_path / f"subject{len(subjects)}"
        place.mkdir()
        program = compile_program(PROGRAMS / f"{name}.c", place / name)
        subjects.append(Subject([str(program)], place))
        subjects[-1].start()
        return subjects[-1]

    yield new   # type: ignore[misc]
    for subject in subjects:
        subject.close()


def listening(subject: Subject) -> Names:
    """What the job listens at."""
    assert subject.node is not None and subject.node.pod is not None
    return listening_processes(proc.descendants(subject.node.pod.pid))


def restart(subject: Subject, image: Path) -> None:
    """Nothing but the names of sockets may differ."""
    subject.restart(image, but="/sockets/.*/(local|remote): ")


def test_listeners_move_and_are_found(new_subject):
    subject = new_subject("tcp_late")
    names = listening(subject)
    assert len(names) == 6
    image = subject.checkpoint(kill=True)
    with taken(names):
        restart(subject, image)
        assert {port for _, (_, port) in listening(subject)}.isdisjoint(port for _, (_, port) in names)
        subject.check()
    told = [line for line in subject.warnings if "is in use" in line]
    assert len(told) == 6 and all(str(os.getpid()) in line for line in told)


def test_some_move_and_others_do_not(new_subject):
    subject = new_subject("tcp_late")
    names = listening(subject)
    image = subject.checkpoint(kill=True)
    with taken(names[::2]):
        restart(subject, image)
        kept = {name for _, name in listening(subject)}
        assert {name for _, name in names[1::2]} < kept
        subject.check()


def test_they_go_on_after_checkpoints(new_subject):
    subject = new_subject("tcp_late")
    names = listening(subject)
    image = subject.checkpoint(kill=True)
    with taken(names):
        restart(subject, image)
        for _ in range(2):
            subject.checkpoint()
        subject.check()


def test_what_was_known_stays_known_when_nothing_is_taken_any_more(new_subject):
    subject = new_subject("tcp_late")
    names = listening(subject)
    image = subject.checkpoint(kill=True)
    with taken(names):
        restart(subject, image)
        image = subject.checkpoint(kill=True)
    for _ in range(2):
        subject.restart(image)
        assert listening(subject) != names
        subject.check()


def test_they_move_in_every_generation(new_subject):
    subject = new_subject("tcp_late")
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            names = listening(subject)
            image = subject.checkpoint(kill=True)
            stack.enter_context(taken(names))
            restart(subject, image)
        subject.checkpoint()
        subject.check()


@pytest.mark.parametrize("program", [
    "tcp_listen", "tcp_connecting", "tcp_shared", "tcp_waiting", "tcp_half", "tcp_full",
    "tcp_family", "tcp_reset", "tcp_talk"])
def test_other_programs_whose_ports_are_taken(new_subject, program):
    subject = new_subject(program)
    names = listening(subject)
    image = subject.checkpoint(kill=True)
    with taken(names):
        restart(subject, image)
        image = subject.checkpoint(kill=True)
        restart(subject, image)
        subject.check()


def waits(subject: Subject, state: int) -> None:
    """Let a thread of tcp_late_waiting connect, until its socket is in a state and it waits in the call."""
    (subject.work / "go").touch()
    assert subject.node is not None and subject.node.pod is not None
    (host,) = proc.descendants(subject.node.pod.pid)

    def in_call() -> bool:
        found = [waiting.waiting(host, tid) for tid in proc.threads(host)]
        links = {os.readlink(f"/proc/{host}/fd/{fd}") for fd in proc.fds(host)}
        states = [row.state for row in sockdiag.inet_sockets() if f"socket:[{row.inode}]" in links]
        return any(seen and seen.number == NR["connect"] for seen in found) and (not state or state in states)
    until(in_call, "it does not wait in connect(2)")


def test_a_thread_that_waits_for_its_connection(new_subject):
    subject = new_subject("tcp_late_waiting")
    with contextlib.ExitStack() as stack:
        for generation in range(3):
            names = listening(subject)
            image = subject.checkpoint(kill=True)
            stack.enter_context(taken(names))
            restart(subject, image)
            if generation == 0:
                waits(subject, sockdiag.TCP_SYN_SENT)
            subject.checkpoint()
        subject.check()


def test_a_thread_that_waits_for_us(new_subject):
    subject = new_subject("tcp_late_waiting")
    names = listening(subject)
    image = subject.checkpoint(kill=True)
    with taken(names):
        restart(subject, image)
        subject.node._redirector.pause()
        waits(subject, 0)
        image = subject.checkpoint()   # goes on
        waits(subject, sockdiag.TCP_SYN_SENT)
        subject.kill()
        restart(subject, image)
        subject.check()


_LISTENING = """
listener = socket.create_server(("127.0.0.1", 0))
signal.signal(signal.SIGUSR1, lambda *_: install())
"""


def test_a_filter_of_the_programs_own_is_refused_still(holding):
    subject = holding(forking(FILTER + _LISTENING), "assert signal.getsignal(signal.SIGUSR1)")
    names = listening(subject)
    image = subject.checkpoint(kill=True)
    with taken(names):
        restart(subject, image)
        subject.checkpoint()
        subject.node.signal(10, group=False)
        (host,) = proc.descendants(subject.node.pod.pid)
        until(lambda: proc.status(host).number("Seccomp_filters") == 2, "it installs no filter")
        with pytest.raises(Unsupported, match="a seccomp filter"):
            subject.checkpoint()
        subject.check()


class Rows:
    """As much of a context as the check uses."""

    image = "an image"

    def __init__(self, *rows):
        self._rows = rows

    def rows(self, record):
        return self._rows


def test_what_an_image_says_is_checked():
    check = RedirectsKind().check
    check(Rows(Redirect("0.0.0.0", 5, "0.0.0.0", 6), Redirect("fe80::1%lo", 5, "fe80::1%lo", 6),
               Redirect("10.0.0.1", 0, "10.0.0.2", 0)))
    for wrong in (("", 5, "0.0.0.0", 6), ("0.0.0.0", 5, "host", 6), ("0.0.0.0", 5, "0.0.0.0", 1 << 16),
                  ("0.0.0.0", -5, "0.0.0.0", 6), ("0.0.0.0", 5, "0.0.0.0", 0)):
        with pytest.raises(ImageDamaged, match="moved"):
            check(Rows(Redirect(*wrong)))


def test_a_udp_port_that_is_taken_is_refused(holding):
    """Nobody could tell whose datagrams were meant."""
    subject = holding("sock = socket.socket(type=socket.SOCK_DGRAM)\nsock.bind(('127.0.0.1', 0))\n"
                      "open('port', 'w').write(str(sock.getsockname()[1]))")
    image = subject.checkpoint(kill=True)
    with socket.socket(type=socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", int((subject.work / "port").read_text())))
        with pytest.raises(PortTaken, match=rf"pid {os.getpid()}.*Cure: end that program"):
            subject.restart(image)
    subject.restart(image)
    subject.check()
