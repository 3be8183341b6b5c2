"""Connections to addresses that the job does not have any more: its calls are stopped for the agent to answer.

A filter in every process (crhpc/kernel/seccomp.py) lets the agent see connect(2) and bind(2); what it does with them
is in crhpc/engine/redirect.py. Installed only where an address has changed, and again at every later restart of such
a job. It must be in place before a task loses its power over the pod: without that it would have to give up
setuid programs for it (no_new_privs in prctl(2)).
"""
from __future__ import annotations

import contextlib
import ipaddress
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass, field

from crhpc.errors import ImageDamaged, OtherMachine
from crhpc.kernel import seccomp
from crhpc.resources import Chapter, Cut, Kind, Phase, at
from crhpc.resources.context import Dump, Restore, Task

CALLS = ("connect", "bind")


@dataclass(frozen=True, slots=True)
class Redirect:
    """An address that the job had, and where it is now."""

    old: str = field(metadata={"doc": "0.0.0.0 or :: for a listener at all of the machine's addresses"})
    old_port: int = field(metadata={"doc": "0: a machine's address, for all ports without a row of their own"})
    new: str
    new_port: int


class RedirectsKind(Kind):
    name = "redirects"
    chapter = Chapter.CHANNELS
    records = (Redirect,)
    saved = ("TCP ports that other programs have taken by the time of a restart, as far as the job itself is "
             "concerned: what listens there gets another one, and connections that the job makes to the old one lead "
             "to that, after every later restart, too")
    afterwards = ("getsockname(2) and getpeername(2) show the new port, and /proc a seccomp filter. Not followed are "
                  "connections begun by a datagram call (MSG_FASTOPEN), those of processes that crhpc lets into "
                  "the pod later on another node's behalf, and a connect(2) that runs into SO_SNDTIMEO ends with "
                  "EALREADY, not EINPROGRESS. Where a UDP port is taken, a restart is refused")

    @at(Cut.COLLECT)
    def dump(self, ctx: Dump) -> None:
        for old, new in ctx.pod.redirects.ports.items():
            ctx.add(Redirect(*old, *new))
        for old_host, new_host in ctx.pod.redirects.hosts.items():
            ctx.add(Redirect(old_host, 0, new_host, 0))

    @at(Phase.CHECK)
    def check(self, ctx: Restore) -> None:
        for row in ctx.rows(Redirect):
            try:
                for host, port in ((row.old, row.old_port), (row.new, row.new_port)):
                    ipaddress.ip_address(host)
                    if not 0 <= port < 1 << 16:
                        raise ValueError(f"no port: {port}")
                if bool(row.old_port) != bool(row.new_port):
                    raise ValueError("a port on one side only")
            except ValueError as error:
                raise ImageDamaged(image=ctx.image, what=f"an address that has moved: {error}") from None

    @at(Phase.POD)
    def know_earlier_ones(self, ctx: Restore) -> None:
        """Sockets are made after this, and may have to move again; where machines are now is known already."""
        redirects = ctx.pod.redirects
        for row in ctx.rows(Redirect):
            if row.old_port:
                redirects.ports[row.old, row.old_port] = redirects.now(row.new), row.new_port

    @at(Phase.WATCH)
    def install(self, ctx: Restore) -> None:
        """When no name is bound in a task any more, and its limit of open files is not yet the job's."""
        ctx.pod.redirects.watched = bool(ctx.pod.redirects)
        if not ctx.pod.redirects:
            return
        for task in ctx.tasks.values():
            try:
                with _room_for_one(task):
                    number = seccomp.install(task.area, CALLS)
                    listener = ctx.take(task, number)
            except OSError as error:
                raise OtherMachine(
                    image=ctx.image, what="ports of the job are in use, and this system does not allow to lead its "
                    f"connections to other ones ({error.strerror})",
                    cure="end the programs that use them, see above, or restart on another node") from None
            ctx.notifiers.append(listener)
            ctx.undo.callback(os.close, listener)


@contextlib.contextmanager
def _room_for_one(task: Task) -> Iterator[None]:
    limits = resource.prlimit(task.host, resource.RLIMIT_NOFILE)
    resource.prlimit(task.host, resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    yield
    resource.prlimit(task.host, resource.RLIMIT_NOFILE, limits)
