"""The code that the kernel maps into every process (vdso(7)): an ELF file without a file.

What is parsed here may come from an image of a stranger: every offset is checked against the bytes at hand.
"""
from __future__ import annotations

import ctypes
import functools
import os
import struct
from collections.abc import Iterator

from crhpc.kernel import libc, proc

NAME = "[vdso]"
_HEADER, _PART = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ")
_ENTRY, _SYMBOL = struct.Struct("<qQ"), struct.Struct("<IBBHQQ")
_PT_DYNAMIC, _PT_NOTE = 2, 4
_DT_STRTAB, _DT_SYMTAB, _DT_STRSZ = 5, 6, 10
_FUNCTION = 2
_NT_GNU_BUILD_ID = 3
_AT_MOST = 1 << 12
"""Symbols, parts and entries: real ones have a dozen of each."""


@functools.lru_cache
def own() -> bytes:
    """This kernel's vdso; every process has the same.

    Raises:
        OSError: this process has none (the kernel was booted with ``vdso=0``).
    """
    for mapping in proc.maps(os.getpid()):
        if mapping.name == NAME:
            return ctypes.string_at(mapping.start, mapping.size)
    raise libc.os_error("this process has no vdso", 8)


def functions(content: bytes) -> dict[str, int]:
    """The functions that a vdso has for programs, and where they begin in it.

    Raises:
        ValueError: it is no such file.
    """
    try:
        entries = dict(_dynamic(content))
        names_at, symbols_at = entries[_DT_STRTAB], entries[_DT_SYMTAB]
        names = content[names_at:names_at + entries[_DT_STRSZ]]
        found: dict[str, int] = {}
        # How many there are is only in the hash tables; the names follow the symbols in every vdso.
        count = min(max(0, names_at - symbols_at) // _SYMBOL.size, _AT_MOST)
        for number in range(1, count):
            name_at, info, _, section, value, _ = _SYMBOL.unpack_from(content, symbols_at + number * _SYMBOL.size)
            if info & 0xF == _FUNCTION and section and value < len(content):
                found[names[name_at:names.index(b"\0", name_at)].decode("ascii")] = value
    except (ArithmeticError, struct.error, KeyError, ValueError) as error:
        raise ValueError(f"it is no vdso: {error}") from None
    return found


def build_id(content: bytes) -> bytes:
    """The build id of an ELF file of 64 bits, of which the beginning is enough; empty where it has none."""
    try:
        for kind, at, size in _parts(content):
            if kind == _PT_NOTE:
                for name, number, value in _notes(content[at:at + size]):
                    if name == b"GNU\0" and number == _NT_GNU_BUILD_ID:
                        return value
    except (ArithmeticError, struct.error, ValueError):
        pass
    return b""


def _parts(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Kind, offset and size of the program headers."""
    head = _HEADER.unpack_from(content)
    if head[0][:6] != b"\x7fELF\x02\x01" or head[9] != _PART.size:
        raise ValueError("not ELF of 64 bits")
    for number in range(min(head[10], _AT_MOST)):
        kind, _flags, at, _address, _, size, _, _ = _PART.unpack_from(content, head[5] + number * _PART.size)
        yield kind, at, size


def _dynamic(content: bytes) -> Iterator[tuple[int, int]]:
    for kind, at, size in _parts(content):
        if kind == _PT_DYNAMIC:
            for number in range(min(size // _ENTRY.size, _AT_MOST)):
                tag, value = _ENTRY.unpack_from(content, at + number * _ENTRY.size)
                if tag == 0:
                    break
                yield tag, value


def _notes(content: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    at = 0
    while at + 12 <= len(content):
        name_size, size, kind = struct.unpack_from("<III", content, at)
        at += 12
        name = content[at:at + name_size]
        at += -(-name_size // 4) * 4
        yield name, kind, content[at:at + size]
        at += -(-size // 4) * 4
