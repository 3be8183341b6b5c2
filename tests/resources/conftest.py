"""What tests of kinds share: programs that hold something, in pods."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from holding import NewSubject, python_holding
from pods import Subject

from crhpc.errors import Unsupported
from crhpc.resources.context import Pod


@pytest.fixture(autouse=True)
def not_in_tmp(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Files of these tests are not taken for those that come and go in /tmp, where they are."""
    if "in_tmp" not in request.fixturenames:
        monkeypatch.setattr(Pod, "transient", lambda pod, path: False)


@pytest.fixture
def in_tmp() -> None:
    """This test is about just those."""


@pytest.fixture
def holding(tmp_path: Path) -> Iterator[NewSubject]:
    """``holding(setup, check)``: Python in a pod that sets something up, and looks after it in the end."""
    subjects: list[Subject] = []

    def new(setup: str, check: str = "") -> Subject:
        place = tmp_path / f"subject{len(subjects)}"
        place.mkdir()
        subjects.append(Subject(python_holding(setup, check), place))
        subjects[-1].start()
        return subjects[-1]

    yield new
    for subject in subjects:
        subject.close()


@pytest.fixture
def refused(holding: NewSubject) -> Callable[..., Unsupported]:
    """``refused(setup, check)``: no checkpoint is taken of it, it goes on unharmed; the error."""
    def attempt(setup: str, check: str = "") -> Unsupported:
        subject = holding(setup, check)
        with pytest.raises(Unsupported) as caught:
            subject.checkpoint()
        assert str(caught.value).startswith("cannot save ") and "Cure: " in str(caught.value)
        subject.check()
        return caught.value

    return attempt
