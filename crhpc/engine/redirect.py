"""Old addresses stay valid: connections of a restarted job to one that it no longer has lead to where that is now.

Calls of the job's that crhpc/resources/redirects.py has chosen wait here for an answer. Most are let go on. Where an
address has moved, the socket is taken from its process (both have the same one then) and connected to the new address.
One that doesn't wait gets what connect(2) gives. One that waits is begun here, and then the program's own call is
made: the kernel asks for no address any more, and waits for the connection in the program's own thread, which can be
interrupted, or stopped for a checkpoint, as in any other call. Nothing here takes longer than a tick of the kernel's.
"""
from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import threading
from collections.abc import Iterable, Iterator

from crhpc.kernel import pidfd, seccomp, sockaddr, vm
from crhpc.kernel.libc import NR
from crhpc.kernel.listeners import name_of
from crhpc.kernel.ports import Address
from crhpc.log import logger
from crhpc.resources.moved import Redirects

log = logger(__name__)

_SHORTEST = struct.pack("qq", 0, 1)
"""A struct timeval of one microsecond: a tick."""
_BEGUN = (errno.EINPROGRESS, errno.EALREADY)


class Redirector:
    """Answers the calls of a pod's tasks in a thread of its own, from ``start`` to ``stop``."""

    def __init__(self, redirects: Redirects, listeners: Iterable[int]) -> None:
        """
        Args:
            listeners: of the tasks' filters; closed here.
        """
        self.redirects = redirects
        self._listeners = set(listeners)
        self._undelivered: dict[int, tuple[int, int]] = {}
        """What a call has come to, of which its thread was not told as a signal came: it makes it again. By thread:
        the socket's inode and the error number."""
        self._leave, self._leaving = os.pipe2(os.O_CLOEXEC)
        self._serving = threading.Lock()
        self._paused = False
        self._thread = threading.Thread(target=self._run, name="crhpc-redirect", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def pause(self) -> None:
        """Finish what is under way and touch nothing from then on; calls wait, and can be interrupted."""
        if not self._paused:
            self._serving.acquire()
            self._paused = True

    def resume(self) -> None:
        """Answer what waits."""
        if self._paused:
            self._paused = False
            self._serving.release()

    def stop(self) -> None:
        """Let go of everything. Calls would fail with ENOSYS from then on: the job must have ended."""
        os.close(self._leaving)
        self.resume()
        if self._thread.ident is not None:
            self._thread.join()
        for fd in (self._leave, *self._listeners):
            os.close(fd)
        self._listeners.clear()

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())   # they are the first thread's
        poll = select.poll()
        for fd in (self._leave, *self._listeners):
            poll.register(fd, select.POLLIN)
        while True:
            for fd, events in poll.poll():
                if fd == self._leave:
                    return
                if events & select.POLLIN:
                    with self._serving:
                        self._serve(fd)
                else:   # nobody is left who has the filter
                    poll.unregister(fd)
                    self._listeners.discard(fd)
                    os.close(fd)

    def _serve(self, listener: int) -> None:
        """See to one call that waits."""
        call = seccomp.receive(listener)
        if call is None:
            return
        try:
            found = self._answer(listener, call)
        except OSError:   # a bad pointer or descriptor: the kernel will say so; or no right to look
            log.debug("a call that is let go on", exc_info=True)
            found = None
        if found is None:
            seccomp.let_go_on(listener, call)
        elif not seccomp.answer(listener, call, found[1]) and found[1] in (0, *_BEGUN):
            self._undelivered[call.tid] = found

    def _answer(self, listener: int, call: seccomp.Notification) -> tuple[int, int] | None:
        """The inode of the socket and an error number, or 0; None where the call can be made as it is."""
        number, pointer, length = call.arguments[0] & 0xFFFFFFFF, *call.arguments[1:3]
        earlier = self._undelivered.pop(call.tid, None)
        binds = call.number == NR["bind"]
        raw = vm.read(call.tid, pointer, min(length & 0xFFFFFFFF, sockaddr.LONGEST))
        name = sockaddr.parse(raw)
        if name is None or not self._concerns(name, binds=binds):
            return None
        with _taken(seccomp.process_of(call.tid), number) as sock:
            if sock.family != int.from_bytes(raw[:2], "little") or not seccomp.still_waits(listener, call):
                return None
            inode = os.fstat(sock.fileno()).st_ino
            if earlier is not None and earlier[0] == inode:
                return earlier
            error = self._bind(sock, raw, name) if binds else self._connect(sock, raw, name)
            return None if error is None else (inode, error)

    def _concerns(self, name: Address, *, binds: bool) -> bool:
        """Whether it is worth a look at the socket. Where the kernel chooses a port, it may be one that had moved."""
        moved = self.redirects.host_of(name) is not None or self.redirects.has_port(name[1])
        return moved or (binds and name[1] == 0 and bool(self.redirects.ports))

    def _connect(self, sock: socket.socket, raw: bytes, name: Address) -> int | None:
        """Connect a socket; None also where the program's own call is to wait for the connection that is begun."""
        stream = _is_tcp(sock)
        goal = self.redirects.of(name) if stream else self.redirects.host_of(name)
        address = sockaddr.with_name(raw, goal) if goal is not None else None
        if address is None:
            return None
        waits = stream and not fcntl.fcntl(sock, fcntl.F_GETFL) & os.O_NONBLOCK
        with _waiting_briefly(sock) if waits else contextlib.nullcontext():
            error = sockaddr.call("connect", sock, address)
        return None if waits and error in _BEGUN else error

    def _bind(self, sock: socket.socket, raw: bytes, name: Address) -> int | None:
        """Bind a socket; a port that the job binds anew is the job's own again."""
        goal = self.redirects.host_of(name)
        address = raw if goal is None else sockaddr.with_name(raw, goal)
        if address is None or (goal is None and not _is_tcp(sock)):
            return None
        error = sockaddr.call("bind", sock, address)
        if not error:
            self.redirects.forget(name_of(sock.getsockname()))
        return error


@contextlib.contextmanager
def _taken(pid: int, number: int) -> Iterator[socket.socket]:
    """A process's socket, closed here afterwards.

    Raises:
        OSError: it has no such socket.
    """
    fd = pidfd.take_fd(pid, number)
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        raise
    with sock:
        yield sock


def _is_tcp(sock: socket.socket) -> bool:
    return sock.type == socket.SOCK_STREAM and sock.proto == socket.IPPROTO_TCP


@contextlib.contextmanager
def _waiting_briefly(sock: socket.socket) -> Iterator[None]:
    """Let calls on a socket that waits end soon; its flags (O_NONBLOCK) are the program's, too, and are left alone."""
    size = len(_SHORTEST)
    before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, size)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SHORTEST)
    try:
        yield
    finally:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, before)
