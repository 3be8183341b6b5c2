"""Small programs that hold something, for tests of what can't be saved and of restarts that are refused."""
from __future__ import annotations

import sys
from collections.abc import Callable
from textwrap import dedent

from pods import Subject

from crhpc.errors import CrhpcError

_PROGRAM = """
import ctypes, fcntl, os, signal, socket, struct, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
{setup}
print("ready", flush=True)
signal.sigwaitinfo([signal.SIGTERM])
{check}
"""

NewSubject = Callable[..., Subject]


def python_holding(setup: str, check: str) -> list[str]:
    """The command line of a Python that sets something up and looks after it in the end."""
    return [sys.executable, "-c", _PROGRAM.format(setup=dedent(setup), check=dedent(check))]


def told(subject: Subject, error: CrhpcError) -> list[str]:
    """All that a failed restart says, a line each."""
    return [*subject.warnings, str(error)]
