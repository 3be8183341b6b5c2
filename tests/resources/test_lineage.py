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
            model.fork(birth.creator, birth.pid, beside=birth.beside)
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


# -- tables ------------------------------------------------------------------------------------------
FILES, FS = 0x400, 0x200


def tables_of(planned: Plan) -> dict[int, dict[int, int]]:
    """Which table each process has after a plan, by flag; tables are named by who had them first."""
    found: dict[int, dict[int, int]] = {FILES: {FIRST: FIRST}, FS: {FIRST: FIRST}}
    for birth in planned.births:
        for flag, having in found.items():
            if not birth.leads:
                having[birth.pid] = having[birth.creator] if birth.flags & flag else birth.pid
    return found


def alike(tables: dict[int, int], pids: set[int]) -> set[frozenset[int]]:
    """Who shares with whom."""
    return {frozenset(pid for pid in pids if tables.get(pid, pid) == tables.get(other, other)) for other in pids}


@settings(max_examples=300, deadline=None, database=None)
@given(histories, st.lists(st.tuples(st.sampled_from([FILES, FS]), _number, _number), max_size=4))
def test_who_is_to_share_does_so_and_nobody_else(history: list[tuple[str, int]],
                                                 shares: list[tuple[int, int, int]]) -> None:
    """Not all that is asked for here can have come about; what is planned is right."""
    rows = lived(history).rows()
    tables: dict[int, dict[int, int]] = {FILES: {}, FS: {}}
    for flag, a, b in shares if rows else []:
        first, second = rows[a % len(rows)].pid, rows[b % len(rows)].pid
        tables[flag][first] = tables[flag][second] = tables[flag].get(first, first)
    try:
        planned = plan(rows, tables=tables)
    except NoLineage:
        return
    got, pids = tables_of(planned), {row.pid for row in rows}
    for flag in (FILES, FS):
        assert alike(got[flag], pids) == alike(tables[flag], pids)
    assert relations(carried_out(planned)) == set(rows)


@pytest.mark.parametrize(("rows", "tables"), [
    ([Row(2, 1, 1, 1), Row(3, 2, 1, 1), Row(4, 3, 1, 1)], {FILES: {2: 2, 3: 2, 4: 2}, FS: {3: 3, 4: 3}}),
    ([Row(2, 1, 1, 1), Row(3, 2, 3, 3), Row(4, 2, 3, 3), Row(5, 2, 3, 3)],
     {FILES: {3: 3, 4: 3}, FS: {3: 3, 4: 3, 5: 3}}),
    ([Row(2, 1, 1, 1), Row(3, 1, 1, 1)], {FS: {2: 2, 3: 2}}),
])
def test_parents_and_siblings_can_share(rows: list[Row], tables: dict[int, dict[int, int]]) -> None:
    got = tables_of(plan(rows, tables=tables))
    for flag, wanted in tables.items():
        assert alike(got[flag], {row.pid for row in rows}) == alike(wanted, {row.pid for row in rows})


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
