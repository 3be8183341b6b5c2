"""What the supervisor says: lines on standard error, and on a terminal a live line during a checkpoint.

Standard output belongs to the job. Standard error may be the same file, so at a restart nothing is said
before the job's output has been brought back to where it was (crhpc.stdio).
"""
from __future__ import annotations

import os
import signal
import stat
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

from crhpc.log import PREFIX

if TYPE_CHECKING:
    from rich.live import Live

_PHASES = {"precopy": "copying memory", "freeze": "stopping", "cut": "copying", "write": "saving",
           "commit": "committing", "build": "rebuilding", "connect": "connecting"}
_UNSEEN = 0.5
"""Seconds until the live line comes up: the job has the terminal too, and most checkpoints are quicker."""


# -- figures for people -----------------------------------------------------------------------------
def size(count: float) -> str:
    """Bytes: ``43 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.0f} TiB" if count >= 10 else f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds: ``12 ms``, ``0.8 s``, ``3 min``, ``2 h 5 min``."""
    if seconds < 0.1:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.001 else f"{seconds * 1000:.1f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def plural(count: int, noun: str) -> str:
    """``1 process``, ``4 processes``."""
    if count == 1:
        return f"{count} {noun}"
    return f"{count} {noun}es" if noun.endswith("s") else f"{count} {noun}s"


def checkpoint_line(message: Mapping[str, Any]) -> str:
    """A ``checkpointed`` message in words; a job that was ended with it was not frozen for any time."""
    frozen = "" if message.get("stopped") else f"frozen {duration(message['frozen'])}, "
    return (f"checkpoint {message['number']}: {plural(message['tasks'], 'process')}, {frozen}"
            f"{size(message['bytes'])} saved as {size(message['stored'])} in {duration(message['seconds'])}")


def ended(code: int) -> str:
    """An exit code in words, a negative one as a signal."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def plain(text: str) -> str:
    """One line without control characters: names of programs and files come from the job."""
    return "".join(c if c.isprintable() else "?" for c in text.replace("\n", " "))


# -- saying it --------------------------------------------------------------------------------------
class Report:
    """The supervisor's voice."""

    def __init__(self, *, verbose: bool, stream: TextIO | None = None) -> None:
        self.verbose = verbose
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream is not None and self._stream.isatty()
        self._held: list[str] | None = None
        self._said: set[str] = set()
        self._live: Live | None = None
        self._begun = self._since = 0.0
        self._phase = ""

    def say(self, text: str) -> None:
        """A line that everybody should see."""
        if self._held is not None:
            self._held.append(text)
            return
        self._write(PREFIX + plain(text))

    def once(self, text: str) -> None:
        """A line that is not said a second time."""
        if text not in self._said:
            self._said.add(text)
            self.say(text)

    def detail(self, text: str) -> None:
        """A line for ``-v``."""
        if self.verbose:
            self.say(text)

    def quote(self, output: str) -> None:
        """What another program said, line by line."""
        for line in output.splitlines():
            self.say("| " + line)

    def hold(self) -> None:
        """At a restart, where lines go to a file: keep them until `release`.

        The file may be the job's output too, and is first brought back to what it held.
        """
        if self._held is None and self._goes_to_file():
            self._held = []

    def release(self) -> None:
        """Say what was kept."""
        held, self._held = self._held or [], None
        for text in held:
            self.say(text)

    def progress(self, phase: str, done: int, total: int) -> None:
        """How far a checkpoint or a restart is; shown on a terminal only."""
        if not self._terminal or self._held is not None:
            return
        now = time.monotonic()
        if not self._phase:
            self._begun = now
        if phase != self._phase:
            self._phase, self._since = phase, now
        if now - self._begun < _UNSEEN:
            return
        rate = done / max(now - self._since, 1e-3)
        text = f"{PREFIX}{_PHASES.get(phase, phase)}"
        if total:
            text += f" {size(done)} of {size(total)}, {size(rate)}/s"
        self._show(text)

    def clear(self) -> None:
        """The end of a checkpoint or a restart: take the live line away."""
        self._phase = ""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self, text: str) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner
        from rich.text import Text

        if self._live is None:
            self._live = Live(console=Console(file=self._stream), transient=True, refresh_per_second=8,
                              redirect_stdout=False, redirect_stderr=False)
            self._live.start()
        self._live.update(Spinner("dots", text=Text(plain(text))))

    def _goes_to_file(self) -> bool:
        try:
            return self._stream is not None and stat.S_ISREG(os.fstat(self._stream.fileno()).st_mode)
        except (OSError, ValueError):
            return False

    def _write(self, line: str) -> None:
        if self._stream is None:
            return
        if self._live is not None:
            self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)
            return
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            self._stream = None   # a terminal that hung up must not take the job with it
