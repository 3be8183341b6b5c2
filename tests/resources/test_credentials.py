"""What of credentials is refused; what is saved is in tests/programs/credentials.c."""
from __future__ import annotations

import os

import pytest

from crhpc.errors import OtherMachine, Unsupported
from crhpc.kernel import proc
from crhpc.resources import credentials
from crhpc.resources.credentials import Credentials, CredentialsKind

from .forking import FILTER, forking


def test_a_filter_of_a_process_is_refused(refused):
    assert "a seccomp filter" in str(refused(forking(FILTER + "fork(install)")))


def test_a_filter_of_a_thread_is_refused(refused):
    assert "a seccomp filter" in str(refused(forking(FILTER + "threaded(install)")))


class Asked:
    """As much of a context as the checks use."""

    image = "an image"

    def __init__(self, **fields):
        self.__dict__.update(fields)
        self.warnings = []

    def rows(self, record):
        return self._rows

    def warn(self, line):
        self.warnings.append(line)

    def refuse(self, what, task, cure):
        return Unsupported(what=what, pid=task.pid, program="program", cure=cure)


def row(**fields):
    ours = {"pid": 2, "tid": 2, "uids": (os.getuid(),) * 4, "gids": (os.getgid(),) * 4, "groups": ()}
    return Credentials(**ours | dict.fromkeys(Credentials.__slots__[5:], 0) | fields)


@pytest.fixture
def plainly(monkeypatch):
    """As if by a plain user."""
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    monkeypatch.setattr(os, "getgid", lambda: 2345)
    monkeypatch.setattr(os, "getgroups", lambda: [3456])


@pytest.mark.parametrize(("fields", "what"), [
    ({"uids": (1234, 1234, 9, 1234)}, "uid 9, this is 1234"), ({"gids": (2345, 9, 2345, 2345)}, "gid 9, this is 2345")])
def test_ids_of_others_cannot_be_taken(plainly, fields, what):
    with pytest.raises(OtherMachine, match=what):
        CredentialsKind().check(Asked(_rows=[row(), row(**fields)]))


def test_groups_that_are_gone_are_told(plainly):
    ctx = Asked(_rows=[row(groups=(2345, 3456, 77))])
    CredentialsKind().check(ctx)
    assert len(ctx.warnings) == 1 and "[77]" in ctx.warnings[0]


def test_a_security_label_of_its_own_is_refused(monkeypatch):
    labels = {1: b"unconfined\n", 2: b"unconfined\n", 3: b"firefox (enforce)\n"}
    monkeypatch.setattr(proc, "read", lambda path: labels[int(path.split("/")[2])])
    tasks = [Asked(host=host, pid=host) for host in (2, 3)]
    with pytest.raises(Unsupported, match=r"label firefox \(enforce\) of pid 3"):
        credentials._check_labels(Asked(pod=Asked(init=1), tasks=tasks))
