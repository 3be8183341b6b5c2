"""Calls of another process are seen and answered: a child of ours asks for them when told to."""
from __future__ import annotations

import errno
import os
import select
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from crhpc.kernel import pidfd, seccomp
from crhpc.kernel.libc import NR

from .targets import Target, scratch, stopped, target

_NO_NEW_PRIVS = 38
_CALLER = """
libc = ctypes.CDLL(None, use_errno=True)
say('ready')
while True:
    words = wait().split()
    if words[0] == 'thread':
        thread = threading.Thread(target=lambda: say('thread', libc.syscall(124, 7)))
        thread.start()
    elif words[0] == 'child':
        pid = os.fork()
        if pid == 0:
            say('child', libc.syscall(124, 8))
            os._exit(0)
        os.waitpid(pid, 0)
    else:
        say(libc.syscall(*map(int, words)), ctypes.get_errno())
"""


@contextmanager
def filtered(calls: tuple[str, ...]) -> Iterator[tuple[Target, int]]:
    with target(_CALLER) as subject:
        subject.hear()
        with stopped(subject.pid) as tracee, scratch(tracee) as area:
            tracee.call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0)   # instead of CAP_SYS_ADMIN
            number = seccomp.install(area, calls)
            listener = pidfd.take_fd(subject.pid, number)
            tracee.call("close", number)
        try:
            yield subject, listener
        finally:
            os.close(listener)


def notified(listener: int) -> seccomp.Notification:
    assert select.select([listener], [], [], 20)[0]
    found = seccomp.receive(listener)
    assert found is not None
    return found


def test_a_call_is_answered_in_the_kernels_stead():
    with filtered(("getsid",)) as (subject, listener):
        subject.tell("124 42")
        call = notified(listener)
        assert (call.number, call.arguments[0], call.tid) == (NR["getsid"], 42, subject.pid)
        assert seccomp.still_waits(listener, call)
        seccomp.answer(listener, call, errno.EXDEV)
        assert subject.numbers() == [-1, errno.EXDEV]
        assert not seccomp.still_waits(listener, call)
        subject.tell("124 0")
        seccomp.answer(listener, notified(listener), 0)
        assert subject.numbers()[0] == 0


def test_a_call_is_let_go_on():
    with filtered(("getsid",)) as (subject, listener):
        subject.tell("124 0")
        seccomp.let_go_on(listener, notified(listener))
        assert subject.numbers()[0] == os.getsid(subject.pid)


def test_other_calls_pass_unseen():
    with filtered(("getsid", "bind")) as (subject, listener):
        subject.tell(f"{NR['getpgid']} 0")
        assert subject.numbers()[0] == os.getpgid(subject.pid)
        assert not select.select([listener], [], [], 0)[0]


@pytest.mark.parametrize("call", ["connect", "bind", "getsid"])
def test_each_of_several_calls_is_seen(call):
    with filtered(("connect", "bind", "getsid")) as (subject, listener):
        subject.tell(f"{NR[call]} 99 98 97")
        found = notified(listener)
        assert (found.number, found.arguments[:3]) == (NR[call], (99, 98, 97))
        seccomp.answer(listener, found, errno.EXDEV)
        assert subject.numbers() == [-1, errno.EXDEV]


def test_threads_and_children_inherit():
    with filtered(("getsid",)) as (subject, listener):
        subject.tell("thread")
        call = notified(listener)
        assert seccomp.process_of(call.tid) == subject.pid != call.tid
        seccomp.answer(listener, call, 0)
        assert subject.hear() == "thread 0"
        subject.tell("child")
        call = notified(listener)
        assert seccomp.process_of(call.tid) == call.tid != subject.pid
        seccomp.answer(listener, call, 0)
        assert subject.hear() == "child 0"


def test_who_was_killed_waits_for_nothing():
    with filtered(("getsid",)) as (subject, listener):
        subject.tell("124 0")
        call = notified(listener)
        subject.process.kill()
        subject.process.wait()
        assert not seccomp.still_waits(listener, call)
        seccomp.answer(listener, call, 0)   # no harm
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        assert [events & select.POLLHUP for _, events in poll.poll(20000)] == [select.POLLHUP]


def test_a_process_that_is_gone():
    with pytest.raises(OSError):
        seccomp.process_of(1 << 22)


def test_the_program_is_made_of_whole_instructions():
    steps = list(struct.iter_unpack("HBBI", seccomp.filter_program(("connect", "bind"))))
    assert steps[0] == (0x20, 0, 0, 4)
    assert [step[3] for step in steps[-2:]] == [0x7FFF0000, 0x7FC00000]
    # every jump of a call that was named ends at the last instruction
    for at, (code, jump, _, value) in enumerate(steps):
        if code == 0x15 and value in (NR["connect"], NR["bind"]):
            assert at + 1 + jump == len(steps) - 1
