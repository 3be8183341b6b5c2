"""A pod whose processes hold memory, checkpointed and restarted through the engine's own door, with times.

Run as a program it is such a process: ``python held.py BYTES PROCESSES KIND [--huge]``. Kinds of what it holds:
doubles (as numerical programs have: half the mantissa is random, and a third of all pages zero, in runs of 16), text
(small whole numbers), noise (can't be compressed), zeros (pages that were written, with nothing), mappings (doubles in
thousands of small mappings), threads (doubles, and 500 threads), files (doubles, and 2000 descriptors).
"""
from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

# What is compiled once is kept, as it is where crhpc has been installed.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
MIB = 1 << 20
PAGE = 4096
RUN = 16
"""Pages of one kind in a row."""
_THREADS, _FILES, _SMALL = 500, 2000, 16 * PAGE
KINDS = ("doubles", "text", "noise", "zeros", "mappings", "threads", "files")

Pages = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, slots=True)
class Case:
    """What is held: MIB[xPROCESSES][:KIND] on a command line."""

    size: int
    processes: int
    kind: str

    @classmethod
    def parse(cls, text: str) -> Case:
        """From the command line.

        Raises:
            ValueError: it is none.
        """
        sizes, _, kind = text.partition(":")
        size, _, processes = sizes.partition("x")
        if (kind or KINDS[0]) not in KINDS:
            raise ValueError(text)
        return cls(int(size) * MIB, int(processes or 1), kind or KINDS[0])

    def words(self) -> list[str]:
        """For this file as a program."""
        return [str(self.size), str(self.processes), self.kind]

    def __str__(self) -> str:
        several = f"x{self.processes}" if self.processes > 1 else ""
        return f"{self.size // MIB}{several}:{self.kind}"


CASES = [Case.parse(text) for text in (
    "64", "512", "2048", "256x4", "512:text", "512:noise", "512:zeros", "256:mappings", "64:threads", "64:files")]


def options(about: str | None) -> argparse.Namespace:
    """What a benchmark of cases is told on its command line."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("cases", nargs="*", type=Case.parse, default=CASES)
    parser.add_argument("--dir", default="/dev/shm")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--memory", type=int, default=256, help="MiB, as of crhpc run")
    parser.add_argument("--huge", action="store_true", help="the memory is of transparent huge pages")
    return parser.parse_args()


def fill(memory: Pages, seed: int, kind: str) -> None:
    """Give memory its contents."""
    rng = np.random.default_rng(seed)
    runs = memory.view(np.uint64).reshape(-1, min(RUN * PAGE, len(memory)) // 8)
    for i in range(len(runs)):
        if kind == "zeros":
            runs[i] = 0
        elif kind == "text":
            runs[i] = rng.integers(0, 1000, runs.shape[1])
        elif kind == "noise":
            runs[i] = rng.integers(0, 1 << 64, runs.shape[1], dtype=np.uint64)
        elif i % 3 == 2:
            runs[i] = 0
        else:
            runs[i] = rng.random(runs.shape[1]).view(np.uint64) & ~np.uint64((1 << 26) - 1)


def fresh(size: int, *, huge: bool) -> Pages:
    """Memory that nothing has touched yet."""
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(area, np.uint8)


def hold(case: Case, *, huge: bool) -> None:
    """Be the program: fill the memory, say so, and wait for ever."""
    for _ in range(case.processes - 1):
        if os.fork() == 0:
            break
    kept: list[object] = []
    if case.kind == "mappings":
        for i in range(case.size // _SMALL):   # neighbours of different protection don't become one
            extra = mmap.PROT_EXEC if i % 2 else 0
            kept.append(mmap.mmap(-1, _SMALL, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
                                  mmap.PROT_READ | mmap.PROT_WRITE | extra))
            fill(np.frombuffer(kept[-1], np.uint8), os.getpid() + i, case.kind)   # type: ignore[call-overload]
    else:
        memory = fresh(case.size, huge=huge)
        fill(memory, os.getpid(), case.kind)
    if case.kind == "files":
        for _ in range(_FILES // 4):
            kept += [os.open("/usr/bin/env", os.O_RDONLY), os.eventfd(1), *os.pipe()]
    if case.kind == "threads":
        for _ in range(_THREADS):
            threading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()
    os.write(1, b"ready\n")
    while True:
        time.sleep(3600)


@dataclass(slots=True, order=True)
class Times:
    """Seconds of one piece of work: on the clock, of this process's cores, and of each step."""

    whole: float
    cpu: float
    steps: dict[str, float] = field(default_factory=dict, compare=False)

    @classmethod
    def now(cls) -> Times:
        """The moment of the start."""
        return cls(time.monotonic(), time.process_time())

    def until_now(self, steps: Mapping[str, float]) -> Times:
        """What it took since the start."""
        return Times(time.monotonic() - self.whole, time.process_time() - self.cpu, dict(steps))

    def long_steps(self) -> str:
        """Those above 5 ms, in milliseconds."""
        return ", ".join(f"{name} {seconds * 1e3:.0f}" for name, seconds in self.steps.items() if seconds > 0.005)


class Held:
    """A pod with a command, and a directory for its images."""

    def __init__(self, argv: Sequence[str], place: Path, *, memory: int,
                 environment: Mapping[str, str] | None = None) -> None:
        from crhpc.engine.node import Node
        from crhpc.image.format import LEVEL

        self.place = place
        self._node = lambda: Node(0, memory=memory, level=LEVEL, warn=lambda text: print(text, file=sys.stderr))
        self.node = self._node()
        self.out = place / "out"
        self._out = os.open(self.out, os.O_RDWR | os.O_CREAT, 0o600)
        self._stdio = (os.open(os.devnull, os.O_RDONLY), self._out, 2)
        command = {"argv": list(argv), "env": {**os.environ, **(environment or {})}, "cwd": "/", "umask": 0o022}
        self.node.start(command, self._stdio, f"/tmp/crhpc-t{uuid.uuid4().hex[:8]}")
        self.image = place / "none"

    def checkpoint(self) -> tuple[Times, float]:
        """Take one, leave the pod running; its times, and how long it stood still."""
        from crhpc.image.commit import commit
        from crhpc.image.format import ShardSummary, image_name, image_numbers, new_temporary

        number = max(image_numbers(self.place), default=0) + 1
        start = Times.now()
        temporary = new_temporary(self.place, number)
        self.node.precopy(str(temporary))
        tasks = self.node.freeze()
        self.node.cut()
        described = self.node.describe()
        frozen = self.node.thaw()
        summary = ShardSummary.from_json(self.node.write())
        self.image = commit(temporary, self.place / image_name(number), number=number, shards=[summary], stats={},
                            job={"id": "bench", "tasks": tasks, "pods": {"0": described}})
        return start.until_now(self.node.steps.seconds), frozen

    def restart(self) -> Times:
        """End the pod and rebuild it from its last image, up to the release."""
        from crhpc.image.format import read_manifest

        self.node.end()
        start = Times.now()
        described = read_manifest(self.image).job["pods"]["0"]
        self.node = self._node()
        self.node.build(str(self.image), described, self._stdio)
        self.node.connect()
        steps = dict(self.node.steps.seconds)
        self.node.release(described["last_pid"])
        return start.until_now(steps)

    def stored(self) -> Pages:
        """The contents of all pages that are in the image, zero ones left out."""
        return stored_in(self.image)

    def forget_image(self) -> None:
        from crhpc.image.format import remove_image

        remove_image(self.image)

    def close(self) -> None:
        self.node.end()
        for fd in self._stdio[:2]:
            os.close(fd)


def stored_in(path: Path) -> Pages:
    """The contents of all pages that are in an image, zero ones left out."""
    from crhpc.image.reader import Image

    with Image(path) as image:
        found = fresh(max(sum(node.summary.rows for node in image.nodes), 1) * PAGE, huge=True)
        done = 0
        for node in image.nodes:
            for i, rows in enumerate(node.chunks()["rows"].tolist()):
                found[done:done + rows * PAGE] = np.frombuffer(node.chunk(i), np.uint8)[:rows * PAGE]
                done += rows * PAGE
        return found[:done]


def settled(pod: Held, condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until the command is as far as it has to be."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the command has said: {pod.out.read_text()}")
        time.sleep(0.05)


@contextlib.contextmanager
def held(case: Case, directory: str, *, memory: int, huge: bool) -> Iterator[Held]:
    """A pod of programs that hold memory, in a directory of its own; nothing of either is left."""
    place = Path(tempfile.mkdtemp(prefix="crhpc-bench-", dir=directory))
    try:
        pod = Held([sys.executable, __file__, *case.words(), *["--huge"] * huge], place, memory=memory)
        try:
            settled(pod, lambda: pod.out.read_bytes().count(b"ready") >= case.processes)
            yield pod
        finally:
            pod.close()
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    hold(Case(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]), huge="--huge" in sys.argv)
