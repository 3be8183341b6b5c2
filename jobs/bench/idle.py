"""What crhpc takes from a job between two checkpoints: cores, memory, and the job's own speed.

Run it on a quiet machine, with the checkout or an installed crhpc on the path::

    python jobs/bench/idle.py [--seconds 60] [--repeat 3] [--mib 2048]

First a job of jobs/heat.c runs with crhpc and without it in turns, and the best of each counts; then the cores' time of
every process of crhpc is read from /proc over a minute; then a process that holds 2 GiB is checkpointed with the
default of 256 MiB for pages in flight, and the agent's peak of memory is read.
"""
from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from held import MIB, Case
from mpis import JOBS, mpich
from wholejob import Job, Running, wait_until

_TICKS = os.sysconf("SC_CLK_TCK")


def ours(running: Running) -> dict[int, str]:
    """The processes of crhpc itself, by what they are: the supervisor, the launcher's, the agent, a pod's first."""
    found = {running.pid: "supervisor"}
    for pid in running.tree():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        for word, name in ((b"crhpc.agent", "agent"), (b"crhpc.engine.init", "pod's first process")):
            if word in words:
                found[pid] = name if Path(words[0].decode()).name.startswith("python") else "launcher"
    return found


def seconds_of_cores(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / _TICKS


def peak(pid: int) -> int:
    """Most memory that a process ever had, in MiB."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) >> 10


def speed(place: Path, heat: Path, repeat: int) -> None:
    """The same job with crhpc and without it."""
    argv = mpich().command(2, heat, "--size", "1000", "--steps", "3000", "--report", "1000000", "--pause", "0",
                           "--output", "plate", "--log", "log")
    alone, under = [], []
    for i in range(repeat):
        start = time.monotonic()
        subprocess.run(argv, cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
        alone.append(time.monotonic() - start)
        (place / f"job{i}").mkdir()
        running = Job(argv, place / f"job{i}").run("--every", "0")
        wait_until(lambda running=running: "started" in running.log, 60, running.said)
        start = time.monotonic()
        running.wait()
        under.append(time.monotonic() - start)
    print(f"a job of 2 ranks: {min(alone):.2f} s alone, {min(under):.2f} s with crhpc: {min(under) / min(alone):.3f}")


def idle(place: Path, heat: Path, seconds: float) -> None:
    """Cores of crhpc's processes while a job runs."""
    place.mkdir()
    job = Job(mpich().command(4, heat, "--size", "256", "--steps", "100000000", "--report", "1000000",
                              "--pause", "1000", "--output", "plate", "--log", "log"), place)
    try:
        running = job.run("--every", "0")
        time.sleep(8)   # the look at the job is over by then
        found = ours(running)
        before = {pid: seconds_of_cores(pid) for pid in found}
        time.sleep(seconds)
        spent = {pid: seconds_of_cores(pid) - before[pid] for pid in found}
        for pid, name in found.items():
            print(f"{name}: {100 * spent[pid] / seconds:.2f} % of a core in {seconds:.0f} s, at most {peak(pid)} MiB")
        print(f"together: {100 * sum(spent.values()) / seconds:.2f} %; limit 0.5 %")
    finally:
        job.clean_up()


def memory(place: Path, size: int) -> None:
    """The agent's peak with a large job."""
    place.mkdir()
    case = Case(size, 1, "doubles")
    job = Job([sys.executable, str(Path(__file__).with_name("held.py")), *case.words()], place)
    try:
        running = job.run("--every", "0")
        wait_until(lambda: job.stdout.exists() and b"ready" in job.stdout.read_bytes(), 120, running.said)
        agent = next(pid for pid, name in ours(running).items() if name == "agent")
        before = peak(agent)
        done = job.ask("checkpoint", str(job.directory))
        print(f"{done.stdout.strip().partition(':')[2].strip() or done.stderr}\n"
              f"agent: {before} MiB at most before, {peak(agent)} MiB with a checkpoint of {size // MIB} MiB")
    finally:
        job.clean_up()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--mib", type=int, default=2048)
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="crhpc-bench-", dir="/var/tmp") as name:
        place = Path(name)
        heat = mpich().compile(JOBS / "heat.c", place / "heat")
        speed(place, heat, options.repeat)
        idle(place / "idle", heat, options.seconds)
        memory(place / "memory", options.mib * MIB)


if __name__ == "__main__":
    main()
