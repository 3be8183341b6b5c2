"""Descriptors of processes: what is refused, and how the dead had ended; the rest is in tests/programs/pidfds.c."""
from __future__ import annotations

import os
import socket
import threading
from textwrap import dedent

import pytest

from crhpc.errors import Unsupported

from .forking import forking

_INFO = """
def info(fd):
    answer = fcntl.ioctl(fd, 0xC040FF0B, struct.pack("Q56x", 8))
    return struct.unpack("Q52xi", answer)[1]
"""


@pytest.fixture
def sender(tmp_path):
    """A socket over which a program in a pod can be sent descriptors of this process."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        yield listener, path


def test_a_process_outside_is_refused(holding, sender):
    listener, path = sender

    def send():
        connection, _ = listener.accept()
        handle = os.pidfd_open(os.getpid())
        with connection:
            socket.send_fds(connection, [b"x"], [handle])
        os.close(handle)

    thread = threading.Thread(target=send)
    thread.start()
    subject = holding(f"""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect({path!r})
            _, (fd,), _, _ = socket.recv_fds(connection, 1, 1)
    """)
    thread.join()
    with pytest.raises(Unsupported, match=f"a pidfd of process {os.getpid()}, which is not of the job"):
        subject.checkpoint()
    subject.check()


def test_how_the_dead_had_ended_is_told_again(holding):
    subject = holding(forking(_INFO + dedent("""
        def dead(end):
            pid = os.fork()
            if pid == 0:
                end()
            fds = [os.pidfd_open(pid), os.pidfd_open(pid)]
            os.waitpid(pid, 0)
            return fds
        fds = dead(lambda: os._exit(7)) + dead(lambda: (os.kill(os.getpid(), 9), signal.pause()))
        try:
            before = [info(fd) for fd in fds]
            assert before == [7 << 8, 7 << 8, 9, 9]
        except OSError:   # before Linux 6.15
            info = lambda fd: 0
            before = [0] * 4
    """)), "assert [info(fd) for fd in fds] == before")
    for _ in range(2):
        subject.restart(subject.checkpoint(kill=True))
    subject.check()


def test_one_on_its_way_in_a_message_arrives(holding):
    subject = holding(forking("""
        left, right = socket.socketpair()
        child = fork()
        handles = [os.pidfd_open(child), os.pidfd_open(os.getpid())]
        socket.send_fds(left, [b"x"], handles)
        for handle in handles:
            os.close(handle)
    """), """
        _, handles, _, _ = socket.recv_fds(right, 1, 2)
        lines = [open(f"/proc/self/fdinfo/{handle}").read() for handle in handles]
        assert [f"Pid:\\t{pid}\\n" in line for pid, line in zip((child, os.getpid()), lines)] == [True, True], lines
    """)
    subject.restart(subject.checkpoint(kill=True))
    subject.check()


def test_of_a_zombie_that_nobody_will_wait_for(holding):
    """An orphan's: the pod's first process is about to."""
    subject = holding(forking("""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            orphan = os.fork()
            if orphan == 0:
                os._exit(5)
            os.write(writer, b"%d" % orphan)
            signal.pause()
        handle = os.pidfd_open(int(os.read(reader, 10)))
        os.kill(child, 9)
        os.waitpid(child, 0)
    """), "import select; assert select.select([handle], [], [], 10)[0]")
    subject.restart(subject.checkpoint(kill=True))
    subject.check()
