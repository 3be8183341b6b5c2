"""What is said, where, and when not."""
from __future__ import annotations

import io
import os
import time

import pytest
from supervised import read_terminal

from crhpc import progress
from crhpc.progress import Report, checkpoint_line, duration, plain, plural, size

CHECKPOINTED = {"number": 5, "tasks": 4, "frozen": 0.012, "bytes": 210 << 20, "stored": 43 << 20, "seconds": 0.8}


class BrokenStream(io.StringIO):
    """A terminal that hung up."""

    tried = 0

    def write(self, text: str) -> int:
        self.tried += 1
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize(("value", "text"), [
    (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (10 << 10, "10 KiB"), (210 << 20, "210 MiB"), (3 << 29, "1.5 GiB"),
    (5 << 40, "5.0 TiB"), (5000 << 40, "5000 TiB")])
def test_size(value, text):
    assert size(value) == text


@pytest.mark.parametrize(("value", "text"), [
    (0.0002, "0.2 ms"), (0.012, "12 ms"), (0.8, "0.8 s"), (9.94, "9.9 s"), (12, "12 s"), (119, "119 s"), (180, "3 min"),
    (7200, "2 h 0 min"), (7500, "2 h 5 min")])
def test_duration(value, text):
    assert duration(value) == text


def test_words():
    assert [plural(n, noun) for n, noun in ((1, "process"), (4, "process"), (2, "page"))] == [
        "1 process", "4 processes", "2 pages"]
    assert checkpoint_line(CHECKPOINTED | {"stopped": True}) == (
        "checkpoint 5: 4 processes, 210 MiB saved as 43 MiB in 0.8 s")
    assert checkpoint_line(CHECKPOINTED) == "checkpoint 5: 4 processes, frozen 12 ms, 210 MiB saved as 43 MiB in 0.8 s"


def test_names_from_the_job_cannot_play_with_the_terminal():
    assert plain("a\x1b[2J\nb\u202ec") == "a?[2J b?c"


def test_lines():
    stream = io.StringIO()
    report = Report(verbose=False, stream=stream)
    report.say("one")
    report.detail("unseen")
    report.once("twice")
    report.once("twice")
    report.quote("a\nb")
    report.progress("write", 1, 2)
    assert stream.getvalue() == "crhpc: one\ncrhpc: twice\ncrhpc: | a\ncrhpc: | b\n"
    report.verbose = True
    report.detail("seen")
    assert stream.getvalue().endswith("crhpc: seen\n")


def test_held_back_where_lines_go_to_a_file(tmp_path):
    with open(tmp_path / "err", "w+") as stream:
        report = Report(verbose=False, stream=stream)
        report.hold()
        report.say("one")
        report.once("two")
        assert (tmp_path / "err").read_text() == ""
        report.release()
        report.release()
        report.say("three")
    assert (tmp_path / "err").read_text() == "crhpc: one\ncrhpc: two\ncrhpc: three\n"


def test_not_held_back_elsewhere():
    stream = io.StringIO()
    report = Report(verbose=False, stream=stream)
    report.hold()
    report.say("one")
    assert stream.getvalue() == "crhpc: one\n"


def test_a_stream_that_breaks_is_given_up():
    stream = BrokenStream()
    report = Report(verbose=False, stream=stream)
    report.say("one")
    report.say("two")
    report.hold()
    report.progress("write", 1, 2)
    report.clear()
    assert stream.tried == 1


class TestTerminal:
    """The live line."""

    @pytest.fixture
    def terminal(self, monkeypatch):
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "100")
        master, slave = os.openpty()
        with open(slave, "w") as stream:
            yield stream, master

    def test_comes_after_a_while_and_goes(self, terminal, monkeypatch):
        monkeypatch.setattr(progress, "_UNSEEN", 0.05)
        stream, master = terminal
        report = Report(verbose=False, stream=stream)
        for step in range(10):
            report.progress("write", step << 20, 10 << 20)
            time.sleep(0.03)
        report.say("a line meanwhile")
        report.clear()
        report.say("after")
        stream.close()
        text = read_terminal(master)
        assert "saving" in text
        assert "of 10 MiB" in text
        assert "a line meanwhile" in text
        assert text.endswith("crhpc: after\r\n")
        assert "\x1b[2K" in text, "the live line is wiped out"
        assert "\x1b[?25h" in text, "the cursor comes back"

    def test_quick_checkpoints_don_t_show(self, terminal):
        stream, master = terminal
        report = Report(verbose=False, stream=stream)
        for _ in range(3):
            report.progress("freeze", 0, 0)
            report.progress("write", 1 << 20, 10 << 20)
            report.clear()
        stream.close()
        assert read_terminal(master) == ""
