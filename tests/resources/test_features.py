"""What a thread may have asked for that can't be saved; what can is in tests/programs/features.c."""
from __future__ import annotations

from pathlib import Path

import pytest
from need import offered

from crhpc.kernel import libc

_PR_SET_SYSCALL_USER_DISPATCH = 59
_DISPATCH_ON = """
import ctypes
selector = ctypes.create_string_buffer(8)   # SYSCALL_DISPATCH_FILTER_ALLOW
def dispatch():
    assert ctypes.CDLL(None).prctl(59, *map(ctypes.c_ulong, (1, 0, 0, ctypes.addressof(selector)))) == 0
"""


@pytest.fixture(autouse=True)
def _known_here() -> None:
    try:
        libc.prctl(_PR_SET_SYSCALL_USER_DISPATCH, 0)
    except OSError as error:
        offered(False, f"no system call user dispatch ({error})")
    release = Path("/proc/sys/kernel/osrelease").read_text(encoding="ascii").split(".")
    offered((int(release[0]), int(release[1])) >= (6, 4), "whether calls are dispatched can't be seen before Linux 6.4")


def test_dispatched_calls_are_refused(refused):
    error = refused(_DISPATCH_ON + "dispatch()")
    assert "a thread whose system calls are dispatched to itself" in str(error)


def test_dispatched_calls_of_any_thread_are_refused(refused):
    error = refused(_DISPATCH_ON + """
import threading
begun = threading.Event()
def work():
    dispatch()
    begun.set()
    threading.Event().wait()
threading.Thread(target=work, daemon=True).start()
begun.wait()
""")
    assert "dispatched" in str(error)
