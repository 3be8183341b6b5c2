"""A member: carries the coordinator's orders to its node and its answers back."""
from __future__ import annotations

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

    def serve(self, source: int, order: Message) -> None:
        """Carry out one order and answer it."""
        if order["op"] == Op.WRITE:
            future = self._writer.submit(self.node.write)
            self._writing = (source, order["seq"], future)
            future.add_done_callback(lambda _: self._wake())
            return
        self._answer(source, order["seq"], lambda: self._carry_out(Op(order["op"]), order))

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
        node = self.node
        match op:
            case Op.START:
                return {**node.start(order["command"], self.stdio, order["temporary"])}
            case Op.PRECOPY:
                node.precopy(order["directory"])
            case Op.FREEZE:
                return {"tasks": node.freeze()}
            case Op.CUT:
                return {"ends": node.cut(), "pod": node.describe()}
            case Op.THAW:
                return {"frozen": node.thaw()}
            case Op.ABORT:
                self._await_writer()
                node.abort()
            case Op.BUILD:
                return {"tasks": node.build(order["image"], order["pods"][str(self._transport.rank)], self.stdio)}
            case Op.CONNECT:
                node.connect()
            case Op.RELEASE:
                return {**node.release(order["pods"][str(self._transport.rank)]["last_pid"])}
            case Op.SIGNAL:
                node.signal(order["signal"], group=order["group"])
            case Op.TASKS:
                return {"tasks": node.tasks()}
            case Op.END:
                self._await_writer()
                node.end()
            case Op.WRITE:
                raise AssertionError("served apart")
        return {}

    def _await_writer(self) -> None:
        """A shard that is being written is finished first; its answer is dropped."""
        if self._writing is not None:
            self._writing[2].exception()
            self._writing = None
