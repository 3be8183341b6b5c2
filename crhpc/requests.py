"""Requests of the other commands and of signals to a running supervisor, and who waits for what answer.

The agents answer by the number of a request; several commands may wait at once. A request that comes
before the job has started waits until it has. A status is answered without the agents when they are busy
for too long: what the supervisor knows is better than silence.
"""
from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from crhpc import errors
from crhpc.channel import Channel, ChannelClosed, Message
from crhpc.progress import Report

STATUS_SECONDS = 5.0
"""For the agents to answer a status."""


class Requests:
    """What is asked and not yet answered."""

    def __init__(self, own_status: Callable[[], Message], report: Report) -> None:
        self._own_status = own_status
        self._report = report
        self._send: Callable[[Message], None] | None = None
        self._early: list[Message] = []
        self._number = 0
        self._checkpoints: dict[int, Channel | None] = {}
        self._statuses: dict[int, tuple[Channel, float]] = {}

    def connect(self, send: Callable[[Message], None]) -> None:
        """The job runs: hand over what has waited for it, and from now on everything."""
        self._send = send
        early, self._early = self._early, []
        for message in early:
            send(message)

    def checkpoint(self, channel: Channel | None, *, stop: bool) -> None:
        """Ask the agents for a checkpoint; the answer goes to ``channel`` (None: asked by a signal)."""
        self._number += 1
        self._checkpoints[self._number] = channel
        message: Message = {"op": "checkpoint", "id": self._number, "stop": stop}
        if self._send is None:
            self._early.append(message)
        else:
            self._send(message)

    def status(self, channel: Channel) -> None:
        """Ask the agents for the state of the job."""
        self._number += 1
        if self._send is None:
            self._reply(channel, {"op": "status", **self._own_status(), "agents": None})
            return
        self._statuses[self._number] = (channel, time.monotonic() + STATUS_SECONDS)
        self._send({"op": "status", "id": self._number})

    def progress(self, message: Message) -> None:
        """Pass on how far a checkpoint is."""
        for channel in set(self._checkpoints.values()):
            if channel is not None:
                self._reply(channel, message)

    def answer(self, message: Message) -> None:
        """Pass on how a checkpoint ended, to the one who asked for it; to all who wait if it was the last."""
        ids = list(self._checkpoints) if message.get("stopped") else [message.get("id")]
        for channel in [self._checkpoints.pop(number, None) for number in ids if number is not None]:
            if channel is not None:
                self._reply(channel, message)

    def answer_status(self, message: Message) -> None:
        """Pass on what the agents know."""
        waiting = self._statuses.pop(message["id"], None)
        if waiting is not None:
            agents = {name: value for name, value in message.items() if name not in ("op", "id")}
            self._reply(waiting[0], {"op": "status", **self._own_status(), "agents": agents})

    def next_expiry(self) -> float | None:
        """When `expire` has something to do (time.monotonic)."""
        return min((until for _, until in self._statuses.values()), default=None)

    def expire(self) -> None:
        """Answer the statuses that have waited too long, without the agents."""
        now = time.monotonic()
        for number, (channel, until) in list(self._statuses.items()):
            if now >= until:
                del self._statuses[number]
                self._reply(channel, {"op": "status", **self._own_status(), "agents": None})

    def forget(self, channel: Channel) -> None:
        """The one who asked is gone; what was asked is done all the same."""
        self._checkpoints = {number: None if asker is channel else asker
                             for number, asker in self._checkpoints.items()}
        self._statuses = {number: waiting for number, waiting in self._statuses.items()
                          if waiting[0] is not channel}

    def close(self, directory: str) -> None:
        """The job is over: nobody waits for nothing."""
        error = errors.JobEnded(directory=directory)
        answer = {"op": "checkpoint-failed", "id": None, "error": str(error), "code": error.code}
        for channel in self._checkpoints.values():
            if channel is not None:
                self._reply(channel, answer)
        self._checkpoints.clear()

    def _reply(self, channel: Channel, message: Message) -> None:
        with suppress(ChannelClosed, TimeoutError, OSError):   # it went away; its end of file follows
            channel.send(message)
