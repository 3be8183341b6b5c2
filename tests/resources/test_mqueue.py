"""What of POSIX message queues is refused; what is saved is in tests/programs/mqueue.c."""
from __future__ import annotations

import pytest

_HOLD = """
libc = ctypes.CDLL(None, use_errno=True)
queue = libc.mq_open(b"/notifying", os.O_RDWR | os.O_CREAT, 0o600, 0)
assert queue >= 0, os.strerror(ctypes.get_errno())
"""
_NOTIFY = "assert libc.mq_notify(queue, struct.pack('Qii48x', 77, signal.SIGUSR1, 0)) == 0\n"
_STILL = """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
assert libc.mq_send(queue, b"x", 1, 0) == 0
assert signal.sigwaitinfo([signal.SIGUSR1]).si_code == -3   # SI_MESGQ
"""


@pytest.mark.parametrize("name", ["kept", "gone"])
def test_notification(refused, name):
    unlink = "libc.mq_unlink(b'/notifying')\n" if name == "gone" else ""
    error = refused(_HOLD + _NOTIFY + unlink, _STILL)
    assert "a notification of message queue /notifying" in str(error)


def test_no_notification_any_more(holding):
    subject = holding(_HOLD + _NOTIFY + "assert libc.mq_notify(queue, None) == 0")
    subject.checkpoint()
    subject.check()
