"""ptrace(2) on children of ours; what /proc says of them is the measure."""
from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct

import pytest

from crhpc.kernel import proc, ptrace
from crhpc.kernel.tracee import ALL_BUT_TRAP, await_stop, event, wait

from .targets import stopped, target, until

TRACED, SLEEPING = "t", "S"


@pytest.fixture
def sleeper():
    with target() as found:
        found.hear()
        yield found.pid


def state(pid: int) -> str:
    return proc.stat(pid).state


# -- errors -------------------------------------------------------------------------------------------
def test_no_such_process():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(ProcessLookupError) as caught:
        ptrace.seize(pid, 0)
    assert caught.value.errno == errno.ESRCH
    assert caught.value.filename == f"PTRACE_SEIZE of {pid}"


@pytest.mark.parametrize(("call", "name"), [
    (ptrace.interrupt, "INTERRUPT"), (ptrace.cont, "CONT"), (ptrace.syscall, "SYSCALL"), (ptrace.listen, "LISTEN"),
    (ptrace.detach, "DETACH"), (ptrace.get_registers, "GETREGS"), (ptrace.get_regset, "GETREGSET"),
    (ptrace.get_signal_mask, "GETSIGMASK"), (ptrace.event_message, "GETEVENTMSG"),
    (ptrace.rseq_configuration, "GET_RSEQ_CONFIGURATION")])
def test_one_that_is_not_traced(sleeper, call, name):
    with pytest.raises(ProcessLookupError) as caught:
        call(sleeper)
    assert (caught.value.errno, caught.value.filename) == (errno.ESRCH, f"PTRACE_{name} of {sleeper}")


def test_one_that_is_traced_already(sleeper):
    with stopped(sleeper), pytest.raises(PermissionError) as caught:
        ptrace.seize(sleeper, 0)
    assert caught.value.errno == errno.EPERM


def test_one_that_runs(sleeper):
    """Seized, but not stopped."""
    ptrace.seize(sleeper, 0)
    with pytest.raises(ProcessLookupError):
        ptrace.get_registers(sleeper)
    ptrace.interrupt(sleeper)
    await_stop(sleeper)
    ptrace.detach(sleeper)


def test_options_that_do_not_exist(sleeper):
    with stopped(sleeper), pytest.raises(OSError, match="SETOPTIONS") as caught:
        ptrace.set_options(sleeper, 1 << 30)
    assert caught.value.errno == errno.EINVAL


# -- stopping -----------------------------------------------------------------------------------------
def test_seize_does_not_stop(sleeper):
    until(lambda: state(sleeper) == SLEEPING, "it does not wait")
    ptrace.seize(sleeper, 0)
    assert state(sleeper) == SLEEPING
    assert proc.status(sleeper).number("TracerPid") == os.getpid()
    ptrace.interrupt(sleeper)
    await_stop(sleeper)
    assert state(sleeper) == TRACED
    ptrace.detach(sleeper)
    until(lambda: state(sleeper) == SLEEPING, "it does not go on")
    assert proc.status(sleeper).number("TracerPid") == 0


def test_listen_leaves_a_stopped_process_stopped(sleeper):
    os.kill(sleeper, signal.SIGSTOP)
    until(lambda: state(sleeper) == "T", "it does not stop")
    ptrace.seize(sleeper, 0)
    status = wait(sleeper)
    assert status is not None
    assert (event(status), os.WSTOPSIG(status)) == (ptrace.EVENT_STOP, signal.SIGSTOP)
    ptrace.listen(sleeper)
    assert wait(sleeper, block=False) is None
    assert state(sleeper) in ("T", TRACED)
    os.kill(sleeper, signal.SIGCONT)
    status = wait(sleeper)
    assert status is not None
    assert event(status) == ptrace.EVENT_STOP
    ptrace.detach(sleeper)


def test_detach_delivers_a_signal():
    with target("""
        signal.signal(signal.SIGUSR1, lambda number, frame: say("signal", number))
        say("ready")
        wait()
    """) as subject:
        subject.hear()
        ptrace.seize(subject.pid, 0)
        os.kill(subject.pid, signal.SIGUSR1)
        status = wait(subject.pid)
        assert status is not None
        assert os.WSTOPSIG(status) == signal.SIGUSR1
        ptrace.detach(subject.pid, signal.SIGUSR1)
        assert subject.hear() == f"signal {signal.SIGUSR1:d}"


# -- registers ----------------------------------------------------------------------------------------
def test_registers(sleeper):
    with stopped(sleeper):
        before = ptrace.get_registers(sleeper)
        assert before.rip in range(*_mapping_of(sleeper, before.rip))
        changed = ptrace.Registers.from_buffer_copy(before)
        changed.rbx, changed.r15 = 0x1122334455667788, (1 << 64) - 1
        ptrace.set_registers(sleeper, changed)
        assert bytes(ptrace.get_registers(sleeper)) == bytes(changed)


def _mapping_of(pid: int, address: int) -> tuple[int, int]:
    return next((m.start, m.end) for m in proc.maps(pid) if m.start <= address < m.end)


def test_vector_registers(sleeper):
    with stopped(sleeper):
        before = ptrace.get_regset(sleeper)
        assert len(before) >= 576, "the legacy area and the header of XSAVE"
        changed = bytearray(before)
        changed[160:176] = bytes(range(16))                       # xmm0
        changed[512] |= 2                                         # XSTATE_BV: SSE in use
        ptrace.set_regset(sleeper, bytes(changed))
        assert ptrace.get_regset(sleeper)[160:176] == bytes(range(16))
        ptrace.set_regset(sleeper, before)
        with pytest.raises(OSError, match="SETREGSET"):
            ptrace.set_regset(sleeper, before[:100])


def test_restartable_sequences():
    """glibc says where the area lies: behind the thread pointer (rseq(2), __rseq_offset)."""
    with target("""
        libc = ctypes.CDLL(None)
        say(ctypes.c_ssize_t.in_dll(libc, "__rseq_offset").value, ctypes.c_uint.in_dll(libc, "__rseq_size").value)
        wait()
    """) as subject:
        offset, size = subject.numbers()
        with stopped(subject.pid):
            found = ptrace.rseq_configuration(subject.pid)
            pointer = ptrace.get_registers(subject.pid).fs_base
    assert (found.address, found.signature, found.flags) == (pointer + offset, 0x53053053, 0)
    assert found.size >= size > 0


# -- signals ------------------------------------------------------------------------------------------
def test_signal_mask():
    blocked = [int(signal.SIGUSR1), int(signal.SIGTERM), 34, 64]
    with target(f"signal.pthread_sigmask(signal.SIG_BLOCK, {blocked})\nsay('ready')\nwait()") as subject:
        subject.hear()
        mask = sum(1 << (number - 1) for number in blocked)
        with stopped(subject.pid):
            assert ptrace.get_signal_mask(subject.pid) == mask
            ptrace.set_signal_mask(subject.pid, ALL_BUT_TRAP)
            unblockable = 1 << (signal.SIGKILL - 1) | 1 << (signal.SIGSTOP - 1)
            assert proc.status(subject.pid).number("SigBlk", 16) == ALL_BUT_TRAP & ~unblockable
            ptrace.set_signal_mask(subject.pid, mask)
        assert proc.status(subject.pid).number("SigBlk", 16) == mask


def test_pending_signals_come_in_their_order():
    """More than one call of the kernel's gives, with the values that came with them."""
    with target("""
        signal.pthread_sigmask(signal.SIG_BLOCK, {40, 41, 12})
        say("ready")
        wait()
    """) as subject:
        subject.hear()
        queue = ctypes.CDLL(None, use_errno=True).sigqueue
        queue.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
        sent = [(40 + i % 2, 1000 + i) for i in range(70)]
        for number, value in sent:
            assert queue(subject.pid, number, value) == 0
        with stopped(subject.pid) as tracee:
            tracee.call("rt_tgsigqueueinfo", subject.pid, subject.pid, 12, _siginfo(tracee, 12, 77))
            shared = ptrace.pending_signals(subject.pid, shared=True)
            own = ptrace.pending_signals(subject.pid, shared=False)
    assert [(_number(raw), _value(raw)) for raw in shared] == sent
    assert [(_number(raw), _value(raw)) for raw in own] == [(12, 77)]
    assert {len(raw) for raw in shared} == {ptrace.SIGINFO_SIZE}


def _siginfo(tracee, number: int, value: int) -> int:
    """A siginfo_t of its own, on the stack below what is in use."""
    address = ptrace.get_registers(tracee.tid).rsp - 4096
    tracee.write(address, struct.pack("iii4xiiQ", number, 0, -1, tracee.pid, os.getuid(), value).ljust(128, b"\0"))
    return address


def _number(raw: bytes) -> int:
    return struct.unpack_from("i", raw)[0]


def _value(raw: bytes) -> int:
    return struct.unpack_from("Q", raw, 24)[0]
