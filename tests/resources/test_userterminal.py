"""The user's own terminal: what the job has changed of it is changed at the terminal of a restart, too."""
from __future__ import annotations

import os
import termios

import pytest
from holding import python_holding
from pods import Subject


@pytest.fixture
def terminals():
    """Two terminals of the user's, the second with an interrupt character and a mode of its own."""
    pairs = [os.openpty() for _ in range(2)]
    settings = termios.tcgetattr(pairs[1][1])
    settings[6][termios.VINTR] = b"\x05"
    settings[0] |= termios.IXANY
    termios.tcsetattr(pairs[1][1], termios.TCSANOW, settings)
    yield [slave for _, slave in pairs]
    for pair in pairs:
        for fd in pair:
            os.close(fd)


_CHANGES = """
import termios
settings = termios.tcgetattr(0)
settings[3] &= ~(termios.ECHO | termios.ICANON)
settings[6][termios.VERASE] = b"\\x08"
termios.tcsetattr(0, termios.TCSANOW, settings)
"""
_CHECKS = """
settings = termios.tcgetattr(0)
assert not settings[3] & (termios.ECHO | termios.ICANON) and settings[6][termios.VERASE] == b"\\x08"
"""


@pytest.fixture
def on_terminal(tmp_path):
    """``on_terminal(terminal, setup, check)``: a program in a pod that has a terminal as its standard input."""
    subjects = []

    def new(terminal, setup, check=""):
        subjects.append(Subject(python_holding(setup, check), tmp_path))
        null = subjects[-1]._stdio[0]
        move(subjects[-1], terminal)
        os.close(null)
        subjects[-1].start()
        return subjects[-1]

    yield new
    for subject in subjects:
        subject._stdio = (-1, *subject._stdio[1:])
        subject.close()


def move(subject, terminal):
    subject._stdio = (terminal, *subject._stdio[1:])


def test_in_another_terminal(on_terminal, terminals):
    first, second = terminals
    subject = on_terminal(first, _CHANGES, _CHECKS)
    image = subject.checkpoint(kill=True)
    move(subject, second)
    subject.restart(image, compare=False)
    image = subject.checkpoint()
    subject.check()
    settings = termios.tcgetattr(second)
    assert not settings[3] & (termios.ECHO | termios.ICANON) and settings[3] & termios.ISIG
    assert settings[6][termios.VINTR] == b"\x05" and settings[0] & termios.IXANY
    with open(os.devnull, "rb") as nothing:   # no terminal at all
        move(subject, nothing.fileno())
        subject.restart(image, compare=False)
        subject.kill()


def test_what_the_job_has_not_changed_stays(on_terminal, terminals):
    first, second = terminals
    before = termios.tcgetattr(second)
    subject = on_terminal(first, "pass")
    image = subject.checkpoint(kill=True)
    move(subject, second)
    subject.restart(image, compare=False)
    subject.check()
    assert termios.tcgetattr(second) == before
