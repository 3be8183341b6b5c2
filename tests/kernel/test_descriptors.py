"""Open files passed into a stopped process."""
from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from crhpc.kernel import descriptors, pidfd, proc
from crhpc.kernel.tracee import Area

from .targets import scratch, stopped, target


@dataclass
class Receiver:
    pid: int
    ours: socket.socket
    number: int
    area: Area

    def push(self, fds: list[int]) -> list[int]:
        return descriptors.push(self.ours, self.area, self.number, fds)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    ours, theirs = socket.socketpair()
    with ours, theirs, target(pass_fds=[theirs.fileno()]) as subject:
        subject.hear()
        with stopped(subject.pid) as tracee, scratch(tracee, 16 << 10) as area:
            yield Receiver(subject.pid, ours, theirs.fileno(), area)


@pytest.fixture
def files() -> Iterator[list[int]]:
    """More than one message takes."""
    fds = [os.eventfd(n) for n in range(descriptors.AT_ONCE * 2 + 20)]
    yield fds
    for fd in fds:
        os.close(fd)


def test_they_are_the_same_files(receiver, files):
    numbers = receiver.push(files[:3])
    for ours, theirs in zip(files, numbers, strict=False):
        assert pidfd.kcmp(os.getpid(), receiver.pid, pidfd.KCMP_FILE, ours, theirs) == 0
        assert not proc.fdinfo(receiver.pid, theirs).flags & os.O_CLOEXEC


def test_lowest_free_numbers_in_order(receiver, files):
    used = set(proc.fds(receiver.pid))
    free = [number for number in range(1000) if number not in used]
    assert receiver.push(files[:20]) == free[:20]


def test_more_than_one_message_takes(receiver, files):
    numbers = receiver.push(files)
    assert len(set(numbers)) == len(files)
    assert [proc.fdinfo(receiver.pid, number).field("eventfd-count") for number in numbers] == [
        f"{n:x}" for n in range(len(files))]


def test_none(receiver):
    before = proc.fds(receiver.pid)
    assert receiver.push([]) == []
    assert proc.fds(receiver.pid) == before


def test_one_again_and_again(receiver, files):
    numbers = receiver.push([files[0], files[0]])
    assert pidfd.kcmp(receiver.pid, receiver.pid, pidfd.KCMP_FILE, *numbers) == 0


@pytest.mark.parametrize("room", [0, 5])
def test_a_process_that_may_not_have_so_many(receiver, files, room):
    """It gets a part of them, or none: that is an error, not half of a result."""
    limit = len(proc.fds(receiver.pid)) + room
    resource.prlimit(receiver.pid, resource.RLIMIT_NOFILE, (limit, limit))
    with pytest.raises(OSError, match="recvmsg") as caught:
        receiver.push(files[:10])
    assert caught.value.errno == errno.EMFILE


def test_reopen(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    fd = os.open(path, os.O_RDONLY)
    try:
        os.unlink(path)
        os.lseek(fd, 3, os.SEEK_SET)
        again = descriptors.reopen(fd, os.O_RDWR)
        try:
            assert os.read(again, 7) == b"content", "an offset of its own"
            assert os.pwrite(again, b"C", 0) == 1
            assert os.pread(fd, 1, 0) == b"C"
            assert not os.get_inheritable(again)
        finally:
            os.close(again)
    finally:
        os.close(fd)
