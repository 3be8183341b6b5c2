"""What a system allows, on one that allows it, and on one that has been told not to."""
from __future__ import annotations

import gc
import json
import os
import sys

import pytest

from crhpc.kernel import pidfd, probe, proc, ptrace, sockdiag, vm

from .targets import apart


@pytest.fixture(scope="module")
def here() -> list[probe.Capability]:
    return probe.capabilities()


def test_what_the_other_tests_need_is_found_here(here):
    missing = [row for row in here if row.needed and not row.ok]
    assert not missing, "then these tests would not have come so far"
    assert len({row.name for row in here}) == len(here)


def test_each_no_would_have_a_cure(here):
    assert all(row.cure for row in here if not row.ok)
    assert all(row.detail == "allowed" for row in here if row.ok)


def test_nothing_is_left_behind():
    gc.collect()   # what earlier tests have left must not be closed in the middle
    before = proc.children(os.getpid()), sorted(os.listdir("/proc/self/fd")), _namespaces()
    probe.capabilities()
    assert (proc.children(os.getpid()), sorted(os.listdir("/proc/self/fd")), _namespaces()) == before


def _namespaces() -> list[str]:
    return [os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "pid", "user", "uts", "ipc")]


def row(name: str) -> probe.Capability:
    return next(found for found in probe.capabilities() if found.name == name)


@pytest.mark.parametrize(("name", "module", "function"), [
    ("ptrace", ptrace, "seize"), ("kcmp", pidfd, "kcmp"), ("pidfd_getfd", pidfd, "take_fd"),
    ("memory of other processes", vm, "read"), ("socket diagnosis", sockdiag, "unix_sockets"),
    ("PAGEMAP_SCAN", vm, "scan")])
def test_what_is_refused_is_told(monkeypatch, name, module, function):
    def refused(*arguments, **options):
        raise PermissionError(1, "Operation not permitted", function)

    before = proc.children(os.getpid())
    monkeypatch.setattr(module, function, refused)
    found = row(name)
    assert not found.ok
    assert found.detail == f"{function}: Operation not permitted"
    assert found.cure
    assert proc.children(os.getpid()) == before


def test_namespaces_that_are_refused(monkeypatch):
    """In a user namespace of its own, whose owner forbids what lies below it."""
    said = apart("""
        import json
        from crhpc.kernel import clone, namespaces, trypod
        uid, gid = os.getuid(), os.getgid()
        clone.unshare(clone.CLONE_NEWUSER)
        namespaces.map_own_ids(uid, gid)
        namespaces.write_file("/proc/sys/user/max_pid_namespaces", "0")
        say(json.dumps(trypod.try_pod()))
    """)
    assert json.loads(said) == {"namespaces": "unshare: No space left on device"}
    answer = type("Answer", (), {"stdout": said.encode(), "stderr": b""})
    monkeypatch.setattr(probe.subprocess, "run", lambda *arguments, **options: answer)
    rows = {found.name: found for found in probe._pod()}
    assert rows["namespaces"].detail == "unshare: No space left on device"
    assert rows["own /proc"].detail == "not reached"
    assert not any(found.ok for found in rows.values())
    assert all(found.cure for found in rows.values())


def test_a_try_that_dies(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert [found.detail for found in probe._pod()][:2] == ["no answer", "not reached"]
