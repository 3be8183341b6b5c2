"""Where addresses are now."""
from __future__ import annotations

import pytest

from crhpc.resources.moved import ANY, ANY6, Redirects


@pytest.fixture
def moved() -> Redirects:
    return Redirects()


def test_an_address_that_stays(moved):
    assert not moved and moved.of(("127.0.0.1", 5)) is None
    moved.move(("127.0.0.1", 5), ("127.0.0.1", 6))
    assert moved and moved.of(("127.0.0.1", 6)) is None and moved.of(("127.0.0.2", 5)) is None
    assert moved.has_port(5) and not moved.has_port(6)


def test_a_port(moved):
    moved.move(("127.0.0.1", 5), ("127.0.0.1", 6))
    assert moved.of(("127.0.0.1", 5)) == ("127.0.0.1", 6)
    assert moved.of(("::ffff:127.0.0.1", 5)) == ("127.0.0.1", 6)
    assert moved.of((ANY, 5)) == ("127.0.0.1", 6), "no address in particular is this machine"
    assert moved.host_of(("127.0.0.1", 5)) is None


def test_a_port_at_all_addresses_of_the_machine(moved):
    moved.move((ANY, 5), (ANY, 6))
    assert moved.of(("127.0.0.1", 5)) == ("127.0.0.1", 6)
    assert moved.of((ANY, 5)) == ("127.0.0.1", 6)
    assert moved.of(("192.0.2.1", 5)) is None, "another machine's (RFC 5737)"
    assert moved.of(("::1", 5)) is None
    moved.move((ANY6, 5), (ANY6, 7))
    assert moved.of(("::1", 5)) == ("::1", 7) == moved.of((ANY6, 5))
    assert moved.of(("2001:db8::1", 5)) is None
    assert moved.of(("127.0.0.1", 5)) == ("127.0.0.1", 6)


def test_chains_are_short(moved):
    for port in (5, 6, 7):
        moved.move((ANY, port), (ANY, port + 1))
    assert [moved.of(("127.0.0.1", port)) for port in (5, 6, 7, 8)] == [("127.0.0.1", 8)] * 3 + [None]


def test_back_to_where_it_was(moved):
    moved.move(("127.0.0.1", 5), ("127.0.0.1", 6))
    moved.move(("127.0.0.1", 6), ("127.0.0.1", 5))
    assert moved.of(("127.0.0.1", 5)) is None and moved.of(("127.0.0.1", 6)) == ("127.0.0.1", 5)


@pytest.mark.parametrize(("known", "bound", "left"), [
    ("127.0.0.1", "127.0.0.1", False), ("127.0.0.1", ANY, False), (ANY, "127.0.0.1", False),
    ("127.0.0.1", "127.0.0.2", True)])
def test_a_port_that_is_bound_anew(moved, known, bound, left):
    moved.move((known, 5), (known, 6))
    moved.forget((bound, 4))
    assert moved.has_port(5)
    moved.forget((bound, 5))
    assert moved.has_port(5) == left


def place(moved: Redirects, **places: object) -> None:
    moved.place({"hosts": {}, "moves": {}, "own": [], "others": [], **places})


def test_machines_that_have_changed_places(moved):
    """The job goes on calling this one A; B is what it calls the other."""
    a, b = "10.0.0.1", "10.0.0.2"
    place(moved, hosts={a: b, b: a}, moves={a: b, b: a}, own=[a], others=[b])
    assert (moved.of((a, 80)), moved.of((b, 80))) == ((b, 80), (a, 80))
    assert (moved.now(a), moved.now(f"::ffff:{b}"), moved.now("10.0.0.3")) == (b, f"::ffff:{a}", "10.0.0.3")
    moved.move((ANY, 5), (ANY, 6))
    assert (moved.of((a, 5)), moved.of((b, 5))) == ((b, 6), (a, 5)), "that is the other one's port"
    moved.move((b, 7), (b, 8))
    assert moved.of((a, 7)) == (b, 8)
    assert moved.for_others() == [[a, 5, b, 6], [a, 7, b, 8]]


def test_what_other_pods_say_of_their_ports(moved):
    a, b = "10.0.0.1", "10.0.0.2"
    place(moved, hosts={b: a}, own=[a], others=[b])   # both on one machine
    moved.learn([[b, 5, a, 6], ["10.0.0.9", 5, a, 7]])
    assert (moved.of((b, 5)), moved.of((a, 5)), moved.of(("10.0.0.9", 5))) == ((a, 6), None, None)
    moved.forget((ANY, 5))
    assert moved.of((b, 5)) == (a, 6), "what this pod binds says nothing of the other's"
    assert moved.for_others() == []


def test_a_port_that_is_bound_anew_where_the_machine_is_another(moved):
    place(moved, hosts={"10.0.0.1": "10.0.0.2"}, own=["10.0.0.1"])
    moved.move(("10.0.0.2", 5), ("10.0.0.2", 6))
    assert moved.of(("10.0.0.1", 5)) == ("10.0.0.2", 6)
    moved.forget(("10.0.0.2", 5))
    assert moved.of(("10.0.0.1", 5)) == ("10.0.0.2", 5)


def test_machines(moved):
    moved.hosts = {"10.0.0.1": "10.0.0.2", "2001:db8::1": "2001:db8::2"}
    moved.move(("10.0.0.1", 5), ("10.0.0.3", 6))
    assert moved.of(("10.0.0.1", 80)) == ("10.0.0.2", 80) == moved.host_of(("::ffff:10.0.0.1", 80))
    assert moved.of(("10.0.0.1", 5)) == ("10.0.0.3", 6)
    assert moved.host_of(("10.0.0.1", 5)) == ("10.0.0.2", 5)
    assert moved.of(("2001:db8::1", 5)) == ("2001:db8::2", 5)
    assert moved.of(("10.0.0.4", 5)) is None
