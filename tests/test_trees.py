"""Process trees that chance has grown: checkpointed, killed, restarted, and the same as before.

Each tree is a list of steps that tests/tree.c does one by one in a pod: forks (also from a thread, beside the
parent, with another exit signal), sessions, groups, ends, child subreapers, waits, job control. The observer
compares the pod as /proc shows it; the processes themselves compare what they can ask of the kernel.

CRHPC_TEST_TREES=500 tries so many trees instead of a few; CRHPC_TEST_SEED brings a run again.
"""
from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import conftest
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from need import need
from pods import Subject, compile_program

TREES = int(os.environ.get("CRHPC_TEST_TREES", "12"))
_SIGNALS = (2, 6, 9, 10, 11, 13, 14, 25, 34)
_MOST = 40


@dataclass
class Growing:
    """The steps so far, and who can do more."""

    steps: list[str] = field(default_factory=list)
    running: list[int] = field(default_factory=lambda: [0])
    stopped: list[int] = field(default_factory=list)
    born: int = 1

    def do(self, operation: str, first: int, second: int) -> None:
        """One more step, by whom and with what the numbers choose; nothing where it can't be."""
        actor = self.running[first % len(self.running)]
        if operation in "fupt":
            if self.born >= _MOST or (operation == "p" and actor == 0):
                return
            self._add(actor, operation, self.born)
            self.running.append(self.born)
            self.born += 1
        elif operation in "xk":
            if actor:
                self._add(actor, operation, _SIGNALS[second % len(_SIGNALS)] if operation == "k" else second % 256)
                self.running.remove(actor)
        elif operation == "z":
            if actor:
                self._add(0, operation, actor)
                self.running.remove(actor)
                self.stopped.append(actor)
        elif operation == "c":
            if self.stopped:
                again = self.stopped.pop(second % len(self.stopped))
                self._add(0, operation, again)
                self.running.append(again)
        elif operation == "S":
            self._add(actor, operation, second % 4 > 0)
        else:
            self._add(actor, operation, second % self.born)

    def _add(self, actor: int, operation: str, argument: int) -> None:
        self.steps.append(f"{actor} {operation} {int(argument)}")


def grown(choices: list[tuple[str, int, int]]) -> str:
    """The argument of tests/tree.c for a list of choices."""
    growing = Growing()
    for choice in choices:
        growing.do(*choice)
    return ",".join(growing.steps) or "0 f 1"


_number = st.integers(0, 255)
_step = st.tuples(st.sampled_from("fffffuptsssgGxxxkSSrwzc"), _number, _number)
trees = st.lists(_step, min_size=5, max_size=45).map(grown)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need(shutil.which("gcc"), "there is no C compiler (gcc)")
    return compile_program(Path(__file__).with_name("tree.c"), tmp_path_factory.mktemp("trees") / "tree")


def comes_back(program: Path, steps: str) -> None:
    """Checkpointed and left running, then killed and restarted, twice."""
    with tempfile.TemporaryDirectory() as place:
        subject = Subject([str(program), steps], Path(place))
        try:
            subject.start()
            subject.checkpoint()
            subject.restart(subject.checkpoint(kill=True))
            subject.restart(subject.checkpoint(kill=True))
            subject.check()
        except BaseException:
            print(f"{steps}\n{subject.said()}")
            raise
        finally:
            subject.close()


@seed(int(conftest.SEED) if conftest.SEED.isdigit() else 0)
@settings(max_examples=TREES, deadline=None, database=None, print_blob=False,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=trees)
def test_any_tree_comes_back(tree: Path, steps: str) -> None:
    comes_back(tree, steps)


SHAPES = {
    "children born before and after a setsid": "0 f 1,1 f 2,1 s 0,1 f 3,2 f 4,3 s 0,3 f 5,0 f 6",
    "a group across siblings whose leader has ended": "0 f 1,1 G 0,0 f 2,0 f 3,2 g 1,3 g 1,1 x 0,0 r 0",
    "a group leader that went to another group": "0 f 1,1 G 0,0 f 2,2 g 1,0 f 3,3 G 0,1 g 3",
    "groups that lead each other": "0 f 1,0 f 2,1 G 0,2 G 0,0 f 3,0 f 4,3 g 1,4 g 2,1 g 2,2 g 1",
    "a session whose leader has ended": "0 f 1,1 s 0,1 f 2,1 f 3,2 f 4,1 x 0,0 r 0",
    "a daemon": "0 f 1,1 s 0,1 f 2,1 x 0,0 r 0",
    "orphans of several dead generations": "0 f 1,1 s 0,1 f 2,2 f 3,3 f 4,4 f 5,1 x 0,2 x 0,3 x 0,4 x 0,0 r 0",
    "an orphan in the session of a process that lives": "0 f 1,1 s 0,1 f 2,2 f 3,2 x 0,1 r 0",
    "orphans of a subreaper in other sessions": "0 S 1,0 f 1,1 s 0,1 f 2,2 f 3,1 x 0,2 x 0,0 r 0,0 r 0,0 s 0",
    "a leader with orphans of two sessions":
        "0 f 1,1 S 1,1 f 2,2 s 0,2 f 3,3 f 4,1 f 5,5 s 0,5 f 6,1 s 0,2 x 0,3 x 0,5 x 0,1 r 0,1 r 0,1 r 0",
    "a daemon with a child from before its session": "0 f 1,1 s 0,1 f 2,2 f 3,3 f 4,3 s 0,2 x 0,1 r 0",
    "a subreaper no more": "0 f 1,1 S 1,1 f 2,2 f 3,3 s 0,3 f 4,4 f 5,4 x 0,1 S 0,2 x 0,1 r 0,1 r 0,1 s 0",
    "zombies that led sessions and groups": "0 f 1,1 s 0,1 f 2,1 x 3,0 f 3,3 G 0,0 f 4,4 g 3,3 k 9",
    "zombies": "0 f 1,1 x 0,0 f 2,2 x 255,0 f 3,3 k 9,0 f 4,4 k 13,0 f 5,5 k 2,0 f 6,6 k 34,0 u 7,7 x 1,0 f 8",
    "stopped, known and not known": "0 f 1,0 f 2,0 f 3,0 f 4,0 z 1,0 z 2,0 w 2,0 z 3,0 c 3,0 z 4,0 w 4,0 c 4,0 w 4",
    "children of threads": "0 t 1,0 t 2,0 f 3,1 t 4,4 s 0,4 f 5,4 x 0,0 t 6,6 k 9",
    "siblings of the parent's making": "0 f 1,1 p 2,1 s 0,1 p 3,3 p 4,2 p 5,4 f 6,1 x 0",
    "another exit signal": "0 u 1,1 u 2,1 f 3,0 u 4,4 x 2,2 u 5,2 x 0",
    "deep": ",".join(f"{n} f {n + 1}" for n in range(50)),
    "wide": ",".join(f"0 f {n}" for n in range(1, 200)),
    "deep in sessions": ",".join(f"{n} f {n + 1},{n + 1} s 0" for n in range(25)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_this_tree_comes_back(tree: Path, shape: str) -> None:
    comes_back(tree, SHAPES[shape])
