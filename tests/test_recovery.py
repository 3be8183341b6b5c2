"""What becomes of a job that loses hosts."""
from __future__ import annotations

import pytest

from crhpc.errors import AgentLost, HostLost
from crhpc.recovery import Fleet, go_on

FLEET = Fleet(("a", "b", "c"), ("d", "e"))


def lost(*names: str) -> AgentLost:
    return AgentLost(host=names[0] if names else "b", why="it is silent", lost=list(names))


def test_spares_take_the_places_of_lost_hosts():
    assert FLEET.without(["b"]) == Fleet(("a", "d", "c"), ("e",))
    assert FLEET.without(["b", "d"]) == Fleet(("a", "e", "c"), ())
    assert FLEET.without(["c", "b"]) == Fleet(("a", "d", "e"), ())


def test_an_agent_that_was_only_killed_is_started_again_where_it_was():
    assert FLEET.without([]) == FLEET
    assert Fleet().without([]) == Fleet()


def test_without_spares_other_hosts_get_more():
    assert FLEET.without(["b", "c", "d"]) == Fleet(("a", "e", "e"), ())
    assert FLEET.without(["b", "c", "d", "e"]) == Fleet(("a", "a", "a"), ())
    assert Fleet(("a", "b", "c", "d")).without(["c"]) == Fleet(("a", "b", "b", "d"))
    assert Fleet(("a", "b", "b", "d"), ("e",)).without(["b"]) == Fleet(("a", "e", "e", "d"))
    assert Fleet(("a", "b", "b")).afresh() == Fleet(("a", "b"))


def test_this_host():
    with pytest.raises(HostLost, match="Cure: "):
        FLEET.without(["a"])


def test_what_is_more_than_a_job_needs_is_a_spare():
    assert FLEET.of_size(2) == Fleet(("a", "b"), ("c", "d", "e"))
    assert FLEET.of_size(4) == Fleet(("a", "b", "c", "d"), ("e",))
    assert Fleet().of_size(3) == Fleet()


def test_fewer_hosts_than_a_job_has_pods():
    assert Fleet(("a", "b")).of_size(4) == Fleet(("a", "a", "b", "b"))
    assert Fleet(("a", "b", "c")).of_size(4).used == ("a", "a", "b", "c")
    assert Fleet(("a",), ("b",)).of_size(3) == Fleet(("a", "a", "b"))
    assert Fleet(("a", "b", "b")).of_size(3) == Fleet(("a", "b", "b")), "as it is since a host was lost"


class Job:
    """Loses what it is told to, then ends with 7."""

    def __init__(self, *losses: AgentLost) -> None:
        self.losses = list(losses)
        self.fleets: list[Fleet] = []

    def __call__(self, fleet: Fleet) -> int:
        self.fleets.append(fleet)
        if self.losses:
            raise self.losses.pop(0)
        return 7


def test_a_job_goes_on_where_spares_are():
    job, said = Job(lost("c"), lost(), lost("d")), []
    assert go_on(job, FLEET, 5, said.append) == 7
    assert [fleet.used for fleet in job.fleets] == [
        ("a", "b", "c"), ("a", "b", "d"), ("a", "b", "d"), ("a", "b", "e")]
    assert said[0] == "c is lost (it is silent); restart 1 of 5 on a, b, d"
    assert len(said) == 3


def test_not_more_often_than_wanted():
    job, said = Job(*(lost() for _ in range(9))), []
    with pytest.raises(AgentLost):
        go_on(job, FLEET, 2, said.append)
    assert (len(job.fleets), len(said)) == (3, 2)


def test_not_at_all_unless_wanted():
    job = Job(lost())
    with pytest.raises(AgentLost):
        go_on(job, FLEET, 0, pytest.fail)


def test_not_where_this_host_is_lost():
    with pytest.raises(HostLost):
        go_on(Job(lost("a")), Fleet(("a", "b")), 5, pytest.fail)
