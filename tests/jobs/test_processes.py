"""By jobs/processes.py whole jobs are killed and missed: it must overlook no process and hit no wrong one."""
from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from leaks import Traces, find
from need import need
from processes import MARK, Process, family, kill, kill_family, look

# A parent that ends at once, and what it leaves: a sleeping process in a session of its own.
ORPHAN = """
import os, time
if os.fork() == 0:
    os.setsid()
    os.execvp("sleep", ["sleep", "600"])
"""


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def marked(mark: str) -> dict[str, str]:
    return os.environ | {MARK: f"{os.environ[MARK]}.{mark}"}


def unshare() -> list[str]:
    command = ["unshare", *([] if os.getuid() == 0 else ["-U", "--map-current-user"]), "--pid", "--fork"]
    allowed = subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    need(allowed, "no new pid namespace is allowed here")
    return command


def names(found: dict[int, Process]) -> list[str]:
    return sorted(process.name for process in found.values())


def test_an_orphan_is_found_by_its_mark() -> None:
    environment = marked("orphan.")
    subprocess.run([sys.executable, "-c", ORPHAN], env=environment, check=True)
    eventually(lambda: names(family([], environment[MARK])) == ["sleep"])
    assert [process.name for process in kill_family([], environment[MARK])] == ["sleep"]
    assert not family([], environment[MARK])


def test_an_orphan_without_a_mark_is_found_by_its_namespace() -> None:
    # The shell is process 1 of the namespace; the orphan has no mark and another parent than it was born to.
    script = f"env -i {sys.executable} -c '{ORPHAN}'; read line"
    with subprocess.Popen([*unshare(), "sh", "-c", script], stdin=subprocess.PIPE) as root:
        eventually(lambda: names(family([root.pid])) == ["sh", "sleep", "unshare"])
        assert len(kill_family([root.pid], None, random.Random(1))) == 3


def test_others_are_left_alone() -> None:
    with subprocess.Popen(["sleep", "600"]) as mine, subprocess.Popen(["sleep", "600"]) as other:
        kill_family([mine.pid], "nobody has this mark")
        assert mine.wait(5) == -9
        assert other.poll() is None
        other.kill()


def test_a_pid_that_was_given_away_is_not_signalled() -> None:
    with subprocess.Popen(["sleep", "600"]) as child:
        process = look(child.pid)
        assert process is not None
        kill([Process(process.pid, process.started - 1, process.parent, process.name)])
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.3)
        kill([process])
        assert child.wait(5) == -9


def test_what_is_left_behind_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRHPC_TEST_SHARED", raising=False)
    mark = os.environ[MARK]
    before = Traces.now(mark)
    file = Path(f"/dev/shm/crhpc-test-{os.getpid()}")
    with subprocess.Popen(["sleep", "600"]) as child:
        file.touch()
        try:
            assert {f"process {child.pid} sleep 600", str(file)} <= set(find(before, mark, 0.1))
            with file.open():
                assert str(file) not in find(before, mark, 0.1)   # in use: not lost
        finally:
            file.unlink()
            child.kill()
    left = find(before, mark)
    assert str(file) not in left
    assert not [line for line in left if line.startswith("process")]
