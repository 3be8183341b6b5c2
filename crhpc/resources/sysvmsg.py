"""System V message queues with their ids and what is in them (msgop(2)).

Listed from ``/proc/sysvipc/msg``. Messages are copied by their places in the queue (MSG_COPY), which takes nothing
out, and sent again in their order. The pod's first process does both: no task need have a right to a queue.
"""
from __future__ import annotations

import struct
from dataclasses import dataclass, field

from crhpc.errors import OtherMachine
from crhpc.resources import Chapter, Cut, Kind, Phase, at
from crhpc.resources.context import Dump, Restore
from crhpc.resources.inside import (
    IPC_CREAT,
    IPC_EXCL,
    IPC_NOWAIT,
    IPC_PERM,
    IPC_STAT,
    Call,
    Room,
    call_inside,
    calls_inside,
    change_inside,
    create_inside,
    numbers_inside,
)

_MSG_COPY = 0o40000
_MSQID_DS = struct.Struct(f"{IPC_PERM.size}x3q3Q2i16x")
"""struct msqid64_ds behind the permissions: three times, bytes, messages, most bytes, two pids."""
_MOST_BYTES = 88
"""Where ``msg_qbytes`` stands."""


@dataclass(frozen=True, slots=True)
class SysvQueue:
    """A message queue of the pod."""

    id: int
    key: int
    mode: int
    uid: int
    gid: int
    most: int = field(metadata={"doc": "bytes that it holds (msg_qbytes)"})


@dataclass(frozen=True, slots=True)
class SysvMessage:
    """A message that nobody has taken yet; rows are in the order of the queue."""

    queue: int = field(metadata={"ref": "sysv_queue.id"})
    type: int
    data: bytes


class SysvMessagesKind(Kind):
    name = "sysvmsg"
    chapter = Chapter.IPC
    records = (SysvQueue, SysvMessage)
    saved = ("System V message queues under their ids, with keys, owners, modes and size, and the messages in them in "
             "their order; calls that wait for one, or for room")
    afterwards = ("times are those of the restart; the last sender is process 1, the last receiver nobody. Of several "
                  "that wait for the same message another one may get it")

    @at(Cut.CONTENT)
    def dump(self, ctx: Dump) -> None:
        for number in numbers_inside(ctx.init, "msg"):
            _, (raw,) = call_inside(ctx.init, "msgctl", number, IPC_STAT, Room(_MSQID_DS.size))
            key, uid, gid, _cuid, _cgid, mode = IPC_PERM.unpack_from(raw)
            *_times, size, count, most, _sender, _receiver = _MSQID_DS.unpack(raw)
            ctx.add(SysvQueue(number, key, mode & 0o777, uid, gid, most))
            copies = calls_inside(ctx.init, [_copy(number, size, place) for place in range(count)])
            for length, (message,) in copies:
                ctx.add(SysvMessage(number, int.from_bytes(message[:8], "little"), message[8:8 + length]))

    @at(Phase.OBJECTS)
    def restore(self, ctx: Restore) -> None:
        for row in ctx.rows(SysvQueue):
            messages = [message for message in ctx.rows(SysvMessage) if message.queue == row.id]
            create = "msgget", (row.key, IPC_CREAT | IPC_EXCL | row.mode)
            create_inside(ctx.init, "msg", row.id, create, (row.uid, row.gid))
            try:
                _set_most(ctx, row.id, max(row.most, sum(len(message.data) for message in messages)))
                calls_inside(ctx.init, [_send(row.id, message) for message in messages])
                _set_most(ctx, row.id, row.most)
            except OSError as error:
                raise OtherMachine(image=ctx.image, cure="raise kernel.msgmax and kernel.msgmnb (sysctl)",
                                   what=f"System V message queue {row.id} can't be filled ({error.strerror})") from None


def _copy(queue: int, size: int, place: int) -> Call:
    return "msgrcv", (queue, Room(8 + size), size, place, _MSG_COPY | IPC_NOWAIT)


def _send(queue: int, message: SysvMessage) -> Call:
    content = message.type.to_bytes(8, "little") + message.data
    return "msgsnd", (queue, content, len(message.data), IPC_NOWAIT)


def _set_most(ctx: Restore, queue: int, most: int) -> None:
    change_inside(ctx.init, "msg", queue, {_MOST_BYTES: most}, 8)
