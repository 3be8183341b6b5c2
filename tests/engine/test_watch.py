"""Calls in progress over many freezes, and over generations: they end when they should, and as they should."""
from __future__ import annotations

import select
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from need import need
from pods import PROGRAMS, Subject, compile_program

from crhpc.image.format import read_manifest

_MOST = 100
"""Far more checkpoints, or generations, than fit into the time that the programs wait."""


@pytest.fixture
def sleeping(tmp_path: Path) -> Iterator[Subject]:
    """Threads that wait for some time in all calls that have one; told to verify when the waits are over."""
    need(shutil.which("gcc"), "there is no C compiler (gcc)")
    subject = Subject([str(compile_program(PROGRAMS / "sleeping.c", tmp_path / "sleeping"))], tmp_path)
    subject.start()
    subject.node.signal(15, group=False)
    yield subject
    subject.close()


def ended(subject: Subject) -> bool:
    """Whether the program has ended, and was content."""
    pod = subject.node.pod
    while pod.events or select.select([pod], [], [], 0.02)[0]:
        event = pod.read_event()
        if event["op"] == "exited":
            assert event["status"] == 0, subject.said()
            return True
    return False


def test_waits_end_however_often_they_are_interrupted(sleeping):
    for _ in range(_MOST):
        if ended(sleeping):
            return
        sleeping.checkpoint()
    pytest.fail("a wait begins anew at every checkpoint")


def test_waits_end_over_generations(sleeping):
    for _ in range(_MOST):
        if ended(sleeping):
            return
        image = sleeping.checkpoint(kill=True)
        if read_manifest(image).job["tasks"] == 0:
            assert "FAIL" not in sleeping.said(), sleeping.said()
            return
        sleeping.restart(image)
    pytest.fail("a wait begins anew at every restart")
