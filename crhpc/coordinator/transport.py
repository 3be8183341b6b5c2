"""Messages between the agents over MPI; the only module that imports mpi4py.

JSON bytes, not pickles: what a peer sends is data, never code. MPI has no descriptor to sleep on, so
whoever waits for a message probes and sleeps in between; a message of an agent to itself is only looked
for after it was sent.
"""
from __future__ import annotations

import json
from typing import Any

from crhpc.coordinator.protocol import Message

_TAG = 1


class MpiTransport:
    """The world of the agents' own MPI job."""

    def __init__(self) -> None:
        """Start MPI.

        Raises:
            ImportError, RuntimeError: there is no MPI library that mpi4py can load.
        """
        import mpi4py

        mpi4py.rc.thread_level = "funneled"   # the compressing threads never call MPI
        from mpi4py import MPI

        self._mpi = MPI
        self._world = MPI.COMM_WORLD
        self.rank: int = self._world.Get_rank()
        self.size: int = self._world.Get_size()
        self.library: str = MPI.Get_library_version().split("\n")[0].rstrip("\0")
        self._sending: list[tuple[Any, bytes]] = []
        self._to_myself = 0

    def send(self, rank: int, message: Message) -> None:
        """Send without waiting; the bytes are kept until MPI has taken them."""
        raw = json.dumps(message).encode("ascii")
        self._sending = [(request, kept) for request, kept in self._sending if not request.Test()]
        self._sending.append((self._world.Isend([raw, self._mpi.BYTE], dest=rank, tag=_TAG), raw))
        self._to_myself += rank == self.rank

    def receive(self) -> tuple[int, Message] | None:
        """The next message and who sent it; None if there is none now."""
        status = self._mpi.Status()
        handle = self._world.Improbe(source=self._mpi.ANY_SOURCE, tag=_TAG, status=status)
        if handle is None:
            return None
        raw = bytearray(status.Get_count(self._mpi.BYTE))
        handle.Recv([raw, self._mpi.BYTE])
        source = int(status.Get_source())
        self._to_myself -= source == self.rank
        return source, json.loads(raw)

    @property
    def expecting(self) -> bool:
        """Whether probing makes sense now: others may send at any time, an agent alone only to itself."""
        return self.size > 1 or self._to_myself > 0
