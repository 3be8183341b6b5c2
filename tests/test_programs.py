"""Every program of tests/programs, in every way that a checkpoint and a restart can happen to it.

Where root and a plain user run at the same time, both see that each program goes on and comes back; of the other ways
each does every second one, with every other program the other half.
"""
from __future__ import annotations

import os
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


SHARE = os.environ.get("CRHPC_TEST_SHARE")
BY_BOTH = ("test_goes_on_after_checkpoints", "test_comes_back")
SHARED = ("test_is_right_by_itself", "test_comes_back_after_it_went_on", "test_comes_back_twice_from_one_image",
          "test_three_generations")


def does_the_other(test: str, program: str) -> bool:
    """Whether the other user does this one, at the same time."""
    if SHARE is None or test in BY_BOTH:
        return False
    names = [source.stem for source in sources()]
    return (names.index(program) + SHARED.index(test)) % 2 == (SHARE == "root")


@pytest.fixture
def subject(request: pytest.FixtureRequest, program: Path, tmp_path: Path) -> Iterator[Subject]:
    if does_the_other(request.node.originalname, program.stem):
        pytest.skip("the other user does it, at the same time")
    subject = Subject([str(program)], tmp_path)
    yield subject
    subject.close()


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


def test_comes_back_after_it_went_on(subject: Subject) -> None:
    """Killed a while after the checkpoint: what it did meanwhile is undone."""
    subject.start()
    image = subject.checkpoint()
    subject.kill()
    subject.restart(image)
    subject.check()


def test_comes_back_twice_from_one_image(subject: Subject) -> None:
    subject.start()
    image = subject.checkpoint(kill=True)
    for _ in range(2):
        subject.restart(image)
        subject.check()


def test_three_generations(subject: Subject) -> None:
    subject.start()
    for _ in range(3):
        image = subject.checkpoint(kill=True)
        subject.restart(image)
    subject.checkpoint()
    subject.check()
