"""What can't be saved, and checkpoints that fail: one line, and the job never notices."""
from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from heatrun import Answer, HeatRun
from need import need
from wholejob import NewJob, interrupt_and_resume, wait_until

# Holds something that can't be saved until it is told to end, and finds it unharmed.
HOLDING = """
import ctypes, os, signal, socket, sys
{setup}
print("ready", flush=True)
signal.signal(signal.SIGTERM, lambda number, frame: None)
signal.pause()
{check}
print("unharmed", flush=True)
"""

pytestmark = pytest.mark.shared

OUTSIDE = {"setup": "sock = socket.create_connection(('127.0.0.1', {port}))",
           "check": "sock.sendall(b'still there'); assert sock.recv(20) == b'indeed'"}
RING = {"setup": "ring = ctypes.CDLL(None).syscall(425, 8, bytes(120))\nassert ring >= 0",
        "check": "assert ctypes.CDLL(None).syscall(426, ring, 0, 0, 0, 0, 0) == 0"}

# Starts and reaps processes all the time, and counts them in a file.
SPAWNING = """
i=0
while [ $i -lt {count} ]; do
    /bin/true & /bin/true
    wait
    i=$((i + 1))
    echo $i
done
"""


def refused(crhpc: NewJob, program: str, told: Callable[[str], bool]) -> None:
    """Run the program; it is warned of early, no checkpoint is taken, it goes on and is whole."""
    job = crhpc([sys.executable, "-c", program])
    running = job.run("--every", "0")
    job.wait_for_output(running, len("ready"))
    wait_until(lambda: "checkpoints will fail" in running.log, 20, running.said)
    assert told(running.news[-1]), running.said()
    for stop in ([], ["--stop"]):
        done = job.ask("checkpoint", str(job.directory), *stop)
        assert done.returncode == 78
        assert len(done.stderr.splitlines()) == 1
        assert told(done.stderr), done.stderr
        assert "Cure: " in done.stderr
    assert job.newest() == 0
    assert [path.name for path in job.directory.iterdir() if path.is_dir()] == []
    running.send(15)
    assert running.wait() == 0, running.said()
    assert job.stdout.read_text() == "ready\nunharmed\n"


def test_a_connection_that_leaves_the_job(crhpc: NewJob) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        setup = OUTSIDE["setup"].replace("{port}", str(port))

        def told(line: str) -> bool:
            if "still open" not in line and server.gettimeout() is None:
                server.settimeout(20)
                peer, _ = server.accept()
                peers.append(peer)
                peer.sendall(b"indeed")
            return f"127.0.0.1:{port} outside the job of pid 2 (python" in line

        peers: list[socket.socket] = []
        refused(crhpc, HOLDING.format(setup=setup, check=OUTSIDE["check"]), told)
        assert peers[0].recv(20) == b"still there"
        peers[0].close()


def test_a_kind_of_file_that_nobody_knows(crhpc: NewJob) -> None:
    probe = subprocess.run([sys.executable, "-c", "import ctypes\n" + RING["setup"]], capture_output=True, check=False)
    need(probe.returncode == 0, "io_uring is not allowed here")
    refused(crhpc, HOLDING.format(**RING), lambda line: "[io_uring]" in line and "of pid 2 (python" in line)


def small_file_system(directory: Path, size: str, script: str = "true") -> list[str]:
    """A command under which a directory is a file system of so many bytes."""
    unshare = ["unshare", *([] if os.getuid() == 0 else ["-U", "-r"]), "-m"]
    allowed = subprocess.run([*unshare, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)
    need(allowed.returncode == 0, "no new mount namespace is allowed here")
    directory.mkdir(mode=0o700)
    return [*unshare, "sh", "-c", f'mount -t tmpfs -o size={size},mode=700 tmpfs "$0" && {script}; exec "$@"',
            str(directory)]


def test_a_full_disk(short_run: HeatRun, short_answer: Answer, crhpc: NewJob) -> None:
    job = crhpc(short_run.argv, short_run.mpi.environment)
    running = job.run("--every", "1", "-v", under=small_file_system(job.directory, "2m"))
    code = running.wait()
    assert short_answer.differences(Answer.read(job.place, job.stdout)) == []
    assert code == 0, running.said()
    full = [line for line in running.news if "is full" in line and "the job goes on" in line]
    assert len(full) == 1, running.said()   # said once, though it happened several times


def test_a_disk_that_is_full_for_a_while(crhpc: NewJob, tmp_path: Path) -> None:
    directory = tmp_path / "job0" / "checkpoints"
    job = crhpc(["sh", "-c", "sleep 3; rm $0/filler; sleep 4; ls $0", str(directory)])
    filler = f"{{ head -c 65400K /dev/zero > {directory}/filler 2>/dev/null; true; }}"
    running = job.run("--every", "1", "-v", under=small_file_system(directory, "64m", filler))
    assert running.wait() == 0, running.said()
    assert any("is full" in line for line in running.news)
    assert any(line.startswith("crhpc: checkpoint ") for line in running.news), running.said()
    assert "ckpt-" in job.stdout.read_text()


def test_processes_come_and_go_all_the_time(crhpc: NewJob, chance: random.Random) -> None:
    """Tasks that end, or begin, in the middle of a checkpoint; first undisturbed, then killed on the way."""
    expected = "".join(f"{number}\n" for number in range(1, 1501))
    script = SPAWNING.format(count=1500)
    job = crhpc(["sh", "-c", script])
    running = job.run("--every", "0.3", "-v")
    assert running.wait() == 0, running.said()
    assert job.stdout.read_text() == expected
    assert job.newest() >= 3, running.said()
    job = crhpc(["sh", "-c", script])
    code, _ = interrupt_and_resume(job, chance, "--every", "0.3", "-v", kills=2, spread=0.5)
    assert job.stdout.read_text() == expected
    assert code == 0


def processor_seconds(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def test_crhpc_costs_nothing_between_checkpoints(crhpc: NewJob) -> None:
    job = crhpc(["sleep", "60"])
    running = job.run("--every", "1h")
    wait_until(lambda: any(process.name == "sleep" for process in running.tree().values()), 30, running.said)
    time.sleep(5)   # the start, and the look at the job that follows it
    ours = [pid for pid, process in running.tree().items() if process.name != "sleep"]
    assert len(ours) >= 4
    before, begun = processor_seconds(ours), time.monotonic()
    time.sleep(8)
    share = (processor_seconds(ours) - before) / (time.monotonic() - begun)
    running.kill_all()
    assert share < 0.005, f"{share:.2%} of a core"


@pytest.mark.parametrize("every", ["1"])
def test_a_job_that_ends_while_it_is_saved(crhpc: NewJob, every: str) -> None:
    for number in range(5):
        job = crhpc(["sh", "-c", f"sleep 1.0{number}; exit 3"])
        running = job.run("--every", every)
        assert running.wait() == 3, running.said()
