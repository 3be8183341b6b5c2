"""System calls in the name of a stopped process: one by one, in batches, with errors and signals in the middle."""
from __future__ import annotations

import errno
import os
import signal
import struct

import pytest

from crhpc.kernel import clone, libc, proc, ptrace
from crhpc.kernel.libc import PAGE
from crhpc.kernel.tracee import (
    ALL_BUT_TRAP,
    RUNNER,
    Batch,
    TaskGone,
    Tracee,
    await_stop,
    event,
    find_instruction,
    wait,
)

from .targets import scratch, stopped, target, until

_AREA = 16 << 10


@pytest.fixture
def subject():
    with target() as found:
        found.hear()
        yield found


@pytest.fixture
def tracee(subject):
    with stopped(subject.pid) as found:
        yield found


@pytest.fixture
def area(tracee):
    with scratch(tracee, _AREA) as found:
        yield found


# -- one call -----------------------------------------------------------------------------------------
def test_a_call_is_made_by_the_process(subject, tracee):
    assert tracee.call("getpid") == subject.pid
    assert tracee.call("gettid") == subject.pid
    fd = tracee.call("eventfd2", 7, os.O_CLOEXEC)
    assert fd in proc.fds(subject.pid)
    assert proc.fdinfo(subject.pid, fd).field("eventfd-count") == "7"


def test_six_arguments_arrive(tracee):
    address = tracee.call("mmap", 0, 3 * PAGE, 3, 0x22, -1, 0)
    moved = tracee.call("mremap", address, 3 * PAGE, 2 * PAGE, 1, 0)
    assert moved == address
    assert tracee.call("process_vm_readv", tracee.pid, 0, 0, 0, 0, 0) == 0
    with pytest.raises(OSError, match="process_vm_readv") as caught:
        tracee.call("process_vm_readv", tracee.pid, 0, 0, 0, 0, 1)   # the sixth: flags
    assert caught.value.errno == errno.EINVAL


def test_an_error_names_the_call_and_its_arguments(tracee):
    with pytest.raises(OSError) as caught:
        tracee.call("fcntl", 999, 1, 0x1234)
    assert caught.value.errno == errno.EBADF
    assert caught.value.filename == f"fcntl(0x3e7, 1, 0x1234) in thread {tracee.tid}"
    assert tracee.call_raw(libc.NR["fcntl"], 999, 1) == -errno.EBADF
    assert tracee.call("getpid") == tracee.pid, "the next one is as good as the first"


def test_the_process_goes_on_where_it_was(subject):
    """It was in read(2), and notices nothing."""
    before = proc.maps(subject.pid)
    with stopped(subject.pid) as tracee, scratch(tracee) as area:
        area.run([("getpid", ())] * 10)
    assert proc.maps(subject.pid) == before
    subject.tell("on")
    assert subject.process.wait(20) == 0


def test_a_signal_in_the_middle_of_a_call_is_kept(subject, tracee):
    os.kill(subject.pid, signal.SIGUSR1)
    os.kill(subject.pid, signal.SIGTERM)
    assert tracee.call("getpid") == subject.pid
    assert sorted(tracee.deferred) == [signal.SIGUSR1, signal.SIGTERM]


def test_a_blocked_signal_stays_where_it_is(subject, tracee):
    ptrace.set_signal_mask(subject.pid, ALL_BUT_TRAP)
    os.kill(subject.pid, signal.SIGUSR1)
    assert tracee.call("getpid") == subject.pid
    assert tracee.deferred == []
    assert proc.status(subject.pid).number("ShdPnd", 16) == 1 << (signal.SIGUSR1 - 1)


def test_prepare_comes_first():
    with pytest.raises(AssertionError, match="prepare"):
        Tracee(1, 1).call("getpid")


# -- its end ------------------------------------------------------------------------------------------
def test_a_process_that_dies_of_a_call(tracee):
    with pytest.raises(TaskGone) as caught:
        tracee.call("exit_group", 7)
    assert caught.value.errno == errno.ESRCH
    assert os.WEXITSTATUS(caught.value.status) == 7


def test_a_process_that_is_killed(subject, tracee):
    os.kill(subject.pid, signal.SIGKILL)
    with pytest.raises(ProcessLookupError):
        tracee.call("getpid")


def test_wait(subject):
    ptrace.seize(subject.pid, 0)
    assert wait(subject.pid, block=False) is None
    ptrace.interrupt(subject.pid)
    status = wait(subject.pid)
    assert status is not None
    assert (event(status), os.WSTOPSIG(status)) == (ptrace.EVENT_STOP, signal.SIGTRAP)
    os.kill(subject.pid, signal.SIGKILL)
    with pytest.raises(TaskGone) as caught:
        wait(subject.pid)
    assert os.WTERMSIG(caught.value.status) == signal.SIGKILL
    with pytest.raises(TaskGone):
        wait(subject.pid)   # reaped by now
    with pytest.raises(TaskGone):
        wait(1)             # none of ours


def test_signals_from_before_the_stop_are_passed_on():
    with target("""
        signal.signal(signal.SIGUSR1, lambda number, frame: say("signal"))
        say("ready")
        wait()
    """) as subject:
        subject.hear()
        ptrace.seize(subject.pid, 0)
        os.kill(subject.pid, signal.SIGUSR1)
        until(lambda: proc.stat(subject.pid).state == "t", "the signal does not stop it")
        ptrace.interrupt(subject.pid)
        assert await_stop(subject.pid) == [signal.SIGUSR1]
        ptrace.detach(subject.pid)
        assert subject.hear() == "signal"


def test_the_instruction_is_in_the_vdso(subject):
    mappings = proc.maps(subject.pid)
    address = find_instruction(subject.pid, mappings)
    vdso = next(m for m in mappings if m.name == "[vdso]")
    assert vdso.start <= address < vdso.end
    with stopped(subject.pid) as tracee:
        assert tracee.read(address, 2) == b"\x0f\x05"
    with pytest.raises(OSError, match="no vdso") as caught:
        find_instruction(subject.pid, [m for m in mappings if m is not vdso])
    assert caught.value.errno == errno.ENOEXEC


# -- new threads and processes ------------------------------------------------------------------------
def test_clone(subject):
    with stopped(subject.pid, ptrace.O_TRACEFORK | ptrace.O_TRACECLONE | ptrace.O_EXITKILL) as tracee, \
            scratch(tracee) as area:
        tracee.write(area.data, struct.pack("11Q", *clone.clone_args()))
        new = tracee.clone(area.data, clone.ARGS_SIZE)
        assert proc.stat(new).ppid == subject.pid
        assert proc.stat(new).state == "t"
        child = Tracee(new, new)
        child.prepare(tracee.instruction)
        assert child.call("getpid") == new
        os.kill(new, signal.SIGKILL)
        with pytest.raises(TaskGone):
            wait(new)


def test_clone_that_fails(subject):
    with stopped(subject.pid, ptrace.O_TRACEFORK | ptrace.O_TRACECLONE) as tracee, scratch(tracee) as area:
        tracee.write(area.data, struct.pack("11Q", *clone.clone_args(flags=clone.CLONE_THREAD)))   # without SIGHAND
        with pytest.raises(OSError, match="clone3") as caught:
            tracee.clone(area.data, clone.ARGS_SIZE)
        assert caught.value.errno == errno.EINVAL
        assert tracee.call("getpid") == subject.pid


# -- many calls ---------------------------------------------------------------------------------------
def test_many_calls_in_one_go(subject, area):
    assert area.entries < 300, "more than the table holds"
    assert area.run([("getpid", ())] * 300) == [subject.pid] * 300
    assert area.run([]) == []


def test_results_in_the_order_of_the_calls(subject, area):
    fds = area.run([("eventfd2", (n, 0)) for n in range(200)])
    assert [proc.fdinfo(subject.pid, fd).field("eventfd-count") for fd in fds] == [f"{n:x}" for n in range(200)]


@pytest.mark.parametrize("place", [0, 1, 40, 127, 128, 199])
def test_the_first_error_stops_a_batch(subject, area, place):
    """In the first table, at its end, and in the second one."""
    calls = [("eventfd2", (n, 0)) for n in range(200)]
    calls[place] = ("close", (999,))
    before = set(proc.fds(subject.pid))
    with pytest.raises(OSError) as caught:
        area.run(calls)
    assert caught.value.errno == errno.EBADF
    assert caught.value.filename == f"close(0x3e7) in process {subject.pid}"
    made = sorted(set(proc.fds(subject.pid)) - before)
    assert [proc.fdinfo(subject.pid, fd).field("eventfd-count") for fd in made] == [f"{n:x}" for n in range(place)]


def test_a_signal_in_the_middle_of_a_batch_is_kept(subject, tracee, area):
    os.kill(subject.pid, signal.SIGUSR1)
    assert area.run([("getpid", ())] * 50) == [subject.pid] * 50
    assert tracee.deferred == [signal.SIGUSR1]


def test_a_call_that_kills(tracee, area):
    with pytest.raises(TaskGone) as caught:
        area.run([("getpid", ()), ("exit_group", (3,)), ("getpid", ())])
    assert os.WEXITSTATUS(caught.value.status) == 3


def test_code_that_strays(tracee, area):
    tracee.write(area.data, b"\xcc" * 8)
    tracee.run_code(area.data, area.data + 1, 0)
    with pytest.raises(OSError, match="strayed") as caught:
        tracee.run_code(area.data, area.data + 2, 0)
    assert caught.value.errno == errno.EFAULT
    tracee.write(area.data, bytes.fromhex("48 8b 04 25 00 00 00 00 cc"))   # mov rax, [0]
    with pytest.raises(OSError, match="signal 11 in the runner") as caught:
        tracee.run_code(area.data, area.data + 9, 0)
    assert caught.value.errno == errno.EFAULT


def test_the_runners_own_instruction(tracee, area):
    assert tracee.read(area.instruction, 2) == b"\x0f\x05"
    assert tracee.read(area.address, len(RUNNER)) == RUNNER
    tracee.instruction = area.instruction
    assert tracee.call("getpid") == tracee.pid


# -- batches ------------------------------------------------------------------------------------------
def test_a_batch_with_data(subject, area, tmp_path):
    with area.batch() as batch:
        for name in ("one", "two"):
            batch.call("openat", -100, batch.string(str(tmp_path / name)), os.O_RDWR | os.O_CREAT, 0o640)
    first, second = batch.results
    assert os.readlink(f"/proc/{subject.pid}/fd/{first}") == str(tmp_path / "one")
    assert os.readlink(f"/proc/{subject.pid}/fd/{second}") == str(tmp_path / "two")


def test_what_calls_write_can_be_read(subject, area):
    batch = Batch(area)
    room = batch.room(128)
    index = batch.call("getcwd", room, 128)
    length = batch.flush()[index]
    assert batch.read(room, length) == os.fsencode(os.readlink(f"/proc/{subject.pid}/cwd")) + b"\0"


def test_more_data_than_there_is_room(tracee, area, tmp_path):
    """A batch makes its calls by itself whenever the room is nearly full."""
    content = os.urandom(10 * area.room)
    path = tmp_path / "file"
    step = area.room // 5
    with area.batch() as batch:
        batch.call("openat", -100, batch.string(str(path)), os.O_WRONLY | os.O_CREAT, 0o600)
        (fd,) = batch.flush()
        for start in range(0, len(content), step):
            piece = content[start:start + step]
            batch.call("write", fd, batch.put(piece), len(piece))
    assert path.read_bytes() == content
    assert sum(batch.results[1:]) == len(content)


def test_more_calls_than_the_table_holds(subject, area):
    with area.batch() as batch:
        indexes = [batch.call("eventfd2", n, 0) for n in range(2 * area.entries + 3)]
    assert indexes == list(range(2 * area.entries + 3))
    fds = [batch.results[index] for index in indexes]
    assert proc.fdinfo(subject.pid, fds[-1]).field("eventfd-count") == f"{2 * area.entries + 2:x}"


def test_data_that_never_fits(area):
    batch = Batch(area)
    batch.put(bytes(area.room))
    with pytest.raises(ValueError, match="too much"):
        batch.put(b"x")
    with pytest.raises(ValueError, match="too much"):
        Batch(area).put(bytes(area.room + 1))


def test_pieces_are_aligned_and_strings_shared(area):
    batch = Batch(area)
    places = [batch.put(b"x"), batch.put(b"y" * 17), batch.string("name"), batch.string("other"), batch.put(b"")]
    assert all(place % 16 == 0 for place in places)
    assert len({*places}) == 5
    assert batch.string("name") == places[2]
    batch.flush()
    assert area.tracee.read(places[1], 17) == b"y" * 17
    assert area.tracee.read(places[2], 5) == b"name\0"


def test_a_string_is_written_anew_after_a_flush(area, tmp_path):
    """The room is used again: what was remembered of it is not."""
    with area.batch() as batch:
        batch.call("openat", -100, batch.string(str(tmp_path / "a")), os.O_CREAT, 0o600)
        batch.flush()
        batch.call("openat", -100, batch.string(str(tmp_path / "b")), os.O_CREAT, 0o600)
        batch.call("openat", -100, batch.string(str(tmp_path / "a")), os.O_RDONLY, 0)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "b"]


def test_nothing_is_called_when_the_body_raises(subject, area):
    before = proc.fds(subject.pid)
    with pytest.raises(KeyError), area.batch() as batch:
        batch.call("eventfd2", 1, 0)
        raise KeyError
    assert proc.fds(subject.pid) == before
    assert batch.results == []


def test_an_error_in_a_batch(area):
    with pytest.raises(OSError, match="close"), area.batch() as batch:
        batch.call("getpid")
        batch.call("close", 999)
    assert batch.results == []
