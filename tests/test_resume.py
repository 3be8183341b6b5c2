"""Start afresh or resume: the whole table."""
from __future__ import annotations

from pathlib import Path

import pytest

from crhpc import errors
from crhpc.jobdir import JobState, Status
from crhpc.resume import Command, Found, Mode, candidates, newest_usable, superseded, to_restart

DIR = Path("/images")
APP = Command(("mpirun", "./app"), "/work")
OTHER = Command(("mpirun", "./other"), "/work")
ELSEWHERE = Command(APP.argv, "/else")


def image(number: int, job: str | None = "J", command: Command | None = APP) -> Found:
    return Found(number, DIR / f"ckpt-{number:06d}", job, command if job else None)


def last(status: Status, command: Command = APP, given_up: tuple[int, ...] = (), job: str = "J") -> JobState:
    code = {Status.FINISHED: 0, Status.FAILED: 3, Status.STOPPED: 85}.get(status)
    return JobState(id=job, argv=command.argv, cwd=command.cwd, status=status, exit_code=code, started=1.0,
                    superseded=given_up)


UNFINISHED = [Status.RUNNING, Status.FAILED, Status.STOPPED]
RUNNING = last(Status.RUNNING)
AUTO, NEVER, REQUIRE = Mode.AUTO, Mode.NEVER, Mode.REQUIRE

TABLE = [
    # mode, last job, images, wanted: numbers to try / error
    ("an empty directory", AUTO, None, [], []),
    ("an empty directory", NEVER, None, [], []),
    ("an empty directory", REQUIRE, None, [], errors.NoImage),
    *[(f"a {status} job with images", AUTO, last(status), [image(1), image(2)], [2, 1]) for status in UNFINISHED],
    *[(f"a {status} job with images", REQUIRE, last(status), [image(1), image(2)], [2, 1]) for status in UNFINISHED],
    *[(f"a {status} job with images", NEVER, last(status), [image(1), image(2)], []) for status in UNFINISHED],
    ("a finished job", AUTO, last(Status.FINISHED), [image(1)], []),
    ("a finished job", REQUIRE, last(Status.FINISHED), [image(1)], errors.NoImage),
    ("a finished job of another command", AUTO, last(Status.FINISHED, OTHER), [image(1, "J", OTHER)], []),
    ("killed before its first image", AUTO, RUNNING, [], []),
    ("killed before its first image", REQUIRE, RUNNING, [], errors.NoImage),
    ("killed before its first image, of another command", AUTO, last(Status.RUNNING, OTHER), [], []),
    ("killed before its first image, beside older jobs'", AUTO, RUNNING, [image(1, "I"), image(2, "H")], []),
    ("killed before its first image, beside older jobs'", REQUIRE, RUNNING, [image(1, "I")], errors.NoImage),
    ("another command", AUTO, last(Status.RUNNING, OTHER), [image(1, "J", OTHER)], errors.OtherJob),
    ("another command", REQUIRE, last(Status.RUNNING, OTHER), [image(1, "J", OTHER)], errors.OtherJob),
    ("another command", NEVER, last(Status.RUNNING, OTHER), [image(1, "J", OTHER)], []),
    ("another working directory", AUTO, last(Status.FAILED, ELSEWHERE), [image(1, "J", ELSEWHERE)], errors.OtherJob),
    ("images of this job and of older ones", AUTO, RUNNING, [image(1, "I"), image(2), image(3)], [3, 2]),
    ("images that were given up", AUTO, last(Status.RUNNING, given_up=(3, 4)),
     [image(2), image(3), image(4), image(5)], [5, 2]),
    ("an image whose manifest is damaged", AUTO, RUNNING, [image(1), image(2, None)], [2, 1]),
    ("a damaged one of an older job", AUTO, last(Status.RUNNING, given_up=(1,)), [image(1, None)], []),
    ("no record: the newest image decides", AUTO, None, [image(1, "I", OTHER), image(2)], [2]),
    ("no record, another command", AUTO, None, [image(1), image(2, "K", OTHER)], errors.OtherJob),
    ("no record, the newest damaged", AUTO, None, [image(1), image(2, None)], [2, 1]),
    ("no record, all damaged", AUTO, None, [image(1, None), image(2, None)], [2, 1]),
    ("no record, all damaged", NEVER, None, [image(1, None)], []),
]


@pytest.mark.parametrize(("mode", "state", "found", "wanted"), [row[1:] for row in TABLE],
                         ids=[f"{row[1]}: {row[0]}" for row in TABLE])
def test_table(mode, state, found, wanted):
    if isinstance(wanted, list):
        assert [each.number for each in candidates(mode, state, found, APP, DIR)] == wanted
    else:
        with pytest.raises(wanted):
            candidates(mode, state, found, APP, DIR)


def test_the_other_command_is_named():
    with pytest.raises(errors.OtherJob, match=r"of another command \(mpirun ./other\)") as caught:
        candidates(AUTO, last(Status.RUNNING, OTHER), [image(1, "J", OTHER)], APP, DIR)
    assert caught.value.code == 78
    with pytest.raises(errors.OtherJob, match=r"\(mpirun ./app, in /else\)"):
        candidates(AUTO, last(Status.RUNNING, ELSEWHERE), [image(1)], APP, DIR)


def test_the_first_that_verifies_is_taken():
    told: list[str] = []
    seen: list[str] = []

    def use(image: Found) -> int:
        seen.append(image.path.name)
        if image.number != 1:
            raise errors.ImageDamaged(image=image.path, what="a flipped bit")
        return 7
    assert newest_usable([image(3), image(2), image(1), image(0)], use, told.append, DIR) == 7
    assert seen == ["ckpt-000003", "ckpt-000002", "ckpt-000001"]
    assert len(told) == 2
    assert "ckpt-000003 is damaged: a flipped bit" in told[0]


def test_none_verifies():
    def use(image: Found) -> None:
        raise errors.NoImage(path=image.path, why="gone")
    with pytest.raises(errors.NoImage, match=r"none of 2 can be used, the newest .* is ckpt-000002") as caught:
        newest_usable([image(2), image(1)], use, lambda text: None, DIR)
    assert caught.value.code == 75


@pytest.mark.parametrize(("restarted", "found", "state", "wanted"), [
    (image(2), [image(1), image(2)], RUNNING, ()),
    (image(1), [image(1), image(2), image(3)], RUNNING, (2, 3)),
    (image(4), [image(n) for n in (1, 2, 3, 4)], last(Status.RUNNING, given_up=(2, 3)), (2, 3)),
    (image(4), [image(1), image(4)], last(Status.RUNNING, given_up=(2, 3)), ()),
    (image(2), [image(1), image(2), image(3)], last(Status.RUNNING, given_up=(2, 3)), (3,)),
    (image(2), [image(1, "I"), image(2)], None, (1,)),
    (image(1, "I"), [image(1, "I"), image(2)], last(Status.RUNNING, given_up=(1,)), (2,)),
])
def test_going_back_gives_up_what_is_newer(restarted, found, state, wanted):
    assert superseded(restarted, found, state) == wanted


def test_restart_prefers_what_was_not_given_up():
    found = [image(1), image(2), image(3)]
    assert [each.number for each in to_restart(last(Status.RUNNING, given_up=(3,)), found)] == [2, 1]
    assert [each.number for each in to_restart(last(Status.RUNNING, given_up=(1, 2, 3)), found)] == [3, 2, 1]
    assert [each.number for each in to_restart(None, found)] == [3, 2, 1]
