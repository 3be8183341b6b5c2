"""What this system allows, found by trying each thing for real on a child made for it.

The namespaces are tried by a fresh process (trypod.py), since a process with several threads can't make them.
Nothing is left behind.
"""
from __future__ import annotations

import ctypes
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from crhpc.kernel import libc, pidfd, proc, ptrace, sockdiag, vm
from crhpc.kernel.tracee import await_stop

_UFFD_USER_MODE_ONLY, _UFFDIO_API, _UFFD_API, _WP_ASYNC = 1, 0xC018AA3F, 0xAA, 1 << 15
_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Capability:
    """One thing that crhpc uses: is it allowed, must it be, and what to do where it is not."""

    name: str
    ok: bool
    needed: bool
    detail: str
    cure: str = ""


def capabilities() -> list[Capability]:
    """Everything that this system must or may allow."""
    return [*_pod(), *_tracing(), _socket_diagnosis(), _write_tracking(), _page_scan()]


# -- a pod ----------------------------------------------------------------------------------------------
_POD_STEPS = {
    "namespaces": "ask the administrator to allow user namespaces (sysctl user.max_user_namespaces=10000, "
                  "kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)",
    "own /proc": "run outside containers that mask parts of /proc (docker: --security-opt systempaths=unconfined)",
    "own /dev/shm": "ask the administrator to allow mounts in user namespaces",
    "own terminals": "ask the administrator to allow devpts in user namespaces",
    "chosen process ids": "a kernel from 5.5 on is needed, and clone3 must not be filtered "
                          "(docker: seccomp=unconfined)",
    "time namespace": "a kernel with CONFIG_TIME_NS is needed",
}


def _pod() -> list[Capability]:
    done = subprocess.run([sys.executable, "-P", "-m", "crhpc.kernel.trypod"], stdin=subprocess.DEVNULL,
                          capture_output=True, timeout=_SECONDS, check=False)
    try:
        results: dict[str, str] = json.loads(done.stdout)
    except ValueError:
        lines = done.stderr.decode("utf-8", "replace").splitlines() or ["no answer"]
        results = {"namespaces": lines[-1]}
    found = []
    for name, cure in _POD_STEPS.items():
        problem = results.get(name, "not reached")
        found.append(Capability(name, not problem, True, problem or "allowed", cure))
    return found


# -- tracing --------------------------------------------------------------------------------------------
def _tracing() -> list[Capability]:
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert child.stdin is not None and child.stdout is not None
    try:
        child.stdin.write(b"x")
        child.stdout.read(1)   # before that it may still be in execve(2), without most of its mappings
        steps: list[tuple[str, Callable[[], object], str]] = [
            ("ptrace", lambda: _stop(child.pid),
             "ask for kernel.yama.ptrace_scope below 2, and for ptrace in the container"),
            ("memory of other processes", lambda: _read_memory(child.pid),
             "a kernel with CONFIG_CROSS_MEMORY_ATTACH is needed"),
            ("kcmp", lambda: pidfd.kcmp(os.getpid(), child.pid, pidfd.KCMP_FILE, 2, 2),
             "a kernel with CONFIG_CHECKPOINT_RESTORE or CONFIG_KCMP is needed"),
            ("pidfd_getfd", lambda: os.close(pidfd.take_fd(child.pid, 0)), "a kernel from 5.6 on is needed"),
        ]
        return [_tried(name, action, cure) for name, action, cure in steps]
    finally:
        child.kill()
        child.stdin.close()
        child.stdout.close()
        child.wait()


def _tried(name: str, action: Callable[[], object], cure: str, *, needed: bool = True) -> Capability:
    try:
        action()
    except OSError as error:
        return Capability(name, False, needed, f"{error.filename}: {error.strerror}", cure)
    return Capability(name, True, needed, "allowed")


def _stop(pid: int) -> None:
    ptrace.seize(pid, ptrace.O_TRACESYSGOOD)
    ptrace.interrupt(pid)
    await_stop(pid)
    ptrace.get_regset(pid)
    ptrace.rseq_configuration(pid)
    ptrace.detach(pid)


def _read_memory(pid: int) -> None:
    vdso = next(mapping for mapping in proc.maps(pid) if mapping.name == "[vdso]")
    vm.read(pid, vdso.start, 64)
    vm.Memory(pid).close()


# -- the rest -------------------------------------------------------------------------------------------
def _socket_diagnosis() -> Capability:
    return _tried("socket diagnosis", lambda: (sockdiag.unix_sockets(), sockdiag.inet_sockets()),
                  "the kernel modules unix_diag, tcp_diag and inet_diag are needed: ask the administrator to load them")


def _write_tracking() -> Capability:
    """userfaultfd with asynchronous write protection: copies memory while the job runs."""
    def attempt() -> None:
        fd = libc.syscall("userfaultfd", os.O_CLOEXEC | os.O_NONBLOCK | _UFFD_USER_MODE_ONLY)
        try:
            request = ctypes.create_string_buffer(struct.pack("QQQ", _UFFD_API, _WP_ASYNC, 0), 24)
            libc.syscall("ioctl", fd, _UFFDIO_API, ctypes.addressof(request))
        finally:
            os.close(fd)
    return _tried("userfaultfd", attempt, "a kernel from 6.7 on freezes the job for less time", needed=False)


def _page_scan() -> Capability:
    def attempt() -> None:
        pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            heap = next(mapping for mapping in proc.maps(os.getpid()) if mapping.write)
            vm.scan(pagemap, heap.start, heap.end, private_file=False)
        finally:
            os.close(pagemap)
    return _tried("PAGEMAP_SCAN", attempt, "a kernel from 6.7 on finds pages faster", needed=False)
