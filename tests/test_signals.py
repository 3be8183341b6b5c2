"""Who sent a signal, and which are taken."""
from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import pytest
from supervised import ROOT, read_terminal

from crhpc import signals
from crhpc.signals import Received, Signals

WATCH = """
import os, select, signal, sys
from crhpc.signals import Signals
with Signals() as signals:
    print("ready", flush=True)
    seen = 0
    while seen < int(sys.argv[1]):
        select.select([signals], [], [])
        for received in signals.receive():
            print(received.number.name, "terminal" if received.by_terminal else "process", flush=True)
            seen += 1
"""


def watcher(count: int, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", WATCH, str(count)], cwd=ROOT, start_new_session=True, **options)


@pytest.mark.parametrize("number", sorted(signals.FORWARDED | signals.OWN - {signal.SIGCONT}))
def test_from_a_process(number):
    with watcher(1, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        os.kill(process.pid, number)
        assert process.stdout.readline().decode() == f"{signal.Signals(number).name} process\n"
    assert process.returncode == 0


@pytest.mark.parametrize(("key", "name"), [(b"\x03", "SIGINT"), (b"\x1c", "SIGQUIT"), (b"\x1a", "SIGTSTP")])
def test_from_the_terminal(key, name):
    import fcntl
    import termios

    master, slave = os.openpty()
    process = watcher(1, stdin=slave, stdout=slave, stderr=slave,
                      preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
    os.close(slave)
    output = b""
    while b"ready" not in output:
        output += os.read(master, 100)
    os.write(master, key)
    assert f"{name} terminal" in read_terminal(master)
    assert process.wait() == 0


def test_many_keep_their_order():
    with Signals() as taken:
        wanted = [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP]
        got: list[Received] = []
        for number in wanted:
            os.kill(os.getpid(), number)
            select.select([taken], [], [], 10)
            got += taken.receive()
        assert got == [Received(number, False) for number in wanted]
        assert taken.receive() == []


def test_the_mask_comes_back_and_the_thread_goes():
    import threading

    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    threads = threading.active_count()
    with Signals():
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        assert threading.active_count() == threads + 1
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    assert threading.active_count() == threads


def test_what_is_ignored_stays_ignored():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signals.ignored() == [signal.SIGHUP]
        with Signals() as taken:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            select.select([taken], [], [], 10)
            assert [received.number for received in taken.receive()] == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, previous)
