"""What of System V semaphores is refused, and how adjustments are found; what is saved is in tests/programs."""
from __future__ import annotations

import pytest

from crhpc.resources import sysvsem

_HOLD = """
libc = ctypes.CDLL(None, use_errno=True)
number = libc.semget(0, 1, 0o600)
assert number >= 0
def change(by, flags=0x1000):
    assert libc.semop(number, struct.pack("Hhh", 0, by, flags), 1) == 0, os.strerror(ctypes.get_errno())
"""
_SYSVSEM, _SIGCHLD, _CLONE = 0x40000, 17, 56


def test_adjustments_that_processes_share(refused):
    setup = f"""{_HOLD}
change(3)
pid = libc.syscall({_CLONE}, {_SYSVSEM | _SIGCHLD}, 0, 0, 0, 0)
if pid == 0:
    while True:
        signal.pause()
"""
    check = "change(-3)\nos.kill(pid, 9)\nos.waitpid(pid, 0)"
    assert "not one process's" in str(refused(setup, check))


def test_adjustments_of_a_thread(refused):
    setup = f"""{_HOLD}
import threading
def work():
    assert libc.unshare({_SYSVSEM}) == 0
    change(3)
    there.set()
    end.wait()
there, end = threading.Event(), threading.Event()
thread = threading.Thread(target=work)
thread.start()
there.wait()
"""
    assert "not one process's" in str(refused(setup, "end.set()\nthread.join()"))


def test_shared_adjustments_without_semaphores(holding):
    """Nothing to be saved: there is no set that they could be of."""
    subject = holding(f"""
libc = ctypes.CDLL(None)
pid = libc.syscall({_CLONE}, {_SYSVSEM | _SIGCHLD}, 0, 0, 0, 0)
if pid == 0:
    while True:
        signal.pause()
""", "os.kill(pid, 9)\nos.waitpid(pid, 0)")
    subject.checkpoint()
    subject.check()


@pytest.mark.parametrize("change", [1, -1, 32767, -32767, -32768])
def test_operations_change_nothing_but_the_adjustment(change):
    value = adjustment = 0
    for add, flags in sysvsem._shift(change):
        assert -32767 <= add <= 32767
        value += add
        assert 0 <= value <= 32767
        adjustment -= add if flags else 0
    assert (value, adjustment) == (0, change)


def test_the_last_is_told_after_a_checkpoint_too(holding):
    """Who is asked for adjustments becomes the last to have changed a semaphore, and must not stay it."""
    subject = holding(f"""{_HOLD}
import threading
threading.Thread(target=lambda: None).start()   # from now on there is a list of adjustments
change(1)
child = os.fork()
if child == 0:
    change(5, 0)
    while True:
        signal.pause()
while libc.semctl(number, 0, 11) != child:
    time.sleep(0.001)
""", "assert libc.semctl(number, 0, 11) == child, libc.semctl(number, 0, 11)\nos.kill(child, 9)\nos.waitpid(child, 0)")
    subject.checkpoint()
    subject.checkpoint()
    subject.check()
