"""Processes to look at: small Python programs that say where they are and wait to be told to go on."""
from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from crhpc.kernel import proc, ptrace
from crhpc.kernel.tracee import Area, Tracee, await_stop, find_instruction

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 20.0

_PRELUDE = """
import ctypes, os, signal, socket, sys, threading
def say(*words):
    print(*words, flush=True)
def wait():
    return sys.stdin.readline().strip()
"""


class Target:
    """A child of ours that runs a few lines of Python; ``say`` and ``wait`` are there for it."""

    def __init__(self, code: str, **options: Any) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen([sys.executable, "-S", "-c", _PRELUDE + textwrap.dedent(code)], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, **options)
        self.pid = self.process.pid

    def hear(self) -> str:
        """The next line that it says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the target ended with {self.process.wait()}"
        return line.rstrip("\n")

    def numbers(self) -> list[int]:
        """The next line, as numbers."""
        return [int(word, 0) for word in self.hear().split()]

    def tell(self, text: str = "") -> None:
        """Let it go on."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        self.process.wait()


@contextmanager
def target(code: str = "say('ready')\nwait()", **options: Any) -> Iterator[Target]:
    """A target for as long as the block lasts."""
    found = Target(code, **options)
    try:
        yield found
    finally:
        found.end()


@contextmanager
def stopped(pid: int, options: int = 0) -> Iterator[Tracee]:
    """A process of one thread, ready for remote calls; afterwards it goes on where it was."""
    ptrace.seize(pid, ptrace.O_TRACESYSGOOD | options)
    ptrace.interrupt(pid)
    await_stop(pid)
    tracee = Tracee(pid, pid)
    before = ptrace.get_registers(pid)
    try:
        tracee.prepare(find_instruction(pid, proc.maps(pid)))
        yield tracee
    finally:
        with suppress(ProcessLookupError):
            ptrace.set_registers(pid, before)
            ptrace.detach(pid)


@contextmanager
def scratch(tracee: Tracee, size: int = 64 << 10) -> Iterator[Area]:
    """A scratch area in a stopped process."""
    address = tracee.call("mmap", 0, size, 7, 0x22, -1, 0)
    yield Area(tracee, address, size)
    with suppress(ProcessLookupError):
        tracee.call("munmap", address, size)


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something that the kernel does a moment later."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


def apart(code: str, *arguments: str) -> str:
    """What a program of a few lines says, run in a process of one thread that may leave its namespaces."""
    done = subprocess.run([sys.executable, "-S", "-c", _PRELUDE + textwrap.dedent(code), *arguments], text=True,
                          capture_output=True, check=False, timeout=60, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


OWN_PIDS = """
from crhpc.kernel import clone, namespaces
def own(flags=0):
    # Namespaces of ids and processes of its own, for root too: nothing of the machine's is changed.
    uid, gid = os.getuid(), os.getgid()
    clone.unshare(clone.CLONE_NEWUSER | clone.CLONE_NEWPID | flags)
    namespaces.map_own_ids(uid, gid)
def as_first(work):
    # Run a function as the first process of the namespace.
    pid = os.fork()
    if pid == 0:
        try:
            work()
            sys.stdout.flush()
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
"""
"""Begin of programs for ``apart`` that need a pid namespace."""
