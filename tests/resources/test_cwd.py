"""What of working directories is refused; what is saved is in tests/programs (directories.c, tables.c)."""
from __future__ import annotations

import os

import pytest

from .forking import forking


@pytest.mark.skipif(os.getuid() != 0, reason="a plain user needs a user namespace for it, which is refused")
def test_a_root_directory_of_its_own_is_refused(refused):
    error = refused(forking("fork(lambda: os.chroot('/tmp'))"))
    assert "a root directory of its own" in str(error)


@pytest.mark.skipif(os.getuid() != 0, reason="a plain user needs a user namespace for it, which is refused")
def test_a_root_directory_of_a_thread_is_refused(refused):
    error = refused(forking("threaded(lambda: (call('unshare', 0x200), os.chroot('/tmp')))"))
    assert "a root directory of its own" in str(error)
