"""What the coordinator and the members say to each other.

Rank 0 is the coordinator and a member too; every rank has one member, which has one node. All messages are
JSON objects over MPI. The coordinator sends an order to all members and waits for all replies: each arrow
below is a barrier.

::

    before all      JOIN ───▶ who carries orders out, everywhere; the nodes' addresses come back
    a new job       START ──▶ a pod on every node, the command in the first one
    remote shell    LISTEN ──▶ the node that a command shall run on expects connections
                    SPAWN ───▶ the command runs there, its streams are the connections
    a checkpoint    PRECOPY ─▶ shards opened                                        job runs
                    FREEZE ──▶ every thread of every pod stands still             ┐
                    SETTLE ──▶ what is under way between nodes has arrived (where there are several)
                    EXPECT ──▶ where a window between nodes is full: the receivers are found,
                    DRAIN ───▶ read empty, until no sender has anything left,
                    RETURN ──▶ what was read goes back to the sender's node,
                    REFILL ──▶ which sends it once more
                    CUT ─────▶ dumped to memory and page log; the ends of          │ job stands still
                               connections come back and are matched              │
                    THAW ────▶ (not when the job is to end) the job goes on        ┘
                    WRITE ───▶ shards finished and fsynced; summaries come back     job runs
                    commit     by the coordinator alone: master, manifest, rename
    a failure       ABORT ───▶ every pod is thawed, every shard goes, the job goes on
    a dry run       CHECK ───▶ what a restart would do to files, or why it can't be
    a restart       LEFT ────▶ what closed connections between nodes still keep (where there are several)
                    FORGET ──▶ ended by the nodes of their other ends
                    BUILD ───▶ pods, tasks, memory, files; all stopped
                    OFFER ───▶ listening for connections of other nodes (where there are several)
                    REACH ───▶ connected to what was offered
                    CONNECT ─▶ sockets; ports that had to move come back
                    FINISH ──▶ they are told everywhere, and the rest of every task is made
                    RELEASE ─▶ the job goes on
    at any time     SIGNAL, TASKS, SURVEY (what could not be saved, looked at while the job runs)
    the end         END ─────▶ every process of every pod ends

An order is {"op", "seq", ...}; its reply {"re": seq, ...} or {"re": seq, "error": one line, "code": exit code}.
WRITE is answered when it is done; other orders are served meanwhile.
"""
from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, Protocol

Message = dict[str, Any]


class Op(enum.StrEnum):
    """The orders, in the sequence in which they come."""

    JOIN = "join"
    START = "start"
    LISTEN = "listen"
    SPAWN = "spawn"
    PRECOPY = "precopy"
    FREEZE = "freeze"
    SETTLE = "settle"
    EXPECT = "expect"
    DRAIN = "drain"
    RETURN = "return"
    REFILL = "refill"
    CUT = "cut"
    THAW = "thaw"
    WRITE = "write"
    ABORT = "abort"
    CHECK = "check"
    LEFT = "left"
    FORGET = "forget"
    BUILD = "build"
    OFFER = "offer"
    REACH = "reach"
    CONNECT = "connect"
    FINISH = "finish"
    RELEASE = "release"
    SIGNAL = "signal"
    TASKS = "tasks"
    SURVEY = "survey"
    END = "end"


class NodeDoor(Protocol):
    """A node's share of the job, as the engine offers it; see crhpc/engine/node.py."""

    def addresses(self, name: str) -> list[str]: ...
    def start(self, command: dict[str, Any] | None, stdio: tuple[int, int, int], temporary: str,
              files: dict[str, dict[str, Any]] | None = None) -> dict[str, int]: ...
    def listen(self, address: str) -> int: ...
    def spawn(self, command: str, environment: dict[str, str], peers: list[tuple[str, int]]) -> int: ...
    def precopy(self, directory: str) -> None: ...
    def freeze(self) -> int: ...
    def settle(self) -> list[Any]: ...
    def expect(self, senders: list[Any]) -> int: ...
    def drain(self) -> bool: ...
    def taken(self) -> list[Any]: ...
    def refill(self, returned: list[Any]) -> None: ...
    def cut(self) -> list[dict[str, Any]]: ...
    def describe(self) -> dict[str, Any]: ...
    def thaw(self) -> float: ...
    def write(self) -> dict[str, Any]: ...
    def progress(self) -> tuple[int, int]: ...
    def abort(self) -> None: ...
    def check(self, image: str, described: dict[str, Any], policy: dict[str, Any]) -> list[str]: ...
    def left(self, image: str) -> list[Any]: ...
    def forget(self, rows: Sequence[Any]) -> None: ...
    def build(self, image: str, described: dict[str, Any], stdio: tuple[int, int, int],
              policy: dict[str, Any] | None = None, places: dict[str, Any] | None = None, *,
              guest: bool = False) -> int: ...
    def offer(self, links: Sequence[dict[str, int]]) -> dict[str, tuple[str, int]]: ...
    def reach(self, links: Sequence[dict[str, int]], offers: dict[str, Any]) -> dict[str, tuple[str, int]]: ...
    def connect(self, links: Sequence[dict[str, int]] = (), names: dict[str, Any] | None = None) -> list[Any]: ...
    def finish(self, ports: Sequence[Any] = ()) -> None: ...
    def release(self, last_pid: int) -> dict[str, int]: ...
    def signal(self, number: int, *, group: bool) -> None: ...
    def tasks(self) -> list[dict[str, Any]]: ...
    def survey(self) -> tuple[list[str], list[dict[str, Any]]]: ...
    def end(self) -> None: ...


class Transport(Protocol):
    """Messages between ranks. Nothing blocks."""

    rank: int
    size: int

    def send(self, rank: int, message: Message) -> None: ...
    def receive(self) -> tuple[int, Message] | None: ...

    @property
    def expecting(self) -> bool:
        """Whether a message is on its way that nothing but ``receive`` will show."""
