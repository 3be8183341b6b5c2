"""Raw system calls of this process."""
from __future__ import annotations

import ctypes
import errno
import os
import re
from pathlib import Path

import pytest
from need import need

from crhpc.kernel import libc

from .targets import apart

HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")


def test_numbers_are_the_kernels():
    need(HEADER.exists(), f"{HEADER} is missing (libc6-dev)")
    there = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)", HEADER.read_text())}
    assert {name: there.get(name, number) for name, number in libc.NR.items()} == libc.NR
    assert len(libc.NAME) == len(libc.NR), "no number has two names"


def test_result():
    assert libc.syscall("getpid") == os.getpid()


def test_arguments_are_numbers_buffers_and_nothing(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    fd = libc.syscall("openat", -100, ctypes.create_string_buffer(os.fsencode(path)), os.O_RDONLY, 0)
    try:
        room = ctypes.create_string_buffer(16)
        assert libc.syscall("read", fd, room, 16) == 7
        assert room.value == b"content"
        assert libc.syscall("lseek", fd, -3, os.SEEK_END) == 4
        assert libc.syscall("lseek", fd, 5 << 32, os.SEEK_SET) == 5 << 32, "no argument is cut to 32 bits"
    finally:
        os.close(fd)
    with pytest.raises(OSError, match="Bad address") as caught:
        libc.syscall("openat", -100, None, os.O_RDONLY, 0)
    assert caught.value.errno == errno.EFAULT


@pytest.mark.parametrize("call", [libc.syscall, libc.syscall_keeping_lock])
def test_an_error_names_the_call(call):
    with pytest.raises(OSError) as caught:
        call("close", -1)
    assert (caught.value.errno, caught.value.filename) == (errno.EBADF, "close")
    assert caught.value.strerror == os.strerror(errno.EBADF)
    with pytest.raises(ProcessLookupError, match="kill"):
        call("kill", 1 << 30, 0)


def test_os_error():
    error = libc.os_error("the thing", errno.ENOENT)
    assert isinstance(error, FileNotFoundError)
    assert str(error) == "[Errno 2] No such file or directory: 'the thing'"
    ctypes.set_errno(errno.EACCES)
    assert isinstance(libc.os_error("the thing"), PermissionError)


def test_other_threads_run_during_a_call():
    """Else this would hang: the call ends only when another thread has written."""
    said = apart("""
        from crhpc.kernel import libc
        reader, writer = os.pipe()
        room = ctypes.create_string_buffer(1)
        thread = threading.Thread(target=lambda: say(libc.syscall("read", reader, room, 1), room.raw))
        signal.alarm(20)
        thread.start()
        os.write(writer, b"x")
        thread.join()
    """)
    assert said == "1 b'x'"


def test_prctl():
    before = libc.prctl(21)   # PR_GET_SECCOMP
    assert before in (0, 2)
    with pytest.raises(OSError, match="prctl"):
        libc.prctl(-1)


def test_function_has_its_types():
    getpid = libc.function("getpid", ctypes.c_int)
    assert getpid() == os.getpid()
    with pytest.raises(ctypes.ArgumentError):
        libc.function("labs", ctypes.c_long, ctypes.c_long)("text")
