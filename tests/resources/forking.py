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
FILTER = """
class Filter(ctypes.Structure):
    _fields_ = [("count", ctypes.c_ushort), ("code", ctypes.c_void_p)]
code = (ctypes.c_uint64 * 1)(0x7FFF000000000006)   # return SECCOMP_RET_ALLOW
program = Filter(1, ctypes.addressof(code))
def install():
    call("prctl", 38, 1, 0, 0, 0)
    call("prctl", 22, 2, ctypes.byref(program))
"""
"""``install()``: a system call filter that changes nothing."""


def forking(code: str) -> str:
    return _PRELUDE + dedent(code)
