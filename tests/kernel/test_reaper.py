"""A process with several threads that is killed while one of them is waited for."""
from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest

from crhpc.kernel import proc, ptrace, tracee
from crhpc.kernel.reaper import Reaper, reap_beside
from crhpc.kernel.tracee import TaskGone, wait

from .targets import target, until

THREADS = ("import threading\nfor _ in range(3): threading.Thread(target=wait, daemon=True).start()\n"
           "say('ready')\nwait()")


@pytest.fixture
def killed():
    """A process all of whose threads stood still when it was killed."""
    with target(THREADS) as made:
        made.hear()
        pid = made.process.pid
        until(lambda: len(proc.threads(pid)) == 4, "no threads")
        for tid in proc.threads(pid):
            ptrace.seize(tid, 0)
            ptrace.interrupt(tid)
            wait(tid)
        os.kill(pid, signal.SIGKILL)
        yield pid
        for tid in [*(tid for tid in proc.threads(pid) if tid != pid), pid]:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(tid, 0x40000000)


def test_nothing_is_told_until_the_others_are_waited_for(killed):
    until(lambda: proc.status(killed).fields["State"].startswith("Z"), "it does not die")
    time.sleep(0.1)
    assert wait(killed, block=False) is None, "else there is no need for all of this"
    reap_beside(killed)
    with pytest.raises(TaskGone):
        until(lambda: wait(killed, block=False), "its end is not told")


def test_a_wait_ends(killed):
    reaper, began = Reaper(), time.monotonic()
    try:
        with pytest.raises(TaskGone):
            wait(killed)
    finally:
        reaper.stop()
    assert time.monotonic() - began < 10
    assert tracee.awaited()[0] == 0


def test_it_ends_when_it_is_told_to():
    reaper = Reaper()
    reaper.stop()
    reaper.stop()
    assert not reaper._thread.is_alive()
