"""Addresses that a job had and does not have any more, and where these are now.

After a restart a listener may be at another port, as another program has taken the old one, or the job on other
machines. Programs remember addresses and connect late: what they ask for is looked up here, by whoever makes
connections for them, at the restart (crhpc/resources/tcprestore.py) and later (crhpc/engine/redirect.py).

What the job calls a machine of its own is what that was called at the job's very start, however often it has moved
since: two nodes that change places keep their names. Sockets in an image have the addresses of its time.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from crhpc.kernel.listeners import is_own, unmapped
from crhpc.kernel.ports import Address, is_any

ANY, ANY6 = "0.0.0.0", "::"
_LOOPBACK = {ANY: "127.0.0.1", ANY6: "::1"}
"""Whom a connection to no address in particular reaches."""


@dataclass(slots=True)
class Redirects:
    """What became of the job's addresses; those of IPv4 are never written as IPv6's."""

    ports: dict[Address, Address] = field(default_factory=dict)
    """TCP ports of listeners. Under ANY and ANY6 stand those that listened at all of the machine's addresses."""
    hosts: dict[str, str] = field(default_factory=dict)
    """Addresses of machines; in force for every port that ``ports`` doesn't name, and for what is bound."""

    moves: dict[str, str] = field(default_factory=dict)
    """Of sockets in the image that is restarted: addresses of machines then, and where they are now."""
    own: frozenset[str] = frozenset()
    """The addresses that the job knows this pod's machine by."""
    others: frozenset[str] = frozenset()
    """Those of the other pods' machines."""

    watched: bool = False
    """Whether the job's processes have crhpc's filter, by which their calls are seen."""

    def __bool__(self) -> bool:
        return bool(self.ports or self.hosts)

    def place(self, places: dict[str, Any]) -> None:
        """Where all pods are now, as crhpc/coordinator/placement.py reckons it for this one."""
        self.hosts = dict(places["hosts"])
        self.moves = dict(places["moves"])
        self.own, self.others = frozenset(places["own"]), frozenset(places["others"])

    def now(self, host: str) -> str:
        """Where an address of a socket in the image is."""
        goal = self.moves.get(unmapped(host))
        if goal is None:
            return host
        return f"::ffff:{goal}" if "." in host and ":" in host else goal

    def move(self, old: Address, new: Address) -> None:
        """A listener is elsewhere; so is whatever led to it."""
        old, new = _plain(old), _plain(new)
        self.ports.update({known: new for known, goal in self.ports.items() if goal == old})
        for host in (old[0], *(name for name in self.own if self.hosts.get(name) == old[0])):
            self.ports[host, old[1]] = new
        self.ports.pop(new, None)   # it is the job's own again

    def for_others(self) -> list[list[Any]]:
        """Which ports of this pod are elsewhere, as the other pods call them: old address and port, new ones."""
        found: list[list[Any]] = []
        for (host, port), (goal, new) in self.ports.items():
            names = self.own & {host}
            if is_any(host):
                names = frozenset(name for name in self.own if ("." in name) == ("." in host))
            found += [[name, port, self.hosts.get(name, name) if is_any(goal) else goal, new] for name in sorted(names)]
        return found

    def learn(self, ports: Iterable[Sequence[Any]]) -> None:
        """What the other pods say of theirs (``for_others``)."""
        self.ports.update({(host, port): (goal, new) for host, port, goal, new in ports if host in self.others})

    def forget(self, name: Address) -> None:
        """The job has bound a socket to an address: whoever asks for it means that one."""
        host, port = _plain(name)
        for known in [known for known in self.ports if known[1] == port and known[0] not in self.others]:
            if is_any(known[0]) or is_any(host) or host in (known[0], self.hosts.get(known[0])):
                del self.ports[known]

    def has_port(self, port: int) -> bool:
        """Whether a port was a listener's."""
        return any(known == port for _, known in self.ports)

    def of(self, name: Address) -> Address | None:
        """Where a TCP connection to an address has to go; None where the address is what it was."""
        host, port = _plain(name)
        host = _LOOPBACK.get(host, host)
        if (host, port) in self.ports:
            return self.ports[host, port]
        everywhere = self.ports.get((ANY if "." in host else ANY6, port))
        if everywhere is not None and self._is_own(host):
            return self.hosts.get(host, host), everywhere[1]
        return self.host_of(name)

    def _is_own(self, host: str) -> bool:
        """Whether the job means this pod's machine by an address."""
        return host in self.own or (host not in self.others and is_own(host))

    def host_of(self, name: Address) -> Address | None:
        """The same for what is bound, and for other protocols: of these, ports stay."""
        host, port = _plain(name)
        return (self.hosts[host], port) if host in self.hosts else None


def _plain(name: Address) -> Address:
    host = unmapped(name[0])
    return host or ANY, name[1]
