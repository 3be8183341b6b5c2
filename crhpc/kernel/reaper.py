"""Threads that die beside one that is waited for.

The end of a process's first thread is told to its tracer when all its other threads have been waited for (ptrace(2),
"Death under ptrace"). Who waits for that one alone, while the whole process is killed, would wait for ever.
"""
from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress

from crhpc.kernel import proc, tracee

_WALL = 0x40000000
_SECONDS = 0.25


class Reaper:
    """From ``__init__`` to ``stop`` looks, in a thread of its own, whether a wait takes long, and then helps."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="crhpc-reaper", daemon=True)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())   # they are the first thread's
        self._thread.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def stop(self) -> None:
        """Again is harmless."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        before = (0, 0)
        while not self._over.wait(_SECONDS):
            now = tracee.awaited()
            if now[0] and now == before:
                reap_beside(now[0])
            before = now


def reap_beside(tid: int) -> None:
    """Take note of the ends of the other threads of a thread's process."""
    with suppress(OSError):
        process = proc.status(tid).number("Tgid")
        for other in proc.threads(process):
            with suppress(OSError):
                if other != tid and proc.status(process, other).fields["State"][0] in "ZX":
                    os.waitpid(other, _WALL | os.WNOHANG)
