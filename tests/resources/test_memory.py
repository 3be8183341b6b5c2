"""What of a process's memory is refused; what is saved is in tests/programs."""
from __future__ import annotations

import os
import platform
from types import SimpleNamespace

import pytest
from need import offered

from crhpc.kernel import proc
from crhpc.resources import memory

_MAP = """
import mmap
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
def new(size, flags, fd=-1):
    at = libc.mmap(None, size, 3, flags, fd, 0)
    assert at != 2**64 - 1, os.strerror(ctypes.get_errno())
    return at
def syscall(number, *args):
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(arg) for arg in args])
    assert result >= 0, os.strerror(ctypes.get_errno())
    return result
"""


def _can(code: str) -> bool:
    """Whether this kernel does such a thing at all."""
    pid = os.fork()
    if pid == 0:
        try:
            exec(f"import ctypes, os\n{_MAP}{code}", {})
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


HUGETLB = "new(2 << 20, 0x64022)   # MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_HUGETLB"
HUGE_MEMFD = "new(2 << 20, 0x4001, os.memfd_create('huge', os.MFD_HUGETLB))"
SECRET = "fd = syscall(447, 0); os.ftruncate(fd, 4096); new(4096, 1, fd); os.close(fd)"
AIO = "syscall(206, 4, ctypes.addressof(ctypes.create_string_buffer(8)))"
WATCHED = """
import fcntl, struct
fd = syscall(323, 0o2000000 | 1)   # UFFD_USER_MODE_ONLY
fcntl.ioctl(fd, 0xc018aa3f, struct.pack('QQQ', 0xAA, 0, 0))
at = new(4096, 0x22)
fcntl.ioctl(fd, 0xc020aa00, struct.pack('QQQQ', at, 4096, 1, 0))
"""


@pytest.mark.parametrize(("code", "what", "cure"), [
    (HUGETLB, "huge pages of hugetlbfs", "transparent huge pages"),
    (HUGE_MEMFD, "huge", ""),
    (SECRET, "secret memory (memfd_secret)", "turn off"),
    (AIO, "a mapping of a device (/[aio]", "asynchronous I/O"),
    (WATCHED, "userfaultfd", "turn off"),
], ids=["hugetlb", "memfd of huge pages", "memfd_secret", "aio", "userfaultfd"])
def test_refused(refused, code, what, cure):
    offered(_can(code), f"this kernel does not allow it here: {code.strip().splitlines()[0]}")
    error = refused(_MAP + code)
    assert what in str(error) and cure in str(error)


def _mapping(**fields: object) -> proc.Mapping:
    plain = {"start": 0x10000, "end": 0x20000, "read": True, "write": True, "execute": False, "shared": False,
             "offset": 0, "device": 0, "inode": 0, "name": ""}
    return proc.Mapping(**{**plain, **fields})   # type: ignore[arg-type]


@pytest.mark.parametrize(("mapping", "what"), [
    (_mapping(protection_key=3), "memory under a protection key (pkey_mprotect)"),
    (_mapping(protection_key=3, read=False, write=False, execute=True), ""),
    (_mapping(shared=True, name="/dev/fuse", inode=7), "a shared mapping of a device"),
    (_mapping(shared=True, name="/dev/zero (deleted)", inode=7), ""),
    (_mapping(flags=frozenset({"ui"})), "memory watched by userfaultfd"),
    (_mapping(flags=frozenset({"ss"})), "a shadow stack"),
    (_mapping(flags=frozenset({"mm"})), ""),
    (_mapping(flags=frozenset({"mm"}), name="/dev/x", inode=7), "memory of a device"),
    (_mapping(), ""),
], ids=["key", "execute-only", "device", "/dev/zero", "minor faults", "shadow stack", "mixed", "mixed device", "plain"])
def test_refused_by_what_smaps_tells(mapping, what):
    """Of what few machines have."""
    ctx = SimpleNamespace(pod=SimpleNamespace(is_regular=lambda path: not path.startswith("/dev/")))
    assert memory._refusal(ctx, mapping)[0] == what


def test_these_tests_are_for_this_machine():
    assert platform.machine() == "x86_64", "the system call numbers are"
