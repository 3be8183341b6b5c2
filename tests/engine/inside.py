"""Programs of a few lines of Python in pods, and whole jobs of one such program; both say things over a pipe."""
from __future__ import annotations

import os
import select
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from crhpc.coordinator.endpoints import match
from crhpc.engine.dump import Cutting
from crhpc.engine.freeze import Frozen, freeze, thaw
from crhpc.engine.node import Node
from crhpc.engine.pod import PodProcess
from crhpc.errors import CrhpcError
from crhpc.image.commit import commit
from crhpc.image.format import ShardSummary, image_name, image_numbers, new_temporary, read_manifest
from crhpc.kernel import proc
from crhpc.resources.context import Dump

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30.0

_PRELUDE = """
import ctypes, mmap, os, resource, signal, socket, sys, threading, time
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
def wait():
    line = b""
    while not line.endswith(b"\\n"):
        got = os.read(0, 1)
        if not got:
            os._exit(9)
        line += got
    return line.decode().strip()
def fork(work=lambda: None):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid
def pause():
    while True:
        signal.pause()
def descriptors():
    # All but that of the listing itself.
    return [n for n in sorted(map(int, os.listdir("/proc/self/fd"))) if os.path.exists(f"/proc/self/fd/{n}")]
"""


def until(condition: Any, what: str) -> Any:
    """Wait for something that happens a moment later; its value."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.001)
    return value


def state(host: int) -> str:
    """The letter of ``/proc/PID/stat``; empty once the process is gone."""
    try:
        return Path(f"/proc/{host}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return ""


def untraced(pod: PodProcess) -> bool:
    """Whether nothing of a pod has a tracer; who ends meanwhile has none."""
    for host in proc.descendants(pod.pid):
        with suppress(OSError):
            if any(proc.status(host, tid).number("TracerPid") for tid in proc.threads(host)):
                return False
    return True


def cut(*what: Any) -> Dump:
    """Both steps of a cut (``Cutting``), with no other node to wait for."""
    cutting = Cutting(*what)
    cutting.begin()
    return cutting.finish()


@contextmanager
def frozen(pod: PodProcess) -> Iterator[Frozen]:
    """A pod that stands still, for as long as the block lasts."""
    found = freeze(pod.pid)
    try:
        yield found
    finally:
        thaw(found)


COUNTING = """
file = open({path!r}, "r+b")
numbers = memoryview(mmap.mmap(file.fileno(), 4096)).cast("Q")
def count(number):
    numbers[number] += 1
"""
"""Begin of programs that count in the file of the fixture ``shared``."""


def next_event(pod: PodProcess) -> dict[str, Any]:
    """What happens next in a pod."""
    assert pod.events or select.select([pod], [], [], PATIENCE)[0], "nothing happens"
    event = pod.read_event()
    assert event is not None, "the pod is gone"
    return event


class Pipes:
    """The standard streams of a program, and the other ends."""

    def __init__(self) -> None:
        self._in, self.to = os.pipe()
        self.of, self._out = os.pipe()
        self._rest = b""

    @property
    def stdio(self) -> tuple[int, int, int]:
        return self._in, self._out, 2

    def hear(self) -> str:
        """The next line that the program says."""
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self.of], [], [], PATIENCE)
            assert ready, f"it says nothing more than {self._rest!r}"
            self._rest += os.read(self.of, 4096)
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode("utf-8", "surrogateescape")

    def numbers(self) -> list[int]:
        """The next line, as numbers."""
        return [int(word, 0) for word in self.hear().split()]

    def numbers_of(self, word: str) -> int:
        """The number that the next line says of a word."""
        name, number = self.hear().split()
        assert name == word
        return int(number)

    def silent(self) -> bool:
        """Whether nothing has been said that was not heard."""
        return not self._rest and not select.select([self.of], [], [], 0)[0]

    def tell(self, text: str = "") -> None:
        """Let the program go on from a ``wait()``."""
        os.write(self.to, text.encode() + b"\n")

    def close(self) -> None:
        for fd in (self._in, self.to, self.of, self._out):
            with suppress(OSError):
                os.close(fd)


def python(code: str) -> list[str]:
    """The command of a few lines of Python, with ``say``, ``wait``, ``fork`` and ``pause`` at hand."""
    return [sys.executable, "-S", "-c", _PRELUDE + textwrap.dedent(code)]


def command(argv: list[str], **fields: Any) -> dict[str, Any]:
    """What the supervisor tells of a command."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("TMPDIR", None)
    return {"argv": argv, "env": environment, "cwd": "/", "umask": 0o022, "ignored": [], "cpus": None, **fields}


class Program(Pipes):
    """A program in a pod of its own."""

    def __init__(self, pod: PodProcess, argv: list[str], **fields: Any) -> None:
        super().__init__()
        self.pod = pod
        self.pid, self.host = pod.start(command(argv, **fields), self.stdio)

    def ended(self) -> int:
        """Its wait status, once it has ended."""
        while True:
            event = next_event(self.pod)
            if event["op"] == "exited" and event["pid"] == self.pid:
                return int(event["status"])


@contextmanager
def pod_at(place: Path, **options: Any) -> Iterator[PodProcess]:
    """A pod for as long as the block lasts."""
    pod = PodProcess(str(place / f"crhpc-{uuid.uuid4().hex[:8]}"), **{"hostname": "inside", **options})
    try:
        yield pod
    finally:
        pod.end()


@contextmanager
def program_in(pod: PodProcess, code: str, **fields: Any) -> Iterator[Program]:
    """A few lines of Python in a pod, which ends them."""
    program = Program(pod, python(code), **fields)
    try:
        yield program
    finally:
        program.close()


class Job(Pipes):
    """One node with a job of a few lines of Python, through the engine's own door."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        self.images = place / "images"
        self.images.mkdir(mode=0o700)
        self.temporary = str(place / f"crhpc-{uuid.uuid4().hex[:8]}")
        self.warnings: list[str] = []
        self.node = self.new_node()

    def new_node(self) -> Node:
        return Node(0, memory=16 << 20, level=1, warn=self.warnings.append)

    def start(self, code: str, **fields: Any) -> dict[str, int]:
        return self.node.start(command(python(code), **fields), self.stdio, self.temporary)

    def new_image(self) -> Path:
        """The temporary directory of the next image."""
        return new_temporary(self.images, max(image_numbers(self.images), default=0) + 1)

    def checkpoint(self, *, stop: bool = False) -> Path:
        """An image; with ``stop`` the job does not go on."""
        temporary = self.new_image()
        self.node.precopy(str(temporary))
        tasks = self.node.freeze()
        ends = self.node.cut()
        described = self.node.describe()
        if not stop:
            self.node.thaw()
        summary = ShardSummary.from_json(self.node.write())
        if stop:
            self.node.end()
        number = max(image_numbers(self.images), default=0) + 1
        connections, outside = match({0: ends})
        assert not outside
        return commit(temporary, self.images / image_name(number), number=number, shards=[summary], stats={},
                      job={"id": "test", "tasks": tasks, "pods": {"0": described}}, connections=connections)

    def described(self, image: Path) -> dict[str, Any]:
        found: dict[str, Any] = read_manifest(image).job["pods"]["0"]
        return found

    def restart(self, image: Path, **changes: Any) -> dict[str, int]:
        """A new node from an image; ``changes`` are to what the image says of its pod."""
        described = self.described(image) | changes
        self.node = self.new_node()
        self.node.build(str(image), described, self.stdio)
        self.node.connect()
        self.node.finish()
        return self.node.release(described["last_pid"])

    def ended(self) -> int:
        """The wait status of the job's first process, once it has ended; the node knows then too."""
        while True:
            assert self.node.pod is not None
            event = next_event(self.node.pod)
            if event["op"] == "exited" and event["pid"] == self.node.root:
                self.node.root_status = int(event["status"])
                return self.node.root_status

    def end(self) -> None:
        self.node.end()
        self.close()


TALKING = """
say("ready", os.getpid())
while True:
    word = wait()
    say("heard", word)
    if word == "end":
        os._exit(int(wait()))
"""


def ready(job: Job, code: str = TALKING, **fields: Any) -> dict[str, int]:
    """Start a job, up to where it says something."""
    told = job.start(code, **fields)
    job.hear()
    return told


def goes_on(job: Job) -> bool:
    """Whether a job that talks runs, and nobody holds it."""
    job.tell("x")
    traced = [task for task in job.node.tasks() if proc.status(task["host_pid"]).number("TracerPid")]
    return job.hear() == "heard x" and not traced


def hosts(job: Job) -> list[int]:
    """Every process of a job's pod."""
    assert job.node.pod is not None
    return [job.node.pod.pid, *proc.descendants(job.node.pod.pid)]


def gone(*found: int) -> bool:
    """Whether no process has one of these ids."""
    return not any(state(host) for host in found)


def one_line(error: CrhpcError) -> bool:
    """Whether an error is told as users want it: in one line, with a cure."""
    return "\n" not in str(error) and "Cure: " in str(error)
