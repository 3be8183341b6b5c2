"""What threads wait in, and since when."""
from __future__ import annotations

import os
import time

from crhpc.kernel import proc
from crhpc.kernel.libc import NR
from crhpc.kernel.waiting import Clocks, Waiting, parse_sched, parse_syscall, waiting

from .targets import target, until

SCHED = b"""sleep (23051, #threads: 1)
-------------------------------------------------------------------
se.exec_start                                :       4177179.240390
nr_switches                                  :                    1
nr_voluntary_switches                        :                    3
"""


def test_parsing():
    assert parse_syscall(b"230 0x0 0x1 0x7ffc 0x0 0x0 0x5 0x7fff 0x4000\n") == Waiting(
        230, (0, 1, 0x7FFC, 0, 0, 5), 0x7FFF, 0x4000)
    assert parse_syscall(b"running\n") is None
    assert parse_syscall(b"-1 0x7fff 0x4000\n") is None
    assert parse_sched(SCHED) == (4177179240390, 3)
    assert parse_sched(b"nothing\n") is None


def test_a_thread_that_waits():
    with target("say('ready')\nctypes.CDLL(None).poll(None, 0, 77777)") as found:
        found.hear()
        until(lambda: (seen := waiting(found.pid, found.pid)) and seen.number == NR["poll"], "it does not poll")
        seen = waiting(found.pid, found.pid)
        assert seen is not None
        assert seen.arguments[:3] == (0, 0, 77777)
        assert any(m.start <= seen.instruction < m.end and m.execute for m in proc.maps(found.pid))
    assert waiting(found.pid, found.pid) is None, "it is gone"


def test_since_when():
    """A little late rather than early."""
    for _ in range(3):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        with target("say('ready')\nwait()") as found:
            found.hear()
            until(lambda: waiting(found.pid, found.pid) is not None, "it does not wait")
            after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            time.sleep(0.1)
            asleep = Clocks().asleep(found.pid, found.pid)
            assert asleep is not None
            assert before < asleep.since < after + 50 * 10**6
            again = Clocks().asleep(found.pid, found.pid)
            assert again is not None
            assert again.switches == asleep.switches
            found.tell()


def test_our_own_processors_stay():
    mine = os.sched_getaffinity(0)
    with target() as found:
        found.hear()
        clocks = Clocks()
        for _ in range(2):
            clocks.asleep(found.pid, found.pid)
    assert os.sched_getaffinity(0) == mine
    assert Clocks().asleep(1 << 30, 1 << 30) is None
