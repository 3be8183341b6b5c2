"""What people read of status, list and doctor."""
from __future__ import annotations

from crhpc import tables

STATUS = {
    "job": {"id": "0123456789abcdef", "argv": ["mpirun", "./my app"], "cwd": "/work", "started": 1000.0},
    "directory": "/images", "supervisor": {"host": "n1", "pid": 77}, "every": 60.0, "keep": 2, "running": True,
    "resumed_from": None, "verified": 5,
    "last": {"number": 5, "time": 2000.0, "frozen": 0.012, "seconds": 0.8, "bytes": 210 << 20, "stored": 43 << 20},
    "agents": {"pods": [{"node": 0, "host": "n1\x1b", "tasks": [
        {"pid": 2, "host_pid": 4711, "program": "mpirun", "threads": 3},
        {"pid": 10, "host_pid": 4720, "program": "app\x1b[2J", "threads": 1}]}],
        "next": 30.0, "checkpointing": False, "last": None},
}


def of(**changes) -> list[str]:
    return tables.status({**STATUS, **changes}, now=2012.0)


def test_status():
    lines = of()
    assert lines[0] == "job              01234567, mpirun './my app'"
    assert "last checkpoint  5, 12 s ago, verified" in lines
    assert "it took          frozen 12 ms, written in 0.8 s, 210 MiB saved as 43 MiB" in lines
    assert "next             in 30 s" in lines
    assert lines[-4:] == ["node 0 (n1?): 2 processes",
                          "  pid  host pid  threads  program",
                          "  2    4711      3        mpirun",
                          "  10   4720      1        app?[2J"]


def test_status_of_a_job_that_is_not_safe_yet():
    assert "last checkpoint  none yet" in of(last=None)
    assert "last checkpoint  5, 12 s ago, not verified yet" in of(verified=4)
    assert "state            being started" in of(running=False, agents=None, last=None)
    assert of(agents=None)[-1] == "the agents are busy and did not answer in time"
    assert any("resumed from ckpt-000004" in line for line in of(resumed_from="ckpt-000004"))


def test_next():
    def next_of(**changes) -> str:
        return next(line for line in of(**changes) if line.startswith("next")).split(maxsplit=1)[1]
    assert next_of(agents={"checkpointing": True, "next": None}) == "under way"
    assert next_of(agents={"next": -1.0}) == "in 0.0 ms"
    assert next_of(agents=None) == "every 60 s"
    assert next_of(agents=None, every=None) == "on request"


def test_images():
    entry = {"number": 3, "path": "x", "taken": None, "size": None, "tasks": None, "job": None, "state": "damaged"}
    whole = entry | {"number": 12, "taken": 0.0, "size": 1 << 20, "tasks": 4, "job": "abcdefghij", "state": "ok"}
    lines = tables.images([entry, whole])
    assert lines[0].split() == ["number", "taken", "size", "tasks", "job", "state"]
    assert lines[1].split() == ["3", "-", "-", "-", "-", "damaged"]
    assert lines[2].split()[-5:] == ["1.0", "MiB", "4", "abcdefgh", "ok"]


def test_aligned_rows_have_no_trailing_blanks():
    assert tables.aligned([("a", "b"), ("long", "")]) == ["a     b", "long"]
    assert tables.aligned([]) == []
