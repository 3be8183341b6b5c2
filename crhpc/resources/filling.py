"""Writing what an image holds into the memory of tasks, by several threads."""
from __future__ import annotations

import contextlib
from collections.abc import Mapping

import numpy as np

from crhpc.image.records import Bytes, Table
from crhpc.kernel import vm
from crhpc.kernel.libc import PAGE
from crhpc.resources.context import Restore


def fill_memory(ctx: Restore, homes: Mapping[int, tuple[int, int]]) -> None:
    """Fill page objects in; mappings that the task itself may not write to are filled all the same.

    Args:
        homes: of each object, a task by its number on this node, and the address of page 0 there.
    """
    with contextlib.ExitStack() as stack:
        memories = {}
        for host, _ in homes.values():
            if host not in memories:
                memories[host] = vm.Memory(host)
                stack.callback(memories[host].close)

        def take(chunk: Bytes, pieces: Table) -> None:
            for number in np.unique(pieces["object"]).tolist():
                host, base = homes[number]
                part = pieces[pieces["object"] == number]
                sizes = part["npages"] * np.uint64(PAGE)
                local = np.stack((part["row"] * np.uint64(PAGE) + np.uint64(chunk.ctypes.data), sizes), axis=1)
                remote = np.stack((part["page"] * np.uint64(PAGE) + np.uint64(base), sizes), axis=1)
                vm.scatter(host, memories[host], local, remote)
        ctx.shard.spread(set(homes), take)
