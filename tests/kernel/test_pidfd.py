"""Handles to other processes."""
from __future__ import annotations

import errno
import gc
import os
import select
import signal

import pytest

from crhpc.kernel import pidfd
from crhpc.kernel.pidfd import KCMP_FILE, KCMP_FILES, KCMP_VM

from .targets import target


@pytest.fixture
def handle():
    fds: list[int] = []

    def open_it(pid: int) -> int:
        fds.append(pidfd.pidfd_open(pid))
        return fds[-1]
    yield open_it
    for fd in fds:
        os.close(fd)


def test_whom_a_handle_refers_to(handle):
    with target() as subject:
        assert pidfd.pid_of(handle(subject.pid)) == subject.pid
    assert pidfd.pid_of(handle(os.getpid())) == os.getpid()


def test_a_reaped_child(handle):
    with target() as subject:
        fd = handle(subject.pid)
    with pytest.raises(ProcessLookupError, match="pidfd"):
        pidfd.pid_of(fd)
    with pytest.raises(ProcessLookupError, match="pidfd_send_signal") as caught:
        pidfd.send_signal(fd, 0)
    assert caught.value.errno == errno.ESRCH
    with pytest.raises(ProcessLookupError, match="pidfd_open"):
        pidfd.pidfd_open(subject.pid)
    with pytest.raises(ProcessLookupError):
        pidfd.take_fd(subject.pid, 0)


def test_a_descriptor_that_is_no_handle():
    reader, writer = os.pipe()
    try:
        with pytest.raises(ProcessLookupError):
            pidfd.pid_of(reader)
        with pytest.raises(OSError, match="pidfd_getfd") as caught:
            pidfd.getfd(reader, 0)
        assert caught.value.errno == errno.EBADF
    finally:
        os.close(reader)
        os.close(writer)


def test_a_signal(handle):
    with target() as subject:
        subject.hear()
        fd = handle(subject.pid)
        pidfd.send_signal(fd, signal.SIGTERM)
        assert select.select([fd], [], [], 20)[0] == [fd]
        assert subject.process.wait() == -signal.SIGTERM


def test_a_copy_of_a_descriptor(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with target(f"fd = os.open({str(path)!r}, os.O_RDONLY)\nos.lseek(fd, 4, 0)\nsay(fd)\nwait()") as subject:
        (number,) = subject.numbers()
        gc.collect()   # what earlier tests have left must not be closed in the middle
        before = len(os.listdir("/proc/self/fd"))
        copy = pidfd.take_fd(subject.pid, number)
        try:
            assert len(os.listdir("/proc/self/fd")) == before + 1, "the handle is closed again"
            assert not os.get_inheritable(copy)
            assert pidfd.kcmp(os.getpid(), subject.pid, KCMP_FILE, copy, number) == 0
            assert os.read(copy, 3) == b"456"
        finally:
            os.close(copy)
        with pytest.raises(OSError, match="pidfd_getfd") as caught:
            pidfd.take_fd(subject.pid, 900)
        assert caught.value.errno == errno.EBADF


def test_what_two_processes_share():
    with target() as one, target() as other:
        assert pidfd.kcmp(one.pid, one.pid, KCMP_VM) == 0
        assert pidfd.kcmp(one.pid, other.pid, KCMP_VM) in (1, 2)
        assert pidfd.kcmp(one.pid, other.pid, KCMP_FILES) != 0
        order = pidfd.kcmp(one.pid, other.pid, KCMP_FILE, 0, 0)
        assert {order, pidfd.kcmp(other.pid, one.pid, KCMP_FILE, 0, 0)} == {1, 2}, "an order, and its reverse"
        with pytest.raises(OSError, match="kcmp") as caught:
            pidfd.kcmp(one.pid, other.pid, KCMP_FILE, 0, 900)
        assert caught.value.errno == errno.EBADF


def test_what_an_epoll_instance_watches():
    with target("""
        import select
        first, second = os.pipe()[0], os.pipe()[0]
        poll = select.epoll()
        number = 50
        os.dup2(first, number)
        poll.register(number)
        os.dup2(second, number)      # another file, under the same number
        poll.register(number)
        say(poll.fileno(), number, first, second)
        wait()
    """) as subject:
        poll, number, first, second = subject.numbers()
        found = {nth: [name for name, fd in (("first", first), ("second", second))
                       if pidfd.compare_epoll_target(subject.pid, subject.pid, poll, number, nth, fd) == 0]
                 for nth in (0, 1)}
        assert sorted(found.values()) == [["first"], ["second"]]
        order = pidfd.kcmp(subject.pid, subject.pid, KCMP_FILE, first, second)
        second_watched = 0 if found[0] == ["second"] else 1
        assert pidfd.compare_epoll_target(subject.pid, subject.pid, poll, number, second_watched, first) == order
        with pytest.raises(FileNotFoundError, match="kcmp"):
            pidfd.compare_epoll_target(subject.pid, subject.pid, poll, number, 2, first)
