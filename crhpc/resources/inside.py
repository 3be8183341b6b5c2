"""System calls in the pod's own namespaces, made by the pod's first process, which has all rights there.

For what a pod has and no task of it need hold. The first process is no part of the job and runs while that stands
still.
"""
from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from crhpc.resources.context import PodInit

_AT_ONCE, _BYTES = 4096, 4 << 20
"""Calls, and bytes of their rooms, in one message."""

IPC_CREAT, IPC_EXCL, IPC_NOWAIT = 0o1000, 0o2000, 0o4000
IPC_RMID, IPC_SET, IPC_STAT = 0, 1, 2
IPC_PERM = struct.Struct("iIIIII24x")
"""struct ipc64_perm, with which msqid64_ds, semid64_ds and shmid64_ds begin: key uid gid cuid cgid mode ..."""


@dataclass(frozen=True, slots=True)
class Room:
    """An argument that is the address of memory: what it holds at first, and how large it is."""

    size: int
    content: bytes = b""


Call = tuple[str, tuple[int | bytes | Room, ...]]
"""A call's name and arguments; bytes are a room that holds just them."""
Done = tuple[int, list[bytes]]
"""A call's result, and what its rooms hold after it."""


def calls_inside(init: PodInit, calls: Iterable[Call]) -> list[Done]:
    """Make calls one after another.

    Raises:
        OSError: of the first that failed, naming the call; those behind it were not made.
    """
    done: list[Done] = []
    left = iter(calls)
    while part := list(_part(left)):
        forms = [(name, [_form(argument) for argument in arguments]) for name, arguments in part]
        reply = init.request({"op": "calls", "calls": forms})
        for (_name, forms_of_one), (result, *rooms) in zip(forms, reply["done"], strict=True):
            sizes = [form[0] for form in forms_of_one if not isinstance(form, int)]
            done.append((result, [bytes.fromhex(room).ljust(size, b"\0")
                                  for room, size in zip(rooms, sizes, strict=True)]))
    return done


def call_inside(init: PodInit, name: str, *arguments: int | bytes | Room) -> Done:
    """One call."""
    return calls_inside(init, [(name, arguments)])[0]


def _part(calls: Iterator[Call]) -> Iterator[Call]:
    size = 0
    for call in islice(calls, _AT_ONCE):
        yield call
        size += sum(argument.size if isinstance(argument, Room) else len(argument) for argument in call[1]
                    if not isinstance(argument, int))
        if size > _BYTES:
            return


def _form(argument: int | bytes | Room) -> int | tuple[int, str]:
    if isinstance(argument, int):
        return argument
    if isinstance(argument, Room):
        return argument.size, argument.content.hex()
    return len(argument), argument.hex()


def numbers_inside(init: PodInit, what: str) -> list[int]:
    """The ids of all System V objects of a sort: ``shm``, ``sem`` or ``msg``."""
    try:
        listing = str(init.request({"op": "read", "path": f"/proc/sysvipc/{what}"})["text"])
    except FileNotFoundError:   # a kernel without CONFIG_SYSVIPC
        return []
    return [int(line.split()[1]) for line in listing.splitlines()[1:]]


def create_inside(init: PodInit, what: str, number: int, create: Call, owner: tuple[int, int]) -> None:
    """Make a System V object under its old id.

    Args:
        what: ``shm``, ``sem`` or ``msg``.
        owner: user and group.
    """
    init.request({"op": "write", "path": f"/proc/sys/kernel/{what}_next_id", "text": str(number)})
    (made, _), = calls_inside(init, [create])
    if made != number:
        raise OSError(17, f"id {made} instead of {number}", create[0])
    change_inside(init, what, number, {4: owner[0], 8: owner[1]})


def change_inside(init: PodInit, what: str, number: int, words: dict[int, int], size: int = 4) -> None:
    """Change words of a System V object's settings by IPC_SET, where they are not so already.

    Args:
        words: by their offsets in struct msqid64_ds and the like.
        size: of each word.
    """
    control, room = f"{what}ctl", Room(128)
    between = (0,) if what == "sem" else ()
    _, (raw,) = call_inside(init, control, number, *between, IPC_STAT, room)
    changed = bytearray(raw)
    for offset, value in words.items():
        changed[offset:offset + size] = value.to_bytes(size, "little")
    if changed != raw:
        call_inside(init, control, number, *between, IPC_SET, bytes(changed))
