"""Addresses that a job had and does not have any more, and where these are now.

After a restart a listener may be at another port, as another program has taken the old one, or the job on another
machine. Programs remember addresses and connect late: what they ask for is looked up here, by whoever makes
connections for them, at the restart (crhpc/resources/tcprestore.py) and later (crhpc/engine/redirect.py).
"""
from __future__ import annotations

from dataclasses import dataclass, field

from crhpc.kernel.listeners import is_any, is_own, unmapped
from crhpc.kernel.ports import Address

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

    watched: bool = False
    """Whether the job's processes have crhpc's filter, by which their calls are seen."""

    def __bool__(self) -> bool:
        return bool(self.ports or self.hosts)

    def move(self, old: Address, new: Address) -> None:
        """A listener is elsewhere; so is whatever led to it."""
        old, new = _plain(old), _plain(new)
        self.ports.update({known: new for known, goal in self.ports.items() if goal == old})
        self.ports[old] = new
        self.ports.pop(new, None)   # it is the job's own again

    def forget(self, name: Address) -> None:
        """The job has bound a socket to an address: whoever asks for it means that one."""
        host, port = _plain(name)
        for known in [*self.ports]:
            if known[1] == port and (known[0] == host or is_any(known[0]) or is_any(host)):
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
        if everywhere is not None and is_own(host):
            return host, everywhere[1]
        return self.host_of(name)

    def host_of(self, name: Address) -> Address | None:
        """The same for what is bound, and for other protocols: of these, ports stay."""
        host, port = _plain(name)
        return (self.hosts[host], port) if host in self.hosts else None


def _plain(name: Address) -> Address:
    host = unmapped(name[0])
    return host or ANY, name[1]
