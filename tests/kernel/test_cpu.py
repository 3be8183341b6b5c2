"""What programs can see of the processor, against what Linux says itself; XSAVE areas in other layouts."""
from __future__ import annotations

import os
import struct

import pytest
from need import need

from crhpc.kernel import cpu, ptrace
from crhpc.kernel.cpu import Component, Layout

INTEL = Layout(2696, (Component(2, 576, 256), Component(5, 1088, 64), Component(6, 1152, 512),
                      Component(7, 1664, 1024), Component(9, 2688, 8)))
AMD = Layout(2440, (Component(2, 576, 256), Component(5, 832, 64), Component(6, 896, 512), Component(7, 1408, 1024),
                    Component(9, 2432, 8)))
OLD = Layout(832, (Component(2, 576, 256),))


def area(layout: Layout, *used: int, keys: int = 0x55555554) -> bytes:
    """One whose components hold their own numbers."""
    content = bytearray(layout.size)
    content[:464] = b"L" * 464
    content[512:520] = sum(1 << number for number in (0, 1, *used)).to_bytes(8, "little")
    for component in layout.components:
        if component.number in used:
            value = struct.pack("<Q", keys) if component.number == 9 else bytes([component.number]) * component.size
            content[component.offset:component.offset + component.size] = value
    return bytes(content)


@pytest.mark.parametrize(("there", "here"), [(INTEL, AMD), (AMD, INTEL), (INTEL, INTEL), (AMD, AMD)])
@pytest.mark.parametrize("used", [(), (2,), (2, 5, 6, 7), (5, 9), (2, 5, 6, 7, 9)])
def test_another_layout(there, here, used):
    assert cpu.converted(area(there, *used), there, here) == area(here, *used)


def test_more_features_here():
    assert cpu.converted(area(OLD, 2), OLD, INTEL) == area(INTEL, 2)


def test_features_that_are_not_in_use_may_be_missing():
    assert cpu.converted(area(INTEL, 2), INTEL, OLD) == area(OLD, 2)


def test_default_keys_may_be_missing():
    assert cpu.converted(area(INTEL, 2, 9), INTEL, OLD) == area(OLD, 2)


@pytest.mark.parametrize(("content", "there", "here", "what"), [
    (area(INTEL, 2, 5), INTEL, OLD, "AVX-512"), (area(AMD, 7), AMD, OLD, "AVX-512"),
    (area(INTEL, 9, keys=4), INTEL, OLD, "protection keys"), (bytes(575), INTEL, OLD, "no XSAVE area"),
    (area(INTEL, 7)[:2000], INTEL, AMD, "AVX-512"),
    (area(Layout(700, (Component(40, 600, 64),)), 40), Layout(700, (Component(40, 600, 64),)), OLD, "component 40")])
def test_features_that_are_missing(content, there, here, what):
    with pytest.raises(ValueError, match=what):
        cpu.converted(content, there, here)


def test_the_layout_is_that_of_ptrace():
    pid = os.fork()
    if pid == 0:
        while True:
            os.read(os.pipe()[0], 1)
    try:
        ptrace.seize(pid, ptrace.O_EXITKILL)
        ptrace.interrupt(pid)
        os.waitpid(pid, 0x40000000)
        content = ptrace.get_regset(pid)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0x40000000)
    layout = cpu.xsave_layout()
    assert len(content) == layout.size
    assert cpu.in_use(content) & ~3 & ~sum(1 << each.number for each in layout.components) == 0
    (enabled,) = struct.unpack_from("<Q", content, 464)
    assert {each.number for each in layout.components} == {n for n in range(2, 63) if enabled >> n & 1}


def test_cpuid():
    vendor = struct.pack("3I", *(cpu.cpuid(0)[i] for i in (1, 3, 2))).decode()
    with open("/proc/cpuinfo", encoding="ascii") as file:
        assert f": {vendor}\n" in file.read()


def test_flags_of_all_processors(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: A B\nflags\t\t: fpu avx2 avx512f nopl\n\n"
                    "processor\t: 1\nmodel name\t: C\nflags\t\t: fpu avx2 nopl\n", encoding="ascii")
    assert cpu.flags(file) == {"fpu", "avx2", "nopl"} and cpu.model(file) == "A B"
    assert cpu.instructions(cpu.flags(file)) == {"fpu", "avx2"}
    file.write_text("", encoding="ascii")
    assert cpu.flags(file) == frozenset() and cpu.model(file) == "unknown"


def test_this_machine():
    assert {"fpu", "sse2", "syscall"} <= cpu.instructions(cpu.flags())
    need(cpu.auxiliary(cpu.MINSIGSTKSZ), "the kernel does not tell how large a signal frame is (before Linux 5.14)")
    assert cpu.auxiliary(cpu.MINSIGSTKSZ) > cpu.xsave_layout().size
