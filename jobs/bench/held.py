"""A pod whose processes hold memory, checkpointed and restarted through the engine's own door, with times.

The memory is what numerical programs have: doubles of which half the mantissa is random, and a third of all pages
zero, in runs of 16. Run as a program it is such a process: ``python held.py BYTES [PROCESSES] [--huge]``.
"""
from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

PAGE = 4096
RUN = 16
"""Pages of one kind in a row."""

Pages = np.ndarray[Any, np.dtype[np.uint8]]


def fill(memory: Pages, seed: int) -> None:
    """Two runs of doubles, one of zeros, and so on."""
    rng = np.random.default_rng(seed)
    runs = memory.view(np.uint64).reshape(-1, RUN * PAGE // 8)
    for i in range(len(runs)):
        if i % 3 == 2:
            runs[i] = 0
        else:
            runs[i] = rng.random(runs.shape[1]).view(np.uint64) & ~np.uint64((1 << 26) - 1)


def fresh(size: int, *, huge: bool) -> Pages:
    """Memory that nothing has touched yet."""
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(area, np.uint8)


def hold(size: int, processes: int, *, huge: bool) -> None:
    """Be the program: fill the memory, say so, and wait for ever."""
    others = []
    for _ in range(processes - 1):
        pid = os.fork()
        if pid == 0:
            others = []
            break
        others.append(pid)
    memory = fresh(size, huge=huge)
    fill(memory, os.getpid())
    os.write(1, b"ready\n")
    while True:
        time.sleep(3600)


@dataclass(slots=True)
class Times:
    """Seconds of one checkpoint or restart, whole and by step."""

    whole: float
    steps: dict[str, float] = field(default_factory=dict)


class Held:
    """A pod, and a directory for its images."""

    def __init__(self, size: int, processes: int, place: Path, *, memory: int, huge: bool) -> None:
        from crhpc.engine.node import Node
        from crhpc.image.format import LEVEL

        self.place = place
        self._node = lambda: Node(0, memory=memory, level=LEVEL, warn=lambda text: print(text, file=sys.stderr))
        self.node = self._node()
        self._out = os.open(place / "out", os.O_RDWR | os.O_CREAT, 0o600)
        self._stdio = (os.open(os.devnull, os.O_RDONLY), self._out, 2)
        argv = [sys.executable, __file__, str(size), str(processes), *["--huge"] * huge]
        command = {"argv": argv, "env": dict(os.environ), "cwd": "/", "umask": 0o022}
        self.node.start(command, self._stdio, f"/tmp/crhpc-t{uuid.uuid4().hex[:8]}")
        while (place / "out").read_bytes().count(b"ready") < processes:
            time.sleep(0.05)
        self.image = place / "none"

    def checkpoint(self) -> tuple[Times, float]:
        """Take one, leave the pod running; its times, and how long it stood still."""
        from crhpc.image.commit import commit
        from crhpc.image.format import ShardSummary, image_name, image_numbers, new_temporary

        number = max(image_numbers(self.place), default=0) + 1
        start = time.monotonic()
        temporary = new_temporary(self.place, number)
        self.node.precopy(str(temporary))
        tasks = self.node.freeze()
        self.node.cut()
        described = self.node.describe()
        frozen = self.node.thaw()
        summary = ShardSummary.from_json(self.node.write())
        self.image = commit(temporary, self.place / image_name(number), number=number, shards=[summary], stats={},
                            job={"id": "bench", "tasks": tasks, "pods": {"0": described}})
        return Times(time.monotonic() - start, dict(self.node.steps.seconds)), frozen

    def restart(self) -> Times:
        """End the pod and rebuild it from its last image, up to the release."""
        from crhpc.image.format import read_manifest

        self.node.end()
        start = time.monotonic()
        described = read_manifest(self.image).job["pods"]["0"]
        self.node = self._node()
        self.node.build(str(self.image), described, self._stdio)
        self.node.connect()
        steps = dict(self.node.steps.seconds)
        self.node.release(described["last_pid"])
        return Times(time.monotonic() - start, steps)

    def stored_pages(self) -> int:
        """Pages of memory that are in the image, zero ones not counted."""
        from crhpc.image.reader import Image

        with Image(self.image) as image:
            return sum(object.rows for object in image.nodes[0].objects())

    def forget_image(self) -> None:
        from crhpc.image.format import remove_image

        remove_image(self.image)

    def close(self) -> None:
        self.node.end()
        for fd in self._stdio[:2]:
            os.close(fd)


@contextlib.contextmanager
def held(size: int, processes: int, directory: str, *, memory: int, huge: bool) -> Iterator[Held]:
    """Such a pod in a directory of its own; nothing of either is left."""
    place = Path(tempfile.mkdtemp(prefix="crhpc-bench-", dir=directory))
    try:
        pod = Held(size, processes, place, memory=memory, huge=huge)
        try:
            yield pod
        finally:
            pod.close()
    finally:
        shutil.rmtree(place)


def best(times: int, work: Callable[[], Times]) -> Times:
    """The quickest of so many."""
    return min((work() for _ in range(times)), key=lambda taken: taken.whole)


if __name__ == "__main__":
    hold(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1, huge="--huge" in sys.argv)
