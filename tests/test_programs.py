"""Every program of tests/programs, in every way that a checkpoint and a restart can happen to it.

Where root and a plain user run at the same time, both see that each program goes on and comes back, and share the other
ways.
"""
from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from need import filters_are_allowed, need, offered
from pods import Subject, compile_program, sources


@pytest.fixture(scope="module", params=sources(), ids=lambda source: source.stem)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    need(shutil.which("gcc"), "there is no C compiler (gcc)")
    source: Path = request.param
    if source.stem in ("tcp_filter", "tcp_self"):
        offered(filters_are_allowed(), "plain users get no filters for sockets at the moment")
    return compile_program(source, tmp_path_factory.mktemp("programs") / source.stem)


@pytest.fixture
def subject(program: Path, tmp_path: Path) -> Iterator[Subject]:
    subject = Subject([str(program)], tmp_path)
    yield subject
    subject.close()


@pytest.mark.shared
def test_is_right_by_itself(subject: Subject) -> None:
    subject.run_plainly()


def test_goes_on_after_checkpoints(subject: Subject) -> None:
    subject.start()
    subject.checkpoint()
    subject.checkpoint()
    subject.check()


def test_comes_back(subject: Subject) -> None:
    subject.start()
    image = subject.checkpoint(kill=True)
    subject.restart(image)
    subject.check()


@pytest.mark.shared
def test_comes_back_after_it_went_on(subject: Subject) -> None:
    """Killed a while after the checkpoint: what it did meanwhile is undone."""
    subject.start()
    image = subject.checkpoint()
    subject.kill()
    subject.restart(image)
    subject.check()


@pytest.mark.shared
def test_comes_back_twice_from_one_image(subject: Subject) -> None:
    subject.start()
    image = subject.checkpoint(kill=True)
    for _ in range(2):
        subject.restart(image)
        subject.check()


@pytest.mark.shared
def test_three_generations(subject: Subject) -> None:
    subject.start()
    for _ in range(3):
        image = subject.checkpoint(kill=True)
        subject.restart(image)
    subject.checkpoint()
    subject.check()
