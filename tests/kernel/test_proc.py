"""/proc: parsers on what they may meet, and readers on what is known of processes of ours."""
from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
import string
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from crhpc.kernel import proc
from crhpc.kernel.libc import prctl

from .targets import target, until

BYTES = st.binary(min_size=1, max_size=15).filter(lambda name: b"\0" not in name)
"""A thread's name, or a file's: anything but zeros."""


# -- stat and status ----------------------------------------------------------------------------------
@given(BYTES, st.lists(st.integers(-(1 << 63), (1 << 64) - 1), min_size=52, max_size=52))
@example(b"a) R (b", [0] * 52)
@example(b"\n)\xff", [1] * 52)
def test_stat_with_any_name(name, numbers):
    rest = " ".join(map(str, numbers[3:]))
    found = proc.parse_stat(b"7 (" + name + b") S " + rest.encode() + b"\n")
    assert (found.pid, found.comm, found.state) == (7, os.fsdecode(name), "S")
    # the numbers are those of proc(5), counted from 1
    assert (found.ppid, found.start_time, found.start_brk, found.exit_code) == (
        numbers[3], numbers[21], numbers[46], numbers[51])


def test_stat_of_this_process():
    found = proc.stat(os.getpid())
    assert (found.pid, found.ppid, found.pgrp, found.session) == (
        os.getpid(), os.getppid(), os.getpgrp(), os.getsid(0))
    assert (found.state, found.nice) == ("R", os.nice(0))
    heap = next(m for m in proc.maps(os.getpid()) if m.name == "[heap]")
    assert found.start_brk <= heap.end
    stack = next(m for m in proc.maps(os.getpid()) if m.name == "[stack]")
    for address in (found.start_stack, found.arg_start, found.arg_end, found.env_start, found.env_end):
        assert stack.start <= address <= stack.end


@given(BYTES)
@example(b"x\rNSpid:\t99")
@example(b"x\x0cTracerPid:")
@example(b"\xc2\x85SigBlk:\t1")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name_of_a_thread(name):
    """What a program calls itself is never taken for a field."""
    room = ctypes.create_string_buffer(name)
    before = proc.comm(os.getpid(), threading.get_native_id())
    prctl(15, ctypes.addressof(room))
    try:
        tid = threading.get_native_id()
        status = proc.status(os.getpid(), tid)
        assert proc.comm(os.getpid(), tid) == name
        assert proc.stat(os.getpid(), tid).comm == os.fsdecode(name)
        assert list(status.fields) == FIELDS
        assert status.inner("NSpid") == tid
    finally:
        prctl(15, ctypes.addressof(ctypes.create_string_buffer(before)))


FIELDS = [line.partition(":")[0] for line in Path("/proc/self/status").read_text().splitlines()]


def test_status_of_this_process():
    found = proc.status(os.getpid())
    assert found.numbers("Uid") == (*os.getresuid(), os.geteuid())
    assert found.numbers("NStgid") == (os.getpid(),)
    assert found.number("Threads") == len(proc.threads(os.getpid()))
    assert found.number("NoSuchField", default=7) == 7
    assert found.numbers("NoSuchField") == ()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        assert proc.status(os.getpid()).number("SigBlk", 16) & 1 << (signal.SIGUSR2 - 1)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_processes_below_one():
    with target("""
        pid = os.fork()
        if pid == 0:
            pid = os.fork() or os.getpid()
            signal.pause()
        say(pid)
        wait()
    """) as subject:
        (child,) = subject.numbers()
        until(lambda: proc.children(child), "the grandchild does not come")
        (grandchild,) = proc.children(child)
        assert proc.children(subject.pid) == [child]
        assert proc.descendants(subject.pid) == [child, grandchild]
        assert subject.pid in proc.children(os.getpid())
        os.kill(grandchild, signal.SIGKILL)
        until(lambda: proc.stat(grandchild).state == "Z", "the grandchild does not die")
        assert proc.descendants(subject.pid) == [child, grandchild], "zombies too"
        os.kill(child, signal.SIGKILL)


def test_threads():
    with target("""
        threads = [threading.Thread(target=wait) for _ in range(3)]
        for thread in threads:
            thread.start()
        say(*[thread.native_id for thread in threads])
        wait()
    """) as subject:
        threads = subject.numbers()
        assert proc.threads(subject.pid) == sorted([subject.pid, *threads])


def test_a_process_that_is_gone():
    with target() as subject:
        subject.hear()
    assert proc.threads(subject.pid) == []
    assert proc.children(subject.pid) == []
    assert proc.descendants(subject.pid) == []
    assert proc.program(subject.pid) == "gone"
    for look in (proc.stat, proc.status, proc.maps, proc.smaps, proc.fds, proc.limits, proc.auxv):
        with pytest.raises((FileNotFoundError, ProcessLookupError)):
            look(subject.pid)


def test_a_zombie():
    with target() as subject:
        subject.hear()
        os.kill(subject.pid, signal.SIGTERM)
        os.waitid(os.P_PID, subject.pid, os.WEXITED | os.WNOWAIT)
        found = proc.stat(subject.pid)
        assert (found.state, found.exit_code) == ("Z", signal.SIGTERM)
        assert proc.program(subject.pid).startswith("python")
        assert proc.maps(subject.pid) == []


def test_the_program_of_a_process(tmp_path):
    copy = tmp_path / "name (deleted)"
    copy.write_bytes(Path("/bin/sleep").read_bytes())
    copy.chmod(0o755)
    assert proc.program(os.getpid()).startswith("python")
    with target("wait()", executable=str(copy)) as subject:   # sleep does not understand it, and ends
        os.waitid(os.P_PID, subject.pid, os.WEXITED | os.WNOWAIT)
    pid = os.posix_spawn(copy, ["x", "30"], {})
    try:
        until(lambda: proc.program(pid) == "name", "it is not called after its file")
        copy.unlink()
        assert proc.program(pid) == "name (deleted)"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_the_auxiliary_vector():
    words = memoryview(proc.auxv(os.getpid())).cast("Q").tolist()
    vector = dict(zip(words[::2], words[1::2], strict=True))
    assert vector[6] == mmap.PAGESIZE   # AT_PAGESZ
    assert vector[11] == os.getuid()    # AT_UID


# -- mappings -----------------------------------------------------------------------------------------
NAMES = st.binary(min_size=1, max_size=40).filter(
    lambda name: not {0, ord("/")} & set(name) and name not in (b".", b"..") and b"\\012" not in name)


@given(NAMES)
@example(b"with spaces  ")
@example(b"new\nline")
@example(b"carriage\rreturn")
@example(b"\x0b\x0c\x1c\xc2\x85\xff")
@example(b"VmFlags: rd")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_any_name_of_a_mapped_file(tmp_path_factory, name):
    assume(not name.endswith(b" (deleted)"))
    path = os.fsencode(tmp_path_factory.getbasetemp()) + b"/" + name
    with open(path, "wb+") as file:
        file.write(b"x" * 5 * mmap.PAGESIZE)
        file.flush()
        with mmap.mmap(file.fileno(), 2 * mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ, offset=mmap.PAGESIZE):
            stat = os.stat(path)
            for look in (proc.maps, proc.smaps):
                (found,) = [m for m in look(os.getpid()) if m.inode == stat.st_ino and m.device == stat.st_dev]
                assert os.fsencode(found.path) == path
                assert (found.offset, found.size, found.shared, found.protection) == (
                    mmap.PAGESIZE, 2 * mmap.PAGESIZE, True, mmap.PROT_READ)
            os.unlink(path)
            (found,) = [m for m in proc.maps(os.getpid()) if m.inode == stat.st_ino and m.device == stat.st_dev]
            assert found.deleted
            assert os.fsencode(found.path) == path


def test_both_files_of_mappings_tell_the_same():
    with target() as subject:
        subject.hear()
        quick, slow = proc.maps(subject.pid), proc.smaps(subject.pid)
        assert [(m.start, m.end, m.name, m.protection, m.offset, m.inode) for m in quick] == [
            (m.start, m.end, m.name, m.protection, m.offset, m.inode) for m in slow]
        assert [m.start for m in quick] == sorted(m.start for m in quick)
        for mapping in slow:
            assert ("rd" in mapping.flags, "wr" in mapping.flags, "ex" in mapping.flags) == (
                mapping.read, mapping.write, mapping.execute)
            assert mapping.page_size == mmap.PAGESIZE
        assert {m.name for m in slow if m.special} >= {"[vdso]", "[vvar]"}
        assert not any(m.special for m in slow if m.name in ("[heap]", "[stack]") or m.inode)


def test_swap_and_page_size_belong_to_one_mapping():
    content = b"""00400000-00401000 r--p 00000000 08:01 5 /a
Size: 4 kB
KernelPageSize:     2048 kB
Swap:               12 kB
VmFlags: rd mr
00500000-00501000 rw-s 00002000 00:0f 0
VmFlags: rd wr sh
"""
    first, second = proc.parse_smaps(content)
    assert (first.swap, first.page_size, first.flags) == (12288, 2 << 20, {"rd", "mr"})
    assert (second.swap, second.page_size, second.name, second.shared, second.offset) == (0, 4096, "", True, 8192)
    assert second.device == os.makedev(0, 15)


# -- descriptors --------------------------------------------------------------------------------------
def test_descriptors(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    other = os.dup(fd)
    os.set_inheritable(other, True)
    try:
        os.lseek(fd, 42, os.SEEK_SET)
        assert {fd, other} <= set(proc.fds(os.getpid()))
        found = proc.fdinfo(os.getpid(), fd)
        access = os.O_ACCMODE | os.O_APPEND | os.O_CLOEXEC
        assert (found.position, found.flags & access, found.inode) == (
            42, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, path.stat().st_ino)
        assert not proc.fdinfo(os.getpid(), other).flags & os.O_CLOEXEC
    finally:
        os.close(fd)
        os.close(other)


WORDS = st.text(string.ascii_letters + string.digits + " :-", min_size=1, max_size=12).map(str.strip)


@given(st.integers(0, 1 << 62), st.integers(0, 1 << 30), st.lists(st.tuples(
    st.text(string.ascii_lowercase, min_size=1).filter(lambda word: word not in ("pos", "flags", "ino")), WORDS)))
def test_lines_that_only_some_files_have(position, flags, extra):
    lines = [("pos", position), ("flags", f"0{flags:o}"), ("mnt_id", 15), ("ino", 3), *extra]
    found = proc.parse_fdinfo("".join(f"{name}:\t{value}\n" for name, value in lines).encode())
    assert (found.position, found.flags, found.mount, found.inode) == (position, flags, 15, 3)
    assert found.extra == tuple(extra)
    for name, _ in extra:
        assert found.all(name) == [value for other, value in extra if other == name]
        assert found.field(name) == found.all(name)[0]
    assert found.field("no such") is None


def test_lines_of_inotify():
    found = proc.parse_fdinfo(b"pos:\t0\nflags:\t00\nmnt_id:\t1\n"
                              b"inotify wd:1 ino:2 sdev:3\ninotify wd:2 ino:5 sdev:3\n")
    assert found.all("inotify") == ["wd:1 ino:2 sdev:3", "wd:2 ino:5 sdev:3"]
    assert found.inode == 0


# -- limits and timers --------------------------------------------------------------------------------
def test_limits():
    kinds = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
    found = proc.limits(os.getpid())
    assert len(found) == 16
    for kind in {*kinds}:
        expected = tuple(proc.RLIM_INFINITY if value == resource.RLIM_INFINITY else value
                         for value in resource.getrlimit(kind))
        assert found[kind] == expected, kind


def test_posix_timers():
    with target("""
        libc = ctypes.CDLL(None, use_errno=True)
        class Event(ctypes.Structure):
            _fields_ = [("value", ctypes.c_void_p), ("signo", ctypes.c_int), ("notify", ctypes.c_int),
                        ("tid", ctypes.c_int), ("pad", ctypes.c_int * 11)]
        def create(clock, *fields):
            timer = ctypes.c_int()
            assert libc.syscall(222, clock, ctypes.byref(Event(*fields)), ctypes.byref(timer)) == 0
            return timer.value
        say(create(1, 0x1234, 40, 0), create(0, None, 0, 1), create(1, 7, 41, 4, os.getpid()))
        wait()
    """) as subject:
        first, silent, directed = subject.numbers()
        found = {timer.id: timer for timer in proc.parse_timers(proc.read(f"/proc/{subject.pid}/timers"))}
        assert set(found) == {first, silent, directed}
        pid = subject.pid
        assert found[first] == proc.PosixTimer(first, 40, 0x1234, "signal", pid, 1)
        assert found[silent] == proc.PosixTimer(silent, 0, 0, "none", pid, 0)
        assert found[directed] == proc.PosixTimer(directed, 41, 7, "signal/tid", pid, 1)
    assert proc.parse_timers(b"") == []


def test_a_glance_at_a_thread_tells_what_its_status_does():
    pid = os.getpid()
    status = proc.status(pid, pid)
    assert proc.glance(pid, pid) == (status.inner("NSpid"), status.number("SigPnd", 16) | status.number("ShdPnd", 16))
    with pytest.raises((FileNotFoundError, ProcessLookupError)):
        proc.glance(1 << 30, 1 << 30)
