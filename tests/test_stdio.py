"""Standard streams across a restart: files in every state that a shell or a batch system leaves them in."""
from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from crhpc import stdio
from crhpc.stdio import reconcile, save


@pytest.fixture
def opened():
    """os.open, closed at the end."""
    fds: list[int] = []

    def open_it(path: Path, flags: int = os.O_WRONLY | os.O_CREAT) -> int:
        fds.append(os.open(path, flags, 0o600))
        return fds[-1]
    yield open_it
    for fd in fds:
        os.close(fd)


def saved_after(opened, path: Path, data: bytes, flags: int = 0, limit: int = stdio.CONTENTS_LIMIT):
    fd = opened(path, os.O_WRONLY | os.O_CREAT | flags)
    os.write(fd, data)
    found = save(fd, limit)
    assert found is not None
    return found


TRUNCATE, APPEND = os.O_TRUNC, os.O_APPEND


@pytest.mark.parametrize("flags", [TRUNCATE, APPEND])
@pytest.mark.parametrize("first", [0, APPEND])
@pytest.mark.parametrize("limit", [stdio.CONTENTS_LIMIT, 3])
def test_same_redirection_gives_the_output_of_an_uninterrupted_run(opened, tmp_path, flags, first, limit):
    path, tail = tmp_path / "out", tmp_path / "tail"
    saved = saved_after(opened, path, b"one\ntwo\n", first, limit)
    path.write_bytes(b"one\ntwo\nlost\n")
    new = opened(path, os.O_WRONLY | flags)
    warning = reconcile(new, saved, tail)
    os.write(new, b"three\n")
    if flags == TRUNCATE and limit == 3:
        assert "Cure: redirect output with >>" in warning
        assert path.read_bytes() == b"three\n"
    else:
        assert warning is None
        assert path.read_bytes() == b"one\ntwo\nthree\n"
    assert tail.exists() == (flags == APPEND)
    if flags == APPEND:
        assert tail.read_bytes() == b"lost\n"


def test_a_file_without_a_flag_is_cut_and_written_at_its_end(opened, tmp_path):
    path = tmp_path / "out"
    saved = saved_after(opened, path, b"0123456789")
    path.write_bytes(b"0123456789abc")
    new = opened(path, os.O_RDWR)
    assert reconcile(new, saved, tmp_path / "tail") is None
    os.write(new, b"X")
    assert path.read_bytes() == b"0123456789X"


def test_position_before_the_end_is_kept(opened, tmp_path):
    path = tmp_path / "out"
    fd = opened(path)
    os.write(fd, b"0123456789")
    os.lseek(fd, 4, os.SEEK_SET)
    saved = save(fd)
    new = opened(path, os.O_WRONLY | os.O_TRUNC)
    assert reconcile(new, saved, tmp_path / "tail") is None
    os.write(new, b"X")
    assert path.read_bytes() == b"0123X56789"


def test_a_part_of_the_file_is_completed(opened, tmp_path):
    path = tmp_path / "out"
    saved = saved_after(opened, path, b"0123456789")
    path.write_bytes(b"0123")
    new = opened(path, os.O_WRONLY)
    assert reconcile(new, saved, tmp_path / "tail") is None
    os.write(new, b"X")
    assert path.read_bytes() == b"0123456789X"


def test_another_path_gets_all_of_it(opened, tmp_path):
    saved = saved_after(opened, tmp_path / "out", b"0123456789")
    new = opened(tmp_path / "other")
    assert reconcile(new, saved, tmp_path / "tail") is None
    assert (tmp_path / "other").read_bytes() == b"0123456789"


@pytest.mark.parametrize("there", [b"something else, longer", b"short"])
def test_a_foreign_file_is_only_added_to(opened, tmp_path, there):
    saved = saved_after(opened, tmp_path / "out", b"0123456789")
    other = tmp_path / "other"
    other.write_bytes(there)
    new = opened(other, os.O_WRONLY)
    warning = reconcile(new, saved, tmp_path / "tail")
    os.write(new, b"X")
    assert other.read_bytes() == there + b"X"
    assert str(other) in warning
    assert "\n" not in warning
    assert not (tmp_path / "tail").exists()


def test_an_empty_start_proves_nothing_about_another_file(opened, tmp_path):
    saved = saved_after(opened, tmp_path / "out", b"")
    other = tmp_path / "other"
    other.write_bytes(b"the user's own")
    new = opened(other, os.O_WRONLY)
    assert reconcile(new, saved, tmp_path / "tail") is None
    os.write(new, b"X")
    assert other.read_bytes() == b"the user's ownX"


def test_an_empty_start_of_the_same_file_is_gone_back_to(opened, tmp_path):
    path, tail = tmp_path / "out", tmp_path / "tail"
    saved = saved_after(opened, path, b"")
    path.write_bytes(b"written later")
    assert reconcile(opened(path, os.O_WRONLY), saved, tail) is None
    assert path.read_bytes() == b""
    assert tail.read_bytes() == b"written later"


def test_tails_do_not_overwrite_each_other(opened, tmp_path):
    path, tail = tmp_path / "out", tmp_path / "tail"
    saved = saved_after(opened, path, b"start ")
    for word in (b"first", b"second", b"third"):
        path.write_bytes(b"start " + word)
        assert reconcile(opened(path, os.O_WRONLY), saved, tail) is None
    assert [(tmp_path / name).read_bytes() for name in ("tail", "tail.2", "tail.3")] == [b"first", b"second", b"third"]


def test_nothing_is_cut_if_the_tail_cannot_be_kept(opened, tmp_path):
    path = tmp_path / "out"
    saved = saved_after(opened, path, b"start ")
    path.write_bytes(b"start tail")
    with pytest.raises(OSError, match="No such file"):
        reconcile(opened(path, os.O_WRONLY), saved, tmp_path / "missing" / "tail")
    assert path.read_bytes() == b"start tail"


def test_both_streams_in_one_file(opened, tmp_path):
    path = tmp_path / "out"
    fd = opened(path)
    os.write(fd, b"both\n")
    saved = save(fd), save(os.dup(fd))
    new = opened(path, os.O_WRONLY | os.O_TRUNC)
    for stream in saved:
        assert reconcile(new, stream, tmp_path / "tail") is None
    os.write(new, b"more\n")
    assert path.read_bytes() == b"both\nmore\n"


def test_what_is_no_file_is_left_alone(opened, tmp_path):
    reader, writer = os.pipe()
    saved = saved_after(opened, tmp_path / "out", b"abc")
    assert save(writer) is None
    assert reconcile(writer, saved, tmp_path / "tail") is None
    os.close(writer)
    assert os.read(reader, 10) == b""
    os.close(reader)


def test_input_is_read_on_from_where_it_was(opened, tmp_path):
    path = tmp_path / "in"
    path.write_bytes(b"0123456789")
    fd = opened(path, os.O_RDONLY)
    os.read(fd, 4)
    saved = save(fd)
    assert saved.contents is None
    new = opened(path, os.O_RDONLY)
    assert reconcile(new, saved, tmp_path / "tail") is None
    assert os.read(new, 2) == b"45"
    path.write_bytes(b"0123456789 and more")
    assert "has changed" in reconcile(opened(path, os.O_RDONLY), saved, tmp_path / "tail")


def test_contents_are_kept_up_to_the_limit_then_a_digest(opened, tmp_path):
    short = saved_after(opened, tmp_path / "short", b"x" * 100, limit=100)
    assert (short.contents, short.digest, short.length) == (b"x" * 100, None, 100)
    long = saved_after(opened, tmp_path / "long", b"x" * 101, limit=100)
    assert long.contents is None
    assert len(long.digest) == 64


def test_a_digest_tells_another_file(opened, tmp_path):
    path = tmp_path / "out"
    saved = saved_after(opened, path, b"x" * 101, limit=100)
    path.write_bytes(b"y" * 101)
    new = opened(path, os.O_WRONLY)
    assert "does not begin" in reconcile(new, saved, tmp_path / "tail")
    assert path.read_bytes() == b"y" * 101


def test_marked_in_the_freeze_filled_after_it(opened, tmp_path):
    fd = opened(tmp_path / "out")
    os.write(fd, b"frozen")
    marked = stdio.mark(fd)
    os.write(fd, b" and gone on")
    assert stdio.fill(fd, marked).contents == b"frozen"


def test_a_file_that_is_cut_before_it_is_filled_is_not_relied_on(opened, tmp_path):
    fd = opened(tmp_path / "out")
    os.write(fd, b"frozen")
    marked = stdio.mark(fd)
    os.ftruncate(fd, 2)
    assert stdio.fill(fd, marked) == marked


def test_a_deleted_file(opened, tmp_path):
    path = tmp_path / "out"
    fd = opened(path)
    os.write(fd, b"abc")
    path.unlink()
    assert save(fd).contents == b"abc"


class TestUnreadable:
    """Output that may be written but not read, as a file of mode 0200."""

    @pytest.fixture(autouse=True)
    def forbid(self, monkeypatch):
        # Root may read any file, so the refusal is played.
        real = os.open

        def refuse(path, flags, *rest, **more):
            if str(path).startswith("/proc/self/fd/"):
                raise PermissionError(13, "Permission denied", path)
            return real(path, flags, *rest, **more)
        monkeypatch.setattr(stdio.os, "open", refuse)

    def test_the_same_length_goes_on(self, opened, tmp_path):
        path = tmp_path / "out"
        saved = saved_after(opened, path, b"abc")
        assert (saved.contents, saved.digest) == (None, None)
        new = opened(path, os.O_WRONLY)
        assert reconcile(new, saved, tmp_path / "tail") is None
        os.write(new, b"d")
        assert path.read_bytes() == b"abcd"

    def test_a_tail_stays(self, opened, tmp_path):
        path = tmp_path / "out"
        saved = saved_after(opened, path, b"abc")
        path.write_bytes(b"abc tail")
        new = opened(path, os.O_WRONLY)
        assert "can't be read" in reconcile(new, saved, tmp_path / "tail")
        os.write(new, b"d")
        assert path.read_bytes() == b"abc taild"

    def test_an_empty_file_is_filled(self, opened, tmp_path):
        path = tmp_path / "out"
        saved = replace(saved_after(opened, path, b"abc"), contents=b"abc")
        new = opened(path, os.O_WRONLY | os.O_TRUNC)
        assert reconcile(new, saved, tmp_path / "tail") is None
        assert path.read_bytes() == b"abc"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.binary(max_size=40), lost=st.binary(max_size=40), after=st.binary(max_size=40),
       kept=st.integers(0, 80), append_first=st.booleans(), append=st.booleans(), limit=st.sampled_from([0, 8, 1000]))
@example(before=b"", lost=b"x", after=b"y", kept=0, append_first=False, append=False, limit=1000)
def test_whatever_is_left_of_the_file_the_end_is_right_or_a_warning_is_given(
        tmp_path, *, before, lost, after, kept, append_first, append, limit):
    """Any prefix of what stood there may be left, as after a shell's > or an unclean shutdown."""
    for old in tmp_path.iterdir():
        old.unlink()
    path, tail = tmp_path / "out", tmp_path / "tail"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append_first else 0), 0o600)
    os.write(fd, before)
    saved = save(fd, limit)
    os.write(fd, lost)
    os.close(fd)
    left = (before + lost)[:kept]
    path.write_bytes(left)
    fd = os.open(path, os.O_WRONLY | (os.O_APPEND if append else 0))
    warning = reconcile(fd, saved, tail)
    os.write(fd, after)
    os.close(fd)
    if warning is None:
        assert path.read_bytes() == before + after
        assert (tail.read_bytes() if tail.exists() else b"") == left[len(before):]
    else:
        assert len(before) > limit
        assert len(left) < len(before)
        assert path.read_bytes() == left + after


@pytest.mark.parametrize(("now", "flags", "why"), [
    (b"one\ntwo\n", APPEND, None), (b"one\ntwo\nmore", APPEND, "has 12 bytes, it had 8"),
    (b"one\ntwo\n", TRUNCATE, "has 0 bytes, it had 8"), (b"ONE\ntwo\n", APPEND, "does not begin with"),
    (b"ONE\ntwo\nmore", 0, "does not begin with")])
@pytest.mark.parametrize("limit", [stdio.CONTENTS_LIMIT, 3])
def test_a_difference_is_told_and_nothing_is_changed(opened, tmp_path, now, flags, why, limit):
    path = tmp_path / "out"
    saved = saved_after(opened, path, b"one\ntwo\n", limit=limit)
    path.write_bytes(now)
    new = opened(path, os.O_WRONLY | flags)
    before = path.read_bytes()
    found = stdio.difference(new, saved)
    assert found is None if why is None else why in found
    assert path.read_bytes() == before and os.lseek(new, 0, os.SEEK_CUR) == 0


def test_a_difference_of_input_and_of_what_is_no_file(opened, tmp_path):
    path = tmp_path / "in"
    path.write_bytes(b"input")
    fd = opened(path, os.O_RDONLY)
    saved = save(fd)
    assert stdio.difference(fd, saved) is None
    path.write_bytes(b"more input")
    assert "has 10 bytes, it had 5" in stdio.difference(fd, saved)
    assert stdio.difference(opened(Path(os.devnull), os.O_RDWR), saved) is None


def test_going_on_at_the_end(opened, tmp_path):
    path = tmp_path / "out"
    path.write_bytes(b"what stands there")
    fd = opened(path, os.O_WRONLY)
    stdio.go_on_at_end(fd)
    os.write(fd, b", and more")
    assert path.read_bytes() == b"what stands there, and more"
    source = opened(path, os.O_RDONLY)
    stdio.go_on_at_end(source)
    assert os.lseek(source, 0, os.SEEK_CUR) == 0
    stdio.go_on_at_end(opened(Path(os.devnull), os.O_WRONLY))
