"""What of scheduling is refused or told, and what one machine has too little of; see tests/programs/scheduling.c."""
from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from need import offered

from crhpc.errors import Unsupported
from crhpc.resources import scheduling
from crhpc.resources.scheduling import Scheduling, SchedulingKind

from .forking import forking


def test_a_deadline_is_refused(monkeypatch):
    """Not tried on this machine: it would be taken from the others."""
    monkeypatch.setattr(scheduling, "_attributes", lambda host: (56, 6 if host == 7 else 0, *[0] * 8))
    tasks = [SimpleNamespace(pid=pid, threads={pid: SimpleNamespace(tid=pid)}) for pid in (5, 7)]
    ctx = SimpleNamespace(tasks=tasks, state={}, refuse=lambda what, task, cure: Unsupported(
        what=what, pid=task.pid, program="program", cure=cure))
    with pytest.raises(Unsupported, match=r"SCHED_DEADLINE\) of pid 7"):
        SchedulingKind().inspect(ctx)


@pytest.fixture
def child():
    process = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"],
                               stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process.pid
    process.kill()
    process.communicate()


def test_cpus_that_there_are_not_are_left_out_and_told(child):
    ours = sorted(os.sched_getaffinity(0))
    warnings = []
    row = Scheduling(2, 2, (ours[0], 1000), 0, 0, 0, (), -1, 0)
    task = SimpleNamespace(threads={2: SimpleNamespace(tid=child)})
    SchedulingKind().restore(SimpleNamespace(rows=lambda record: [row], tasks={2: task}, warn=warnings.append))
    assert os.sched_getaffinity(child) == {ours[0]}
    assert len(warnings) == 1 and "CPUs [1000] of the job are not usable here" in warnings[0]


@pytest.mark.skipif(os.getuid() == 0, reason="root may do it")
def test_what_may_not_be_set_is_told(child):
    warnings = []
    ours = tuple(sorted(os.sched_getaffinity(0)))
    row = Scheduling(2, 2, ours, 0, 0, -5, (), -1, 0)
    task = SimpleNamespace(threads={2: SimpleNamespace(tid=child)})
    SchedulingKind().restore(SimpleNamespace(rows=lambda record: [row], tasks={2: task}, warn=warnings.append))
    assert len(warnings) == 1 and warnings[0].startswith("nice -5 of pid 2 cannot be set here (")


_BOUND = """
size, mbind, get_mempolicy = 1 << 20, 237, 239
libc.mmap.restype = ctypes.c_void_p
nodes = (ctypes.c_ulong * 16)(1)
def mapped(flags):
    address = libc.mmap(None, ctypes.c_size_t(size), 3, flags, -1, 0)
    ctypes.memset(address, 7, size)
    return address
private, shared = mapped(0x22), mapped(0x21)
def bind(address, mode, size):
    call("syscall", mbind, ctypes.c_void_p(address), ctypes.c_ulong(size), mode, nodes, ctypes.c_ulong(1024), 0)
bind(private + 8192, 2, 65536)       # MPOL_BIND
bind(private + 131072, 1, 4096)      # MPOL_PREFERRED
bind(shared, 3 | 1 << 15, size)      # MPOL_INTERLEAVE | MPOL_F_STATIC_NODES
def policy(address):
    mode, got = ctypes.c_int(), (ctypes.c_ulong * 16)()
    call("syscall", get_mempolicy, ctypes.byref(mode), got, ctypes.c_ulong(1024), ctypes.c_void_p(address), 2)
    return mode.value, got[0]
def policies():
    return [policy(private + at) for at in range(0, size, 4096)] + [policy(shared)]
before = policies()
assert len(set(before)) == 4, before
"""
_STILL = "assert policies() == before and ctypes.string_at(private, size) == bytes([7]) * size"


def test_policies_of_memory_come_back(holding, monkeypatch):
    """As on a machine with several nodes; on one with a single node nobody could tell the difference."""
    offered(os.path.exists("/proc/self/numa_maps"), "this kernel has no NUMA")
    monkeypatch.setattr(scheduling, "several_nodes", lambda: True)
    subject = holding(forking(_BOUND), _STILL)
    subject.checkpoint()
    subject.restart(subject.checkpoint(kill=True))
    subject.restart(subject.checkpoint(kill=True))
    subject.check()


def test_the_nice_value_of_a_session_comes_back(holding):
    """Several of them: a plain user may not set these in quick succession."""
    offered(os.path.exists("/proc/self/autogroup"), "this kernel has no autogroups")
    subject = holding(forking("""
        own = lambda pid: open(f"/proc/{pid}/autogroup").read().split()[-1]
        def session(nice):
            os.setsid()
            for _attempt in range(100):
                try:
                    with open("/proc/self/autogroup", "w") as file:
                        file.write(str(nice))
                    return
                except BlockingIOError:
                    time.sleep(0.02)
        values = {fork(lambda nice=nice: session(nice)): nice for nice in (3, 7, 11)}
        def passes():
            return all(own(pid) == str(nice) for pid, nice in values.items()) and own("self") == "0"
    """), "assert passes()")
    subject.restart(subject.checkpoint(kill=True))
    subject.check()
