"""A job is killed in the middle, comes back, and ends with the same answer: ``make demo``.

Runs the heat equation of jobs/heat.py on 4 ranks without crhpc, then under ``crhpc run`` with a checkpoint
every two seconds; ends every process of that, crhpc's too, with SIGKILL; starts the same command line again;
and compares what both runs have written, bit for bit. Exit code 0 only if nothing differs.
"""
from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from mpis import JOBS, ROOT, mpich
from wholejob import Failed, Job

RANKS = 4
EVERY = 2


class Demo:
    """The two runs and what is said about them."""

    def __init__(self, place: Path, steps: int, seed: int) -> None:
        self.place = place
        self.steps = steps
        self.chance = random.Random(seed)
        self.mpi = mpich()
        self.step = 0

    def say(self, title: str, *lines: str) -> None:
        """One numbered step of the story, told when it has happened."""
        self.step += 1
        print(f"\n{self.step}. {title}", *(f"   {line}" for line in lines), sep="\n", flush=True)

    def command(self) -> list[str]:
        options = ["--size", "768", "--steps", str(self.steps), "--report", "25", "--pause", "6000"]
        return self.mpi.command(RANKS, self.mpi.python, JOBS / "heat.py", *options, "--output", "plate.bin")

    def reference(self) -> bytes:
        """What the job writes when nothing happens to it: its output, and the file of the whole plate."""
        place = self.place / "uninterrupted"
        place.mkdir()
        begun = time.monotonic()
        done = subprocess.run(self.command(), cwd=place, stdout=subprocess.PIPE, check=False,
                              env=os.environ | self.mpi.environment)
        if done.returncode:
            raise Failed(f"the job fails without crhpc too, with exit code {done.returncode}")
        self.say(f"{RANKS} ranks of jobs/heat.py without crhpc, for comparison",
                 f"ended after {time.monotonic() - begun:.1f} s, {lines_of(done.stdout)} lines of results")
        return done.stdout + (place / "plate.bin").read_bytes()

    def killed(self, job: Job) -> int:
        """Start the job under crhpc and end all of it. Returns: how many lines it had written."""
        running = job.run("--every", str(EVERY), "-v")
        job.wait_for_image(running)
        time.sleep(self.chance.uniform(0.2, 2.5))
        if running.poll() is not None:
            raise Failed(f"the job ended too early, with {running.poll()}; {running.said()}")
        moment = time.monotonic() - running.begun
        dead = running.kill_all()
        names = Counter(process.name for process in dead)
        images = [f"{Path(image['path']).name} ({image['state']})" for image in job.images()]
        written = lines_of(job.stdout.read_bytes())
        self.say(f"the same under `crhpc run --every {EVERY}`, killed after {moment:.1f} s", *shortened(running.news),
                 f"SIGKILL to all {len(dead)} processes at once, the job's and crhpc's:",
                 "    " + ", ".join(f"{count} {name}" for name, count in sorted(names.items())),
                 f"none is left; {written} lines of results were out; on disk: {', '.join(images)}")
        return written

    def resumed(self, job: Job) -> bytes:
        """The same command line again, to the end. Returns: what the job has written."""
        running = job.run("--every", str(EVERY), "-v")
        code = running.wait()
        output = job.stdout.read_bytes()
        self.say("the same command line again", *shortened(running.news),
                 f"ended after {time.monotonic() - running.begun:.1f} s with exit code {code}, "
                 f"{lines_of(output)} lines of results in all")
        if code or not running.resumed:
            raise Failed(f"the job was to be resumed and to end with 0; {running.said()}")
        return output + (job.place / "plate.bin").read_bytes()

    def compare(self, expected: bytes, found: bytes) -> bool:
        same = expected == found
        self.say("both runs compared: results and the file of the whole plate",
                 f"uninterrupted        {digest(expected)}",
                 f"killed and resumed   {digest(found)}",
                 f"{len(expected)} bytes, equal bit for bit" if same else "THEY DIFFER")
        return same

    def run(self) -> bool:
        """The whole story. Returns: whether the answers are equal."""
        expected = self.reference()
        place = self.place / "interrupted"
        place.mkdir()
        job = Job(self.command(), place, self.mpi.environment)
        try:
            self.killed(job)
            return self.compare(expected, self.resumed(job))
        finally:
            job.clean_up()


def shortened(lines: list[str]) -> list[str]:
    """The beginning and the end of what crhpc has said."""
    return lines if len(lines) <= 4 else [*lines[:3], f"... {len(lines) - 4} more", lines[-1]]


def lines_of(output: bytes) -> int:
    return output.count(b"\n")


def digest(content: bytes) -> str:
    return "sha256 " + hashlib.sha256(content).hexdigest()[:32]


def main() -> int:
    parser = argparse.ArgumentParser(description="A job is killed in the middle and gives the same answer.")
    parser.add_argument("--steps", type=int, default=1200, help="how long the job is (%(default)s)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6),
                        help="decides the moment of the kill (random)")
    options = parser.parse_args()
    place = ROOT / "demo-run"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(mode=0o700)
    print(f"crhpc demo, seed {options.seed}, in {place}", flush=True)
    try:
        return 0 if Demo(place, options.steps, options.seed).run() else 1
    except Failed as failure:
        print(f"\nthe demo failed: {failure}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
