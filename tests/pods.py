"""Test programs in pods: started, checkpointed, killed and restarted through the engine's own door.

A program says "ready" on its standard output when it is set up and verifies its own state at SIGTERM; its
exit code says whether all was as it should be (tests/programs/program.h).
"""
from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

from observer import Seen, differences, observe

from crhpc.coordinator.endpoints import match
from crhpc.engine.node import Node
from crhpc.filepolicy import FilePolicy
from crhpc.image.commit import commit
from crhpc.image.format import ShardSummary, image_name, image_numbers, new_temporary, read_manifest
from crhpc.kernel import directories

PROGRAMS = Path(__file__).resolve().parent / "programs"
PATIENCE = 30.0


def sources() -> list[Path]:
    """The test programs, by name."""
    return sorted(PROGRAMS.glob("*.c"))


def compile_program(source: Path, target: Path) -> Path:
    """Build one with the system's compiler; a comment ``/* LDFLAGS: ... */`` in its head adds to the command."""
    head = source.read_text(encoding="utf-8")[:400]
    extra = head.split("LDFLAGS:")[1].split("*/")[0].split() if "LDFLAGS:" in head else []
    subprocess.run(["gcc", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", str(target), str(source),
                    *extra], check=True)
    return target


class Subject:
    """One program in a pod of its own, with a directory for its files and one for its images."""

    def __init__(self, argv: list[str], place: Path) -> None:
        self.argv = argv
        self.work = place / "work"
        self.images = place / "images"
        self.out = place / "out"
        for directory in (self.work, self.images):
            directory.mkdir(mode=0o700)
        self.warnings: list[str] = []
        self.seen: dict[Path, Seen] = {}
        """What an observer saw of the pod at each checkpoint."""
        self.node: Node | None = None
        out = os.open(self.out, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self._stdio = (os.open(os.devnull, os.O_RDONLY), out, 2)

    # -- its life ---------------------------------------------------------------------------------
    def run_plainly(self) -> None:
        """Without crhpc: the program itself must be right."""
        process = subprocess.Popen(self.argv, cwd=self.work, stdin=self._stdio[0], stdout=self._stdio[1],
                                   env=self._environment() | {"TMPDIR": str(self.work)})
        try:
            self.await_ready()
            process.terminate()
            assert process.wait(PATIENCE) == 0, self.said()
        finally:
            process.kill()
            process.wait()
            for left in Path("/dev/shm").glob(f"{Path(self.argv[0]).name}-*"):   # in a pod it goes with the pod's own
                directories.remove(str(left))

    def start(self) -> None:
        """In a pod, up to where it is set up."""
        self.node = Node(0, memory=64 << 20, level=1, warn=self.warnings.append)
        command = {"argv": self.argv, "env": self._environment(), "cwd": str(self.work), "umask": 0o022}
        self.node.start(command, self._stdio, f"/tmp/crhpc-t{uuid.uuid4().hex[:8]}")
        self.await_ready()

    def _environment(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "TMPDIR")}

    def await_ready(self) -> None:
        """Until it says so."""
        deadline = time.monotonic() + PATIENCE
        while b"ready\n" not in self.out.read_bytes():
            assert b"FAIL" not in self.out.read_bytes(), self.said()
            assert time.monotonic() < deadline, "the program does not get ready"
            time.sleep(0.005)

    def checkpoint(self, *, kill: bool = False) -> Path:
        """Take a checkpoint; the program goes on, or is killed at the very moment."""
        assert self.node is not None
        number = max(image_numbers(self.images), default=0) + 1
        temporary = new_temporary(self.images, number)
        try:
            self.node.precopy(str(temporary))
            tasks = self.node.freeze()
            ends = self.node.cut()
            assert self.node.pod is not None
            seen = observe(self.node.pod.pid)
            described = self.node.describe()
            if not kill:
                self.node.thaw()
            summary = ShardSummary.from_json(self.node.write())
        except BaseException:
            self.node.abort()
            raise
        connections, outside = match({0: ends})
        assert not outside, outside
        image = commit(temporary, self.images / image_name(number), number=number, shards=[summary], stats={},
                       job={"id": "test", "tasks": tasks, "pods": {"0": described}}, connections=connections)
        self.seen[image] = seen
        if kill:
            self.kill()
        return image

    def kill(self) -> None:
        """End every process of the pod at once."""
        if self.node is not None:
            self.node.end()
            self.node = None

    def restart(self, image: Path, policy: FilePolicy | None = None, *, compare: bool = True,
                but: str = "(?!)", places: dict[str, object] | None = None) -> None:
        """A new pod from an image; an observer compares it with the old one.

        Args:
            but: a pattern of differences that are meant to be.
            places: what became of machines' addresses.
        """
        described = read_manifest(image).job["pods"]["0"]
        self.node = Node(0, memory=64 << 20, level=1, warn=self.warnings.append)
        self.node.build(str(image), described, self._stdio, policy.to_message() if policy else None,
                        places)
        self.node.connect()
        self.node.finish()
        assert self.node.pod is not None
        differ = differences(self.seen[image], observe(self.node.pod.pid)) if compare else []
        differ = [line for line in differ if not re.match(but, line)]
        assert not differ, "after the restart differs: " + "; ".join(differ)
        self.node.release(described["last_pid"])

    def check(self) -> None:
        """Let the program verify its state; it must be content."""
        assert self.node is not None
        self.node.signal(15, group=False)
        status = self.wait()
        self.kill()
        assert status == 0, f"{self.argv[0]}: wait status {status:#x}: {self.said()}"

    def wait(self) -> int:
        """The wait status of the pod's first program."""
        assert self.node is not None and self.node.pod is not None
        pod = self.node.pod
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            self.node.tend()
            if pod.events or select.select([pod], [], [], 0.01)[0]:
                event: Any = pod.read_event()
                assert event is not None, "the pod is gone"
                if event["op"] == "exited" and event["pid"] == self.node.root:
                    return int(event["status"])
        raise AssertionError(f"{self.argv[0]} does not end; it said: {self.said()}")

    def said(self) -> str:
        """What the program wrote, and what crhpc warned of."""
        warnings = "".join(f"\nwarning: {warning}" for warning in self.warnings)
        return self.out.read_text(encoding="utf-8", errors="replace") + warnings

    def close(self) -> None:
        """End what is left and let go of everything."""
        self.kill()
        for fd in self._stdio[:2]:
            with contextlib.suppress(OSError):
                os.close(fd)
        shutil.rmtree(self.images, ignore_errors=True)
