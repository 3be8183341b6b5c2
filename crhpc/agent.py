"""An agent: one MPI rank, the parent and tracer of its node's pod. Joins coordinator, engine and image.

``python -m crhpc.agent``, started by the supervisor's launcher. Rank 0 has the connection to the supervisor and
the coordinator. The loop sleeps on descriptors; MPI is only probed while a message is expected. When the
connection to the supervisor closes the pod ends, and when the agent dies its pod dies with it.
"""
from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crhpc import log, remoteshell
from crhpc.channel import Channel, ChannelClosed, Message
from crhpc.coordinator.coordinator import Coordinator
from crhpc.coordinator.endpoints import Connection
from crhpc.coordinator.member import Member
from crhpc.coordinator.protocol import Transport
from crhpc.coordinator.transport import MpiTransport
from crhpc.engine.node import Node
from crhpc.errors import EXIT_INTERNAL, EXIT_LOST, CrhpcError, ImageDamaged
from crhpc.heartbeat import Pulse
from crhpc.image.commit import commit
from crhpc.image.format import (
    ShardSummary,
    discard_temporary,
    image_name,
    image_numbers,
    new_temporary,
    read_manifest,
)
from crhpc.image.reader import Image
from crhpc.remoteshell import RemoteShell

_log = log.logger(__name__)

_PROBE_IDLE, _PROBE_BUSY = 0.05, 0.001
_PROGRESS_SECONDS = 0.25
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
            signal.SIGTSTP, signal.SIGPIPE, signal.SIGALRM)


class ImageStore:
    """The checkpoint directory, for the coordinator."""

    def new(self, directory: str) -> tuple[int, Path]:
        number = max(image_numbers(directory), default=0) + 1
        return number, new_temporary(directory, number)

    def commit(self, temporary: Path, number: int, job: dict[str, Any], shards: list[Any], stats: dict[str, Any],
               connections: list[Connection]) -> Path:
        return commit(temporary, temporary.parent / image_name(number), number=number, job=job,
                      shards=[ShardSummary.from_json(shard) for shard in shards], stats=stats, connections=connections)

    def discard(self, temporary: Path) -> None:
        try:
            discard_temporary(temporary)
        except OSError:   # the disk is gone, or somebody has tidied up
            _log.debug("%s stays", temporary, exc_info=True)

    def job(self, image: str) -> dict[str, Any]:
        return read_manifest(image).job

    def connections(self, image: str) -> list[Connection]:
        with Image(image) as opened:
            return opened.connections(Connection)


class Agent:
    """One rank's loop."""

    def __init__(self, transport: Transport, supervisor: Channel | None) -> None:
        self.transport = transport
        self.supervisor = supervisor
        self.node: Node | None = None
        self.member: Member | None = None
        self.coordinator: Coordinator | None = None
        self.shell: RemoteShell | None = None
        self.hosts: list[str] = []
        """Of all ranks, by the names that the user gave."""
        self.wait_all = False
        self.over = False
        self._woken, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._progress_at = 0.0

    # -- the loop ---------------------------------------------------------------------------------
    def run(self) -> None:
        """Serve until the job is over or the supervisor is gone."""
        if threading.current_thread() is not threading.main_thread():
            self._serve()
            return
        # A signal may be taken by another thread; this one has to know of it, too (crhpc/engine/watch.py).
        before = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        try:
            self._serve()
        finally:
            signal.set_wakeup_fd(before)

    def _serve(self) -> None:
        while not self.over:
            sources: dict[int, Callable[[], None]] = {self._woken: self._drain_wake}
            if self.supervisor is not None:
                sources[self.supervisor.fileno()] = self._from_supervisor
            if self.node is not None and self.node.pod is not None:
                sources[self.node.pod.fileno()] = self._from_pod
            if self.shell is not None:
                sources[self.shell.fileno()] = self.shell.serve
            ready, _, _ = select.select(list(sources), [], [], self._timeout())
            for fd in ready:
                if not self.over and fd in sources:
                    sources[fd]()
            self._after()

    def _timeout(self) -> float | None:
        times = []
        if self.node is not None and self.node.due is not None:
            times.append(max(self.node.due - time.monotonic(), 0.0))
        if self.node is not None and self.node.pod is not None and self.node.pod.events:
            return 0.0
        if self.transport.expecting:
            times.append(_PROBE_BUSY if self.transport.size == 1 else _PROBE_IDLE)
        if self.coordinator is not None:
            if self.coordinator.current is None:
                moments = (self.coordinator.due, self.coordinator.survey_due)
                times += [max(moment - time.monotonic(), 0.0) for moment in moments if moment is not None]
            if self.coordinator.current is not None:
                times.append(_PROGRESS_SECONDS)
        return min(times, default=None)

    def _after(self) -> None:
        """What may have become due, whatever woke the loop."""
        if self.over:
            return
        if self.node is not None:
            self.node.tend()
        if self.member is not None:
            self.member.poll()
        while self._turn():
            pass
        if self.node is not None and self.node.pod is not None and self.node.pod.events:
            self._from_pod()
        if self.coordinator is not None and not self.over:
            self.coordinator.tick()
            self._show_progress()

    def _turn(self) -> bool:
        """Serve one message of the other ranks, or of this one to itself."""
        if self.member is not None:
            self.member.poll()
        received = self.transport.receive()
        if received is None:
            return False
        source, message = received
        if message.get("op") == "leave":
            self.over = True
        elif message.get("op") == "returned":
            assert self.member is not None
            self.member.returned(message)
        elif "event" in message:
            self._on_event(source, message)
        elif "re" in message:
            assert self.coordinator is not None
            self.coordinator.receive(source, message)
        else:
            member = self.member or self._join(message)
            member.serve(source, message)
        return True

    def _join(self, message: Message) -> Member:
        """Make what carries out orders; on the first node by the supervisor's, elsewhere by the coordinator's."""
        self.node = Node(self.transport.rank, memory=message["memory"], level=message["level"],
                         warn=lambda text: self._tell({"event": "warning", "text": text}))
        self.member = Member(self.node, self.transport, self._wake)
        return self.member

    def _tell(self, event: Message) -> None:
        """Say something to the supervisor, if need be through the first rank."""
        if self.transport.rank:
            self.transport.send(0, event)
        else:
            self._on_event(0, event)

    def _on_event(self, source: int, event: Message) -> None:
        if event["event"] == "warning":
            self._report({"op": "warning", "text": event["text"]})
        else:
            where = f" on {self.hosts[source]}" if source else ""
            self._report({"op": "failed", "error": event["error"] + where, "code": EXIT_INTERNAL})
            self._end()

    def _drain_wake(self) -> None:
        os.read(self._woken, 4096)

    def _wake(self) -> None:
        os.write(self._waker, b"x")

    def _show_progress(self) -> None:
        coordinator, node = self.coordinator, self.node
        if coordinator is None or coordinator.current is None or node is None or time.monotonic() < self._progress_at:
            return
        self._progress_at = time.monotonic() + _PROGRESS_SECONDS
        taken, stored = node.progress()
        self._report({"op": "progress", "phase": "write", "done": stored, "total": taken})

    # -- the supervisor ---------------------------------------------------------------------------
    def _report(self, message: Message) -> None:
        if self.supervisor is None:
            return
        try:
            self.supervisor.send(message)
        except ChannelClosed:
            self._end()

    def _from_supervisor(self) -> None:
        assert self.supervisor is not None
        try:
            message, fds = self.supervisor.receive()
        except ChannelClosed:
            self._end()
            return
        match message["op"]:
            case "start" | "restart":
                self._begin(message, fds)
            case "checkpoint" if self.coordinator is not None:
                self.coordinator.request(message["id"], stop=message["stop"])
            case "signal" if self.coordinator is not None:
                self.coordinator.signal(message["signal"], group=message["group"])
            case "status" if self.coordinator is not None:
                self._report({**self.coordinator.status(self.hosts), "id": message["id"]})
            case "kill":
                self._end()

    def _begin(self, message: Message, fds: list[int]) -> None:
        """Start or restart the job; where that fails, say so and end."""
        self.wait_all = message["wait_all"]
        self._join(message).stdio = (fds[0], fds[1], fds[2])
        self.coordinator = Coordinator(self.transport, ImageStore(), self._report, self._turn, self._wake)
        self.hosts = message.get("hosts") or [socket.gethostname()]
        try:
            joined = self.coordinator.join(self.hosts, memory=message["memory"], level=message["level"])
            if message["op"] == "start":
                started = self._start(message, joined)
            elif message.get("dry_run"):
                self._report(self.coordinator.check(message))
                self._end()
                return
            else:
                started = self.coordinator.restart(message)
                self._reopen_shell(message["image"])
        except CrhpcError as error:
            self._report({"op": "failed", "error": str(error), "code": error.code})
            self._end()
            return
        self._report(started)

    def _start(self, message: Message, joined: dict[int, Message]) -> Message:
        assert self.coordinator is not None
        temporary = temporary_directory(message)
        if len(joined) < 2:
            return self.coordinator.start(message, temporary)
        slots = [len(message["cpus"]), *(joined[rank]["cpus"] for rank in self.coordinator.others)]
        files, variables = remoteshell.prepare(temporary, self.hosts, slots)
        self.shell = RemoteShell(files[remoteshell.FILE]["text"], self.hosts, self.coordinator.addresses(),
                                 self.coordinator.order)
        return self.coordinator.start({**message, "env": {**message["env"], **variables}}, temporary, files)

    def _reopen_shell(self, image: str) -> None:
        """Where the job's remote shell comes to, as before."""
        if len(self.hosts) < 2 or self.node is None or self.node.pod is None or self.coordinator is None:
            return
        path = Path(self.node.pod.place, remoteshell.FILE)
        try:
            self.shell = RemoteShell(path.read_text(encoding="ascii"), self.hosts, self.coordinator.addresses(),
                                     self.coordinator.order)
        except (OSError, ValueError) as error:
            raise ImageDamaged(image=image, what=f"{path}: {error}") from None

    # -- the pod ----------------------------------------------------------------------------------
    def _from_pod(self) -> None:
        assert self.node is not None and self.node.pod is not None
        event = self.node.pod.read_event()
        if event is None:
            self.node.end()
            self._tell({"event": "failed", "error": "the pod's first process ended unexpectedly"})
        elif self.transport.rank:   # the job is over when its command is, which is on the first node
            return
        elif event["op"] == "exited" and event["pid"] == self.node.root:
            self.node.root_status = event["status"]
            if not self.wait_all:
                self._job_over()
        elif event["op"] == "empty" and self.node.root_status is not None:
            self._job_over()

    def _job_over(self) -> None:
        """The command has ended. A failed job's image that is being written is the newest it will have."""
        assert self.node is not None
        status = self.node.root_status
        if status and self.coordinator is not None:
            self.coordinator.wait()
        self._finish()
        self._report({"op": "exited", "status": status})
        self.over = True

    def _end(self) -> None:
        """End the job and the loop."""
        if not self.over:
            self.over = True
            self._finish()

    def _finish(self) -> None:
        if self.coordinator is not None:
            self.coordinator.end()
            for rank in self.coordinator.others:
                self.transport.send(rank, {"op": "leave"})
        if self.shell is not None:
            self.shell.close()
        if self.member is not None:
            self.member.close()


def temporary_directory(message: Message) -> str:
    """Where a new job's temporary files go: a directory of its own in the user's, or in /tmp."""
    base = message["env"].get("TMPDIR", "")
    if not (os.path.isabs(base) and os.path.isdir(base) and os.access(base, os.W_OK)):
        base = "/tmp"
    return os.path.join(os.path.realpath(base), f"crhpc-{message['job']['id'][:12]}")


def connect_to_supervisor(rank: int, size: int) -> Channel:
    """Say hello to who started the agents.

    Raises:
        OSError: nobody listens.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect("\0" + os.environ["CRHPC_SUPERVISOR"])
    channel = Channel(sock)
    channel.send({"op": "hello", "rank": rank, "size": size, "pid": os.getpid(), "host": socket.gethostname(),
                  "secret": os.environ["CRHPC_SECRET"]})
    return channel


def main() -> int:
    """Run one agent."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    log.configure()
    transport = MpiTransport()
    pulse = None
    if monitor := os.environ.get("CRHPC_MONITOR"):
        # With this process its pod ends, whatever it is about to do.
        pulse = Pulse(monitor, transport.rank, os.environ["CRHPC_SECRET"], float(os.environ["CRHPC_PATIENCE"]),
                      lambda: os._exit(EXIT_LOST))
    supervisor = connect_to_supervisor(transport.rank, transport.size) if transport.rank == 0 else None
    Agent(transport, supervisor).run()
    if pulse is not None:
        pulse.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
