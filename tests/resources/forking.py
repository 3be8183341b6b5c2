"""Python for programs that are to be held: children that stay, threads that stay, calls of the C library."""
from __future__ import annotations

from textwrap import dedent

_PRELUDE = """
import resource, threading
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    result = getattr(libc, name)(*args)
    assert result != -1, (name, os.strerror(ctypes.get_errno()))
    return result
def fork(work=lambda: None):
    '''A child that has done its work when this returns.'''
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        call("prctl", 1, 9)
        work()
        os.close(reader)
        os.close(writer)
        while True:
            signal.pause()
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)
    return pid
def threaded(work):
    done = threading.Event()
    def body():
        work()
        done.set()
        while True:
            time.sleep(60)
    threading.Thread(target=body, daemon=True).start()
    done.wait()
"""


def forking(code: str) -> str:
    return _PRELUDE + dedent(code)
