"""What the job's remote shell (crhpc.rsh) asks for: served by the agent on the first node.

mpirun starts its daemons on other nodes by a remote shell; in a job that is ours that is crhpc.rsh, through the
variables that each MPI knows for it. The command is started in the other node's pod by the agent there, and its streams
are connections between the two nodes, of the job's own.
"""
from __future__ import annotations

import contextlib
import hmac
import json
import os
import re
import secrets
import shlex
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from crhpc.channel import Channel, ChannelClosed, Message
from crhpc.coordinator.protocol import Op
from crhpc.errors import CrhpcError
from crhpc.log import logger

log = logger(__name__)

FILE = "remote-shell.json"
"""In the job's directory for temporary files."""
_SCRIPT, _HOSTS, _HYDRA_HOSTS = "remote-shell", "hosts", "hosts.hydra"
_SOCKET = re.compile(r"crhpc-[0-9a-f]{32}")
_PATIENCE = 10.0
_OF_THE_MPI = ("PMI", "OMPI_", "PRTE_", "HYDRA_", "HYDI_", "MPI_LOCAL")
"""What an mpirun tells its own processes is not for the daemons of another node."""

Order = Callable[..., dict[int, Message]]


def prepare(temporary: str, hosts: Sequence[str], slots: Sequence[int]) -> tuple[dict[str, Any], dict[str, str]]:
    """What the job needs: files for its directory on every node, and the variables that lead the MPIs to them.

    A tree of daemons that start each other would ask other nodes' agents, so the first node starts all; their daemons
    look for the remote shell all the same.
    """
    agent = {"socket": f"crhpc-{secrets.token_hex(16)}", "secret": secrets.token_hex(32), "hosts": list(hosts)}
    script, names = f"{temporary}/{_SCRIPT}", f"{temporary}/{_HOSTS}"
    words = [sys.executable, "-S", "-E", "-P", str(Path(__file__).with_name("rsh.py")), f"{temporary}/{FILE}"]
    pairs = list(zip(hosts, slots, strict=True))
    files = {
        FILE: {"mode": 0o600, "text": json.dumps(agent)},
        _SCRIPT: {"mode": 0o700, "text": f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n'},
        _HOSTS: {"mode": 0o600, "text": "".join(f"{host} slots={count}\n" for host, count in pairs)},
        _HYDRA_HOSTS: {"mode": 0o600, "text": "".join(f"{host}:{count}\n" for host, count in pairs)}}
    return files, {
        "OMPI_MCA_plm": "rsh", "OMPI_MCA_plm_rsh_agent": script, "OMPI_MCA_plm_rsh_no_tree_spawn": "1",
        "OMPI_MCA_orte_default_hostfile": names,
        "PRTE_MCA_plm": "ssh", "PRTE_MCA_plm_ssh_agent": script, "PRTE_MCA_plm_ssh_no_tree_spawn": "1",
        "PRTE_MCA_prte_default_hostfile": names,
        "HYDRA_LAUNCHER": "ssh", "HYDRA_LAUNCHER_EXEC": script, "HYDRA_HOST_FILE": f"{temporary}/{_HYDRA_HOSTS}"}


class RemoteShell:
    """The socket that crhpc.rsh comes to."""

    def __init__(self, content: str, hosts: Sequence[str], addresses: Sequence[str], order: Order) -> None:
        """Listen as the file in the job's directory says, which comes back with an image.

        Args:
            content: of that file.
            hosts: the names of the nodes, by rank; the job goes on calling them as it did at its start.
            addresses: by which the nodes reach each other, by rank.
            order: gives orders to members, as the coordinator does.

        Raises:
            ValueError: it is none of ours.
            OSError: the socket is taken.
        """
        self.hosts = list(hosts)
        self._addresses = [address or _address(host) for host, address in zip(hosts, addresses, strict=True)]
        self._order = order
        try:
            agent = json.loads(content)
            name, self._secret = str(agent["socket"]), str(agent["secret"])
            self._names = [str(host) for host in agent["hosts"]]
        except (ValueError, TypeError, KeyError):
            raise ValueError("it does not tell where the remote shell's agent listens") from None
        if not _SOCKET.fullmatch(name):
            raise ValueError("the name of the remote shell's socket is none of ours")
        if len(self._names) != len(self.hosts):
            raise ValueError(f"it is of a job on {len(self._names)} hosts, not on {len(self.hosts)}")
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(f"\0{name}")
        self._server.listen()

    def fileno(self) -> int:
        return self._server.fileno()

    def close(self) -> None:
        self._server.close()

    def serve(self) -> None:
        """Answer one client."""
        sock, _ = self._server.accept()
        with sock, contextlib.suppress(ChannelClosed, TimeoutError):
            channel = Channel(sock)
            if channel.peer_uid() != os.getuid():
                return
            sock.settimeout(_PATIENCE)
            message, fds = channel.receive()
            for fd in fds:
                os.close(fd)
            if not hmac.compare_digest(str(message.get("secret")).encode("utf-8", "replace"), self._secret.encode()):
                return
            with contextlib.ExitStack() as stack:
                try:
                    streams = self._spawn(message, stack)
                except (CrhpcError, OSError, KeyError, TypeError) as error:
                    log.debug("remote shell", exc_info=True)
                    channel.send({"error": str(error)})
                else:
                    channel.send({}, [stream.fileno() for stream in streams])

    def _spawn(self, message: Message, stack: contextlib.ExitStack) -> list[socket.socket]:
        rank, address = self._find(str(message["host"]))
        environment = {str(name): str(value) for name, value in message["env"].items()
                       if not str(name).startswith(_OF_THE_MPI)}
        port = self._order(Op.LISTEN, [rank], address=address)[rank]["port"]
        streams = [stack.enter_context(socket.create_connection((address, port), timeout=_PATIENCE)) for _ in range(3)]
        for stream in streams:
            stream.settimeout(None)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._order(Op.SPAWN, [rank], command=str(message["command"]), env=environment,
                    peers=[stream.getsockname()[:2] for stream in streams])
        return streams

    def _find(self, host: str) -> tuple[int, str]:
        """A host's rank and address.

        Raises:
            OSError: the job has no such host.
        """
        for same in (lambda ours: ours == host, lambda ours: ours.partition(".")[0] == host.partition(".")[0],
                     lambda ours: _same_address(ours, host)):
            for rank, ours in enumerate(self._names):
                if same(ours):
                    return rank, self._addresses[rank]
        raise OSError(2, f"{host} is none of the job's hosts ({', '.join(self._names)})")


def _same_address(one: str, other: str) -> bool:
    with contextlib.suppress(OSError):   # one of them is known no more
        return _address(one) == _address(other)
    return False


def _address(host: str) -> str:
    return str(socket.getaddrinfo(host, 9, type=socket.SOCK_STREAM)[0][4][0])
