"""The job directory: who holds it, and what it records."""
from __future__ import annotations

import json
import os
import stat
import subprocess
import sys

import pytest

from crhpc import errors, jobdir
from crhpc.jobdir import JobDirectory, JobState, Status


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def state(**changes) -> JobState:
    fields = {"id": "abc", "argv": ("mpirun", "-n", "4", "./app \udcff"), "cwd": "/here", "status": Status.RUNNING,
              "started": 12.5, "superseded": (1, 2)}
    return JobState(**fields | changes)


def test_is_made_for_its_user_alone(tmp_path):
    with JobDirectory.take(tmp_path / "a" / "b") as directory:
        directory.announce("name", "abc")
        directory.write_state(state())
        assert mode(directory.path) == 0o700
        assert {name: mode(directory.path / name) for name in ("lock", "run.json", "state.json")} == {
            "lock": 0o600, "run.json": 0o600, "state.json": 0o600}
        running = jobdir.read_running(directory.path)
        assert (running.socket, running.pid, running.job) == ("name", os.getpid(), "abc")
    assert jobdir.read_running(tmp_path / "a" / "b") is None


def test_is_held_by_one(tmp_path):
    with JobDirectory.take(tmp_path / "d") as directory:
        directory.announce("name", "abc")
        assert jobdir.is_locked(directory.path)
        with pytest.raises(errors.DirectoryBusy, match=rf"process {os.getpid()} on \S+\)\. Cure") as caught:
            JobDirectory.take(tmp_path / "d")
        assert caught.value.code == 78
        assert jobdir.read_running(directory.path) is not None, "the one who was refused must not clear up"
    assert not jobdir.is_locked(tmp_path / "d")
    JobDirectory.take(tmp_path / "d").release()


def test_a_killed_holder_lets_go(tmp_path):
    code = ("import os, signal, sys; from pathlib import Path; from crhpc.jobdir import JobDirectory\n"
            "d = JobDirectory.take(Path(sys.argv[1])); d.announce('name', 'abc'); os.kill(os.getpid(), signal.SIGKILL)")
    subprocess.run([sys.executable, "-c", code, tmp_path / "d"], check=False)
    assert jobdir.read_running(tmp_path / "d").socket == "name"
    with JobDirectory.take(tmp_path / "d"):
        assert jobdir.read_running(tmp_path / "d") is None, "nobody is sent to the dead"


def test_that_all_may_write_is_refused(tmp_path):
    path = tmp_path / "d"
    path.mkdir()
    path.chmod(0o1777)
    with pytest.raises(errors.OpenToAll):
        JobDirectory.take(path)
    assert list(path.iterdir()) == []


def test_a_file_in_its_place(tmp_path):
    (tmp_path / "d").write_text("")
    with pytest.raises(errors.Unwritable, match="cannot write to") as caught:
        JobDirectory.take(tmp_path / "d")
    assert caught.value.code == 73


def test_a_link_as_lock_is_not_followed(tmp_path):
    path = tmp_path / "d"
    path.mkdir()
    (path / "lock").symlink_to(tmp_path / "victim")
    with pytest.raises(errors.Unwritable):
        JobDirectory.take(path)
    assert not (tmp_path / "victim").exists()


def test_state_comes_back(tmp_path):
    with JobDirectory.take(tmp_path / "d") as directory:
        assert directory.read_state() is None
        for written in (state(), state(status=Status.FINISHED, exit_code=0, ended=13.0)):
            directory.write_state(written)
            assert directory.read_state() == written


@pytest.mark.parametrize("content", ["", "{", "[]", '{"id": "x"}', '"x"', None])
def test_an_unreadable_state_is_none(tmp_path, content):
    with JobDirectory.take(tmp_path / "d") as directory:
        directory.write_state(state())
        good = json.loads((directory.path / "state.json").read_text())
        text = json.dumps(good | {"status": "unheard of"}) if content is None else content
        (directory.path / "state.json").write_text(text)
        assert directory.read_state() is None


def test_state_is_replaced_as_a_whole(tmp_path, monkeypatch):
    with JobDirectory.take(tmp_path / "d") as directory:
        directory.write_state(state())

        def fail(fd):
            raise OSError(28, "No space left on device")
        monkeypatch.setattr(jobdir.os, "fsync", fail)
        with pytest.raises(errors.Unwritable, match="No space left"):
            directory.write_state(state(status=Status.FINISHED))
        assert directory.read_state() == state()


def test_finished_is_only_what_ended_well():
    assert [status for status in Status if state(status=status).finished] == [Status.FINISHED]
