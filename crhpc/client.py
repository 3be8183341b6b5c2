"""The other side of a supervisor's socket: how ``checkpoint`` and ``status`` reach a running job."""
from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from crhpc import errors
from crhpc.channel import Channel, ChannelClosed, Message
from crhpc.jobdir import is_locked, read_running


def connect(directory: Path) -> Channel:
    """A connection to the supervisor that works in ``directory``.

    Raises:
        errors.NoJob: there is none.
        errors.Unreachable: there is one, on another host or of another user.
    """
    running = read_running(directory)
    if running is None:
        raise errors.NoJob(directory=directory)
    why = "it is another machine"
    if running.host == socket.gethostname():
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(f"\0{running.socket}")
        except OSError as error:
            sock.close()
            why = error.strerror or str(error)
        else:
            channel = Channel(sock)
            if channel.peer_uid() in (os.getuid(), directory.stat().st_uid, 0):
                return channel
            channel.close()
            why = "another user's process has taken its place"
    if not is_locked(directory):   # it was killed, and had no time to take run.json away
        raise errors.NoJob(directory=directory)
    raise errors.Unreachable(directory=directory, pid=running.pid, host=running.host, why=why)


def ask_checkpoint(directory: Path, *, stop: bool, progress: Callable[[Message], None]) -> Message:
    """Have a checkpoint taken and wait for its end.

    Returns: the agent's ``checkpointed`` or ``checkpoint-failed`` message.

    Raises:
        errors.NoJob, errors.Unreachable: as for `connect`.
        errors.JobEnded: the job ended before.
    """
    channel = connect(directory)
    try:
        channel.send({"op": "checkpoint", "stop": stop})
        while True:
            message = _receive(channel)
            if message["op"] == "progress":
                progress(message)
            elif message["op"] in ("checkpointed", "checkpoint-failed"):
                return message
    except ChannelClosed:
        raise errors.JobEnded(directory=directory) from None
    finally:
        channel.close()


def ask_status(directory: Path) -> Message:
    """What supervisor and agents know of the running job; ``agents`` is None if they were too busy.

    Raises:
        errors.NoJob, errors.Unreachable: as for `connect`.
    """
    channel = connect(directory)
    try:
        channel.send({"op": "status"})
        return _receive(channel)
    except ChannelClosed:
        raise errors.NoJob(directory=directory) from None
    finally:
        channel.close()


def _receive(channel: Channel) -> Message:
    message, fds = channel.receive()
    for fd in fds:
        os.close(fd)
    return message
