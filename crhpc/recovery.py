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
        """The same hosts, so many of them in use: those that are more than a job needs are spares."""
        if not self.used:
            return self
        names = (*self.used, *self.spares)
        return Fleet(names[:pods], names[pods:])

    def without(self, lost: Collection[str]) -> Fleet:
        """Spares in the places of those that are lost; the others stay where they are.

        Raises:
            errors.TooFewHosts: there are not enough, or this host is one of them.
        """
        left = [name for name in self.spares if name not in lost]
        gone = [name for name in self.used if name in lost]
        if len(gone) > len(left) or (self.used and self.used[0] in lost):
            raise errors.TooFewHosts(lost=", ".join(gone), spares=len(left))
        return Fleet(tuple(left.pop(0) if name in lost else name for name in self.used), tuple(left))


def go_on(attempt: Callable[[Fleet], T], fleet: Fleet, times: int, say: Callable[[str], None]) -> T:
    """Run a job, and again where hosts or agents are lost.

    Args:
        attempt: starts or resumes it, on those hosts.
        times: how often it is restarted.

    Returns: what the attempt does that ends by itself.

    Raises:
        errors.AgentLost: once too often.
        errors.TooFewHosts: no spares are left.
    """
    for number in range(1, times + 1):
        try:
            return attempt(fleet)
        except errors.AgentLost as error:
            lost = error.fields["lost"]
            assert isinstance(lost, Collection)
            fleet = fleet.without(lost)
            where = f" on {', '.join(fleet.used)}" if fleet.used else ""
            say(f"{error.fields['host']} is lost ({error.fields['why']}); restart {number} of {times}{where}")
    return attempt(fleet)
