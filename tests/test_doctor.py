"""What a machine allows: each row is really tried."""
from __future__ import annotations

import json
import os
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest

from crhpc import cli, doctor, tables
from crhpc.doctor import Finding

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("CRHPC_")}


@dataclass
class Capability:
    """As crhpc.kernel.probe has it."""

    name: str
    ok: bool
    needed: bool
    detail: str
    cure: str


@pytest.fixture
def kernel(monkeypatch):
    """A kernel that allows what a test says."""
    found: list[Capability] = []
    fake = types.ModuleType("crhpc.kernel.probe")
    fake.capabilities = lambda: found  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "crhpc.kernel.probe", fake)
    return found


def test_json(kernel, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("CRHPC_MPIEXEC", raising=False)
    kernel.append(Capability("user namespaces", True, True, "allowed", ""))
    code = cli.main(["doctor", "--json", "--dir", str(tmp_path)])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == {"system", "processor", "user namespaces", "checkpoint directory", "shared memory", "mpiexec",
                         "mpi4py"}
    assert all(set(row) == {"name", "ok", "needed", "detail", "cure"} for row in rows.values())
    assert rows["mpi4py"]["ok"], rows["mpi4py"]["detail"]
    assert os.uname().release in rows["system"]["detail"]
    assert code == (0 if all(row["ok"] or not row["needed"] for row in rows.values()) else 78)


def test_a_no_is_followed_by_its_cure(kernel, capsys):
    kernel.append(Capability("user namespaces", False, True, "EPERM", "ask for user.max_user_namespaces > 0"))
    assert cli.main(["doctor"]) == 78
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("user namespaces"))
    assert lines[at].split()[2:] == ["no", "EPERM"]
    assert lines[at + 1] == "    cure: ask for user.max_user_namespaces > 0"


def test_only_what_is_needed_counts(kernel, capsys):
    kernel.append(Capability("PAGEMAP_SCAN", False, False, "ENOTTY", "a kernel of 6.7 or later"))
    rows = [Finding("one", True, True, ""), *kernel]
    assert doctor.all_needed(rows)
    assert "no (optional)" in tables.capabilities(rows)[1]
    assert not doctor.all_needed([*rows, Finding("two", False, True, "")])


def test_processor(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Fast 9000\nflags\t\t: fpu sse4_2 avx2 xsave\n\n"
                    "processor\t: 1\nmodel name\t: Slow\nflags\t\t: fpu\n")
    row = doctor.processor(info)
    assert row.ok
    assert row.detail == "Fast 9000: sse4_2 avx2 xsave"
    info.write_text("model name\t: Old\nflags\t\t: fpu\n")
    assert not doctor.processor(info).ok
    assert doctor.processor().ok


def test_directory(tmp_path):
    there = doctor.writable(tmp_path / "a" / "b")
    assert "free" in there.detail
    assert not (tmp_path / "a").exists()
    nowhere = doctor.writable(Path("/proc/1/nothing"))
    assert (nowhere.ok, nowhere.needed) == (False, True)
    assert "--dir" in nowhere.cure


def test_shared_memory(tmp_path):
    assert doctor.shared_memory(tmp_path).ok
    row = doctor.shared_memory(tmp_path / "missing")
    assert (row.ok, row.needed) == (False, True)
    assert "mount a tmpfs" in row.cure


def test_mpi_is_tried_with_the_launcher_that_is_used(tmp_path):
    rows = doctor.mpi({**ENVIRONMENT, "CRHPC_MPIEXEC": str(tmp_path / "mpiexec")})
    assert [row.ok for row in rows] == [False, False]
    assert "No such file" in rows[1].detail
    launcher = tmp_path / "mpiexec"
    launcher.write_text(f'#!/bin/sh\nprintf "%s " "$@" > {tmp_path}/called\nshift 2\nexec "$@"\n')
    launcher.chmod(0o755)
    rows = doctor.mpi({**ENVIRONMENT, "CRHPC_MPIEXEC": str(launcher)})
    assert [row.ok for row in rows] == [True, True]
    assert (tmp_path / "called").read_text().startswith("-n 1 ")
    assert rows[1].detail


def test_no_mpi4py(tmp_path):
    (tmp_path / "mpi4py.py").write_text("raise ImportError('libmpi.so not found')")
    rows = doctor.mpi({**ENVIRONMENT, "CRHPC_MPIEXEC": "", "PYTHONPATH": str(tmp_path)})
    assert [row.ok for row in rows] == [False, False]
    assert rows[1].detail == "ImportError: libmpi.so not found"
