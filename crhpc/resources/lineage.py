"""In which order, and by whom, the processes of a tree must be born so that each is where it was.

Pure reckoning: no process is touched. A process is born into its parent's session, for good unless it
starts one of its own (setsid(2)), and a process whose parent ends goes to the next child subreaper above, or
to the pod's first process. So where a process stands in the session of an ancestor that is not its parent,
one of its forebears has ended. The plan has such a forebear play its part again: a stand-in is born in the right
session below the right process, has the child, and ends. Sessions whose leader has ended get a stand-in for
that leader. What /proc does not tell is the session that a leader was born into, which shows only in
children from before its setsid(2): what fits is searched. Tables that processes share are shared at birth: by who has
the table, for itself or for its own parent (CLONE_PARENT).

*Above* and *below* are meant as they were at birth, with the stand-ins.
"""
from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

FIRST = 1
"""The pod's first process: its own session, and the parent of whoever has no other."""

_MOST_CHOICES = 4096
_NONE: Mapping[int, Mapping[int, int]] = {}


class Relations(Protocol):
    """What is known of a process; all ids are the pod's."""

    @property
    def pid(self) -> int: ...
    @property
    def parent(self) -> int: ...
    @property
    def session(self) -> int: ...
    @property
    def group(self) -> int: ...


class NoLineage(ValueError):
    """No order of births leads to these relations."""

    def __init__(self, pid: int, why: str) -> None:
        super().__init__(why)
        self.pid = pid


@dataclass(frozen=True, slots=True)
class Birth:
    """A process is born, or, with ``leads``, starts a session of its own."""

    pid: int
    creator: int
    leads: bool = False
    beside: bool = False
    """It becomes a child of its creator's parent."""
    flags: int = 0
    """Of clone(2): the tables that it shares with its creator."""


@dataclass(frozen=True, slots=True)
class End:
    """A stand-in ends."""

    pid: int
    creator: int
    """Who must wait for it."""
    heir: int
    """Who gets its children: a child subreaper for that moment, or the pod's first process."""


@dataclass(slots=True)
class Plan:
    """Births in their order; then groups are joined; then stand-ins end in theirs."""

    births: list[Birth] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    spare: Iterator[int] = field(default_factory=lambda: iter(()))
    """Ids that nobody of the tree has."""


def plan(rows: Iterable[Relations], avoid: Iterable[int] = (), tables: Mapping[int, Mapping[int, int]] = _NONE) -> Plan:
    """How a tree can be born again.

    Args:
        avoid: ids that no stand-in may have.
        tables: for flags of clone(2), which table each process has that has one together with others.

    Raises:
        NoLineage: it can't.
    """
    known: dict[int, Relations] = {}
    for row in rows:
        if row.pid <= FIRST or row.pid in known:
            raise NoLineage(row.pid, "its id is taken twice")
        known[row.pid] = row
    _check(known)
    first: NoLineage | None = None
    for born_into in itertools.islice(_choices(known), _MOST_CHOICES):
        try:
            return _Descent(known, born_into, tables).plan(avoid)
        except NoLineage as error:
            first = first or error
    assert first is not None
    raise first


def _check(known: Mapping[int, Relations]) -> None:
    """What the kernel would not allow, but an image may say."""
    sessions = {FIRST, *(row.session for row in known.values())}
    session_of = {row.group: row.session for row in known.values()} | {session: session for session in sessions}
    for row in known.values():
        if row.parent not in known and row.parent != FIRST:
            raise NoLineage(row.pid, f"its parent {row.parent} is not there")
        if row.pid in session_of and session_of[row.pid] != row.session:
            raise NoLineage(row.pid, "others are in a session or a group of its that it is not in")
        if row.session == row.pid != row.group or session_of[row.group] != row.session:
            raise NoLineage(row.pid, f"its group {row.group} is in another session")
    for row in known.values():
        if len(list(itertools.islice(_forebears(known, row.pid), len(known) + 1))) > len(known):
            raise NoLineage(row.pid, "it descends from itself")


def _choices(known: Mapping[int, Relations]) -> Iterator[dict[int, int]]:
    """For each leader that may have had children before it was one: a session to be born into.

    That is the session of a child that is not in its own, or one that such a child may have been born into. 0 stands
    for any: such children came to it when their parents ended.
    """
    elders: dict[int, set[int]] = {}
    by_generation = sorted(known.values(), key=lambda row: -len(list(_forebears(known, row.pid))))
    for row in by_generation:   # children first
        parent = known.get(row.parent)
        if parent is not None and parent.session == parent.pid:
            maybe = {row.session} if row.session != row.pid else elders.get(row.pid, set())
            elders.setdefault(parent.pid, set()).update(maybe - {parent.pid})
    leaders = [row for row in reversed(by_generation) if elders.get(row.pid)]
    candidates = []
    for row in leaders:
        near = known[row.parent].session if row.parent in known else FIRST
        fit = [s for s in sorted(elders[row.pid], key=lambda s: s != near) if row.pid not in _forebears(known, s)]
        candidates.append([*fit, 0])
    for chosen in itertools.product(*candidates):
        yield dict(zip((row.pid for row in leaders), chosen, strict=True))


def _forebears(known: Mapping[int, Relations], pid: int) -> Iterator[int]:
    """A process and those above it as they are now, up to the pod's first."""
    while pid in known:
        yield pid
        pid = known[pid].parent


class _Descent:
    """Who begets whom, under one assumption on the sessions that leaders were born into."""

    def __init__(self, known: Mapping[int, Relations], born_into: Mapping[int, int],
                 tables: Mapping[int, Mapping[int, int]]) -> None:
        self.known = known
        self.tables = tables
        self.birth_session = {row.pid: row.session if row.session != row.pid else born_into.get(row.pid, 0)
                              for row in known.values()}
        self.heirs: dict[int, list[int]] = {}
        """For each session, the processes that must be above its leader: they got children of it."""
        for row in known.values():
            if not self._direct(row):
                self.heirs.setdefault(self.birth_session[row.pid], []).append(row.parent)
        self._born: list[int] = []
        self._above: dict[int, list[int]] = {FIRST: []}
        self._open: set[int] = set()

    def _direct(self, row: Relations) -> bool:
        """Whether its parent itself can have it in the right session."""
        session = self.birth_session[row.pid]
        if row.parent == FIRST:
            return session in (0, FIRST)
        return session in (0, self.known[row.parent].session, self.birth_session[row.parent])

    def creator(self, pid: int) -> int:
        """Who has it, or has the stand-in that has it."""
        return self.above(pid)[0]

    def above(self, pid: int) -> list[int]:
        """The processes above one, the nearest first."""
        if pid not in self._above:
            if pid in self._open:
                raise NoLineage(pid, "its session and its parent are each above the other")
            self._open.add(pid)
            creator = self._creator(pid)
            self._above[pid] = [creator, *self.above(creator)]
            self._open.discard(pid)
        return self._above[pid]

    def _creator(self, pid: int) -> int:
        row = self.known.get(pid)
        must = list(dict.fromkeys(self.heirs.get(pid, [])))
        if row is not None and not self._direct(row):
            chosen = self.birth_session[pid]
            must.append(row.parent)
        elif row is not None and self.birth_session[pid]:
            chosen = row.parent
        else:   # it may be born anywhere: below all that need it to be
            must += [row.parent] if row is not None else []
            chosen = max(must, key=lambda other: len(self.above(other)))
        for other in must:
            if other != chosen and other not in self.above(chosen):
                session = self.birth_session.get(pid) or pid
                raise NoLineage(pid, f"it is in session {session}, whose leader was not below process {other}")
        return chosen

    # -- the plan ---------------------------------------------------------------------------------
    def plan(self, avoid: Iterable[int]) -> Plan:
        leaders = [s for s in dict.fromkeys(self.birth_session.values()) if s not in (0, FIRST) and s not in self.known]
        by_generation = sorted(self.known, key=lambda pid: len(list(_forebears(self.known, pid))))
        for pid in by_generation:   # parents first: no deep recursion
            self.above(pid)
        depths = {pid: len(self.above(pid)) for pid in [*self.known, *leaders]}
        taken = {FIRST, *depths, *avoid, *(row.group for row in self.known.values())}
        plan = Plan(spare=(n for n in itertools.count(2) if n not in taken))
        below: dict[int, list[Birth]] = {pid: [] for pid in [FIRST, *depths]}
        ends: list[tuple[int, End]] = []
        for pid, depth in depths.items():
            creator, row = self.creator(pid), self.known.get(pid)
            maker, flags = self._maker(pid, creator, row)
            born = pid
            if row is not None and row.parent != creator:
                born = next(plan.spare)
                below.setdefault(born, []).append(Birth(pid, born, flags=flags))
            if born != pid or row is None:
                ends.append((depth, End(born, creator, row.parent if row is not None else FIRST)))
            below[maker].append(Birth(born, maker, beside=maker != creator, flags=flags))
        plan.births = list(self._in_order(below))
        plan.ends = [end for _, end in sorted(ends, key=lambda item: -item[0])]
        return plan

    def _maker(self, pid: int, creator: int, row: Relations | None) -> tuple[int, int]:
        """Who has it, so that it gets the tables that it shares, and the flags for that."""
        wanted = {flag: group[pid] for flag, group in self.tables.items() if pid in group}
        known = [flag for flag, table in wanted.items() if any(self._has(other, flag, table) for other in self._born)]
        self._born.append(pid)
        for maker in (creator, *self._born[:-1]):
            sibling = row is not None and maker in self.known and self.known[maker].parent == row.parent == creator
            if maker == creator or (sibling and self._is_near(pid, maker)):
                flags = [flag for flag in wanted if self._has(maker, flag, wanted[flag])]
                if flags == known:
                    return maker, sum(flags)
        raise NoLineage(pid, "it shares tables with processes that are neither its parent nor its siblings")

    def _has(self, pid: int, flag: int, table: int) -> bool:
        return self.tables[flag].get(pid) == table

    def _is_near(self, pid: int, sibling: int) -> bool:
        """Whether a sibling is, or was at its birth, in the session that a process is born into."""
        return self.birth_session[pid] in (0, self.known[sibling].session, self.birth_session[sibling])

    def _in_order(self, below: Mapping[int, list[Birth]]) -> Iterator[Birth]:
        """Creators first; of a session's leader, the children from before it was one first."""
        todo = list(reversed(below[FIRST]))
        while todo:
            birth = todo.pop()
            yield birth
            pid = birth.pid
            children = below.get(pid, [])
            if birth.leads:
                continue
            row = self.known.get(pid)
            leads = row.session == pid if row is not None else pid in self.heirs
            elders = [b for b in children if leads and self._is_elder(b.pid, pid)]
            todo += reversed([b for b in children if b not in elders])
            if leads:
                todo.append(Birth(pid, birth.creator, leads=True))
            todo += reversed(elders)

    def _is_elder(self, pid: int, leader: int) -> bool:
        """Whether a child of a leader must be born before the leader's setsid(2)."""
        return self.birth_session.get(pid, 0) not in (0, leader)
