"""Jobs of several ranks in one Python."""
from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from .world import World


@pytest.fixture
def new_world() -> Iterator[Callable[..., World]]:
    """World, ended at the end."""
    made: list[World] = []

    def make(size: int = 1) -> World:
        made.append(World(size))
        return made[-1]
    yield make
    for world in made:
        world.close()


@pytest.fixture(params=[1, 2, 3, 8])
def world(request: pytest.FixtureRequest, new_world: Callable[..., World]) -> World:
    """A job of one rank, and of several."""
    return new_world(request.param)
