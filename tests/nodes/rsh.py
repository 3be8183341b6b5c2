"""The remote shell between the nodes of a test cluster: what ssh is to a real one. Standard library only.

``rsh.py [ssh's options] NODE COMMAND...`` joins the words and gives them to a shell on the node, in a fresh
environment. It relays the three streams and the exit status over one TCP connection, and so falls silent when the
network does; as ssh does with keepalives, it gives up after fifteen seconds (255). ``serve`` is the other side, run by
each node's first process. The command runs as the caller's user, on the caller's word: this is no place for secrets.
"""
from __future__ import annotations

import json
import os
import pwd
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from typing import IO, Any

PORT = 1022
FAILED = 255
_IN, _OUT, _ERR, _EXIT = range(4)
_HEAD = struct.Struct("!BI")
_WITH_VALUE = ("-o", "-p", "-l", "-i", "-F")
"""Options of ssh that take a word."""


def keep_alive(sock: socket.socket) -> None:
    """Notice a peer without power; otherwise wait for ever."""
    sock.settimeout(None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 2),
                        (socket.TCP_USER_TIMEOUT, 15000)):
        sock.setsockopt(socket.IPPROTO_TCP, name, value)


class Frames:
    """Pieces of streams on one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._stream: IO[bytes] = sock.makefile("rb")
        self._lock = threading.Lock()

    def send(self, kind: int, data: bytes = b"") -> None:
        with self._lock:
            self.sock.sendall(_HEAD.pack(kind, len(data)) + data)

    def receive(self) -> tuple[int, bytes] | None:
        """None when the other end is gone."""
        with suppress(OSError):
            head = self._stream.read(_HEAD.size)
            if len(head) == _HEAD.size:
                kind, size = _HEAD.unpack(head)
                return kind, self._stream.read(size)
        return None


# -- on the node ------------------------------------------------------------------------------------------
def serve(address: str, ready: threading.Event | None = None) -> None:
    """Run commands for whoever connects, each in a process of its own; reap everything."""
    server = socket.create_server((address, PORT), backlog=64)
    signal.signal(signal.SIGCHLD, lambda *_: None)   # wakes the select
    wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waker)
    if ready is not None:
        ready.set()
    while True:
        found, _, _ = select.select([server, wake], [], [])
        if wake in found:
            os.read(wake, 4096)
        _reap()
        if server in found:
            sock, _ = server.accept()
            if os.fork() == 0:
                server.close()
                _run_session(sock)
            sock.close()


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _run_session(sock: socket.socket) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        _session(Frames(sock))
    except OSError:   # the client went away
        pass
    finally:
        os._exit(0)


def _session(frames: Frames) -> None:
    keep_alive(frames.sock)
    first = frames.receive()
    if first is None:
        return
    asked: dict[str, Any] = json.loads(first[1])
    child = subprocess.Popen(["/bin/sh", "-c", asked["command"]], cwd="/", env=asked["environment"], bufsize=0,
                             user=asked["uid"], group=asked["gid"], extra_groups=asked["groups"],
                             start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)
    threading.Thread(target=_feed, args=(frames, child), daemon=True).start()
    pumps = [threading.Thread(target=_pump, args=(frames, kind, pipe))
             for kind, pipe in ((_OUT, child.stdout), (_ERR, child.stderr))]
    for pump in pumps:
        pump.start()
    for pump in pumps:
        pump.join()
    code = child.wait()
    frames.send(_EXIT, bytes([code if code >= 0 else 128 - code]))


def _feed(frames: Frames, child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    while (frame := frames.receive()) is not None:
        with suppress(OSError, ValueError):
            if frame[1]:
                child.stdin.write(frame[1])
            else:
                child.stdin.close()
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGHUP)   # as a terminal that is gone


def _pump(frames: Frames, kind: int, pipe: IO[bytes]) -> None:
    while data := pipe.read(65536):
        frames.send(kind, data)


# -- the client -------------------------------------------------------------------------------------------
def ask(node: str, command: str) -> int:
    """Run a command line on a node. Returns: its exit status, or 255."""
    try:
        sock = socket.create_connection((node, PORT), timeout=10)
    except OSError as error:
        print(f"rsh: no connection to {node}: {error}", file=sys.stderr)
        return FAILED
    keep_alive(sock)
    frames = Frames(sock)
    who = {"uid": os.geteuid(), "gid": os.getegid(), "groups": os.getgroups()}
    frames.send(_IN, json.dumps({"command": command, "environment": fresh(), **who}).encode())
    threading.Thread(target=_send_input, args=(frames,), daemon=True).start()
    while (frame := frames.receive()) is not None:
        kind, data = frame
        if kind == _EXIT:
            return data[0]
        while data:
            data = data[os.write(1 if kind == _OUT else 2, data):]
    print(f"rsh: the connection to {node} is lost", file=sys.stderr)
    return FAILED


def _send_input(frames: Frames) -> None:
    with suppress(OSError):
        while data := os.read(0, 65536):
            frames.send(_IN, data)
        frames.send(_IN)


def fresh() -> dict[str, str]:
    """The environment that ssh gives: nothing of the caller's."""
    try:
        name, home = pwd.getpwuid(os.getuid()).pw_name, pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:   # a user without an account
        name, home = str(os.getuid()), "/"
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "SHELL": "/bin/sh", "HOME": home,
            "USER": name, "LOGNAME": name, "LANG": "C.UTF-8"}


def main(words: list[str]) -> int:
    while words and words[0].startswith("-"):
        del words[:2 if words[0] in _WITH_VALUE else 1]
    if len(words) < 2:
        print("usage: rsh.py NODE COMMAND...", file=sys.stderr)
        return FAILED
    return ask(words[0].rpartition("@")[2], " ".join(words[1:]))


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)   # not held up by the thread that may still read
