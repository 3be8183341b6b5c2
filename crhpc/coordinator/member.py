"""A member: carries the coordinator's orders to its node and its answers back."""
from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from crhpc.coordinator.protocol import Message, NodeDoor, Op, Transport
from crhpc.errors import EXIT_INTERNAL, CrhpcError
from crhpc.log import logger

log = logger(__name__)


class Member:
    """One rank's side of the protocol. Called by one thread; only WRITE runs in another."""

    def __init__(self, node: NodeDoor, transport: Transport, wake: Callable[[], None]) -> None:
        """
        Args:
            wake: makes the agent's loop turn; called from the writing thread.
        """
        self.node = node
        self.stdio = (0, 1, 2)
        """What the job's standard streams are here: the user's on the supervisor's node."""
        self._transport = transport
        self._wake = wake
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="crhpc-shard")
        self._writing: tuple[int, int, Future[dict[str, Any]]] | None = None
        self._returned: list[Any] = []
        self._awaited: tuple[int, int, int] | None = None
        """The order to refill: from whom, its number, and how many parts are to come."""

    def serve(self, source: int, order: Message) -> None:
        """Carry out one order and answer it."""
        if order["op"] == Op.REFILL:   # when all is here, which comes from several
            self._awaited = source, order["seq"], order["counts"].get(str(self._transport.rank), 0)
            self._refill()
            return
        if order["op"] == Op.WRITE:
            future = self._writer.submit(self.node.write)
            self._writing = (source, order["seq"], future)
            future.add_done_callback(lambda _: self._wake())
            return
        self._answer(source, order["seq"], lambda: self._carry_out(Op(order["op"]), order))

    def returned(self, message: Message) -> None:
        """Another node has read what this one had sent."""
        self._returned.append(message["taken"])
        self._refill()

    def _return(self, owners: list[Any]) -> None:
        """Give what was read to those who sent it; the bytes don't go through the coordinator."""
        whose = {(tuple(one), tuple(other)): rank for one, other, rank in owners}
        for taken in self.node.taken():
            rank = whose[tuple(taken[0]), tuple(taken[1])]
            self._transport.send(rank, {"op": "returned", "taken": taken})

    def _refill(self) -> None:
        if self._awaited is None or len(self._returned) < self._awaited[2]:
            return
        source, sequence, _ = self._awaited
        returned, self._returned, self._awaited = self._returned, [], None

        def refill() -> Message:
            self.node.refill(returned)
            return {}
        self._answer(source, sequence, refill)

    def poll(self) -> None:
        """Answer a WRITE that is done."""
        if self._writing is not None and self._writing[2].done():
            source, sequence, future = self._writing
            self._writing = None
            self._answer(source, sequence, lambda: {"summary": future.result()})

    @property
    def writing(self) -> bool:
        """Whether a shard is being written."""
        return self._writing is not None

    def close(self) -> None:
        """Wait for the writing thread."""
        self._writer.shutdown(wait=True)

    def _answer(self, rank: int, sequence: int, action: Callable[[], Message]) -> None:
        try:
            reply = action()
        except CrhpcError as error:
            reply = {"error": str(error), "code": error.code}
        except Exception as error:
            log.exception("an order failed")
            reply = {"error": f"internal error: {error!r}", "code": EXIT_INTERNAL}
        self._transport.send(rank, {"re": sequence, **reply})

    def _carry_out(self, op: Op, order: Message) -> Message:
        if op in (Op.ABORT, Op.END):
            self._await_writer()
        node = self.node
        pod = order.get("pods", {}).get(str(self._transport.rank), {})
        links = order.get("links", {}).get(str(self._transport.rank), [])
        actions: dict[Op, Callable[[], Message | None]] = {
            Op.JOIN: lambda: {"cpus": len(os.sched_getaffinity(0)),
                              "addresses": node.addresses(order["hosts"][self._transport.rank])},
            Op.START: lambda: {**node.start(order["command"], self.stdio, order["temporary"],
                                            order.get("files", {}))},
            Op.LISTEN: lambda: {"port": node.listen(order["address"])},
            Op.SPAWN: lambda: {"pid": node.spawn(order["command"], order["env"],
                                                 [(host, port) for host, port in order["peers"]])},
            Op.PRECOPY: lambda: node.precopy(order["directory"]),
            Op.FREEZE: lambda: {"tasks": node.freeze()},
            Op.SETTLE: lambda: {"full": node.settle()},
            Op.EXPECT: lambda: {"found": node.expect(order["senders"])},
            Op.DRAIN: lambda: {"empty": node.drain()},
            Op.RETURN: lambda: self._return(order["owners"]),
            Op.CUT: lambda: {"ends": node.cut(), "pod": node.describe()},
            Op.THAW: lambda: {"frozen": node.thaw()},
            Op.ABORT: node.abort,
            Op.CHECK: lambda: {"plans": node.check(order["image"], pod, order["policy"])},
            Op.LEFT: lambda: {"rows": node.left(order["image"])},
            Op.FORGET: lambda: node.forget(order["rows"]),
            Op.BUILD: lambda: {"tasks": node.build(order["image"], pod, self.stdio, order["policy"],
                                                    order["places"].get(str(self._transport.rank)),
                                                    guest=self._transport.rank in order["guests"])},
            Op.OFFER: lambda: {"names": node.offer(links)},
            Op.REACH: lambda: {"names": node.reach(links, order["offers"])},
            Op.CONNECT: lambda: {"ports": node.connect(links, order.get("names", {}))},
            Op.FINISH: lambda: node.finish(order["ports"]),
            Op.RELEASE: lambda: {**node.release(pod["last_pid"])},
            Op.SIGNAL: lambda: node.signal(order["signal"], group=order["group"]),
            Op.TASKS: lambda: {"tasks": node.tasks()},
            Op.SURVEY: lambda: dict(zip(("refusals", "ends"), node.survey(), strict=True)),
            Op.END: node.end,
        }
        return actions[op]() or {}

    def _await_writer(self) -> None:
        """A shard that is being written is finished first; its answer is dropped."""
        if self._writing is not None:
            self._writing[2].exception()
            self._writing = None
