"""Descriptors that no checkpoint is taken of: each is named, with a cure that helps; the program goes on unharmed."""
from __future__ import annotations

import ctypes
import os
import re

import pytest
from need import offered

from crhpc.resources import unsavable

_CALL = "fd = ctypes.CDLL(None, use_errno=True).syscall({}); assert fd >= 0"
_ROOM = "room = ctypes.create_string_buffer({}, {}); "

MADE = {
    "io_uring": (_ROOM.format("bytes(120)", 120) + _CALL.format("425, 4, room"), "[io_uring]", "turn io_uring off"),
    "perf": (_ROOM.format("struct.pack('IIQQQQQ', 1, 112, 0, 0, 0, 0, 0x61)", 112)
             + _CALL.format("298, room, 0, -1, -1, 0"), "[perf_event]", "outside the job"),
    "bpf": (_ROOM.format("struct.pack('4I', 2, 4, 8, 1)", 120) + _CALL.format("321, 0, room, 72"), "bpf-map",
            "load them"),
    "fanotify": (_CALL.format("300, 0x200, 0"), "[fanotify]", "inotify"),
    "userfaultfd": (_CALL.format("323, 1"), "[userfaultfd]", "page faults"),
    "landlock": (_ROOM.format("struct.pack('Q', 1)", 8) + _CALL.format("444, room, 8, 0"), "[landlock", "close them"),
    "mount": (_CALL.format("430, b'tmpfs', 0"), "[fscontext]", "mount it outside"),
    "netlink": ("fd = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)", "AF_NETLINK",
                "once the kernel has answered"),
    "packet": ("fd = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)", "AF_PACKET", "capture packets"),
    "vsock": ("fd = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)", "AF_VSOCK", "by TCP"),
    "alg": ("fd = socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)", "AF_ALG", "OPENSSL_CONF"),
    "raw": ("fd = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", "SOCK_RAW", "close it"),
    "kvm": ("fd = os.open('/dev/kvm', os.O_RDWR)", "/dev/kvm", "outside the job"),
    "random device": ("fd = os.open('/dev/kmsg', os.O_RDONLY)", "/dev/kmsg", "close it"),
}


def allowed(setup: str) -> bool:
    """Whether this user may make such a descriptor, tried in a process of its own."""
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            exec(f"import ctypes, os, socket, struct\n{setup}", {})
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("name", MADE)
def test_it_is_named_with_a_cure(name, refused):
    setup, what, cure = MADE[name]
    offered(allowed(setup), f"{name} can't be had here")
    error = str(refused(setup))
    assert what in error and cure in error.partition("Cure: ")[2]


@pytest.mark.parametrize(("link", "cure"), [
    ("/dev/infiniband/uverbs0", "UCX_TLS=tcp"), ("anon_inode:[infinibandevent]", "UCX_TLS=tcp"),
    ("/dev/hfi1_0", "FI_PROVIDER=tcp"), ("/dev/cxi0", "FI_PROVIDER=tcp"), ("/dev/nvidia0", "CUDA_VISIBLE_DEVICES="),
    ("/dev/nvidia-uvm", "CUDA_VISIBLE_DEVICES="), ("/dev/kfd", "HIP_VISIBLE_DEVICES="), ("/dev/xpmem", "UCX_TLS="),
    ("/dev/dri/renderD128", "CUDA_VISIBLE_DEVICES="), ("/dmabuf:", "CUDA_VISIBLE_DEVICES="),
    ("/dev/vfio/12", "outside the job"), ("anon_inode:bpf-prog", "outside the job"),
    ("anon_inode:seccomp notify", "outside the job"), ("anon_inode:[what comes next]", "close it")])
def test_devices_that_are_not_here(link, cure):
    assert cure in unsavable.cure_of_file(link)


def test_patterns_can_be_used():
    assert all(re.compile(pattern) and what and cure for pattern, what, cure in unsavable.FILES)
    assert ctypes.sizeof(ctypes.c_void_p) == 8, "the structures above are those of 64 bits"
