"""Timers of a job that goes on, over many checkpoints, and what of timers is refused; the rest is in tests/programs."""
from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from need import need
from pods import PROGRAMS, Subject, compile_program

_CREATE = """
import ctypes, threading
def create(clock, notify, thread=0):
    event = (ctypes.c_int * 16)()
    event[2], event[3], event[4] = 40, notify, thread
    timer = ctypes.c_int()
    assert ctypes.CDLL(None).syscall(222, clock, event, ctypes.byref(timer)) == 0
def threaded(work):
    done = threading.Event()
    def run():
        work()
        done.set()
        threading.Event().wait()
    threading.Thread(target=run, daemon=True).start()
    done.wait()
"""


@pytest.mark.parametrize("name", ["ticks", "timerfd", "itimers", "posix_timers"])
def test_no_tick_is_lost_by_many_checkpoints(name: str, tmp_path: Path) -> None:
    """The programs count by their own clock."""
    need(shutil.which("gcc"), "there is no C compiler (gcc)")
    subject = Subject([str(compile_program(PROGRAMS / f"{name}.c", tmp_path / name))], tmp_path)
    try:
        subject.start()
        for _ in range(20):
            subject.checkpoint()
        subject.check()
    finally:
        subject.close()


def test_a_timer_for_a_thread_that_has_ended_is_refused(refused):
    error = refused(_CREATE + """
def work():
    create(1, 4, threading.get_native_id())
thread = threading.Thread(target=work)
thread.start()
thread.join()
""")
    assert "POSIX timer 0 for a thread that has ended" in str(error)


def test_a_timer_on_the_time_of_one_of_several_threads_is_refused(refused):
    """The kernel does not tell whose time it is."""
    error = refused(_CREATE + "threaded(lambda: create(3, 0))")
    assert "POSIX timer 0 on the processor time of one of several threads" in str(error)


def test_a_timer_on_the_time_of_the_only_thread_is_saved(holding):
    subject = holding(_CREATE + "create(3, 0)")
    subject.restart(subject.checkpoint(kill=True))
    subject.check()
