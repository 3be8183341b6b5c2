"""What programs can see of this machine's processor: instruction sets, and how registers lie in an XSAVE area."""
from __future__ import annotations

import ctypes
import functools
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from crhpc.kernel import libc

HWCAP2, MINSIGSTKSZ, RSEQ_FEATURE_SIZE = 26, 51, 27
"""Types of entries of the auxiliary vector (getauxval(3))."""

_ASK = bytes.fromhex(
    "53"         # push rbx         a function of (leaf, subleaf, room for four words)
    "4989d0"     # mov r8, rdx
    "89f8"       # mov eax, edi
    "89f1"       # mov ecx, esi
    "0fa2"       # cpuid
    "418900"     # mov [r8], eax
    "41895804"   # mov [r8+4], ebx
    "41894808"   # mov [r8+8], ecx
    "4189500c"   # mov [r8+12], edx
    "5b"         # pop rbx
    "c3")        # ret
_XSAVE_LEAF = 0xD
_FIRST_EXTENDED = 2
"""Components 0 and 1 lie in the legacy area, at the same place everywhere."""

_INSTRUCTIONS = (
    "fpu cx8 cmov mmx fxsr sse sse2 syscall rdtscp 3dnow 3dnowext pni pclmulqdq ssse3 fma cx16 sse4_1 sse4_2 movbe "
    "popcnt aes xsave avx f16c rdrand lahf_lm abm sse4a xop fma4 tbm lwp monitorx mwaitx fsgsbase bmi1 hle avx2 "
    "bmi2 rtm avx512f avx512dq rdseed adx avx512ifma clflush clflushopt clwb avx512pf avx512er avx512cd sha_ni "
    "avx512bw avx512vl xsaveopt xsavec xgetbv1 avx_vnni avx512_bf16 clzero rdpru avx512vbmi waitpkg avx512_vbmi2 "
    "gfni vaes vpclmulqdq avx512_vnni avx512_bitalg avx512_vpopcntdq rdpid movdiri movdir64b enqcmd avx512_4vnniw "
    "avx512_4fmaps avx512_vp2intersect serialize tsxldtrk amx_bf16 avx512_fp16 amx_tile amx_int8 amx_fp16 "
    "amx_complex avx_ifma avx_vnni_int8 avx_vnni_int16 avx_ne_convert cmpccxadd raoint sha512 sm3 sm4 user_msr "
    "avx10 avx10_1 avx10_2 apx_f ptwrite"
)
"""Flags of /proc/cpuinfo (arch/x86/include/asm/cpufeatures.h) that stand for instructions of programs. Left out are
those that do no harm where they are not known (prefetches, hints, MPX), and what SSE has under another name."""


@dataclass(frozen=True, slots=True)
class Component:
    """Where the registers of one feature lie in an XSAVE area of the standard format."""

    number: int
    """Its bit in XCR0."""
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Layout:
    """An XSAVE area of the standard format, as ptrace(2) gives it (NT_X86_XSTATE)."""

    size: int
    components: tuple[Component, ...]
    """Those behind the header (Intel's manual, volume 1, 13.4), by their numbers."""


def flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What all processors that are online have, in /proc/cpuinfo's names."""
    found: frozenset[str] | None = None
    for line in cpuinfo.read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            here = frozenset(value.split())
            found = here if found is None or here == found else found & here
    return found or frozenset()


def instructions(names: frozenset[str]) -> frozenset[str]:
    """Those flags without which a program that has seen them dies of SIGILL."""
    return names & frozenset(_INSTRUCTIONS.split())


def model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name."""
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return "unknown"


def cpuid(leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
    """The CPUID instruction: eax, ebx, ecx, edx.

    Raises:
        OSError: memory of this process may not hold code (SELinux can forbid it).
    """
    room = ctypes.create_string_buffer(16)
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as code:
        code.write(_ASK)
        place = ctypes.c_char.from_buffer(code)
        ask = ctypes.CFUNCTYPE(None, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p)(ctypes.addressof(place))
        ask(leaf, subleaf, ctypes.addressof(room))
        del place   # lest the mapping be in use when it goes
    eax, ebx, ecx, edx = struct.unpack("4I", room.raw)
    return eax, ebx, ecx, edx


@functools.lru_cache
def xsave_layout() -> Layout:
    """Of the features that the kernel has turned on for programs.

    Raises:
        OSError: as ``cpuid``; ENODEV: the processor has no XSAVE.
    """
    if cpuid(0)[0] < _XSAVE_LEAF or not cpuid(1)[2] >> 27 & 1:   # OSXSAVE
        raise libc.os_error("XSAVE", 19)
    low, size, _, high = cpuid(_XSAVE_LEAF)   # ebx: for what XCR0 has on now, AMX too where programs may ask for it
    found = []
    for number in range(_FIRST_EXTENDED, 63):
        if (low | high << 32) >> number & 1:
            length, offset, _flags, _ = cpuid(_XSAVE_LEAF, number)
            if length and offset + length <= size:
                found.append(Component(number, offset, length))
    return Layout(size, tuple(found))


def auxiliary(kind: int) -> int:
    """An entry of this process's auxiliary vector; 0 where there is none."""
    return int(libc.function("getauxval", ctypes.c_ulong, ctypes.c_ulong)(kind))


# -- XSAVE areas ----------------------------------------------------------------------------------------
_LEGACY, _HEADER_END = 512, 576
_FREE_FOR_SOFTWARE = 464
"""Of the legacy area: the kernel says there what it has written, and does not ask."""
_KEYS, _DEFAULT_KEYS = 9, 0x55555554
"""PKRU, and what the kernel gives every thread (arch/x86/mm/pkeys.c)."""
_NAMES = {2: "AVX", 3: "MPX", 4: "MPX", 5: "AVX-512", 6: "AVX-512", 7: "AVX-512", 9: "protection keys",
          17: "AMX", 18: "AMX", 19: "APX"}


def in_use(area: bytes) -> int:
    """The components of an area that are not as at a program's start: XSTATE_BV."""
    return int.from_bytes(area[_LEGACY:_LEGACY + 8], "little")


def converted(area: bytes, there: Layout, here: Layout) -> bytes:
    """An XSAVE area of another processor in this one's layout.

    Raises:
        ValueError: naming a feature that is in use and that this processor lacks.
    """
    if len(area) < _HEADER_END:
        raise ValueError("no XSAVE area")
    found, used = bytearray(here.size), in_use(area)
    found[:_FREE_FOR_SOFTWARE] = area[:_FREE_FOR_SOFTWARE]
    kept = used & 0b11
    places = {component.number: component for component in here.components}
    for component in there.components:
        if not used >> component.number & 1:
            continue
        content = area[component.offset:component.offset + component.size]
        place = places.get(component.number)
        if place is not None and place.size == component.size == len(content):
            found[place.offset:place.offset + place.size] = content
            kept |= 1 << component.number
        elif not (component.number == _KEYS and int.from_bytes(content[:4], "little") == _DEFAULT_KEYS):
            raise ValueError(_NAMES.get(component.number, f"XSAVE component {component.number}"))
    found[_LEGACY:_LEGACY + 8] = kept.to_bytes(8, "little")
    return bytes(found)
