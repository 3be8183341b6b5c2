"""What arguments tell of the time that calls wait, and the masks that they set."""
from __future__ import annotations

import struct

import pytest

from crhpc.kernel import calls
from crhpc.kernel.calls import Call
from crhpc.kernel.libc import NR

AT, REST, SECOND = 0x1000, 0x2000, 10**9
FOREVER = 0xFFFFFFFF
MEMORY = {AT: struct.pack("qq", 2, 500_000_000), REST: struct.pack("qq", 1, 250_000)}


def read(address: int, size: int) -> bytes:
    if address not in MEMORY:
        raise OSError(14, "Bad address", f"{address:#x}")
    return MEMORY[address][:size]


def args(*values: int) -> tuple[int, ...]:
    return (*values, *[0] * (6 - len(values)))


TIMES = [
    ("nanosleep", args(AT, 0), 2.5), ("clock_nanosleep", args(1, 0, AT), 2.5), ("clock_nanosleep", args(7, 0, AT), 2.5),
    ("clock_nanosleep", args(1, 1, AT), None), ("clock_nanosleep", args(2, 0, AT), None),
    ("poll", args(0, 0, 1500), 1.5), ("poll", args(0, 0, FOREVER), None), ("poll", args(0, 0, 0), 0.0),
    ("epoll_wait", args(3, 0, 1, 20), 0.02), ("epoll_pwait", args(3, 0, 1, FOREVER, 0), None),
    ("epoll_pwait2", args(3, 0, 1, AT), 2.5), ("epoll_pwait2", args(3, 0, 1, 0), None),
    ("futex", args(0, 0, 0, AT), 2.5), ("futex", args(0, 128, 0, AT), 2.5), ("futex", args(0, 0, 0, 0), None),
    ("futex", args(0, 9, 0, AT), None), ("futex", args(0, 6, 0, AT), None), ("rt_sigtimedwait", args(0, 0, AT, 8), 2.5),
    ("ppoll", args(0, 0, AT, 0), 2.5), ("pselect6", args(0, 0, 0, 0, AT, 0), 2.5),
    ("select", args(0, 0, 0, 0, REST), 1.25),
    ("read", args(0, AT, 100), None), ("pause", args(), None)]


@pytest.mark.parametrize(("name", "arguments", "seconds"), TIMES)
def test_the_time_that_a_call_waits(name, arguments, seconds):
    whole = calls.time_to_wait(NR[name], arguments, read)
    assert whole == (None if seconds is None else round(seconds * SECOND))
    assert calls.has_time(NR[name], arguments) == (seconds is not None)


def test_for_ever_and_never():
    """What can't be added up is as good as for ever; what is no time is none."""
    for raw in (struct.pack("qq", 1 << 62, 0), struct.pack("qq", -1, 0)):
        assert calls.time_to_wait(NR["nanosleep"], args(AT), lambda address, size, raw=raw: raw) is None
    with pytest.raises(OSError, match="Bad address"):
        calls.time_to_wait(NR["nanosleep"], args(7), read)


@pytest.mark.parametrize(("name", "arguments", "left"), [
    ("nanosleep", args(AT, REST), 1_000_250_000), ("nanosleep", args(AT, 0), None),
    ("nanosleep", args(REST, REST), 1_000_250_000),
    ("clock_nanosleep", args(1, 0, AT, REST), 1_000_250_000), ("clock_nanosleep", args(1, 1, AT, REST), None),
    ("ppoll", args(0, 0, REST), 1_000_250_000), ("select", args(0, 0, 0, 0, REST), 1_250_000_000),
    ("poll", args(0, 0, 5), None)])
def test_what_the_kernel_has_written_of_the_rest(name, arguments, left):
    assert calls.time_left(NR[name], arguments, read) == left
    assert calls.writes_rest(NR[name], arguments) == (left is not None)


@pytest.mark.parametrize(("name", "arguments", "left", "changed"), [
    ("poll", args(0, 0, 5000), 1_000_001, (2, 2, b"")), ("epoll_wait", args(3, 0, 1, 99), -5, (3, 0, b"")),
    ("epoll_pwait2", args(3, 0, 1, AT), 3 * SECOND + 7, (3, AT, struct.pack("qq", 3, 7))),
    ("select", args(0, 0, 0, 0, AT), 1001, (4, AT, struct.pack("qq", 0, 2)))])
def test_a_call_for_what_is_left(name, arguments, left, changed):
    """Rounded up: it must not end too early."""
    assert calls.with_time(Call(NR[name]), arguments, left) == changed


def test_masks_of_calls():
    memory = {AT: struct.pack("Q", 0x40), REST: struct.pack("QQ", AT, 8)}
    look = lambda address, size: memory[address][:size]  # noqa: E731
    assert calls.temporary_mask(NR["rt_sigsuspend"], args(AT, 8), look) == 0x40
    assert calls.temporary_mask(NR["ppoll"], args(0, 0, 0, AT), look) == 0x40
    assert calls.temporary_mask(NR["epoll_pwait"], args(3, 0, 1, 5, AT, 8), look) == 0x40
    assert calls.temporary_mask(NR["pselect6"], args(0, 0, 0, 0, 0, REST), look) == 0x40
    assert calls.temporary_mask(NR["ppoll"], args(0, 0, 0, 0), look) is None
    assert calls.temporary_mask(NR["read"], args(0, AT, 3, AT, AT, AT), look) is None


@pytest.mark.parametrize(("call", "watched"), [
    (Call(0), False), (Call(1, moved=5, wanted=9), True), (Call(7, until=3, kept=True), False),
    (Call(232, until=3), True), (Call(130, guarded=True), True)])
def test_what_is_watched(call, watched):
    assert call.watched == watched


def test_names_of_calls():
    assert Call(232).name == "epoll_wait"
    assert Call(9999).name == "9999"
