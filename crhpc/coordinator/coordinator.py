"""Rank 0's extra role: it decides when checkpoints are taken, drives them phase by phase, and commits.

While shards are written the job runs and the loop goes on; everything else is short and done in one go.
"""
from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from crhpc.coordinator.endpoints import Connection, External, match
from crhpc.coordinator.placement import place
from crhpc.coordinator.protocol import Message, Op, Transport
from crhpc.errors import (
    ENDING,
    EXIT_INTERNAL,
    PASSING,
    CheckpointFailed,
    CrhpcError,
    OtherMachine,
    Reported,
    Unsupported,
    failed_checkpoint,
)
from crhpc.filepolicy import FilePolicy
from crhpc.log import logger

log = logger(__name__)

_PROBE_SECONDS = 0.0005
_SETTLE_SECONDS = 3.0
"""From the start of a job to when it is looked at for what could not be saved: MPI is up by then."""
_SOON = 2.0
_DRAIN_SECONDS = 30.0


class Store(Protocol):
    """Where images go; the image package behind a door, since the coordinator only decides."""

    def new(self, directory: str) -> tuple[int, Path]:
        """The next image's number and its temporary directory."""

    def commit(self, temporary: Path, number: int, job: dict[str, Any], shards: list[Any], stats: dict[str, Any],
               connections: list[Connection]) -> Path:
        """Make the image exist."""

    def discard(self, temporary: Path) -> None:
        """Remove what was not committed."""

    def job(self, image: str) -> dict[str, Any]:
        """What an image says of its job."""

    def connections(self, image: str) -> list[Connection]:
        """The connections within the job."""


@dataclass(slots=True)
class Checkpoint:
    """A checkpoint under way."""

    ids: list[int]
    """The requests that it answers."""
    stop: bool
    number: int
    temporary: Path
    started: float
    frozen: float = 0.0
    tasks: int = 0
    pods: dict[str, Any] = field(default_factory=dict)
    connections: list[Connection] = field(default_factory=list)
    sequence: int = 0
    summaries: dict[int, Message] = field(default_factory=dict)
    committing: Future[Path] | None = None


class Coordinator:
    """Drives the members of all ranks. Called by one thread."""

    def __init__(self, transport: Transport, store: Store, report: Callable[[Message], None],
                 turn: Callable[[], bool], wake: Callable[[], None]) -> None:
        """
        Args:
            report: sends a message to the supervisor.
            turn: serves one message of the transport if there is one; whether there was.
            wake: makes the agent's loop turn.
        """
        self.transport = transport
        self.store = store
        self.report = report
        self._turn = turn
        self._wake = wake
        self._sequence = 0
        self._replies: dict[int, dict[int, Message]] = {}
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="crhpc-commit")
        self.job: dict[str, Any] = {}
        self.nodes: dict[int, Message] = {}
        """What each said of itself when it joined."""
        self.machines: dict[int, int] | None = None
        """Several nodes of the job may be on one."""
        self.directory = ""
        self.every: float | None = None
        self.due: float | None = None
        self.survey_due: float | None = None
        self._failures = 0
        self.current: Checkpoint | None = None
        self.last: Message | None = None
        self._waiting: list[tuple[int, bool]] = []

    # -- orders -----------------------------------------------------------------------------------
    def order(self, op: Op, ranks: list[int] | None = None, **fields: Any) -> dict[int, Message]:
        """Give an order to all members (or some) and wait for all replies.

        Raises:
            Reported: a member's error, as it worded it.
        """
        ranks = list(range(self.transport.size)) if ranks is None else ranks
        sequence = self._send(op, ranks, fields)
        replies = self._replies[sequence]
        while len(replies) < len(ranks):
            if not self._turn():
                time.sleep(_PROBE_SECONDS)
        del self._replies[sequence]
        for reply in replies.values():
            if "error" in reply:
                raise Reported(reply["code"], reply["error"])
        return replies

    def _send(self, op: Op, ranks: list[int], fields: dict[str, Any]) -> int:
        self._sequence += 1
        self._replies[self._sequence] = {}
        for rank in ranks:
            self.transport.send(rank, {"op": str(op), "seq": self._sequence, **fields})
        return self._sequence

    def receive(self, source: int, reply: Message) -> None:
        """A member's reply has come."""
        if reply["re"] in self._replies:
            self._replies[reply["re"]][source] = reply

    # -- start and restart ------------------------------------------------------------------------
    def start(self, message: Message, temporary: str, files: dict[str, Any] | None = None) -> Message:
        """Start a new job on the first node.

        Args:
            files: for its directory for temporary files on every node.

        Raises:
            CrhpcError: it can't be started.
        """
        self._configure(message, message["job"])
        command = {name: message.get(name) for name in ("argv", "env", "cwd", "umask", "ignored", "cpus")}
        began = time.monotonic()
        if self.others:   # their pods are there when the command wants to start something in them
            self.order(Op.START, self.others, command=None, temporary=temporary, files=files or {})
        replies = self.order(Op.START, [0], command=command, temporary=temporary, files=files or {})
        return self._started(replies, began, None)

    @property
    def others(self) -> list[int]:
        """The ranks beside this one."""
        return list(range(1, self.transport.size))

    def join(self, hosts: list[str], **settings: Any) -> dict[int, Message]:
        """Have all ranks make their members; what they say of their nodes (cpus, addresses)."""
        self.machines = {rank: hosts.index(host) for rank, host in enumerate(hosts)}
        self.nodes = self.order(Op.JOIN, hosts=hosts, **settings)
        return self.nodes

    def addresses(self) -> list[str]:
        """By which the nodes reach each other, by rank; empty where a node has none that others know."""
        return [next(iter(self.nodes[rank]["addresses"]), "") for rank in range(self.transport.size)]

    def check(self, message: Message) -> Message:
        """Find out what a restart would do; nothing is made.

        Raises:
            CrhpcError: it can't be restarted here.
        """
        job = self._read_job(message["image"])
        replies = self.order(Op.CHECK, image=message["image"], pods=job.get("pods", {}),
                             policy=message.get("policy", {}))
        plans = [line for _, reply in sorted(replies.items()) for line in reply["plans"]]
        return {"op": "checked", "image": message["image"], "plans": list(dict.fromkeys(plans)),
                "tasks": job.get("tasks", 0)}

    def restart(self, message: Message) -> Message:
        """Rebuild an image and let it go; on failure nothing is left.

        Raises:
            CrhpcError: it can't be restarted here.
        """
        image = message["image"]
        job = self._read_job(image)
        if "cwd" in job:
            job = {**job, "cwd": FilePolicy.from_message(message.get("policy", {})).path(job["cwd"])}
        self._configure(message, {name: value for name, value in job.items() if name not in ("pods", "tasks")})
        began = time.monotonic()
        try:
            pods = job.get("pods", {})
            self._progress("build", 0, 0)
            if self.others:
                self._forget(image)
            self.order(Op.BUILD, image=image, pods=pods, policy=message.get("policy", {}), places=self._places(pods),
                       guests=[rank for rank, machine in (self.machines or {}).items() if rank != machine])
            self._connect(self.store.connections(image) if self.others else [])
            replies = self.order(Op.RELEASE, pods=pods)
        except CrhpcError:
            self.order(Op.END)
            raise
        return self._started(replies, began, image)

    def _forget(self, image: str) -> None:
        """Have ports free that connections between nodes keep, of the job's life until a moment ago."""
        left = [row for reply in self.order(Op.LEFT, image=image).values() for row in reply["rows"]]
        if left:
            self.order(Op.FORGET, rows=left)

    def _read_job(self, image: str) -> dict[str, Any]:
        """What an image says of its job.

        Raises:
            OtherMachine: it needs another number of hosts.
        """
        job = self.store.job(image)
        had = len(job.get("pods", {}))
        if had and (had > 1 or self.others) and had != self.transport.size:
            raise OtherMachine(image=image, what=f"the job ran on {had} host(s), this is {self.transport.size}",
                               cure=f"name {had} with --hosts" if had > 1 else "leave out --hosts")
        return job

    def _connect(self, connections: list[Connection]) -> None:
        """Where both ends are on different nodes one listens, then the other connects, then all is as on one node."""
        links: dict[str, list[dict[str, int]]] = {}
        for number, (near, far) in enumerate(((made.near_node, made.near_file), (made.far_node, made.far_file))
                                             for made in connections if made.far_file >= 0
                                             and made.near_node != made.far_node):
            for (node, file), (other, its), offers in ((near, far, 1), (far, near, 0)):
                links.setdefault(str(node), []).append(
                    {"number": number, "file": file, "node": other, "far": its, "offers": offers})
        names: dict[str, Any] = {}
        if links:
            offers_made = self._names(self.order(Op.OFFER, links=links))
            names = self._names(self.order(Op.REACH, links=links, offers=offers_made))
        moved = [port for reply in self.order(Op.CONNECT, links=links, names=names).values() for port in reply["ports"]]
        self.order(Op.FINISH, ports=moved)

    def _places(self, pods: dict[str, Any]) -> dict[str, Any]:
        """Where the pods are now; what makes no sense in an image is left to the nodes to refuse."""
        try:
            return place({pod: described["addresses"] for pod, described in pods.items()},
                         {str(rank): reply["addresses"] for rank, reply in self.nodes.items()})
        except (KeyError, TypeError, ValueError, AttributeError):
            return {}

    @staticmethod
    def _names(replies: dict[int, Message]) -> dict[str, Any]:
        return {number: name for reply in replies.values() for number, name in reply["names"].items()}

    def _configure(self, message: Message, job: dict[str, Any]) -> None:
        self.job = job
        self.directory = message["directory"]
        self.every = message["every"]

    def _started(self, replies: dict[int, Message], began: float, image: str | None) -> Message:
        self.due = time.monotonic() + self.every if self.every else None
        self.survey_due = time.monotonic() + _SETTLE_SECONDS if image is None else None
        first = replies[0]
        return {"op": "started", "pid": first["pid"], "host_pid": first["host_pid"], "image": image,
                "tasks": sum(reply["tasks"] for reply in replies.values()), "seconds": time.monotonic() - began}

    # -- checkpoint -------------------------------------------------------------------------------
    def request(self, number: int | None, *, stop: bool) -> None:
        """Ask for a checkpoint; one at a time, later requests wait for the next."""
        self._waiting.append((-1 if number is None else number, stop))

    def tick(self) -> None:
        """Begin what is due, go on with what is under way. Called whenever the loop turns."""
        if self.survey_due is not None and self.current is None and time.monotonic() >= self.survey_due:
            self.survey_due = None
            self._survey()
        if self.current is not None:
            self._go_on(self.current)
        if self.current is None and self._waiting:
            waiting, self._waiting = self._waiting, []
            self._begin([number for number, _ in waiting], stop=any(stop for _, stop in waiting))
        elif self.current is None and self.due is not None and time.monotonic() >= self.due:
            self._begin([], stop=False)

    def _survey(self) -> None:
        """Warn now, not at the first checkpoint hours later, of what could not be saved."""
        replies = self.order(Op.SURVEY)
        _, outside = match({rank: reply["ends"] for rank, reply in replies.items()},
                                                self.machines)
        refusals = [line for reply in replies.values() for line in reply["refusals"]]
        for line in [*refusals, *(str(_leaves_job(end)) for end in outside)]:
            self.report({"op": "warning", "text": f"checkpoints will fail: {line}"})

    def _begin(self, ids: list[int], *, stop: bool) -> None:
        if self.every:
            self.due = time.monotonic() + self.every
        try:
            number, temporary = self.store.new(self.directory)
        except OSError as error:
            self._failed(ids, failed_checkpoint(error, f"{self.directory}/"))
            return
        checkpoint = Checkpoint(ids, stop, number, temporary, time.monotonic())
        self.current = checkpoint
        try:
            self._freeze_and_cut(checkpoint)
        except CrhpcError as error:
            self._give_up(checkpoint, error)

    def _freeze_and_cut(self, checkpoint: Checkpoint) -> None:
        self._progress("freeze", 0, 0)
        self.order(Op.PRECOPY, directory=str(checkpoint.temporary))
        checkpoint.tasks = sum(reply["tasks"] for reply in self.order(Op.FREEZE).values())
        if self.others:
            self._settle()
        replies = self.order(Op.CUT)
        checkpoint.pods = {str(rank): reply["pod"] for rank, reply in replies.items()}
        checkpoint.connections, outside = match({rank: reply["ends"] for rank, reply in replies.items()},
                                                self.machines)
        if outside:
            raise _leaves_job(outside[0])
        if not checkpoint.stop:
            checkpoint.frozen = max(reply["frozen"] for reply in self.order(Op.THAW).values())
        checkpoint.sequence = self._send(Op.WRITE, list(range(self.transport.size)), {})

    def _settle(self) -> None:
        """Have what is under way between nodes arrive, also where windows are full."""
        owners = [[*names, rank] for rank, reply in self.order(Op.SETTLE).items() for names in reply["full"]]
        if not owners:
            return
        found = self.order(Op.EXPECT, senders=[names[:2] for names in owners])
        if sum(reply["found"] for reply in found.values()) < len(owners):
            raise CheckpointFailed(why="bytes are under way to somewhere outside the job", cure=PASSING)
        deadline = time.monotonic() + _DRAIN_SECONDS
        # From here on the job lacks bytes: whatever happens they are given back.
        while not (arrived := all(reply["empty"] for reply in self.order(Op.DRAIN).values())):
            if time.monotonic() > deadline:
                break
        counts: dict[str, int] = {}
        for *_, rank in owners:
            counts[str(rank)] = counts.get(str(rank), 0) + 1
        self.order(Op.RETURN, owners=owners)
        self.order(Op.REFILL, counts=counts)
        if not arrived:
            raise CheckpointFailed(why="bytes stay under way between nodes", cure=PASSING)

    def _go_on(self, checkpoint: Checkpoint) -> None:
        if checkpoint.committing is not None:
            if checkpoint.committing.done():
                self._committed(checkpoint, checkpoint.committing)
            return
        replies = self._replies[checkpoint.sequence]
        problem = next((reply for reply in replies.values() if "error" in reply), None)
        if problem is not None:
            self._give_up(checkpoint, Reported(problem["code"], problem["error"]))
        elif len(replies) == self.transport.size:
            checkpoint.summaries = self._replies.pop(checkpoint.sequence)
            self._commit(checkpoint)

    def _commit(self, checkpoint: Checkpoint) -> None:
        shards = [checkpoint.summaries[rank]["summary"] for rank in sorted(checkpoint.summaries)]
        job = {**self.job, "pods": checkpoint.pods, "tasks": checkpoint.tasks}
        stats = {"frozen": checkpoint.frozen, "seconds": time.monotonic() - checkpoint.started}
        checkpoint.committing = self._committer.submit(
            self.store.commit, checkpoint.temporary, checkpoint.number, job, shards, stats, checkpoint.connections)
        checkpoint.committing.add_done_callback(lambda _: self._wake())

    def _committed(self, checkpoint: Checkpoint, done: Future[Path]) -> None:
        try:
            image = done.result()
        except Exception as error:
            self._give_up(checkpoint, _not_committed(checkpoint.temporary, error))
            return
        self.current = None
        self._failures = 0
        if checkpoint.stop:
            self.order(Op.END)
        summaries = [reply["summary"] for reply in checkpoint.summaries.values()]
        message = {"op": "checkpointed", "image": str(image), "number": checkpoint.number, "frozen": checkpoint.frozen,
                   "seconds": time.monotonic() - checkpoint.started, "bytes": sum(s["put"] for s in summaries),
                   "stored": sum(s["size"] for s in summaries), "tasks": checkpoint.tasks,
                   "nodes": len(summaries), "stopped": checkpoint.stop}
        self.last = {**message, "time": time.time()}
        for number in checkpoint.ids or [-1]:
            self.report({**message, "id": None if number < 0 else number})

    def _give_up(self, checkpoint: Checkpoint, error: CrhpcError) -> None:
        """Nothing visible is left and the job goes on."""
        self.current = None
        self._replies.pop(checkpoint.sequence, None)
        self.order(Op.ABORT)
        self.store.discard(checkpoint.temporary)
        self._failures += 1
        if self.every and error.passing:
            self.due = time.monotonic() + min(self.every, _SOON * self._failures)
        if checkpoint.ids or ENDING not in str(error):
            self._failed(checkpoint.ids, error)

    def _failed(self, ids: list[int], error: CrhpcError) -> None:
        for number in ids or [-1]:
            self.report({"op": "checkpoint-failed", "id": None if number < 0 else number, "error": str(error),
                         "code": error.code or EXIT_INTERNAL})

    def _progress(self, phase: str, done: int, total: int) -> None:
        self.report({"op": "progress", "phase": phase, "done": done, "total": total})

    # -- at any time ------------------------------------------------------------------------------
    def wait(self) -> None:
        """Stay until no checkpoint is under way: its image is worth the time when a job has failed."""
        while self.current is not None:
            self._turn()
            self._go_on(self.current)
            time.sleep(_PROBE_SECONDS * 10)

    def signal(self, number: int, *, group: bool) -> None:
        """Pass a signal on to the job."""
        self.order(Op.SIGNAL, [0], signal=number, group=group)

    def status(self, hosts: list[str]) -> Message:
        """The running job, as `crhpc status` shows it."""
        replies = self.order(Op.TASKS)
        return {"op": "status", "last": self.last, "checkpointing": self.current is not None,
                "next": None if self.due is None else max(self.due - time.monotonic(), 0.0),
                "pods": [{"node": rank, "host": hosts[rank], "tasks": reply["tasks"]}
                         for rank, reply in replies.items()]}

    def end(self) -> None:
        """End every process of the job."""
        self.order(Op.END)
        checkpoint, self.current = self.current, None
        if checkpoint is not None and checkpoint.committing is None:
            self.store.discard(checkpoint.temporary)
        self._committer.shutdown(wait=True)


def _not_committed(temporary: Path, error: Exception) -> CrhpcError:
    """Why there is no image, in the user's words; whatever it was, the job goes on."""
    if isinstance(error, CrhpcError):
        return error
    if not isinstance(error, OSError):
        log.error("a commit failed", exc_info=error)
        return Reported(EXIT_INTERNAL, f"internal error: {error!r}")
    return failed_checkpoint(error, temporary)


def _leaves_job(end: External) -> Unsupported:
    what = f"a TCP connection from {_address(end.local)} to {_address(end.remote)} outside the job"
    return Unsupported(what=what, pid=end.pid, program=end.program,
                       cure="close it during the run, or keep both of its ends in the job")


def _address(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
