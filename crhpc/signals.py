"""The supervisor's signals, with where they came from.

A handler does not learn whether the terminal sent a signal or a process did, and that decides who in the
job gets it: the terminal's Ctrl-C reaches a whole process group, kill(1) one process. So the signals are
blocked and a thread takes them off with sigwaitinfo(2), whose si_code tells. Signals that were ignored
when crhpc was started (nohup) stay ignored.
"""
from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass

FORWARDED = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH,
                       signal.SIGTSTP, signal.SIGCONT})
"""What the terminal, a shell or a batch system sends to the foreground process, meant for the job."""
OWN = frozenset({signal.SIGUSR1, signal.SIGUSR2})
"""Requests to the supervisor itself."""

_SI_KERNEL = 0x80   # asm-generic/siginfo.h: sent by the kernel, here by the terminal
_SET_BY_PYTHON = frozenset({signal.SIGPIPE, signal.SIGXFSZ})


@dataclass(frozen=True, slots=True)
class Received:
    """One signal."""

    number: signal.Signals
    by_terminal: bool


def ignored() -> list[int]:
    """The signals that this process was started with ignored, and a job should be too."""
    return sorted(number for number in signal.valid_signals()
                  if number not in _SET_BY_PYTHON and signal.getsignal(number) == signal.SIG_IGN)


class Signals:
    """The signals that arrive while it is entered, on a descriptor; enter it before any thread is made."""

    def __init__(self) -> None:
        self._wanted = (FORWARDED | OWN) - set(ignored())
        self._read, self._write = os.pipe()
        self._leaving = False
        self._thread = threading.Thread(target=self._wait, name="signals", daemon=True)
        self._mask: set[int] = set()

    def __enter__(self) -> Signals:
        # An ignored signal that is blocked would be kept for sigwaitinfo, so those are left out.
        self._mask = set(signal.pthread_sigmask(signal.SIG_BLOCK, self._wanted))
        os.set_blocking(self._read, False)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving = True
        if self._thread.ident is not None and self._wanted:
            signal.pthread_kill(self._thread.ident, next(iter(self._wanted)))
            self._thread.join()
        os.close(self._read)
        os.close(self._write)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def fileno(self) -> int:
        return self._read

    def receive(self) -> list[Received]:
        """The signals that came since the last call, in order."""
        with suppress(BlockingIOError):
            data = os.read(self._read, 4096)
            return [Received(signal.Signals(number), bool(terminal))
                    for number, terminal in zip(data[::2], data[1::2], strict=True)]
        return []

    def _wait(self) -> None:
        while self._wanted:
            info = signal.sigwaitinfo(self._wanted)
            if self._leaving:
                return
            os.write(self._write, bytes((info.si_signo, info.si_code == _SI_KERNEL)))
