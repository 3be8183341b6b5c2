"""A pod whose machine has another address after a restart: its sockets move, and old addresses lead there."""
from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from need import need
from pods import PROGRAMS, Subject, compile_program
from taken import listening, taken

from crhpc.kernel import proc

NAME, THERE, BEYOND = "127.0.0.2", "127.0.0.3", "127.0.0.4"
SOCKETS = "/sockets/.*/(local|remote): "


@pytest.fixture
def subject(tmp_path: Path) -> Iterator[Subject]:
    need(shutil.which("gcc"), "there is no C compiler (gcc)")
    made = Subject([str(compile_program(PROGRAMS / "inet_place.c", tmp_path / "inet_place"))], tmp_path)
    made.start()
    yield made
    made.close()


def places(then: str, now: str) -> dict[str, object]:
    """The pod is at another of this machine's addresses, each of which stands for a machine here."""
    return {"addresses": [[NAME, now]], "hosts": {NAME: now}, "moves": {then: now}, "own": [NAME], "others": []}


def hosts(subject: Subject) -> set[str]:
    assert subject.node is not None and subject.node.pod is not None
    return {host for _, (host, _) in listening(proc.descendants(subject.node.pod.pid))}


def test_on_another_machine(subject):
    image = subject.checkpoint(kill=True)
    subject.restart(image, but=SOCKETS, places=places(NAME, THERE))
    assert hosts(subject) == {THERE}
    subject.check()


def test_over_generations(subject):
    image = subject.checkpoint(kill=True)
    subject.restart(image, but=SOCKETS, places=places(NAME, THERE))
    image = subject.checkpoint(kill=True)
    subject.restart(image, but=SOCKETS, places=places(THERE, THERE) | {"moves": {}})
    image = subject.checkpoint(kill=True)
    subject.restart(image, but=SOCKETS, places=places(THERE, BEYOND))
    assert hosts(subject) == {BEYOND}
    subject.checkpoint()
    subject.check()


def test_where_the_port_is_taken_too(subject):
    assert subject.node is not None and subject.node.pod is not None
    names = listening(proc.descendants(subject.node.pod.pid))
    image = subject.checkpoint(kill=True)
    with taken([(family, (THERE, port)) for family, (_, port) in names]):
        subject.restart(image, but=SOCKETS, places=places(NAME, THERE))
        subject.check()


def test_home_again(subject):
    image = subject.checkpoint(kill=True)
    subject.restart(image, but=SOCKETS, places=places(NAME, THERE))
    image = subject.checkpoint(kill=True)
    subject.restart(image, but=SOCKETS, places=places(THERE, NAME) | {"hosts": {}})
    assert hosts(subject) == {NAME}
    subject.check()
