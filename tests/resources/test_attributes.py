"""What of a process's attributes is refused; what is saved is in tests/programs (attributes.c, directories.c)."""
from __future__ import annotations

import os

import pytest

from .forking import forking

_ROOT = os.getuid() == 0
_NEWUSER = 0x10000000
_NAMESPACES = {"mount": 0x20000, "UTS": 0x4000000, "IPC": 0x8000000, "network": 0x40000000, "cgroup": 0x2000000,
               "pid": 0x20000000, "time": 0x80, "user": _NEWUSER}


@pytest.mark.parametrize("name", _NAMESPACES)
def test_a_namespace_of_its_own_is_refused(refused, name):
    """A plain user needs one of users for any other; that of other names is told first."""
    flags = _NAMESPACES[name] | (0 if _ROOT else _NEWUSER)
    error = refused(forking(f"fork(lambda: call('unshare', {flags}))"))
    assert f"a {name} namespace of its own" in str(error)


@pytest.mark.skipif(not _ROOT, reason="a thread of a plain user's can't have one")
def test_a_namespace_of_a_thread_is_refused(refused):
    error = refused(forking("threaded(lambda: call('unshare', 0x40000000))"))
    assert "a network namespace of its own" in str(error)


@pytest.mark.skipif(_ROOT, reason="root sees it all the same")
def test_what_is_not_dumpable_is_refused_to_a_plain_user(refused):
    error = refused(forking("fork(lambda: call('prctl', 4, 0))"))
    assert "a process that may not be looked into" in str(error)
