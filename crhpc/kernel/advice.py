"""What this kernel can do with memory, tried on none or on a page of this process's own.

The calls look at what is asked for before they look at where (mm/madvise.c, mm/mseal.c): a length of 0 does nothing
where the feature is known, and is EINVAL or ENOSYS where it is not.
"""
from __future__ import annotations

import functools

from crhpc.kernel import libc
from crhpc.kernel.libc import PAGE

_SOMEWHERE = 1 << 20
_MADV_GUARD_INSTALL = 102
_PR_SET_VMA, _PR_SET_VMA_ANON_NAME = 0x53564D41, 0
_PR_GET_MEMORY_MERGE = 68
_DROPPABLE, _ANONYMOUS = 8, 0x20


def knows_guards() -> bool:
    """MADV_GUARD_INSTALL (Linux 6.13)."""
    return _works("madvise", _SOMEWHERE, 0, _MADV_GUARD_INSTALL)


def knows_seals() -> bool:
    """mseal(2) (Linux 6.10)."""
    return _works("mseal", _SOMEWHERE, 0, 0)


@functools.lru_cache
def knows_names() -> bool:
    """Names of anonymous memory (Linux 5.17, where CONFIG_ANON_VMA_NAME is on)."""
    return _works("prctl", _PR_SET_VMA, _PR_SET_VMA_ANON_NAME, _SOMEWHERE, 0, 0)


def knows_merging() -> bool:
    """PR_SET_MEMORY_MERGE (Linux 6.4, where CONFIG_KSM is on)."""
    return _works("prctl", _PR_GET_MEMORY_MERGE, 0, 0, 0, 0)


def knows_droppable() -> bool:
    """MAP_DROPPABLE (Linux 6.11)."""
    try:
        at = libc.syscall("mmap", 0, PAGE, 3, _DROPPABLE | _ANONYMOUS, -1, 0)
    except OSError:
        return False
    libc.syscall("munmap", at, PAGE)
    return True


def _works(call: str, *arguments: int) -> bool:
    try:
        libc.syscall(call, *arguments)
    except OSError:
        return False
    return True
