"""The job's remote shell, where ssh would be: ``rsh.py FILE [options] HOST COMMAND...``.

mpirun starts it on the node where it runs, once for each other node, and takes it for ssh. It asks the node's agent,
which has the command started in the pod of the other node, and gets three connections: to the command's standard
input and output, to its standard error, and one over which its exit status comes. These are ordinary connections
within the job, and this is an ordinary process of it: both are checkpointed and come back like everything else.

FILE, which only the job's user can read, tells where the agent listens and the job's secret. Standard library only, and
little of it: this process stays for as long as the job.
"""
from __future__ import annotations

import json
import os
import select
import socket
import struct
import sys
from contextlib import suppress

FAILED = 255
"""As ssh has it: the connection failed, not the command."""
_WITH_VALUE = ("-b", "-c", "-D", "-E", "-e", "-F", "-I", "-i", "-J", "-L", "-l", "-m", "-O", "-o", "-p", "-Q", "-R",
               "-S", "-W", "-w")
"""Options of ssh(1) that take a word; all of them are passed over."""
_LENGTH = struct.Struct("<I")
_PIECE = 1 << 16


def parse(words: list[str]) -> tuple[str, str]:
    """The host and the command line, which ssh makes of the words by putting spaces in between.

    Raises:
        ValueError: there is none.
    """
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] != "--":
        del rest[:2 if rest[0] in _WITH_VALUE else 1]
    if rest[:1] == ["--"]:
        del rest[0]
    if len(rest) < 2:
        raise ValueError("no host and no command")
    return rest[0].rpartition("@")[2], " ".join(rest[1:])


def ask(file: str, host: str, command: str) -> list[int]:
    """Have the command started; the three connections.

    Raises:
        OSError: the agent can't be reached, or can't start it: with its reason.
    """
    with open(file, encoding="ascii") as content:
        agent = json.load(content)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect("\0" + agent["socket"])
        body = json.dumps({"op": "spawn", "secret": agent["secret"], "host": host, "command": command,
                           "env": dict(os.environ)}).encode("ascii")
        sock.sendall(_LENGTH.pack(len(body)) + body)
        head, fds, _, _ = socket.recv_fds(sock, _LENGTH.size, 3)
        if len(head) < _LENGTH.size:
            raise ConnectionError(FAILED, "the agent did not answer")
        (length,) = _LENGTH.unpack(head)
        answer = b""
        while len(answer) < length and (data := sock.recv(length - len(answer))):
            answer += data
        reply = json.loads(answer)
    if "error" in reply:
        raise ConnectionError(FAILED, reply["error"])
    return list(fds)


class Stream:
    """One direction: what was read waits until it can be written, and no more is read meanwhile."""

    def __init__(self, source: int, target: int) -> None:
        self.source = source
        self.target = target
        self.waiting = b""
        self.ended = False

    @property
    def over(self) -> bool:
        return self.ended and not self.waiting

    def read(self) -> None:
        try:
            self.waiting = os.read(self.source, _PIECE)
        except OSError:
            self.waiting = b""
        self.ended = not self.waiting

    def write(self) -> None:
        """As much as surely does not block: poll(2) finds a pipe writable when so much fits."""
        try:
            self.waiting = self.waiting[os.write(self.target, self.waiting[:select.PIPE_BUF]):]
        except BlockingIOError:
            pass
        except OSError:   # nobody listens any more: the command will find out, or its status comes
            self.waiting = b""


class Relay:
    """Between this process's streams and the connections, until the command has ended and all of its output is out."""

    def __init__(self, both: int, errors: int, status: int) -> None:
        self.both = both
        self.status = status
        self.input = Stream(0, both)
        self.outputs = [Stream(both, 1), Stream(errors, 2)]
        self.code = b""

    def run(self) -> int:
        """Returns: the command's exit status, 255 where it was lost."""
        while not all(stream.over for stream in self.outputs):
            # A daemon that the command left may keep the streams: what is out after its end is all that one waits for.
            ended = self.code.endswith(b"\n")
            ready = dict(self._poll().poll(200 if ended else None))
            if not ready and ended and not any(stream.waiting for stream in self.outputs):
                break
            self._serve(ready)
        if not self.code.endswith(b"\n"):
            self._read_status()
        text = self.code.strip()
        return int(text) if text.isdigit() else FAILED

    def _poll(self) -> select.poll:
        wanted: dict[int, int] = {}
        for stream in (self.input, *self.outputs):
            if stream.waiting:
                wanted[stream.target] = wanted.get(stream.target, 0) | select.POLLOUT
            elif not stream.ended:
                wanted[stream.source] = wanted.get(stream.source, 0) | select.POLLIN
        if self.status >= 0:
            wanted[self.status] = select.POLLIN
        poll = select.poll()
        for fd, events in wanted.items():
            poll.register(fd, events)
        return poll

    def _serve(self, ready: dict[int, int]) -> None:
        gone = select.POLLHUP | select.POLLERR | select.POLLNVAL
        for stream in (self.input, *self.outputs):
            if stream.waiting and ready.get(stream.target, 0) & (select.POLLOUT | gone):
                stream.write()
            elif not stream.waiting and not stream.ended and ready.get(stream.source, 0) & (select.POLLIN | gone):
                stream.read()
                if stream is self.input and stream.ended:
                    self._end_input()
        if self.status in ready:
            self._read_status()

    def _read_status(self) -> None:
        data = b""
        if self.status >= 0:
            with suppress(OSError):
                data = os.read(self.status, _PIECE)
        self.code += data
        if not data:
            self.status = -1

    def _end_input(self) -> None:
        with suppress(OSError), socket.socket(fileno=os.dup(self.both)) as sock:   # it may be gone
            sock.shutdown(socket.SHUT_WR)


def main(words: list[str]) -> int:
    try:
        host, command = parse(words[1:])
        connections = ask(words[0], host, command)
    except (OSError, ValueError, LookupError) as error:
        text = error.args[1] if isinstance(error, ConnectionError) and len(error.args) > 1 else error
        os.write(2, f"crhpc: remote shell: {text}\n".encode("utf-8", "replace"))
        return FAILED
    return Relay(*connections).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
