"""``crhpc`` as its own process with the scripted agent, for tests: started, watched and cleaned up."""
from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[1]
AGENT = Path(__file__).with_name("scripted_agent.py")
PATIENCE = 60.0
T = TypeVar("T")


def until(condition: Callable[[], T], what: str) -> T:
    """Wait for a true value."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.01)
    raise AssertionError(f"waited {PATIENCE:.0f} s in vain for {what}")


class Workspace:
    """A directory with a job directory in it, and the crhpc processes of one test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images = path / "images"
        self.log = path / "agent.log"
        self._started: list[subprocess.Popen[bytes]] = []
        self._groups: set[int] = set()

    def environment(self, **script: Any) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CRHPC_")}
        return kept | {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
            "CRHPC_MPIEXEC": shlex.join([sys.executable, str(AGENT)]),
            "CRHPC_DIR": str(self.images),
            "CRHPC_TEST_AGENT": json.dumps({"log": str(self.log), **script}),
        }

    def start(self, *words: str, script: dict[str, Any] | None = None, **options: Any) -> subprocess.Popen[bytes]:
        """``crhpc WORDS`` with pipes for its output."""
        environment = self.environment(**script or {}) | options.pop("more", {})
        settings = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
                    "cwd": self.path, "env": environment, "start_new_session": True, **options}
        process = subprocess.Popen([sys.executable, "-m", "crhpc", *words], **settings)
        self._started.append(process)
        return process

    def call(self, *words: str, script: dict[str, Any] | None = None,
             **options: Any) -> subprocess.CompletedProcess[str]:
        """``crhpc WORDS`` to its end."""
        process = self.start(*words, script=script, **options)
        out, err = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(process.args, process.returncode, (out or b"").decode(),
                                           (err or b"").decode())

    def on_terminal(self, *words: str, script: dict[str, Any] | None = None) -> tuple[subprocess.Popen[bytes], int]:
        """``crhpc WORDS`` in the foreground of a terminal; the terminal's other side comes with it."""
        master, slave = os.openpty()
        process = self.start(*words, script=script, stdin=slave, stdout=slave, stderr=slave,
                             preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(slave)
        return process, master

    def notes(self, op: str) -> list[dict[str, Any]]:
        """The messages of one kind that agents have received so far."""
        if not self.log.exists():
            return []
        lines = self.log.read_text(encoding="ascii").splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        return [note for note in found if note["op"] == op]

    def noted(self, op: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until so many have come."""
        return until(lambda: found if len(found := self.notes(op)) >= count else None, f"{count} {op} at the agent")

    def image_numbers(self) -> list[int]:
        return sorted(int(path.name[5:]) for path in self.images.glob("ckpt-*") if path.is_dir())

    def clean(self) -> None:
        for process in self._started:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGCONT)
                    os.kill(process.pid, signal.SIGKILL)
            process.communicate(timeout=PATIENCE) if process.stdout else process.wait(PATIENCE)


def read_terminal(master: int) -> str:
    """All that was written to a terminal, until its last user is gone."""
    parts = []
    with suppress(OSError):
        while data := os.read(master, 4096):
            parts.append(data)
    os.close(master)
    return b"".join(parts).decode("utf-8", "replace")
