"""The C library through ctypes: raw system calls of this process, with errno turned into OSError."""
from __future__ import annotations

import ctypes
import os
from typing import Any

# PyDLL keeps the interpreter's lock during the call: a raw clone must return in the child with the lock
# held by the only thread that is left there. The other calls may take long and let go of it.
_libc = ctypes.CDLL(None, use_errno=True)
_libc_locked = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall_locked = _libc_locked.syscall
_syscall_locked.restype = ctypes.c_long

NR: dict[str, int] = {
    "read": 0, "write": 1, "open": 2, "close": 3, "poll": 7, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11,
    "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "ioctl": 16, "readv": 19, "writev": 20, "select": 23,
    "mremap": 25, "mincore": 27, "madvise": 28, "shmget": 29, "shmat": 30, "shmctl": 31, "dup2": 33, "pause": 34,
    "nanosleep": 35, "getitimer": 36, "setitimer": 38, "getpid": 39, "sendfile": 40, "socket": 41, "connect": 42,
    "accept": 43, "sendto": 44, "recvfrom": 45, "sendmsg": 46, "recvmsg": 47, "bind": 49, "listen": 50,
    "getsockname": 51, "socketpair": 53, "clone": 56, "fork": 57, "vfork": 58, "exit": 60, "wait4": 61, "kill": 62,
    "semget": 64, "semop": 65, "semctl": 66, "shmdt": 67, "msgget": 68, "msgsnd": 69, "msgrcv": 70, "msgctl": 71,
    "fcntl": 72, "flock": 73, "getcwd": 79, "chdir": 80, "fchdir": 81, "mkdir": 83, "rmdir": 84, "umask": 95,
    "getrlimit": 97, "setuid": 105, "setgid": 106, "setpgid": 109,
    "setsid": 112, "setgroups": 116, "setresuid": 117, "setresgid": 119, "getpgid": 121, "setfsuid": 122,
    "setfsgid": 123, "getsid": 124, "capget": 125, "capset": 126, "rt_sigtimedwait": 128, "rt_sigqueueinfo": 129,
    "rt_sigsuspend": 130, "sigaltstack": 131, "personality": 135, "statfs": 137, "mlock": 149, "mlockall": 151,
    "prctl": 157, "arch_prctl": 158, "chroot": 161, "mount": 165, "umount2": 166, "sethostname": 170, "gettid": 186,
    "futex": 202, "sched_setaffinity": 203, "sched_getaffinity": 204, "getdents64": 217, "set_tid_address": 218,
    "restart_syscall": 219, "semtimedop": 220, "timer_create": 222, "timer_settime": 223, "timer_gettime": 224,
    "timer_getoverrun": 225, "timer_delete": 226, "clock_gettime": 228, "clock_nanosleep": 230, "exit_group": 231,
    "epoll_wait": 232, "epoll_ctl": 233, "tgkill": 234, "mbind": 237, "set_mempolicy": 238, "get_mempolicy": 239,
    "mq_open": 240, "mq_unlink": 241, "mq_timedsend": 242, "mq_timedreceive": 243, "mq_getsetattr": 245,
    "waitid": 247, "ioprio_set": 251, "ioprio_get": 252, "inotify_add_watch": 254, "inotify_rm_watch": 255,
    "openat": 257, "pselect6": 270, "ppoll": 271, "unshare": 272, "set_robust_list": 273, "get_robust_list": 274,
    "tee": 276, "epoll_pwait": 281, "timerfd_create": 283, "fallocate": 285, "timerfd_settime": 286,
    "timerfd_gettime": 287, "accept4": 288, "signalfd4": 289, "eventfd2": 290, "epoll_create1": 291, "dup3": 292,
    "pipe2": 293, "inotify_init1": 294, "rt_tgsigqueueinfo": 297, "prlimit64": 302, "setns": 308,
    "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "sched_setattr": 314, "sched_getattr": 315,
    "seccomp": 317, "getrandom": 318, "memfd_create": 319, "userfaultfd": 323, "membarrier": 324, "mlock2": 325,
    "preadv2": 327, "pwritev2": 328, "rseq": 334, "pidfd_send_signal": 424, "pidfd_open": 434, "fsopen": 430,
    "fsconfig": 431, "fsmount": 432, "clone3": 435, "close_range": 436, "pidfd_getfd": 438, "epoll_pwait2": 441,
    "mseal": 462,
}
"""System call numbers of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl)."""

NAME: dict[int, str] = {number: name for name, number in NR.items()}

PAGE = 4096


def os_error(what: str, number: int | None = None) -> OSError:
    """The OSError of ``errno`` (or of ``number``) that names ``what`` instead of a file."""
    number = ctypes.get_errno() if number is None else number
    return OSError(number, os.strerror(number), what)


def syscall(name: str, *args: int | ctypes.Array[ctypes.c_char] | None) -> int:
    """Make a system call in this process; integers, buffers and None (a null pointer).

    Raises:
        OSError: with the name of the call as file name.
    """
    result = _syscall(ctypes.c_long(NR[name]), *[_word(arg) for arg in args])
    if result == -1:
        raise os_error(name)
    return int(result)


def syscall_keeping_lock(name: str, *args: int | ctypes.Array[ctypes.c_char] | None) -> int:
    """The same for calls that return twice: the child comes back with the interpreter's lock held."""
    result = _syscall_locked(ctypes.c_long(NR[name]), *[_word(arg) for arg in args])
    if result == -1:
        raise os_error(name)
    return int(result)


def _word(arg: int | ctypes.Array[ctypes.c_char] | None) -> object:
    if arg is None:
        return ctypes.c_long(0)
    return ctypes.c_long(arg) if isinstance(arg, int) else arg


def prctl(option: int, *args: int) -> int:
    """prctl(2) on the calling thread."""
    return syscall("prctl", option, *args, *[0] * (4 - len(args)))


def function(name: str, result: type | None, *arguments: type) -> Any:
    """A libc function with its types set, for calls that are made often."""
    pointer = ctypes.CDLL(None, use_errno=True)[name]
    pointer.restype = result
    pointer.argtypes = arguments
    return pointer
