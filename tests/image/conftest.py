"""What the tests of the image share: skipping with a reason, and one small image."""

from __future__ import annotations

from pathlib import Path

import pytest
from need import need

from .samples import write_sample

__all__ = ["need"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A small committed image of two nodes with everything in it; the test may change it."""
    return write_sample(tmp_path, 12)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, not to be changed."""
    return write_sample(tmp_path_factory.mktemp("whole"), 12)
