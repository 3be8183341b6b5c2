"""The scratch area of a borrowed task: mapped whatever limits and rules the task has set itself (mmap(2), prctl(2))."""
from __future__ import annotations

import contextlib
import errno
import resource
from collections.abc import Iterator

from crhpc.errors import Unsupported
from crhpc.kernel import vm
from crhpc.kernel.libc import PAGE
from crhpc.kernel.tracee import RUNNER, Area
from crhpc.resources.context import Task

_SIZE = 128 << 10
_ALL, _READ_WRITE, _READ_EXECUTE = 7, 3, 5
_PRIVATE_ANONYMOUS, _FIXED = 0x22, 0x10
_LIMITS = (resource.RLIMIT_AS, resource.RLIMIT_DATA)


def map_area(task: Task) -> Area:
    """Map an area for remote calls in a stopped task.

    Raises:
        Unsupported: limits that only a privilege could raise leave no room.
        OSError: it can't be mapped for another reason.
    """
    try:
        address = _map(task)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        address = _map_beyond_limits(task)
    return Area(task.leader, address, _SIZE)


def _map(task: Task) -> int:
    try:
        return task.call("mmap", 0, _SIZE, _ALL, _PRIVATE_ANONYMOUS, -1, 0)
    except PermissionError:   # PR_SET_MDWE: what can be written to may not be executed
        address = task.call("mmap", 0, _SIZE, _READ_EXECUTE, _PRIVATE_ANONYMOUS, -1, 0)
        task.call("mmap", address + PAGE, _SIZE - PAGE, _READ_WRITE, _PRIVATE_ANONYMOUS | _FIXED, -1, 0)
        with contextlib.closing(vm.Memory(task.host)) as memory:
            memory.write(address, RUNNER)
        return address


def _map_beyond_limits(task: Task) -> int:
    with _raised(task):
        try:
            return _map(task)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
    raise Unsupported(what="a process that may have no more memory", pid=task.pid, program=task.program,
                      cure=f"raise its limits of memory (ulimit -v, ulimit -d) by {_SIZE >> 10} KiB")


@contextlib.contextmanager
def _raised(task: Task) -> Iterator[None]:
    """What counts is the moment of mapping; nothing of the task runs meanwhile."""
    before = [resource.prlimit(task.host, number) for number in _LIMITS]
    try:
        for number, (_soft, hard) in zip(_LIMITS, before, strict=True):
            try:
                resource.prlimit(task.host, number, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            except (PermissionError, ValueError):
                resource.prlimit(task.host, number, (hard, hard))
        yield
    finally:
        for number, limits in zip(_LIMITS, before, strict=True):
            resource.prlimit(task.host, number, limits)
