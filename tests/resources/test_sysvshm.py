"""What of System V shared memory is refused; what is saved is in tests/programs (sysv_shm.c, locked_segment.c)."""
from __future__ import annotations

import ctypes
import os

from need import offered

_IPC = """
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    result = getattr(libc, name)(*args)
    assert result >= 0, os.strerror(ctypes.get_errno())
    return result
"""


def test_huge_pages(refused):
    """Of a segment that nobody has attached no mapping tells."""
    flags = 0o600 | 0o4000 | 0o10000   # SHM_HUGETLB, SHM_NORESERVE
    libc = ctypes.CDLL(None)
    number = libc.shmget(0, 2 << 20, flags)
    offered(number >= 0 and os.getuid() == 0, "segments of huge pages are for root, where the kernel has any")
    libc.shmctl(number, 0, None)
    error = refused(f"{_IPC}call('shmget', 0, 2 << 20, {flags})")
    assert "of huge pages" in str(error) and "SHM_HUGETLB" in str(error)
