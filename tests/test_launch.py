"""Starting agents: which command, which environment, and a child's output and end."""
from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from crhpc import errors, launch
from crhpc.channel import Channel
from crhpc.launch import Child, Peer, agent_command, agent_environment, launch_agents

AGENT = [sys.executable, "-P", "-m", "crhpc.agent"]


def test_mpiexec_of_the_environment_comes_first():
    assert agent_command({"CRHPC_MPIEXEC": "/opt/mpi/bin/mpiexec"}) == ["/opt/mpi/bin/mpiexec", "-n", "1", *AGENT]
    assert agent_command({"CRHPC_MPIEXEC": "'/my mpi/mpiexec' -launcher fork"}) == [
        "/my mpi/mpiexec", "-launcher", "fork", "-n", "1", *AGENT]


def test_no_launcher_means_one_agent_alone(monkeypatch, tmp_path):
    assert agent_command({"CRHPC_MPIEXEC": ""}) == AGENT
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert agent_command({"PATH": os.environ["PATH"]}) == [str(tmp_path / "python"), *AGENT[1:]]


def test_the_mpiexec_beside_python_is_found(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (tmp_path / "mpiexec").touch(mode=0o755)
    assert agent_command({}) == [str(tmp_path / "mpiexec"), "-n", "1", str(tmp_path / "python"), *AGENT[1:]]


def test_traces_of_an_outer_mpi_are_removed():
    outer = {"PMI_RANK": "3", "PMI_FD": "9", "PMI2_SIZE": "4", "PMIX_NAMESPACE": "x", "OMPI_COMM_WORLD_RANK": "3",
             "HYDRA_PROXY_PORT": "1", "HYDI_CONTROL_FD": "1", "MPI_LOCALRANKID": "0", "PRTE_LAUNCHED": "1"}
    users = {"PATH": "/bin", "OMPI_MCA_btl": "self,tcp", "UCX_TLS": "tcp", "PMIKE": "x", "HOME": "/root"}
    made = agent_environment({**outer, **users}, "name", "secret")
    assert {name: value for name, value in made.items() if name in users} == users
    assert not set(made) & set(outer)
    assert (made["CRHPC_SUPERVISOR"], made["CRHPC_SECRET"]) == ("name", "secret")
    assert made["HYDRA_LAUNCHER"] == "fork"
    assert made["OMPI_ALLOW_RUN_AS_ROOT"] == made["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] == "1"


def test_a_launcher_that_is_missing():
    with pytest.raises(errors.LaunchFailed, match=r"cannot start the agents with .*No such file") as caught:
        launch_agents({"CRHPC_MPIEXEC": "/nowhere/mpiexec"}, "name", "secret")
    assert caught.value.code == 69


def run(code: str, **more) -> Child:
    return Child([sys.executable, "-c", code], os.environ, **more)


def finish(child: Child) -> int | None:
    end = time.monotonic() + 60
    while child.drain() and time.monotonic() < end:
        child.wait(0.02)
    code = child.wait(max(0.0, end - time.monotonic()))
    child.close()
    return code


def test_both_outputs_are_kept_to_a_bound():
    child = run("import sys; print('x' * 100_000); print('the end', file=sys.stderr)")
    assert finish(child) == 0
    assert child.tail.endswith("the end")
    assert len(child.tail) <= 16 << 10


def test_shown_output_is_not_kept_for_later(capfd):
    child = run("print('seen')", echo=True)
    assert finish(child) == 0
    assert child.tail == ""
    assert capfd.readouterr().err == "seen\n"


def test_a_child_has_no_input_no_blocked_signals_and_its_own_session():
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
    try:
        child = run("import os, signal, sys\n"
                    "print(signal.pthread_sigmask(signal.SIG_BLOCK, []), repr(sys.stdin.read()), "
                    "os.getsid(0) == os.getpid(), "
                    "[n.name for n in signal.Signals if signal.getsignal(n) == signal.SIG_IGN])", session=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
    assert finish(child) == 0
    assert child.tail == "set() '' True ['SIGPIPE', 'SIGXFSZ']"   # Python's own doing, again


def test_ended_by_a_signal_is_negative():
    child = run("import time; time.sleep(60)")
    assert child.wait(0) is None
    child.kill(signal.SIGKILL)
    assert finish(child) == -signal.SIGKILL
    child.kill(signal.SIGKILL)   # its number may belong to another by now


def test_one_that_does_not_end_is_made_to(monkeypatch):
    child = run("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
                "print('ready', flush=True); time.sleep(60)", session=True)
    while "ready" not in child.tail:
        child.drain()
        time.sleep(0.01)
    start = time.monotonic()
    child.end(0.1)
    assert child.status == -signal.SIGKILL
    assert time.monotonic() - start < 30
    child.close()


def test_end_waits_for_one_that_is_about_to():
    child = run("import time; time.sleep(0.3)")
    child.end(30)
    assert child.status == 0
    child.close()


def test_a_peer_that_hangs_is_killed():
    ours, theirs = Channel.pair()
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    theirs.close()
    # A socketpair's credentials are those of its maker, so the child's are put in their place.
    peer = Peer(ours)
    os.close(peer._pidfd)
    peer._pidfd = os.pidfd_open(pid)
    peer.end(0.05)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    peer.end(0.05)
    ours.close()


def test_the_package_is_found_by_children_of_a_checkout(monkeypatch):
    root = os.path.dirname(os.path.dirname(launch.__file__))
    monkeypatch.setattr(launch.site, "getsitepackages", lambda: [root])
    assert launch.with_this_package({"PYTHONPATH": "/x"}) == {"PYTHONPATH": "/x"}
    monkeypatch.setattr(launch.site, "getsitepackages", lambda: ["/elsewhere"])
    assert launch.with_this_package({"PYTHONPATH": "/x"}) == {"PYTHONPATH": f"{root}:/x"}
    assert launch.with_this_package({}) == {"PYTHONPATH": root}


def test_the_agent_comes_up_within_an_allocation_that_has_no_srun():
    """With the mpiexec that agents are really started with, where this Python has one."""
    command = [word for word in agent_command({}) if word not in AGENT]
    allocation = {"SLURM_JOBID": "1", "SLURM_JOB_ID": "1", "SLURM_NNODES": "2", "SLURM_NODELIST": "n1,n2",
                  "SLURM_JOB_NODELIST": "n1,n2", "SLURM_TASKS_PER_NODE": "4(x2)", "PATH": "/nowhere"}
    child = Child([*command, sys.executable, "-c", "print('up')"], agent_environment(allocation, "", ""), session=True)
    try:
        assert finish(child) == 0
        assert child.tail == "up"
    finally:
        child.kill(signal.SIGKILL, group=True)
