"""Jobs that chance has made: processes with descriptors, mappings, signals, threads and timers of every sort.

Each job is a script that tests/random_job does step by step. It is run once without a checkpoint; then it is
checkpointed and left running, checkpointed and killed and restarted, twice. Every time an observer compares what /proc
shows, and at the end all processes report what they have, with the contents of memory, files and queues, and pending
signals: the report must be the same as the first one.

CRHPC_TEST_HOURS=1 goes on for an hour; without it there are a few examples. CRHPC_TEST_SCRIPT='...' runs one script,
as a failure prints it; hypothesis has made it as short as it can be by then. CRHPC_TEST_SEED brings a run again.
"""
from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import conftest
import pytest
from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st
from need import need
from pods import Subject, compile_program

from crhpc.errors import Unsupported

HOURS = float(os.environ.get("CRHPC_TEST_HOURS", "0"))
EXAMPLES = 20
SCRIPT = os.environ.get("CRHPC_TEST_SCRIPT")
# The letters of tests/random_job: the more often one is here, the more often it is in a script. The first is nothing,
# which is what a failing script is shrunk to.
_NOTHING = "-"
_LETTERS = _NOTHING + ("ffFxzttgjyyy" "ppooooMeESPlllwwwwrrdddcCCCC" "uuuBBnnnaasssssRRRqqhO" "mmmmmmvvvvvvvV"
                       "bAAkkkkiII")
_ENDED = "one that has ended"
_byte = st.integers(0, 255)
_step = st.tuples(st.sampled_from(_LETTERS), st.integers(0, 7), _byte, _byte, _byte)
scripts = st.lists(_step, min_size=25, max_size=120).map(
    lambda steps: ",".join(".".join(map(str, step)) for step in steps if step[0] != _NOTHING))
outcomes: Counter[str] = Counter()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need(shutil.which("gcc"), "there is no C compiler (gcc)")
    source = Path(__file__).with_name("random_job") / "random_job.c"
    return compile_program(source, tmp_path_factory.mktemp("random") / "random_job")


def report(subject: Subject) -> list[str]:
    """What the processes tell of themselves in the end."""
    subject.check()
    said = subject.out.read_text(encoding="utf-8", errors="replace")
    assert said.endswith("done\n"), said
    return said.partition("ready\n")[2].splitlines()


def undisturbed(program: Path, script: str) -> list[str]:
    """The report of a job to which nothing happens."""
    with tempfile.TemporaryDirectory() as place:
        subject = Subject([str(program), script], Path(place))
        try:
            subject.start()
            return report(subject)
        finally:
            subject.close()


def comes_back(program: Path, script: str) -> None:
    """As it was, for the observer and by its own report, or it is refused and goes on undisturbed."""
    expected = undisturbed(program, script)
    with tempfile.TemporaryDirectory() as place:
        subject = Subject([str(program), script], Path(place))
        try:
            subject.start()
            try:
                subject.checkpoint()
                subject.restart(subject.checkpoint(kill=True))
                subject.restart(subject.checkpoint(kill=True))
                outcomes["restarted"] += 1
            except Unsupported as refused:
                outcomes[f"refused: {refused.fields['what']}"] += 1
            same(expected, report(subject))
        except BaseException as error:
            print(f"CRHPC_TEST_SCRIPT='{script}'\n{error!r}"[:3000])
            raise
        finally:
            subject.close()


def _with_ends(expected: str, got: str) -> str:
    pairs = zip(expected.split(" "), got.split(" "), strict=False)
    return " ".join(a if (a, b) == ("?", "b93a0c83") else b for a, b in pairs) if " memory " in got else got


def same(expected: list[str], got: list[str]) -> None:
    """But for two things that docs/kinds.md tells of.

    Nobody can be a process again that has ended; and a private mapping of a file without a name comes back as anonymous
    memory, with zeros (b93a0c83) behind what was the file's end.
    """
    got = [_with_ends(a, b) for a, b in zip(expected, got, strict=False)] + got[len(expected):]
    forgotten = [re.sub(r" of (\d+)", f" of {_ENDED}", b) if _ENDED in a else b
                 for a, b in zip(expected, got, strict=False)]
    expected = [re.sub(r" of (\d+)", f" of {_ENDED}", a) if _ENDED in a else a for a in expected]
    differ = [f"{a!r} -> {b!r}" for a, b in zip(expected, forgotten, strict=False) if a != b]
    assert not differ, "the report differs: " + "; ".join(differ)
    assert len(expected) == len(got)


def test_any_job_comes_back(program: Path) -> None:
    if SCRIPT:
        comes_back(program, SCRIPT)
        return
    number = int(conftest.SEED) if conftest.SEED.isdigit() else 0
    end = time.monotonic() + HOURS * 3600
    while True:
        _some(program, number)
        print(f"up to seed {number}: {dict(outcomes.most_common())}", flush=True)
        number += 1
        if time.monotonic() > end:
            break


def _some(program: Path, number: int) -> None:
    @seed(number)
    @settings(max_examples=EXAMPLES, deadline=None, database=None, print_blob=False,
              suppress_health_check=list(HealthCheck))
    @given(script=scripts)
    def one(script: str) -> None:
        note(f"CRHPC_TEST_SCRIPT='{script}'")
        comes_back(program, script)

    one()
