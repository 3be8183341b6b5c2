"""Old images go only once a newer one is verified."""
from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_agent import damage, write_image

from crhpc.image.format import image_numbers
from crhpc.retention import Retention, expired, verify_and_remove

JOB = {"id": "J", "argv": ["true"], "cwd": "/", "directory": "/", "started": 1.0}


def images(directory: Path, *numbers: int) -> None:
    for number in numbers:
        write_image(directory, number, JOB, {"tasks": 1})


def task(directory: Path, number: int, **changes: object) -> dict[str, object]:
    return {"directory": str(directory), "number": number, "keep": 2, "superseded": [], "damaged": [], **changes}


@pytest.mark.parametrize(("existing", "verified", "keep", "more", "wanted"), [
    ([1], 1, 2, {}, []),
    ([1, 2, 3], 3, 2, {}, [1]),
    ([1, 2, 3], 3, 1, {}, [1, 2]),
    ([1, 2, 3], 3, 0, {}, []),
    ([1, 2, 3, 4], 3, 1, {}, [1, 2]),                                  # 4 is not verified yet
    ([1, 2, 3], 1, 1, {}, []),
    ([1, 2, 3], 3, 2, {"damaged": [2]}, [2]),                          # a damaged one does not count as kept
    ([1, 2, 3, 6], 6, 2, {"superseded": [2, 3]}, [2, 3]),
    ([1, 2, 3], 3, 5, {"superseded": [1, 2]}, [1, 2]),                 # of jobs before this one
])
def test_expired(existing, verified, keep, more, wanted):
    assert expired(existing, verified, keep, **more) == wanted


numbers = st.sets(st.integers(0, 30), max_size=12)


@given(existing=numbers, verified=st.integers(0, 30), keep=st.integers(0, 5), given_up=numbers, bad=numbers)
def test_what_expires_is_always_older_than_what_is_verified(existing, verified, keep, given_up, bad):
    gone = expired(existing, verified, keep, given_up, bad)
    assert all(number in existing and number < verified for number in gone)
    left = [n for n in existing if n not in gone]
    good = sorted(n for n in existing if n <= verified and n not in given_up and n not in bad)
    assert set(good[-keep:] if keep else good) <= set(left)
    if keep == 0:
        assert gone == []
    else:
        older = [n for n in left if n < verified]
        assert len(older) <= keep


def test_verified_then_removed(tmp_path):
    images(tmp_path, 1, 2, 3)
    (tmp_path / "ckpt-000001.tail-out").write_text("cut off")
    (tmp_path / "ckpt-000002.tail-out").write_text("cut off")
    assert verify_and_remove(task(tmp_path, 3)) == {"verified": 3, "removed": [1]}
    assert image_numbers(tmp_path) == [2, 3]
    assert sorted(path.name for path in tmp_path.glob("*.tail-*")) == ["ckpt-000002.tail-out"]


def test_nothing_is_removed_for_a_damaged_image(tmp_path):
    images(tmp_path, 1, 2, 3)
    damage(tmp_path / "ckpt-000003")
    result = verify_and_remove(task(tmp_path, 3, keep=1))
    assert (result["verified"], result["removed"]) == (None, [])
    assert "ckpt-000003 is damaged" in result["why"]
    assert image_numbers(tmp_path) == [1, 2, 3]


def test_nothing_is_removed_for_an_image_that_is_gone(tmp_path):
    images(tmp_path, 1, 2)
    result = verify_and_remove(task(tmp_path, 3, keep=1))
    assert (result["verified"], result["removed"]) == (None, [])


def test_one_that_cannot_be_removed_does_not_keep_the_others(tmp_path):
    images(tmp_path, 1, 2, 3)
    (tmp_path / "ckpt-000001" / "manifest.json").write_text("{}")   # whose files are these?
    result = verify_and_remove(task(tmp_path, 3, keep=1))
    assert result["verified"] == 3
    assert result["removed"] == [2]
    assert "cannot remove an old image" in result["why"]


def finish(child) -> str:
    while child.drain():
        child.wait(0.05)
    assert child.wait(30) == 0
    child.close()
    return child.tail


def test_one_at_a_time_and_the_newest_next(tmp_path):
    images(tmp_path, 1, 2, 3, 4)
    retention = Retention(tmp_path, keep=1, superseded=())
    assert retention.next_child(os.environ) is None
    retention.committed(2)
    child = retention.next_child(os.environ)
    assert os.getpriority(os.PRIO_PROCESS, child.pid) in (0, 19)
    retention.committed(3)
    retention.committed(4)
    assert retention.next_child(os.environ) is None, "one is at work"
    assert retention.ended(finish(child)) is None
    assert retention.verified == 2
    assert image_numbers(tmp_path) == [2, 3, 4]
    child = retention.next_child(os.environ)
    assert retention.ended(finish(child)) is None
    assert retention.verified == 4
    assert image_numbers(tmp_path) == [4]
    assert retention.next_child(os.environ) is None


def test_a_damaged_one_is_reported_and_not_counted(tmp_path):
    images(tmp_path, 1, 2, 3)
    damage(tmp_path / "ckpt-000002")
    retention = Retention(tmp_path, keep=2, superseded=())
    retention.committed(2)
    assert "is damaged" in retention.ended(finish(retention.next_child(os.environ)))
    assert retention.verified is None
    retention.committed(3)
    assert retention.ended(finish(retention.next_child(os.environ))) is None
    assert image_numbers(tmp_path) == [1, 3]


@pytest.mark.parametrize("output", ["", "Killed", "Traceback\nMemoryError", "[]", "{}", json.dumps({"verified": 6})])
def test_no_clear_answer_is_no_yes(tmp_path, output, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/true")
    retention = Retention(tmp_path, keep=1, superseded=())
    retention.committed(7)
    finish(retention.next_child(os.environ))
    problem = retention.ended(output)
    assert retention.verified is None
    assert problem
