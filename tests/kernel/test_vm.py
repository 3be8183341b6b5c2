"""Another process's memory: a child's, that says where it has put what."""
from __future__ import annotations

import ctypes
import errno
import itertools
import os
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from need import need

from crhpc.kernel import proc, vm
from crhpc.kernel.libc import PAGE

from .targets import Target, target

_MAP = """
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PAGE = 4096
def new(pages, flags=0x22, fd=-1):
    return libc.mmap(None, pages * PAGE, 3, flags, fd, 0)
def touch(address, page, byte=b"x"):
    ctypes.memmove(address + page * PAGE, byte, 1)
def look(address, page):
    return ctypes.string_at(address + page * PAGE, 1)
"""


@pytest.fixture
def pages() -> Iterator[tuple[Target, int]]:
    """A child with four pages: filled, filled and unreadable, filled, not mapped any more."""
    with target(_MAP + """
at = new(4)
for page in range(4):
    ctypes.memset(at + page * PAGE, ord("a") + page, PAGE)
assert libc.mprotect(at + PAGE, PAGE, 0) == 0
assert libc.munmap(at + 3 * PAGE, PAGE, 0) == 0
say(at)
wait()
say(ctypes.string_at(at, PAGE)[:8].hex())
wait()
""") as found:
        (address,) = found.numbers()
        yield found, address


# -- reading and writing ------------------------------------------------------------------------------
def test_read(pages):
    subject, at = pages
    assert vm.read(subject.pid, at, PAGE) == b"a" * PAGE
    assert vm.read(subject.pid, at + 2 * PAGE + 5, 7) == b"c" * 7
    assert vm.read_pointer(subject.pid, at) == int.from_bytes(b"a" * 8, "little")


def test_write(pages):
    subject, at = pages
    vm.write(subject.pid, at + 2, b"\0\xff")
    subject.tell()
    assert bytes.fromhex(subject.hear()) == b"aa\0\xffaaaa"


def test_pieces_stand_one_behind_the_other(pages):
    """More of them than one call takes."""
    subject, at = pages
    pieces = [(at + 2 * PAGE * (i % 2) + i, 3) for i in range(vm.IOV_MAX + 500)]
    room = ctypes.create_string_buffer(3 * len(pieces))
    vm.read_into(subject.pid, ctypes.addressof(room), pieces)
    assert room.raw == b"aaaccc" * (len(pieces) // 2)
    new = ctypes.create_string_buffer(bytes(range(6)), 6)
    vm.write_from(subject.pid, ctypes.addressof(new), [(at, 2), (at + 100, 4)])
    assert vm.read(subject.pid, at, 2) + vm.read(subject.pid, at + 100, 4) == bytes(range(6))


@pytest.mark.parametrize("page", [1, 3])
def test_what_may_not_be_read(pages, page):
    subject, at = pages
    with pytest.raises(OSError) as caught:
        vm.read(subject.pid, at + page * PAGE, 8)
    assert caught.value.errno == errno.EFAULT
    assert caught.value.filename == f"process_vm_readv of {subject.pid} at {at + page * PAGE:#x}"
    with pytest.raises(OSError, match="process_vm_writev") as caught:
        vm.write(subject.pid, at + page * PAGE, b"x")
    assert caught.value.errno == errno.EFAULT


def test_an_error_names_the_piece_where_it_stopped(pages):
    subject, at = pages
    room = ctypes.create_string_buffer(3 * PAGE)
    with pytest.raises(OSError, match=f"{at + PAGE:#x}"):
        vm.read_into(subject.pid, ctypes.addressof(room), [(at, PAGE), (at + PAGE, PAGE), (at + 2 * PAGE, PAGE)])


def test_a_process_that_is_gone():
    with target() as subject:
        subject.hear()
    with pytest.raises(ProcessLookupError):
        vm.read(subject.pid, 4096, 1)


def test_memory_of_pages_that_the_process_may_not_read(pages):
    subject, at = pages
    memory = vm.Memory(subject.pid)
    try:
        room = bytearray(2 * PAGE)
        memory.read_into(memoryview(room), at + PAGE // 2)
        assert room == b"a" * (PAGE // 2) + b"b" * PAGE + b"c" * (PAGE // 2)
        local = ctypes.create_string_buffer(PAGE)
        memory.read_to(ctypes.addressof(local), at + PAGE, PAGE)
        assert local.raw == b"b" * PAGE
        memory.write(at + PAGE + 1, b"new")
        memory.read_to(ctypes.addressof(local), at + PAGE, PAGE)
        assert local.raw == b"bnew" + b"b" * (PAGE - 4)
        with pytest.raises(OSError) as caught:
            memory.read_into(memoryview(room), at + 3 * PAGE)
        assert caught.value.errno == errno.EIO
    finally:
        memory.close()


def test_writing_to_a_private_mapping_leaves_the_file_alone(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"f" * PAGE)
    with target(_MAP + f"""
fd = os.open({str(path)!r}, os.O_RDONLY)
at = libc.mmap(None, PAGE, 1, 2, fd, 0)
say(at)
wait()
say(ctypes.string_at(at, 4).hex())
wait()
""") as subject:
        (at,) = subject.numbers()
        memory = vm.Memory(subject.pid)
        memory.write(at, b"abc")   # the mapping is read-only
        memory.close()
        subject.tell()
        assert bytes.fromhex(subject.hear()) == b"abcf"
    assert path.read_bytes() == b"f" * PAGE


def test_scattering(pages):
    """Pieces of different sizes to where the process may write and to where it may not, in any order."""
    subject, at = pages
    source = np.arange(40, dtype=np.uint8)
    sizes = np.array([3, 7, 5, 4, 6], np.uint64)
    local = np.stack((source.ctypes.data + np.array([0, 10, 20, 30, 34], np.uint64), sizes), axis=1)
    targets = np.array([at + PAGE - 1, at + 2 * PAGE + 1, at + PAGE + 100, at + 5, at + 2 * PAGE - 3], np.uint64)
    memory = vm.Memory(subject.pid)
    try:
        vm.scatter(subject.pid, memory, local, np.stack((targets, sizes), axis=1))
        room = bytearray(3 * PAGE)
        memory.read_into(memoryview(room), at)
    finally:
        memory.close()
    expected = bytearray(b"a" * PAGE + b"b" * PAGE + b"c" * PAGE)
    for address, size, first in zip(targets.tolist(), sizes.tolist(), (0, 10, 20, 30, 34), strict=True):
        expected[address - at:address - at + size] = bytes(range(first, first + size))
    assert room == expected


def test_scattering_to_what_is_not_mapped(pages):
    subject, at = pages
    source = np.zeros(16, np.uint8)
    memory = vm.Memory(subject.pid)
    try:
        with pytest.raises(OSError) as caught:
            vm.scatter(subject.pid, memory, np.array([[source.ctypes.data, 16]], np.uint64),
                       np.array([[at + 3 * PAGE, 16]], np.uint64))
        assert caught.value.errno == errno.EIO
        with pytest.raises(ProcessLookupError, match="process_vm_writev"):
            vm.scatter(1 << 22, memory, np.array([[source.ctypes.data, 16]], np.uint64),
                       np.array([[at, 16]], np.uint64))
    finally:
        memory.close()


# -- which pages are there ----------------------------------------------------------------------------
WAYS = {
    "scan": lambda pagemap, start, end, private: vm.scan(pagemap, start, end, private_file=private,
                                                         guard=vm._guard_is_known),
    "read": vm._populated_by_reading}


def _need_scan(pagemap: int) -> None:
    try:
        vm.scan(pagemap, 0, PAGE, private_file=False)
    except OSError as error:
        need(False, f"this kernel has no PAGEMAP_SCAN ({error.strerror}): Linux 6.7 brings it")


@pytest.fixture(params=list(WAYS))
def way(request):
    """Both ways to find them: the one of new kernels, and the one of all."""
    with open("/proc/self/pagemap", "rb") as pagemap:
        if request.param == "scan":
            _need_scan(pagemap.fileno())
        vm.populated(pagemap.fileno(), 0, PAGE, private_file=False)   # finds out what this kernel knows
    return WAYS[request.param]


def found_by(way, pid: int, at: int, pages: int, *, private: bool = False) -> tuple[list[tuple[int, int]], ...]:
    """Own pages and guards, by their number."""
    with open(f"/proc/{pid}/pagemap", "rb") as pagemap:
        found = way(pagemap.fileno(), at, at + pages * PAGE, private)
    return tuple([((start - at) // PAGE, count) for start, count in runs] for runs in found)


def test_pages_that_were_written(way):
    with target(_MAP + """
at = new(64)
libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(64 * PAGE), 15)   # no huge pages
for page in (0, 3, 4, 5, 63):
    touch(at, page)
say(at)
wait()
""") as subject:
        (at,) = subject.numbers()
        assert found_by(way, subject.pid, at, 64) == ([(0, 1), (3, 3), (63, 1)], [])
        assert found_by(way, subject.pid, at + 4 * PAGE, 2) == ([(0, 2)], [])
        assert found_by(way, subject.pid, at, 0) == ([], [])


def test_more_runs_than_one_call_gives(way):
    count = 3 * vm._REGIONS
    with target(_MAP + f"""
at = new({2 * count})
libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t({2 * count} * PAGE), 15)
for page in range({count}):
    touch(at, 2 * page)
say(at)
wait()
""") as subject:
        (at,) = subject.numbers()
        assert found_by(way, subject.pid, at, 2 * count) == ([(2 * page, 1) for page in range(count)], [])


def test_pages_on_both_sides_of_a_border_are_one_run(way, monkeypatch):
    monkeypatch.setattr(vm, "_PAGEMAP_AT_ONCE", 8)
    with target(_MAP + "at = new(64)\nctypes.memset(at, 1, 64 * PAGE)\nsay(at)\nwait()") as subject:
        (at,) = subject.numbers()
        own, _ = found_by(way, subject.pid, at, 64)
        assert [first + i for first, count in own for i in range(count)] == list(range(64))


def test_own_pages_of_a_private_mapping_of_a_file(way, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"f" * 8 * PAGE)
    with target(_MAP + f"""
at = libc.mmap(None, 8 * PAGE, 3, 2, os.open({str(path)!r}, os.O_RDONLY), 0)
for page in range(8):
    look(at, page)
for page in (1, 2, 6):
    touch(at, page)
say(at)
wait()
""") as subject:
        (at,) = subject.numbers()
        assert found_by(way, subject.pid, at, 8, private=True) == ([(1, 2), (6, 1)], [])


def test_guards(way):
    with target(_MAP + """
at = new(16)
ctypes.memset(at, 1, 16 * PAGE)
say(at, libc.madvise(ctypes.c_void_p(at + 4 * PAGE), ctypes.c_size_t(3 * PAGE), 102))
wait()
""") as subject:
        at, refused = subject.numbers()
        need(not refused, "this kernel has no guard pages: Linux 6.13 brings them")
        need(vm._guard_is_known, "this kernel does not tell guard pages: Linux 6.15 does")
        assert found_by(way, subject.pid, at, 16) == ([(0, 4), (7, 9)], [(4, 3)])


def test_guards_whatever_the_mapping_is_of():
    with target(_MAP + """
at = new(16, 0x21)   # shared
ctypes.memset(at, 1, 16 * PAGE)
say(at, libc.madvise(ctypes.c_void_p(at + 4 * PAGE), ctypes.c_size_t(3 * PAGE), 102))
wait()
""") as subject, open(f"/proc/{subject.pid}/pagemap", "rb") as pagemap:
        at, refused = subject.numbers()
        need(not refused, "this kernel has no guards in shared memory: Linux 6.15 brings them")
        assert vm.guards(pagemap.fileno(), at, at + 16 * PAGE).tolist() == [[at + 4 * PAGE, 3]]
        assert vm.guards(pagemap.fileno(), at, at + 4 * PAGE).tolist() == []


def test_pages_of_zeros_that_were_only_read_do_not_count():
    with target(_MAP + "at = new(8)\nlook(at, 2)\ntouch(at, 5)\nsay(at)\nwait()") as subject:
        (at,) = subject.numbers()
        with open(f"/proc/{subject.pid}/pagemap", "rb") as pagemap:
            _need_scan(pagemap.fileno())
        assert found_by(WAYS["scan"], subject.pid, at, 8)[0] == [(5, 1)]


def test_both_ways_find_the_same_in_a_whole_process():
    """In every mapping of a Python, where nobody has chosen what is touched; but for zeros, which cost nothing."""
    with target() as subject, open(f"/proc/{subject.pid}/pagemap", "rb") as pagemap:
        subject.hear()
        _need_scan(pagemap.fileno())
        seen = 0
        for mapping in proc.maps(subject.pid):
            if mapping.special or mapping.shared:
                continue
            ends = (pagemap.fileno(), mapping.start, mapping.end, bool(mapping.inode))
            scanned, read = (_pages(WAYS[name](*ends)[0]) for name in ("scan", "read"))
            assert scanned <= read, mapping
            assert all(vm.read(subject.pid, page, PAGE) == bytes(PAGE) for page in read - scanned), mapping
            seen += len(scanned)
        assert seen > 100


def _pages(runs: list[tuple[int, int]]) -> set[int]:
    return {start + i * PAGE for start, count in runs for i in range(count)}


def test_populated_takes_the_way_that_there_is(monkeypatch):
    answers: list[int] = []

    def missing(*arguments, **options):
        raise OSError(answers[-1], os.strerror(answers[-1]), "PAGEMAP_SCAN")

    with target(_MAP + "at = new(8)\ntouch(at, 2)\nsay(at)\nwait()") as subject, \
            open(f"/proc/{subject.pid}/pagemap", "rb") as pagemap:
        (at,) = subject.numbers()
        monkeypatch.setattr(vm, "scan", missing)
        for number in (errno.EINVAL, errno.ENOTTY):
            answers.append(number)
            monkeypatch.setattr(vm, "_guard_is_known", 256)
            own, guards = vm.populated(pagemap.fileno(), at, at + 8 * PAGE, private_file=False)
            assert at + 2 * PAGE in _pages(own)
            assert len(guards) == 0
        answers.append(errno.EPERM)
        with pytest.raises(PermissionError):
            vm.populated(pagemap.fileno(), at, at + PAGE, private_file=False)


def test_a_kernel_that_knows_no_guards(monkeypatch):
    def older(*arguments, guard: int, **options):
        if guard:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), "PAGEMAP_SCAN")
        return [(PAGE, 1)], []

    monkeypatch.setattr(vm, "scan", older)
    monkeypatch.setattr(vm, "_guard_is_known", 256)
    assert vm.populated(-1, 0, PAGE, private_file=False) == ([(PAGE, 1)], [])
    assert vm._guard_is_known == 0


@given(st.lists(st.booleans()))
def test_runs(mask):
    expected, at = [], 0
    for value, group in itertools.groupby(mask):
        length = len(list(group))
        if value:
            expected.append((at, length))
        at += length
    assert vm.runs(np.array(mask, dtype=bool)) == expected
