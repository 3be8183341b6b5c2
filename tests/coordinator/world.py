"""A whole job without a process: ranks in one Python, nodes that only remember what they were told.

Messages travel as JSON, as they do over MPI. One ``turn`` serves one message of each rank; the coordinator's
own waiting turns the world, as the agent's loop does.
"""
from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crhpc.coordinator.coordinator import Coordinator
from crhpc.coordinator.endpoints import Connection
from crhpc.coordinator.member import Member
from crhpc.coordinator.protocol import Message

PATIENCE = 20.0


class Mailboxes:
    """What is on its way between the ranks."""

    def __init__(self, size: int) -> None:
        self.boxes: list[deque[tuple[int, str]]] = [deque() for _ in range(size)]
        self.sent: list[tuple[int, int, Message]] = []
        """(from, to, message), all that ever were."""


class InProcess:
    """One rank's transport (crhpc.coordinator.protocol.Transport)."""

    def __init__(self, mailboxes: Mailboxes, rank: int) -> None:
        self.rank = rank
        self.size = len(mailboxes.boxes)
        self._mailboxes = mailboxes

    def send(self, rank: int, message: Message) -> None:
        self._mailboxes.sent.append((self.rank, rank, message))
        self._mailboxes.boxes[rank].append((self.rank, json.dumps(message)))

    def receive(self) -> tuple[int, Message] | None:
        box = self._mailboxes.boxes[self.rank]
        if not box:
            return None
        source, text = box.popleft()
        return source, json.loads(text)

    @property
    def expecting(self) -> bool:
        return bool(self._mailboxes.boxes[self.rank])


class FakeNode:
    """A node (crhpc.coordinator.protocol.NodeDoor) that notes each call in a log that all share.

    It says at once when it is used in an order that a real one could not stand.
    """

    def __init__(self, rank: int, log: list[tuple[int, str]]) -> None:
        self.rank = rank
        self.log = log
        self.state = "empty"
        """empty, running, frozen, built, connected, finished or ended"""
        self.shard = ""
        """Where a shard is open; empty where none is."""
        self.fails: dict[str, Exception] = {}
        """What the next call of a method raises."""
        self.ends: list[dict[str, Any]] = []
        self.full: list[Any] = []
        """Senders whose window is full, and after how many rounds they have nothing left."""
        self.rounds = 1
        self.receives: list[Any] = []
        """Of which this node has the receivers."""
        self.behind: list[Any] = []
        """What closed connections keep."""
        self.ports: list[Any] = []
        """Which had to move."""
        self.refusals: list[str] = []
        self.writes = threading.Event()
        """Writing waits for this."""
        self.writes.set()
        self.arguments: dict[str, Any] = {}
        """Of the last call of each method."""

    def _enter(self, method: str, *states: str, **arguments: Any) -> None:
        self.log.append((self.rank, method))
        self.arguments[method] = arguments
        assert not states or self.state in states, f"{method} of a node that is {self.state}"
        if method in self.fails:
            raise self.fails.pop(method)

    def addresses(self, name: str) -> list[str]:
        self._enter("addresses", name=name)
        return [f"10.0.0.{self.rank + 1}"]

    def start(self, command: dict[str, Any] | None, stdio: tuple[int, int, int], temporary: str,
              files: dict[str, dict[str, Any]] | None = None) -> dict[str, int]:
        self._enter("start", "empty", command=command, stdio=stdio, temporary=temporary, files=files)
        self.state = "running"
        return {"pid": 2, "host_pid": 1000 + self.rank, "tasks": int(command is not None)}

    def listen(self, address: str) -> int:
        self._enter("listen", "running", address=address)
        return 4000 + self.rank

    def spawn(self, command: str, environment: dict[str, str], peers: list[tuple[str, int]]) -> int:
        self._enter("spawn", "running", command=command, environment=environment, peers=peers)
        return 7

    def precopy(self, directory: str) -> None:
        self._enter("precopy", "running", directory=directory)
        assert not self.shard, "the last shard is still open"
        self.shard = directory

    def freeze(self) -> int:
        self._enter("freeze", "running")
        assert self.shard
        self.state = "frozen"
        return 10 + self.rank

    def settle(self) -> list[Any]:
        self._enter("settle", "frozen")
        return self.full

    def expect(self, senders: list[Any]) -> int:
        self._enter("expect", "frozen", senders=senders)
        return len(self.receives)

    def drain(self) -> bool:
        self._enter("drain", "frozen")
        self.rounds -= 1
        return self.rounds <= 0

    def taken(self) -> list[Any]:
        self._enter("taken", "frozen")
        return [[*names, "bytes"] for names in self.receives]

    def refill(self, returned: list[Any]) -> None:
        self._enter("refill", "frozen", returned=returned)

    def cut(self) -> list[dict[str, Any]]:
        self._enter("cut", "frozen")
        return self.ends

    def describe(self) -> dict[str, Any]:
        self._enter("describe", "frozen")
        address = f"10.0.0.{self.rank + 1}"
        return {"of": self.rank, "last_pid": 100 + self.rank, "addresses": [[address, address]]}

    def thaw(self) -> float:
        self._enter("thaw", "frozen")
        self.state = "running"
        return 0.25 + self.rank

    def write(self) -> dict[str, Any]:
        self._enter("write", "running", "frozen")
        assert self.writes.wait(PATIENCE)
        assert self.shard
        self.shard = ""
        return {"node": self.rank, "put": 1000 * (self.rank + 1), "size": 10 * (self.rank + 1)}

    def progress(self) -> tuple[int, int]:
        return 0, 0

    def abort(self) -> None:
        self._enter("abort")
        self.shard = ""
        if self.state == "frozen":
            self.state = "running"

    def check(self, image: str, described: dict[str, Any], policy: dict[str, Any]) -> list[str]:
        self._enter("check", "empty", image=image, described=described, policy=policy)
        return ["the same everywhere", f"of rank {self.rank}"]

    def left(self, image: str) -> list[Any]:
        self._enter("left", "empty", image=image)
        return self.behind

    def forget(self, rows: Sequence[Any]) -> None:
        self._enter("forget", "empty", rows=rows)

    def build(self, image: str, described: dict[str, Any], stdio: tuple[int, int, int],
              policy: dict[str, Any] | None = None, places: dict[str, Any] | None = None, *,
              guest: bool = False) -> int:
        self._enter("build", "empty", image=image, described=described, stdio=stdio, policy=policy, places=places,
                    guest=guest)
        self.state = "built"
        return 10 + self.rank

    def offer(self, links: Sequence[dict[str, int]]) -> dict[str, tuple[str, int]]:
        self._enter("offer", "built", links=links)
        return {str(link["number"]): ("offered", self.rank) for link in links if link["offers"]}

    def reach(self, links: Sequence[dict[str, int]], offers: dict[str, Any]) -> dict[str, tuple[str, int]]:
        self._enter("reach", "built", links=links, offers=offers)
        return {str(link["number"]): ("reached", self.rank) for link in links if not link["offers"]}

    def connect(self, links: Sequence[dict[str, int]] = (), names: dict[str, Any] | None = None) -> list[Any]:
        self._enter("connect", "built", links=links, names=names)
        self.state = "connected"
        return self.ports

    def finish(self, ports: Sequence[Any] = ()) -> None:
        self._enter("finish", "connected", ports=ports)
        self.state = "finished"

    def release(self, last_pid: int) -> dict[str, int]:
        self._enter("release", "finished", last_pid=last_pid)
        self.state = "running"
        return {"pid": 2, "host_pid": 2000 + self.rank, "tasks": 10 + self.rank}

    def signal(self, number: int, *, group: bool) -> None:
        self._enter("signal", number=number, group=group)

    def tasks(self) -> list[dict[str, Any]]:
        self._enter("tasks")
        return [{"pid": 2, "host_pid": 1000 + self.rank, "program": "app", "threads": 1}]

    def survey(self) -> tuple[list[str], list[dict[str, Any]]]:
        self._enter("survey", "running")
        return self.refusals, self.ends

    def end(self) -> None:
        self._enter("end")
        self.state = "ended"
        self.shard = ""


class FakeStore:
    """Images in memory (crhpc.coordinator.coordinator.Store)."""

    def __init__(self) -> None:
        self.open: list[Path] = []
        self.images: dict[str, dict[str, Any]] = {}
        self.fails: dict[str, Exception] = {}
        self.commits = threading.Event()
        """Committing waits for this."""
        self.commits.set()

    def _enter(self, method: str) -> None:
        if method in self.fails:
            raise self.fails.pop(method)

    def new(self, directory: str) -> tuple[int, Path]:
        self._enter("new")
        number = len(self.images) + 1
        self.open.append(Path(directory) / f".tmp-{number}")
        return number, self.open[-1]

    def commit(self, temporary: Path, number: int, job: dict[str, Any], shards: list[Any], stats: dict[str, Any],
               connections: list[Connection]) -> Path:
        assert self.commits.wait(PATIENCE)
        self._enter("commit")
        self.open.remove(temporary)
        path = temporary.parent / f"image-{number}"
        self.images[str(path)] = {"job": job, "shards": shards, "stats": stats, "connections": connections}
        return path

    def discard(self, temporary: Path) -> None:
        self._enter("discard")
        self.open.remove(temporary)

    def job(self, image: str) -> dict[str, Any]:
        return self.images[image]["job"]

    def connections(self, image: str) -> list[Connection]:
        return list(self.images[image].get("connections", []))


JOB = {"id": "abc", "argv": ["app"], "cwd": "/here", "directory": "/images", "started": 1.5}


class World:
    """A job of some ranks, and what the supervisor would hear of it."""

    def __init__(self, size: int = 1) -> None:
        self.mailboxes = Mailboxes(size)
        self.log: list[tuple[int, str]] = []
        self.heard: list[Message] = []
        self.nodes = [FakeNode(rank, self.log) for rank in range(size)]
        self.transports = [InProcess(self.mailboxes, rank) for rank in range(size)]
        self.members = [Member(node, transport, lambda: None)
                        for node, transport in zip(self.nodes, self.transports, strict=True)]
        self.store = FakeStore()
        self.coordinator = Coordinator(self.transports[0], self.store, self._hear, self.turn, lambda: None)

    def _hear(self, message: Message) -> None:
        self.heard.append(json.loads(json.dumps(message)))

    def turn(self) -> bool:
        """Serve one message of each rank; whether there was any."""
        busy = False
        for member, transport in zip(self.members, self.transports, strict=True):
            member.poll()
            received = transport.receive()
            if received is not None:
                busy = True
                source, message = received
                if message.get("op") == "returned":
                    member.returned(message)
                elif "re" in message:
                    assert transport.rank == 0
                    self.coordinator.receive(source, message)
                else:
                    member.serve(source, message)
        return busy

    def until(self, condition: Any, what: str = "it does not happen") -> None:
        """Turn the loop until something holds."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, what
            self.turn()
            self.coordinator.tick()
            time.sleep(0.0002)

    # -- what a supervisor says ---------------------------------------------------------------------
    def start(self, every: float | None = None) -> Message:
        """A new job, with a pod on every node."""
        found = self.coordinator.start({"job": JOB, "argv": ["app"], "env": {}, "cwd": "/here", "umask": 0o22,
                                        "ignored": [1], "cpus": [0], "directory": "/images",
                                        "every": every}, "/tmp/crhpc-abc")
        self.coordinator.survey_due = None
        return found

    def restart(self, image: str) -> Message:
        self.coordinator.join([f"node{rank}" for rank in range(len(self.nodes))])
        self.log.clear()
        return self.coordinator.restart({"image": image, "directory": "/images", "every": None})

    def checkpoint(self, number: int | None = 1, *, stop: bool = False) -> Message:
        """Ask for a checkpoint and wait for what becomes of it."""
        before = len(self.heard)
        self.coordinator.request(number, stop=stop)
        self.until(lambda: self.answers(before), "no answer")
        (answer,) = self.answers(before)
        return answer

    def answers(self, since: int = 0) -> list[Message]:
        """How checkpoints have ended."""
        return [message for message in self.heard[since:] if message["op"].startswith("checkpoint")]

    def close(self) -> None:
        for node in self.nodes:
            node.writes.set()
        self.store.commits.set()
        self.coordinator.end()
        for member in self.members:
            member.close()

    # -- what the nodes were told -------------------------------------------------------------------
    def calls(self, rank: int | None = None) -> list[str]:
        """The methods that were called, of one rank or of all."""
        return [method for node, method in self.log if rank is None or node == rank]

    def phases(self) -> list[str]:
        """The methods in their order, each once for all ranks; fails where a phase began before the last was over."""
        found: list[str] = []
        count: dict[str, int] = {}
        for _, method in self.log:
            count[method] = count.get(method, 0) + 1
            if method not in found[-2:]:
                found.append(method)
        assert set(count.values()) == {len(self.nodes)}, count
        return found
