"""A pod from the agent's side: making it, and asking its first process for things."""
from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat as modes
import subprocess
import sys
import time
from collections import deque
from typing import Any

from crhpc.channel import Channel, ChannelClosed, Message
from crhpc.errors import CommandNotFound, NotAllowed
from crhpc.kernel import directories, pidfd, proc, ptys
from crhpc.kernel.libc import prctl
from crhpc.kernel.namespaces import PR_SET_CHILD_SUBREAPER, clock_offsets
from crhpc.resources.context import Pod

_WALL = 0x40000000
_CURES = {
    "unshare": "ask the administrator to allow user namespaces (sysctl user.max_user_namespaces, "
               "kernel.unprivileged_userns_clone=1)",
    "mount of proc": "run outside containers that mask parts of /proc, or ask for an unmasked one",
}


class PodProcess:
    """The first process of a pod and the channel to it."""

    def __init__(self, temporary: str, guest: int | None = None, *, hostname: str,
                 clocks: dict[str, float] | None = None, boot_id: str = "") -> None:
        """Make the namespaces and the first process.

        Args:
            temporary: the pod's directory for temporary files; made, and removed by ``end``.
            guest: where another pod of the job has that on this machine: a number that this one's has behind its name,
                while the pod sees it where it always was.
            boot_id: what /proc/sys/kernel/random/boot_id shall read; empty for the node's own.
            clocks: what CLOCK_MONOTONIC and CLOCK_BOOTTIME shall read, in seconds; None for the node's own.

        Raises:
            NotAllowed: the system refuses a namespace or a mount.
        """
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        self.events: deque[Message] = deque()
        self.temporary = temporary
        self.place = temporary if guest is None else f"{temporary}.{guest}"
        """That directory, as this machine sees it."""
        self.pid = 0
        for path in dict.fromkeys((temporary, self.place)):
            _make_private(path)
        self.channel, theirs = Channel.pair()
        fd = theirs.fileno()
        process = subprocess.Popen([sys.executable, "-P", "-m", "crhpc.engine.init", str(fd)], stdin=subprocess.DEVNULL,
                                   pass_fds=[fd], start_new_session=True)
        theirs.close()
        try:
            self.channel.send({"clocks": clocks, "hostname": hostname, "boot_id": boot_id, "temporary": temporary,
                               "place": self.place})
            self.pid = self._expect("init")["pid"]
            process.wait()
            self.channel.send({"op": "go"})
            self._expect("ready")
        except BaseException as error:
            self.end()
            process.wait()   # without its channel it ends
            if isinstance(error, ChannelClosed):
                raise NotAllowed(what="a pod", why="its first process ended at once",
                                 cure="see `crhpc doctor`") from None
            raise

    def _expect(self, op: str) -> Message:
        message, _ = self.channel.receive()
        if message["op"] == "failed":
            what = message["what"]
            cure = next((cure for start, cure in _CURES.items() if what.startswith(start)), "see `crhpc doctor`")
            raise NotAllowed(what="namespaces of the job's own", why=f"{what}: {os.strerror(message['errno'])}",
                             cure=cure)
        assert message["op"] == op, message
        return message

    def context(self, stdio: tuple[int, int, int]) -> Pod:
        """What kinds need to know of the pod."""
        found = tuple(ptys.settings_if_any(fd) for fd in stdio)
        return Pod(self.pid, self.temporary, stdio=stdio, terminals=found)

    # -- requests ---------------------------------------------------------------------------------
    def request(self, message: Message, fds: tuple[int, ...] = ()) -> dict[str, Any]:
        """Ask the first process for something and wait; descriptors in the answer are its ``fds``.

        Raises:
            OSError: what failed there.
            ChannelClosed: the pod is gone.
        """
        self.channel.send(message, fds)
        while True:
            reply, received = self.channel.receive()
            if reply["op"] == "reply":
                break
            self.events.append(reply)
        if "errno" in reply:
            raise OSError(reply["errno"], os.strerror(reply["errno"]), reply["what"])
        return {**reply, "fds": received}

    def start(self, message: Message, fds: tuple[int, ...]) -> tuple[int, int]:
        """Start a command; its ids in the pod and on this node (0 where it has ended already).

        Args:
            message: argv, env, cwd, umask, and others that Init knows; ``root`` false where it is not the job's own.
            fds: its 0, 1, 2 and so on.

        Raises:
            CommandNotFound: it can't be run.
        """
        try:
            reply = self.request({**message, "op": "start"}, fds)
        except OSError as error:
            raise CommandNotFound(command=message["argv"][0], why=f"{error.filename}: {error.strerror}") from None
        try:
            return self._with_host_pid(reply)
        except ProcessLookupError:
            return reply["pid"], 0

    def fork_as(self, pid: int) -> int:
        """An empty task with a chosen id; its id on this node."""
        return self._with_host_pid(self.request({"op": "fork", "pid": pid}))[1]

    def _with_host_pid(self, reply: dict[str, Any]) -> tuple[int, int]:
        (handle,) = reply["fds"]
        try:
            return reply["pid"], pidfd.pid_of(handle)
        finally:
            os.close(handle)

    def control(self, number: int) -> socket.socket:
        """A socket whose other end all stubs will have as ``number``; the agent's end."""
        ours, theirs = socket.socketpair()
        self.request({"op": "control", "number": number}, (theirs.fileno(),))
        theirs.close()
        return ours

    # -- what lives in it -------------------------------------------------------------------------
    def tasks(self) -> list[dict[str, Any]]:
        """Its processes: pid, host_pid, program, threads."""
        found = []
        for host in proc.descendants(self.pid):
            with contextlib.suppress(OSError):
                status = proc.status(host)
                found.append({"pid": status.inner("NSpid"), "host_pid": host, "program": proc.program(host),
                              "threads": status.number("Threads")})
        return found

    def group(self, leader: int) -> int:
        """The number here of the process group that one of its processes led, if any of it is left; else 0."""
        for host in proc.descendants(self.pid):
            with contextlib.suppress(OSError):
                if proc.status(host).inner("NSpgid") == leader:
                    return os.getpgid(host)
        return 0

    def clock_offset(self, name: str) -> float:
        """Seconds that a clock of the pod ("monotonic", "boottime") is ahead of this process's own."""
        inside = clock_offsets(self.pid)[name]
        return (inside - clock_offsets(os.getpid())[name]) / 1e9

    # -- events -----------------------------------------------------------------------------------
    def fileno(self) -> int:
        """Readable when an event waits, or the pod is gone."""
        return self.channel.fileno()

    def read_event(self) -> Message | None:
        """What happened in the pod; None when it is gone. Blocks until something has."""
        if self.events:
            return self.events.popleft()
        try:
            return self.channel.receive()[0]
        except ChannelClosed:
            return None

    def end(self) -> None:
        """End every process of the pod and remove what it had on this node's disk."""
        self.channel.close()
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            _reap(self.pid)
            self.pid = 0
        directories.remove(self.place)


def _make_private(path: str) -> None:
    """The directory for temporary files; one that is there must be the user's own, of the job's earlier life.

    Raises:
        NotAllowed: it is not, or can't be made.
    """
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        stat = os.lstat(path)
        if not modes.S_ISDIR(stat.st_mode) or stat.st_uid != os.getuid():
            raise PermissionError(1, "it is not a directory of yours")
    except OSError as error:
        raise NotAllowed(what=f"the directory {path} for temporary files", why=error.strerror,
                         cure="set TMPDIR to a directory that you may write to") from None


def _reap(init: int) -> None:
    """Wait for the end of a pod: its first process ends last, when we have reaped what we trace in it."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(init, os.WNOHANG)[0] == 0:
            for pid in proc.descendants(init):
                for tid in [*(tid for tid in proc.threads(pid) if tid != pid), pid]:
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(tid, _WALL | os.WNOHANG)
            time.sleep(0.0005)
