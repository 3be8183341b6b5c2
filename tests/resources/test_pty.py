"""Terminals that can't be saved; the rest is in tests/programs/pty_*.c."""
from __future__ import annotations

import fcntl
import os
import socket
import struct

import pytest
from need import offered

from crhpc.errors import Unsupported

_PAIR = """
master, slave = os.openpty()
"""


def test_settings_that_are_pinned(refused):
    offered(os.getuid() == 0, "only root can pin settings of terminals (TIOCSLCKTRMIOS)")
    error = refused(_PAIR + "fcntl.ioctl(slave, 0x5457, struct.pack('4I', 1, 0, 0, 0) + bytes(20))",
                    "assert fcntl.ioctl(slave, 0x5456, bytes(36))[0] == 1")
    assert "a terminal whose settings are pinned" in str(error) and "TIOCSLCKTRMIOS" in str(error)


def test_another_line_discipline(refused):
    master, slave = os.openpty()
    try:
        fcntl.ioctl(slave, 0x5423, struct.pack("i", 27))   # N_NULL
    except OSError:
        offered(False, "there is no line discipline but N_TTY here")
    finally:
        os.close(slave)
        os.close(master)
    error = refused(_PAIR + "fcntl.ioctl(slave, 0x5423, struct.pack('i', 27))")
    assert "a line discipline other than N_TTY" in str(error)


def test_one_hung_up_while_its_master_is_open(refused):
    offered(os.getuid() == 0, "only root can hang terminals up (TIOCVHANGUP)")
    error = refused(_PAIR + "fcntl.ioctl(slave, 0x5437)", "assert os.read(slave, 1) == b''")
    assert "hung up while its master is open" in str(error)


def test_the_users_own(holding, tmp_path):
    path = str(tmp_path / "socket")
    master, slave = os.openpty()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        pid = os.fork()
        if pid == 0:
            connection, _ = listener.accept()
            socket.send_fds(connection, [b"x"], [slave])
            os._exit(0)
        subject = holding(f"""
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect({path!r})
                _, (fd,), _, _ = socket.recv_fds(connection, 1, 1)
        """, "assert os.isatty(fd)")
        os.waitpid(pid, 0)
    os.close(slave)
    with pytest.raises(Unsupported, match="a terminal of the user's"):
        subject.checkpoint()
    subject.check()
    os.close(master)


def test_one_whose_master_is_outside(holding, tmp_path):
    """A slave of the pod's that waits in a message for the job."""
    path = str(tmp_path / "socket")
    subject = holding(f"""
        waiting = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        waiting.bind({path!r})
    """, "_, (fd,), _, _ = socket.recv_fds(waiting, 1, 1); assert os.isatty(fd)")
    master = os.open(subject.node.context.outside("/dev/pts/ptmx"), os.O_RDWR | os.O_NOCTTY)
    fcntl.ioctl(master, 0x40045431, struct.pack("i", 0))
    slave = fcntl.ioctl(master, 0x5441, os.O_RDWR | os.O_NOCTTY)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(path)
        socket.send_fds(sender, [b"x"], [slave])
    os.close(slave)
    with pytest.raises(Unsupported, match="a terminal whose master is held outside the job"):
        subject.checkpoint()
    subject.check()
    os.close(master)
