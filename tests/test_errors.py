"""Errors that users meet: the docstring is the message, the class has the exit code."""
from __future__ import annotations

import errno
import os
import re
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

from crhpc import errors
from crhpc.errors import (
    PASSING,
    CheckpointFailed,
    CommandNotFound,
    CrhpcError,
    DiskFull,
    Reported,
    Unsupported,
    failed_checkpoint,
)

ROOT = Path(__file__).resolve().parents[1]
WITHOUT_CURE = {"CrhpcError", "Reported", "Usage", "CommandNotFound", "NoImage"}
"""What whoever raises one says in its own words."""


def classes() -> list[type[CrhpcError]]:
    def below(kind: type[CrhpcError]) -> Iterator[type[CrhpcError]]:
        for sub in kind.__subclasses__():
            yield sub
            yield from below(sub)
    return [CrhpcError, *(kind for kind in below(CrhpcError) if kind.__module__ == "crhpc.errors")]


def fields(kind: type[CrhpcError]) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(kind.__doc__ or "") if name is not None]


ORDINARY = [kind for kind in classes() if kind is not Reported]


def test_all_are_here():
    assert {CrhpcError, Unsupported, DiskFull, Reported} <= set(classes())
    assert len(classes()) == len([name for name in vars(errors) if isinstance(getattr(errors, name), type)
                                  and issubclass(getattr(errors, name), CrhpcError)])


@pytest.mark.parametrize("kind", ORDINARY, ids=lambda kind: kind.__name__)
def test_the_docstring_is_the_message(kind):
    """In one line however it is broken there, with every field once or more."""
    values = {name: f"<{name}>" for name in fields(kind)}
    error = kind(**values)
    assert str(error) == re.sub(r"\{(\w+)\}", r"<\1>", " ".join(kind.__doc__.split()))
    assert "\n" not in str(error)
    assert error.fields == values


@pytest.mark.parametrize("kind", [kind for kind in ORDINARY if fields(kind)], ids=lambda kind: kind.__name__)
def test_a_field_that_is_missing_is_an_error_of_ours(kind):
    with pytest.raises(KeyError):
        kind()


@pytest.mark.parametrize("kind", ORDINARY, ids=lambda kind: kind.__name__)
def test_messages_end_with_the_cure(kind):
    """Nearly all; they begin in small letters, as they follow ``crhpc: ``."""
    text = " ".join(kind.__doc__.split())
    assert (text.count("Cure: ") == 1) == (kind.__name__ not in WITHOUT_CURE)
    assert not text[0].isupper()
    assert not text.endswith((".", ":"))


@pytest.mark.parametrize("kind", ORDINARY, ids=lambda kind: kind.__name__)
def test_exit_codes_are_documented(kind):
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", (ROOT / "docs/cli.md").read_text(), re.MULTILINE)}
    assert kind.code in documented


def test_what_a_field_holds_is_not_looked_into():
    error = CommandNotFound(command="{command} {0} %s", why=OSError(2, "{why}"))
    assert str(error) == "cannot start {command} {0} %s: [Errno 2] {why}"


def test_one_that_was_worded_elsewhere():
    error = Reported(78, "cannot save {x} of pid 1. Cure: none")
    assert (str(error), error.code, CrhpcError.code) == ("cannot save {x} of pid 1. Cure: none", 78, 70)
    assert Reported(75, "x").code == 75
    assert error.code == 78, "each has its own"


@pytest.mark.parametrize(("cure", "passes"), [(PASSING, True), ("turn it off", False)])
def test_what_passes_is_known_here_and_at_the_other_end(cure, passes):
    """An agent of another node sends the words only."""
    for error in (Unsupported(what="x", pid=1, program="app", cure=cure), CheckpointFailed(why="x", cure=cure)):
        assert error.passing is passes
        assert Reported(error.code, str(error)).passing is passes


def test_what_has_no_cure_does_not_pass():
    assert not CrhpcError(what=PASSING).passing
    assert not DiskFull(path="/x", why="y").passing


# -- a checkpoint that failed -------------------------------------------------------------------------
TEMPORARY = "/images/.ckpt-000001.tmp-0123"


@pytest.mark.parametrize(("error", "kind", "words"), [
    (OSError(errno.ENOSPC, "No space left on device", f"{TEMPORARY}/shard-0.h5"), DiskFull, "/images is full (No sp"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), DiskFull, "/images is full (Disk quota exceeded)"),
    (OSError(errno.EIO, "Input/output error", f"{TEMPORARY}/shard-0.h5"), CheckpointFailed,
     "no checkpoint was taken: /images: Input/output error; the job goes on. Cure: "),
    (OSError(errno.EIO, "Input/output error"), CheckpointFailed, "taken: /images: Input/output error"),
    (OSError(errno.EIO, "Input/output error", 7), CheckpointFailed, "taken: /images: Input/output error"),
    (OSError(errno.EACCES, "Permission denied", "/proc/7/fd"), CheckpointFailed, "/proc/7/fd: Permission denied"),
    (OSError(errno.EACCES, "Permission denied", b"/a/\xff"), CheckpointFailed, "/a/\udcff: Permission denied"),
    (OSError(errno.EACCES, "Permission denied", Path("/a")), CheckpointFailed, "/a: Permission denied"),
    (OSError(errno.ENOENT, "No such file", "/images/.ckpt-000001.tmp-4567"), CheckpointFailed, "4567: No such file")])
def test_what_an_error_of_the_system_was(error, kind, words):
    """The directory of the job is named, not one that will be gone; the cause, where it is another."""
    for temporary in (TEMPORARY, Path(TEMPORARY)):
        found = failed_checkpoint(error, temporary)
        assert type(found) is kind
        assert words in str(found)
        assert TEMPORARY not in str(found)
        assert "the job goes on" in str(found)


def test_the_words_of_a_real_one(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        os.open(tmp_path / ".ckpt-000001.tmp-1" / "shard-0.h5", os.O_RDONLY)
    assert str(failed_checkpoint(caught.value, tmp_path / ".ckpt-000001.tmp-1")).startswith(
        f"no checkpoint was taken: {tmp_path}: No such file or directory; ")
