"""The first process of a pod: makes its namespaces, starts the job or its empty stubs, reaps orphans.

Runs as a fresh process (``python -P -m crhpc.engine.init FD``), since namespaces can only be made by a process
with one thread. It is driven over a channel by the agent and ends the pod when the channel closes or the
agent dies. It is never part of an image. While idle it sleeps in poll(2).
"""
from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import select
import signal
import socket
import sys
from typing import Any

from crhpc.channel import Channel, ChannelClosed, Message
from crhpc.kernel import clone, libc, namespaces
from crhpc.kernel.namespaces import (
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_REC,
    MS_SLAVE,
    mount,
    write_file,
)

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def enter_namespaces(spec: Message) -> None:
    """Leave the node's namespaces for the pod's; those of pids and clocks hold for children only.

    Raises:
        OSError: naming what the system refused.
    """
    uid, gid = os.getuid(), os.getgid()
    flags = clone.CLONE_NEWPID | clone.CLONE_NEWNS | clone.CLONE_NEWIPC | clone.CLONE_NEWUTS
    if uid != 0:
        flags |= clone.CLONE_NEWUSER
    if spec.get("clocks"):
        flags |= clone.CLONE_NEWTIME
    clone.unshare(flags)
    if uid != 0:
        namespaces.map_own_ids(uid, gid)
    if spec.get("clocks"):
        namespaces.set_clock_offsets(**spec["clocks"])


def mount_own(spec: Message) -> None:
    """The pod's own /proc, /dev/shm, message queues and terminals. Other mounts of the node stay and follow it."""
    mount("", "/", flags=MS_REC | MS_SLAVE)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    if os.path.isdir("/dev/shm"):
        mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    if os.path.isdir("/dev/mqueue"):
        mount("mqueue", "/dev/mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    if os.path.isdir("/dev/pts"):
        mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620")
        mount("/dev/pts/ptmx", "/dev/ptmx", flags=MS_BIND)
    if spec.get("place") and spec["place"] != spec["temporary"]:
        mount(spec["place"], spec["temporary"], flags=MS_BIND)
    if spec.get("hostname"):
        namespaces.set_hostname(spec["hostname"])
    if spec.get("boot_id"):
        _set_boot_id(spec["boot_id"], spec["temporary"])


def _set_boot_id(value: str, place: str) -> None:
    """MPIs tell machines apart by it, so it goes with the pod to another machine."""
    with open(_BOOT_ID, encoding="ascii") as file:
        if file.read().strip() == value:
            return
    path = os.path.join(place, ".boot_id")
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444), "w", encoding="ascii") as file:
        file.write(f"{value}\n")
    mount(path, _BOOT_ID, flags=MS_BIND)
    os.unlink(path)


class Init:
    """The loop of the pod's first process."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.kept: dict[str, int] = {}
        self.root = 0
        """The job's first process. Of the others' ends nobody is told: they may be many, and the agent be busy."""

    def run(self) -> None:
        """Serve the agent until the channel closes."""
        wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self.channel.fileno(), select.POLLIN)
        poll.register(wake, select.POLLIN)
        try:
            while True:
                ready = [fd for fd, _ in poll.poll()]
                if wake in ready:
                    os.read(wake, 4096)
                    self._reap()
                if self.channel.fileno() in ready:
                    self._serve(*self.channel.receive())
        except ChannelClosed:
            return

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self.channel.send({"op": "empty"})
                return
            if pid == 0:
                return
            if pid == self.root:
                self.root = 0
                self.channel.send({"op": "exited", "pid": pid, "status": status})

    def _serve(self, message: Message, fds: list[int]) -> None:
        try:
            reply, out = getattr(self, "_" + message["op"])(message, fds)
        except OSError as error:
            reply, out = {"errno": error.errno or 5, "what": str(error.filename or message["op"])}, []
        self.channel.send({"op": "reply", **reply}, out)
        for fd in [*fds, *out]:
            if fd not in self.kept.values():
                os.close(fd)

    def _start(self, message: Message, fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        """Start a command with the descriptors that came along as its 0, 1, 2...: the job's own, or beside it."""
        reader, low = os.pipe2(os.O_CLOEXEC)
        writer = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, len(fds))   # out of their way
        os.close(low)
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            _exec(message, fds, writer)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            problem = pipe.read()
        if problem:
            os.waitpid(pid, 0)
            number, _, what = os.fsdecode(problem).partition(" ")
            raise OSError(int(number), os.strerror(int(number)), what)
        if message.get("root", True):
            self.root = pid
        return {"pid": pid}, [libc.syscall("pidfd_open", pid, 0)]

    def _fork(self, message: Message, fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        """Make an empty stub with a chosen id."""
        pid, pidfd = clone.fork_as(message["pid"])
        if pid == 0:
            while True:
                signal.pause()
        return {"pid": pid}, [pidfd]

    def _control(self, message: Message, fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        """Keep the stubs' end of the socket that descriptors are passed over, under a high number."""
        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        os.dup2(fds[0], message["number"])
        self.kept["control"] = message["number"]
        return {}, []

    def _built(self, message: Message, fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        """The restart is over: nothing is passed any more, and new processes get ids behind the old ones."""
        os.close(self.kept.pop("control"))
        self.root = message["root"]
        if message.get("last_pid"):
            write_file("/proc/sys/kernel/ns_last_pid", str(message["last_pid"]))
        return {}, []

    def _read(self, message: Message, fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        with open(message["path"], encoding="utf-8", errors="surrogateescape") as file:
            return {"text": file.read()}, []

    def _write(self, message: Message, fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        write_file(message["path"], message["text"])
        return {}, []

    def _calls(self, message: Message, fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        """System calls for a kind, up to the first that fails (crhpc/resources/inside.py)."""
        done = []
        for name, arguments in message["calls"]:
            words = [argument if isinstance(argument, int) else
                     ctypes.create_string_buffer(bytes.fromhex(argument[1]), argument[0]) for argument in arguments]
            result = libc.syscall(name, *words)
            rooms = [word.raw.rstrip(b"\0").hex() for word in words if not isinstance(word, int)]
            done.append([result, *rooms])
        return {"done": done}, []


def _exec(message: Message, fds: list[int], problems: int) -> None:
    """In the child: become the job's command, with everything that Python changed put back."""
    what = message["argv"][0]
    try:
        os.setpgid(0, 0)
        for number in range(1, 65):
            if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
                action = signal.SIG_IGN if number in message.get("ignored", ()) else signal.SIG_DFL
                signal.signal(number, action)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if message.get("cpus"):
            os.sched_setaffinity(0, message["cpus"])
        os.umask(message["umask"])
        high = [os.dup(fd) for fd in fds]
        for target, fd in enumerate(high):
            os.dup2(fd, target)
        os.set_inheritable(problems, False)
        keep = problems
        os.closerange(len(fds), keep)
        os.closerange(keep + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        what = message["cwd"]
        os.chdir(what)
        what = message["argv"][0]
        os.execvpe(what, message["argv"], message["env"])
    except Exception as error:
        why = (isinstance(error, OSError) and error.errno) or errno.EINVAL   # no number, no name at all
        os.write(problems, os.fsencode(f"{why} {what}"))
    finally:
        os._exit(127)


def _at_the_lowest_number(fd: int) -> int:
    """Out of the way of the numbers that stubs inherit, which lie above those of the job (crhpc.engine.restore)."""
    lowest = os.dup(fd)
    os.close(fd)
    return lowest


def main() -> None:
    """Set the pod up in two steps: a process that unshares, and its child, the pod's first."""
    channel = Channel(socket.socket(fileno=_at_the_lowest_number(int(sys.argv[1]))))
    namespaces.die_with_parent()
    spec, _ = channel.receive()
    try:
        enter_namespaces(spec)
        pid = os.fork()
    except OSError as error:
        channel.send({"op": "failed", "errno": error.errno, "what": str(error.filename)})
        return
    if pid:
        channel.send({"op": "init", "pid": pid})
        os._exit(0)
    channel.receive()   # the parent has been reaped, the agent has taken its place
    namespaces.die_with_parent()
    os.setsid()
    try:
        mount_own(spec)
    except OSError as error:
        channel.send({"op": "failed", "errno": error.errno, "what": str(error.filename)})
        return
    channel.send({"op": "ready"})
    Init(channel).run()


if __name__ == "__main__":
    main()
