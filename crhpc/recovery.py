"""When hosts are lost: where the job goes on, and how often that is tried without anybody's hand."""
from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeVar

from crhpc import errors

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Fleet:
    """The hosts that a job may use; none: this one alone."""

    used: tuple[str, ...] = ()
    """In the order of the pods; the first is this host."""
    spares: tuple[str, ...] = ()
    """Those that take the places of lost ones, in this order."""

    def of_size(self, pods: int) -> Fleet:
        """The same hosts for so many pods: more are spares; where they are too few, each gets several pods."""
        if not self.used:
            return self
        names = tuple(dict.fromkeys((*self.used, *self.spares)))
        if len(self.used) == pods and len(names) < pods:   # as it is already
            return self
        used = names[:pods]
        return Fleet(tuple(used[n * len(used) // pods] for n in range(pods)), names[pods:])

    def afresh(self) -> Fleet:
        """For a job that starts: a pod on each host."""
        return Fleet(tuple(dict.fromkeys(self.used)), self.spares)

    def without(self, lost: Collection[str]) -> Fleet:
        """Spares in the places of those that are lost, else the host of the pod before; the others stay where they are.

        Raises:
            errors.HostLost: this host is one of them.
        """
        if self.used and self.used[0] in lost:
            raise errors.HostLost(host=self.used[0])
        left = [name for name in self.spares if name not in lost]
        instead: dict[str, str] = {}
        places: list[str] = []
        for name in self.used:
            if name in lost and name not in instead:
                instead[name] = left.pop(0) if left else places[-1]
            places.append(instead.get(name, name))
        return Fleet(tuple(places), tuple(left))


def go_on(attempt: Callable[[Fleet], T], fleet: Fleet, times: int, say: Callable[[str], None]) -> T:
    """Run a job, and again where hosts or agents are lost.

    Args:
        attempt: starts or resumes it, on those hosts.
        times: how often it is restarted.

    Returns: what the attempt does that ends by itself.

    Raises:
        errors.AgentLost: once too often.
        errors.HostLost: this host itself is not heard of.
    """
    for number in range(1, times + 1):
        try:
            return attempt(fleet)
        except errors.AgentLost as error:
            lost = error.fields["lost"]
            assert isinstance(lost, Collection)
            fleet = fleet.without(lost)
            where = f" on {', '.join(dict.fromkeys(fleet.used))}" if fleet.used else ""
            say(f"{error.fields['host']} is lost ({error.fields['why']}); restart {number} of {times}{where}")
    return attempt(fleet)
