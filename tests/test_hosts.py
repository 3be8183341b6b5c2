"""Lists of hosts, by the user and by batch systems."""
from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crhpc import hosts
from crhpc.errors import Usage
from crhpc.hosts import Host


@pytest.mark.parametrize(("text", "found"), [
    ("node1", [Host("node1")]),
    ("node2,node1", [Host("node2"), Host("node1")]),
    ("node[3-5],login", [Host("node3"), Host("node4"), Host("node5"), Host("login")]),
    ("node[01-02]:4, other:1", [Host("node01", 4), Host("node02", 4), Host("other", 1)]),
    ("n1-[1,3]-ib0", [Host("n1-1-ib0"), Host("n1-3-ib0")]),
    ("10.0.0.1:2,10.0.0.2", [Host("10.0.0.1", 2), Host("10.0.0.2")]),
])
def test_lists(text, found):
    assert hosts.parse(text) == found


@pytest.mark.parametrize("text", ["node1,node1", "node[1-3],node2", "node1:two", "node[1-", "node[3-1]"])
def test_lists_that_make_no_sense(text):
    with pytest.raises(Usage, match="Cure: "):
        hosts.parse(text)


@given(st.lists(st.tuples(st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True), st.integers(0, 99)),
                unique_by=lambda pair: pair[0], min_size=1))
def test_what_is_listed_is_found_in_its_order(pairs):
    text = ",".join(name if not slots else f"{name}:{slots}" for name, slots in pairs)
    assert [(host.name, host.slots) for host in hosts.parse(text)] == pairs


def test_a_host_file(tmp_path: Path):
    path = tmp_path / "hosts"
    path.write_text("# the cluster\nnode1 slots=2\nnode2:3   # fast\n\nnode3\nnode4\nnode4\n")
    assert hosts.read_file(path) == [Host("node1", 2), Host("node2", 3), Host("node3"), Host("node4", 2)]


def test_a_host_file_that_makes_no_sense(tmp_path: Path):
    with pytest.raises(Usage, match="cannot read"):
        hosts.read_file(tmp_path / "none")
    (tmp_path / "bad").write_text("node1 slots=many\n")
    with pytest.raises(Usage, match="makes no sense"):
        hosts.read_file(tmp_path / "bad")


def test_slurm():
    found = hosts.allocation({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[3-4],a1",
                              "SLURM_TASKS_PER_NODE": "2(x2),1"})
    assert found == hosts.Allocation("slurm", "7", (Host("n3", 2), Host("n4", 2), Host("a1", 1)))
    found = hosts.allocation({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n3"})
    assert found is not None
    assert found.hosts == (Host("n3"),)


def test_pbs(tmp_path: Path):
    (tmp_path / "nodes").write_text("n1\nn1\nn2\nn2\nn3\n")
    found = hosts.allocation({"PBS_JOBID": "8.server", "PBS_NODEFILE": str(tmp_path / "nodes")})
    assert found == hosts.Allocation("pbs", "8.server", (Host("n1", 2), Host("n2", 2), Host("n3", 1)))


def test_lsf(tmp_path: Path):
    found = hosts.allocation({"LSB_JOBID": "9", "LSB_MCPU_HOSTS": "h1 4 h2 2"})
    assert found == hosts.Allocation("lsf", "9", (Host("h1", 4), Host("h2", 2)))
    (tmp_path / "hosts").write_text("h1\nh1\nh2\n")
    found = hosts.allocation({"LSB_JOBID": "9", "LSB_DJOB_HOSTFILE": str(tmp_path / "hosts")})
    assert found == hosts.Allocation("lsf", "9", (Host("h1", 2), Host("h2", 1)))


def test_grid_engine(tmp_path: Path):
    (tmp_path / "pe").write_text("h1 4 all.q@h1 UNDEFINED\nh2 2 all.q@h2 UNDEFINED\n")
    found = hosts.allocation({"JOB_ID": "10", "PE_HOSTFILE": str(tmp_path / "pe")})
    assert found == hosts.Allocation("sge", "10", (Host("h1", 4), Host("h2", 2)))


@pytest.mark.parametrize("environment", [
    {}, {"SLURM_JOB_NODELIST": ""}, {"PBS_NODEFILE": "/nonexistent"}, {"LSB_MCPU_HOSTS": "h1"},
    {"PE_HOSTFILE": "/nonexistent"}, {"SLURM_JOB_NODELIST": "n[1-"}])
def test_no_allocation(environment):
    assert hosts.allocation(environment) is None


def test_this_host_is_found_by_name_and_by_address():
    here = socket.gethostname()
    assert hosts.index_of_this([Host("elsewhere.invalid"), Host(here)]) == 1
    assert hosts.index_of_this([Host("192.0.2.77"), Host("127.0.0.1")]) == 1
    assert hosts.index_of_this([Host("192.0.2.77")]) is None
    assert hosts.index_of_this([Host("no.such.host.invalid")]) is None
