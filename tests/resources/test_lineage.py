"""The order of births, against a model of what fork, setsid, setpgid and exit do to a tree."""
from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crhpc.resources.lineage import FIRST, NoLineage, Plan, plan


@dataclass(frozen=True)
class Row:
    pid: int
    parent: int
    session: int
    group: int


@dataclass
class Model:
    """Processes as the kernel keeps them; 1 is the pod's first."""

    parent: dict[int, int] = field(default_factory=lambda: {FIRST: 0})
    session: dict[int, int] = field(default_factory=lambda: {FIRST: FIRST})
    subreapers: set[int] = field(default_factory=set)
    next_id: int = 2

    def fork(self, pid: int, child: int = 0, *, beside: bool = False) -> int:
        child = child or self.next_id
        assert child not in self.parent and pid in self.parent
        self.next_id = max(self.next_id, child + 1)
        self.parent[child] = self.parent[pid] if beside else pid
        self.session[child] = self.session[pid]
        return child

    def setsid(self, pid: int) -> None:
        self.session[pid] = pid

    def above(self, pid: int) -> list[int]:
        found = []
        while (pid := self.parent[pid]) != 0:
            found.append(pid)
        return found

    def end(self, pid: int) -> None:
        """And it is reaped at once."""
        heir = next((other for other in self.above(pid) if other in self.subreapers), FIRST)
        for child, parent in self.parent.items():
            if parent == pid:
                self.parent[child] = heir
        del self.parent[pid], self.session[pid]
        self.subreapers.discard(pid)

    def rows(self) -> list[Row]:
        return [Row(pid, self.parent[pid], self.session[pid], self.session[pid]) for pid in self.parent if pid != FIRST]


def carried_out(planned: Plan) -> Model:
    """What comes of a plan."""
    model = Model()
    for birth in planned.births:
        if birth.leads:
            model.setsid(birth.pid)
        else:
            model.fork(birth.creator, birth.pid)
    for end in planned.ends:
        assert model.parent[end.pid] == end.creator
        model.subreapers = {end.heir} - {FIRST}
        model.end(end.pid)
    return model


def relations(model: Model) -> set[Row]:
    return set(model.rows())


_number = st.integers(0, 255)
histories = st.lists(st.tuples(st.sampled_from("fffffpssxxxSSN"), _number), max_size=60)


def lived(history: list[tuple[str, int]]) -> Model:
    model = Model()
    first = model.fork(FIRST)
    for operation, number in history:
        alive = [pid for pid in model.parent if pid != FIRST]
        pid = alive[number % len(alive)] if alive else model.fork(FIRST)
        if operation == "f":
            model.fork(pid)
        elif operation == "p" and pid != first:
            model.fork(pid, beside=True)
        elif operation == "s":
            model.setsid(pid)
        elif operation == "x":
            model.end(pid)
        elif operation == "S":
            model.subreapers.add(pid)
        elif operation == "N":
            model.subreapers.discard(pid)
    return model


@settings(max_examples=400, deadline=None, database=None)
@given(histories)
def test_whatever_has_lived_can_live_again(history: list[tuple[str, int]]) -> None:
    model = lived(history)
    assert relations(carried_out(plan(model.rows()))) == relations(model)


@settings(max_examples=200, deadline=None, database=None)
@given(histories, st.sets(st.integers(2, 80)))
def test_stand_ins_take_no_id_that_is_to_be_free(history: list[tuple[str, int]], avoid: set[int]) -> None:
    rows = lived(history).rows()
    theirs = {row.pid for row in rows} | {row.session for row in rows}
    planned = plan(rows, avoid=avoid - theirs)
    assert {birth.pid for birth in planned.births} - theirs & (avoid - theirs) == set()
    assert next(planned.spare) not in theirs | avoid


def test_who_needs_no_help_gets_none() -> None:
    rows = [Row(2, 1, 1, 2), Row(3, 2, 3, 3), Row(4, 3, 3, 4), Row(5, 3, 1, 5)]
    planned = plan(rows)
    assert planned.ends == []
    assert [(birth.pid, birth.leads) for birth in planned.births] == [
        (2, False), (3, False), (5, False), (3, True), (4, False)]


def test_a_deep_tree_needs_no_deep_stack() -> None:
    rows = [Row(pid, pid - 1, 1, 1) for pid in range(2, 3000)]
    assert len(plan(rows).births) == len(rows)


GOOD = [Row(2, 1, 2, 2), Row(3, 2, 2, 3), Row(4, 3, 2, 3)]


@pytest.mark.parametrize(("number", "wrong"), [
    (0, {"pid": 1}), (1, {"pid": 2}), (2, {"parent": 9}), (0, {"parent": 4}), (0, {"parent": 2}), (2, {"session": 1}),
    (2, {"session": 9}), (0, {"group": 3}), (1, {"session": 1, "group": 1}), (2, {"group": 1}), (2, {"session": 3}),
])
def test_what_cannot_be_is_told(number: int, wrong: dict[str, int]) -> None:
    """An image may say anything."""
    rows = list(GOOD)
    plan(rows)
    rows[number] = replace(rows[number], **wrong)
    with pytest.raises(NoLineage):
        plan(rows)
