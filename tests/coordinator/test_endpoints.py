"""Matching the ends of connections: pure functions, so any set of ends can be thought up."""
from __future__ import annotations

from collections import defaultdict
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from crhpc.coordinator.endpoints import Connection, External, match

ESTABLISHED, CLOSE_WAIT, LISTEN = 1, 8, 10
HERE, THERE, FAR = ("10.0.0.1", 5000), ("10.0.0.2", 6000), ("192.0.2.9", 80)

LOOPBACK = {"127.0.0.1", "::1"}

ADDRESSES = st.tuples(st.sampled_from(["127.0.0.1", "10.0.0.1", "10.0.0.2", "::1"]), st.integers(1, 6))
ENDS = st.lists(st.tuples(st.integers(0, 3), ADDRESSES, ADDRESSES), max_size=12)


def end(file: int, local: tuple[str, int], remote: tuple[str, int], state: int = ESTABLISHED) -> dict[str, Any]:
    """As JSON has it, with lists for tuples."""
    return {"file": file, "state": state, "local": list(local), "remote": list(remote), "pid": 100 + file,
            "program": "app"}


def listening(file: int, local: tuple[str, int]) -> dict[str, Any]:
    return end(file, local, ("0.0.0.0", 0), LISTEN)


def paired(connections: list[Connection]) -> set[frozenset[tuple[int, int]]]:
    return {frozenset({(c.near_node, c.near_file), (c.far_node, c.far_file)}) for c in connections}


# -- any set of connections ---------------------------------------------------------------------------
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.tuples(ADDRESSES, ADDRESSES)),
                unique_by=lambda connection: frozenset(connection[2]), max_size=10), st.randoms())
def test_every_connection_is_paired_exactly_once(wanted, chance):
    """In whatever order its ends are listed, on one node or, where no address is loopback's, on two."""
    ends: dict[int, list[dict[str, Any]]] = {node: [] for node in range(4)}
    expected = set()
    rows = []
    for near, elsewhere, (local, remote) in wanted:
        far = near if {local[0], remote[0]} & LOOPBACK else elsewhere
        number = len(rows)
        rows += [(near, end(number, local, remote)), (far, end(number + 1, remote, local))]
        expected.add(frozenset({(near, number), (far, number + 1)}))
    chance.shuffle(rows)
    for node, row in rows:
        ends[node].append(row)
    connections, outside = match(ends)
    assert paired(connections) == expected
    assert len(connections) == len(expected)
    assert outside == []


@given(ENDS)
def test_nothing_is_lost_and_nothing_is_used_twice(rows):
    """Ends of all sorts, that fit or don't: each is in one connection, or leaves the job."""
    ends: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for number, (node, local, remote) in enumerate(rows):
        ends[node].append(end(number, local, remote))
    connections, outside = match(ends)
    seen = [place for c in connections for place in {(c.near_node, c.near_file), (c.far_node, c.far_file)}]
    seen += [(e.node, e.file) for e in outside]
    assert sorted(seen) == sorted((node, number) for number, (node, _, _) in enumerate(rows))
    # what is left alone has no other half that is left alone too
    names = [(e.node if {e.local[0], e.remote[0]} & LOOPBACK else -1, e.local, e.remote) for e in outside]
    assert not any((scope, remote, local) in names[:i] for i, (scope, local, remote) in enumerate(names))


# -- those that stay alone ----------------------------------------------------------------------------
def test_an_end_whose_other_end_is_elsewhere():
    _, outside = match({2: [end(5, HERE, FAR)]})
    assert outside == [External(2, 5, HERE, FAR, 105, "app")]


def test_an_end_that_waits_to_be_closed():
    """The other side has closed and is gone: there is nothing that could be lost."""
    connections, outside = match({0: [end(1, HERE, FAR, CLOSE_WAIT)]})
    assert (connections, outside) == ([Connection(0, 1, -1, -1)], [])


def test_an_end_that_a_program_outside_has_closed_only_half():
    _, outside = match({0: [end(1, HERE, FAR, CLOSE_WAIT) | {"stranger": True}]})
    assert [e.file for e in outside] == [1]


def test_a_socket_that_is_connected_to_itself():
    assert match({0: [end(1, HERE, HERE)]}) == ([Connection(0, 1, 0, 1)], [])


def test_an_end_that_waits_to_be_accepted():
    """By a listener of the job, on its address or on all."""
    for name in (THERE, ("0.0.0.0", THERE[1]), ("::", THERE[1])):
        connections, outside = match({0: [end(1, HERE, THERE)], 1: [listening(2, name)]})
        assert (connections, outside) == ([Connection(0, 1, -1, -1)], [])
    for name in ((THERE[0], 7), ("10.0.0.77", THERE[1])):
        connections, outside = match({0: [end(1, HERE, THERE)], 1: [listening(2, name)]})
        assert (connections, [e.file for e in outside]) == ([], [1])


def test_a_listener_is_no_end():
    assert match({0: [listening(1, HERE), listening(2, THERE)]}) == ([], [])


def test_nothing():
    assert match({}) == ([], [])
    assert match({0: [], 1: []}) == ([], [])


# -- names --------------------------------------------------------------------------------------------
def test_ipv4_in_ipv6():
    """A listener of IPv6 takes connections of IPv4: its end calls both addresses by their long names."""
    near = end(1, HERE, THERE)
    far = end(2, ("::ffff:10.0.0.2", 6000), ("::ffff:10.0.0.1", 5000))
    for ends in ({0: [near], 1: [far]}, {0: [far, near]}):
        connections, outside = match(ends)
        assert (len(connections), outside) == (1, [])
    connections, outside = match({0: [near], 1: [listening(2, ("::ffff:10.0.0.2", 6000))]})
    assert (len(connections), outside) == (1, [])


def test_the_same_addresses_on_two_nodes():
    """Each node has a 127.0.0.1 of its own: such ends belong to their own node's."""
    a, b = ("127.0.0.1", 5000), ("127.0.0.1", 6000)
    connections, outside = match({0: [end(1, a, b), end(2, b, a)], 1: [end(3, a, b), end(4, b, a)]})
    assert paired(connections) == {frozenset({(0, 1), (0, 2)}), frozenset({(1, 3), (1, 4)})}
    assert outside == []


def test_a_loopback_connection_is_never_paired_with_another_nodes():
    a, b = ("127.0.0.1", 5000), ("127.0.0.1", 6000)
    connections, outside = match({0: [end(1, a, b)], 1: [end(2, b, a)]})
    assert connections == []
    assert [(e.node, e.file) for e in outside] == [(0, 1), (1, 2)]
