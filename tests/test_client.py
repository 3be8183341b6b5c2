"""Reaching the supervisor of a directory, and saying why not."""
from __future__ import annotations

import json
import os
import socket

import pytest

from crhpc import client, errors
from crhpc.channel import Channel
from crhpc.jobdir import JobDirectory


@pytest.fixture
def directory(tmp_path):
    with JobDirectory.take(tmp_path / "d") as taken:
        yield taken


def rewrite(directory, **changes):
    path = directory.path / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_no_job(tmp_path, directory):
    for path in (tmp_path / "missing", tmp_path, directory.path):
        with pytest.raises(errors.NoJob) as caught:
            client.ask_status(path)
        assert caught.value.code == 69


def test_a_killed_supervisor_is_no_job(directory):
    directory.announce("crhpc-nobody-listens-here", "J")
    text = (directory.path / "run.json").read_text()
    directory.release()
    (directory.path / "run.json").write_text(text)
    with pytest.raises(errors.NoJob):
        client.ask_status(directory.path)


def test_another_host_is_named(directory):
    directory.announce("name", "J")
    rewrite(directory, host="node17")
    with pytest.raises(errors.Unreachable, match=r"on node17.*another machine.*Cure: run this command on node17"):
        client.ask_checkpoint(directory.path, stop=False, progress=print)


def test_a_socket_out_of_reach(directory):
    directory.announce("crhpc-nobody-listens-here", "J")   # as from another network namespace
    with pytest.raises(errors.Unreachable, match="Connection refused"):
        client.ask_status(directory.path)


def test_a_stranger_in_its_place_is_not_talked_to(directory, monkeypatch):
    name = "crhpc-test-stranger"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        directory.announce(name, "J")
        client.connect(directory.path).close()
        monkeypatch.setattr(Channel, "peer_uid", lambda self: os.getuid() + 1)
        with pytest.raises(errors.Unreachable, match="another user's process"):
            client.connect(directory.path)
