"""Open files that no checkpoint is taken of, by what /proc/PID/fd shows or by the family of the socket, with the cure.

What they hold is in a device, in another machine or in the kernel, where nothing asks for it or puts it back.
"""
from __future__ import annotations

import re

DEFAULT = "close it, or turn off what opens it"
_NETWORK = ("let MPI use TCP: UCX_TLS=tcp,sm,self with UCX, FI_PROVIDER=tcp with libfabric, OMPI_MCA_pml=ob1 and "
            "OMPI_MCA_btl=tcp,sm,self with Open MPI")
_GPU = "run it without GPUs: CUDA_VISIBLE_DEVICES= or HIP_VISIBLE_DEVICES= (empty)"
_COPIES = "let MPI copy without it: UCX_TLS=tcp,sm,self with UCX, OMPI_MCA_btl=tcp,self with Open MPI"

FILES: tuple[tuple[str, str, str], ...] = (
    (r"/dev/infiniband/|.*\[(infinibandevent|uverbs|rdma)", "InfiniBand and RoCE (`/dev/infiniband`)", _NETWORK),
    (r"/dev/(hfi1|ipath|cxi|opx|gni|kgni|bxi|efa)", "Omni-Path, Slingshot and other fast networks", _NETWORK),
    (r"/dev/(nvidia|nvhost|kfd|dri/|dxg|accel/|mali)|/?dmabuf:|anon_inode:.*(dmabuf|sync_file|amdgpu|i915|drm)",
     "a GPU (`/dev/nvidia0`, `/dev/kfd`, `/dev/dri`)", _GPU),
    (r"/dev/(xpmem|knem|cma)", "copies between processes by a driver (`/dev/xpmem`, `/dev/knem`)", _COPIES),
    (r"/dev/(kvm|vhost-|vfio/)|anon_inode:\[?kvm",
     "virtual machines and devices given to them (`/dev/kvm`, `/dev/vfio`)", "run them outside the job"),
    (r"anon_inode:\[io_uring\]", "io_uring",
     "turn io_uring off in the library that uses it (UV_USE_IO_URING=0 with libuv)"),
    (r"anon_inode:\[perf_event\]", "performance events", "count them outside the job (perf, PAPI, LIKWID)"),
    (r"anon_inode:\[?bpf", "BPF programs and maps", "load them outside the job"),
    (r"anon_inode:\[fanotify\]", "fanotify", "watch files by inotify, or outside the job"),
    (r"anon_inode:\[userfaultfd\]", "userfaultfd", "turn off what serves page faults in the job"),
    (r"anon_inode:\[landlock", "rules of Landlock", "close them once they are in force"),
    (r"anon_inode:seccomp notify", "a filter's notifications (seccomp_unotify)",
     "run what supervises system calls outside the job"),
    (r"anon_inode:\[?(fscontext|mount|mnt)", "a file system that is being mounted", "mount it outside the job"),
    (r"/dev/(mem|kmem|port|uio|watchdog|rtc|cpu/|hugepages|input/|snd/|video|tty|console|vcs|hpet|net/tun|loop|mapper/)",
     "other devices", "use them outside the job"),
)
"""Pattern, what it is, the cure."""

SOCKETS: tuple[tuple[frozenset[int], str, str], ...] = (
    (frozenset({16}), "sockets of netlink",
     "close them once the kernel has answered, or look at the network outside the job"),
    (frozenset({17, 44}), "packet sockets (AF_PACKET, AF_XDP)", "capture packets outside the job"),
    (frozenset({40}), "vsock", "reach the machine by TCP"),
    (frozenset({38}), "cryptography of the kernel's (AF_ALG)",
     "let the library do it itself (OPENSSL_CONF without afalg)"),
    (frozenset({21, 30, 43}), "RDS, TIPC and SMC", "use TCP (SMC: without smc_run)"),
    (frozenset({29, 31}), "CAN and Bluetooth", "use them outside the job"),
)
"""Families (AF_ constants), what it is, the cure."""


def cure_of_file(link: str) -> str:
    """How to do without a file that is no socket."""
    return next((cure for pattern, _what, cure in FILES if re.match(pattern, link)), DEFAULT)


def cure_of_socket(family: int) -> str:
    """How to do without a socket."""
    return next((cure for families, _what, cure in SOCKETS if family in families), DEFAULT)


REFUSED = (*((what, cure) for _pattern, what, cure in FILES), *((what, cure) for _families, what, cure in SOCKETS),
           ("anything else that no section of this page names: raw IP, SCTP and UDP-Lite sockets among it", DEFAULT))
"""What docs/kinds.md says of it."""
