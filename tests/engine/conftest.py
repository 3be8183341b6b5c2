"""Pods and jobs for the tests of the engine."""
from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from need import need

from crhpc.engine.pod import PodProcess
from crhpc.errors import NotAllowed

from .inside import Job, Pipes, Program, pod_at, program_in


@pytest.fixture(scope="session")
def pods_are_allowed(tmp_path_factory: pytest.TempPathFactory) -> None:
    why = ""
    try:
        with pod_at(tmp_path_factory.mktemp("pods")):
            pass
    except NotAllowed as error:
        why = str(error)
    need(not why, why)


@pytest.fixture
def pod(tmp_path: Path, pods_are_allowed: None) -> Iterator[PodProcess]:
    """An empty pod."""
    with pod_at(tmp_path) as pod:
        yield pod


@pytest.fixture
def run(pod: PodProcess) -> Iterator[Callable[..., Program]]:
    """``run(code)``: a few lines of Python in the pod."""
    with ExitStack() as stack:
        def start(code: str, **fields: Any) -> Program:
            return stack.enter_context(program_in(pod, code, **fields))
        yield start


@pytest.fixture
def job(tmp_path: Path, pods_are_allowed: None) -> Iterator[Job]:
    """A node without a job."""
    job = Job(tmp_path)
    yield job
    job.end()


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    """Streams for a command."""
    pipes = Pipes()
    yield pipes
    pipes.close()


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[tuple[str, Callable[[], tuple[int, ...]]]]:
    """Eight numbers that programs in pods count up (inside.COUNTING): ``(file, read)``."""
    path = tmp_path / "shared"
    path.write_bytes(bytes(4096))
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 4096) as memory:
        yield str(path), lambda: struct.unpack_from("8Q", memory)
