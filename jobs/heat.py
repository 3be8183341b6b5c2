"""Heat spreading over a square plate: jobs/heat.c once more, with mpi4py and numpy.

::

    mpirun -n 4 python heat.py [--size N] [--steps N] [--report N] [--pause MICROSECONDS]
                               [--output FILE] [--log FILE]

Needs no compiler, and prints the same bytes as the program in C: every sum of floating-point numbers is
made in the same fixed order, everything else is reduced exactly.
"""
from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TextIO

import numpy as np
from mpi4py import MPI

WORLD = MPI.COMM_WORLD


class Block:
    """One rank's share of the plate: rows [first, last), with a ghost row above and below."""

    def __init__(self, size: int) -> None:
        self.size, self.rank, self.ranks = size, WORLD.rank, WORLD.size
        if self.ranks > size:
            raise SystemExit("heat: more ranks than rows: --size is too small")
        self.first, self.last = self.rows_of(self.rank)
        i = np.arange(self.first, self.last).reshape(-1, 1)
        j = np.arange(size)
        self.now = np.zeros((self.last - self.first + 2, size))
        self.now[1:-1] = ((i * 31 + j * 17) % 101) / 101.0
        self.next = self.now.copy()

    def rows_of(self, rank: int) -> tuple[int, int]:
        return rank * self.size // self.ranks, (rank + 1) * self.size // self.ranks

    def exchange(self, step: int) -> None:
        """The neighbours' edge rows, by both of MPI's usual ways in turn."""
        up = self.rank - 1 if self.rank else MPI.PROC_NULL
        down = self.rank + 1 if self.rank + 1 < self.ranks else MPI.PROC_NULL
        if step % 2:
            WORLD.Sendrecv(self.now[1], up, 1, self.now[-1], down, 1)
            WORLD.Sendrecv(self.now[-2], down, 2, self.now[0], up, 2)
        else:
            MPI.Request.Waitall([
                WORLD.Irecv(self.now[0], up, 3), WORLD.Irecv(self.now[-1], down, 4),
                WORLD.Isend(self.now[-2], down, 3), WORLD.Isend(self.now[1], up, 4)])

    def advance(self) -> None:
        """One time step; the plate's edge keeps its temperature."""
        top = 2 if self.first == 0 else 1
        end = -2 if self.last == self.size else -1
        u = self.now[top:end, 1:-1]
        across = self.now[top:end, :-2] + self.now[top:end, 2:]
        along = self.now[top - 1:end - 1, 1:-1] + self.now[top + 1:end + 1 or None, 1:-1]
        self.next[top:end, 1:-1] = u + 0.2 * ((along + across) - 4.0 * u)
        self.now, self.next = self.next, self.now

    def travelled_checksum(self) -> int:
        """A sum over the bits of all cells, each weighted with its place: exact in any order.

        Taken of each block after it has travelled to the next rank, so that a large message that arrives
        damaged shows in the result.
        """
        source = (self.rank - 1) % self.ranks
        first, last = self.rows_of(source)
        visitor = np.empty((last - first, self.size))
        WORLD.Sendrecv(self.now[1:-1], (self.rank + 1) % self.ranks, 5, visitor, source, 5)
        place = np.arange(first * self.size, last * self.size, dtype=np.uint64)
        mine = np.sum(visitor.view(np.uint64).ravel() * (place * np.uint64(2) + np.uint64(1)), keepdims=True)
        total = np.empty_like(mine)
        WORLD.Allreduce(mine, total, MPI.SUM)
        return int(total[0])

    def heat(self) -> float:
        """All heat on the plate, summed in the order of the ranks; on rank 0."""
        # cumsum adds one number after the other, as the program in C does; sum would add pairwise.
        mine = np.cumsum(self.now[1:-1])[-1:]
        parts = np.empty(self.ranks)
        WORLD.Gather(mine, parts, 0)
        return float(np.cumsum(parts)[-1])

    def change(self) -> float:
        """The largest change of a cell in the last step."""
        mine = np.max(np.abs(self.now[1:-1] - self.next[1:-1]), keepdims=True).ravel()
        largest = np.empty_like(mine)
        WORLD.Allreduce(mine, largest, MPI.MAX)
        return float(largest[0])

    def write(self, path: Path) -> None:
        """The whole plate into a file, by rank 0."""
        blocks = WORLD.gather(self.now[1:-1], 0)
        if blocks is not None:
            path.write_bytes(b"".join(block.tobytes() for block in blocks))


def report(block: Block, step: int, log: TextIO | None) -> None:
    change, heat, checksum = block.change(), block.heat(), block.travelled_checksum()
    if block.rank == 0:
        print(f"step {step} change {change:.17g} heat {heat:.17g} checksum {checksum:016x}", flush=True)
        if log is not None:
            print(f"step {step} checksum {checksum:016x}", file=log, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Heat spreading over a square plate.")
    parser.add_argument("--size", type=int, default=512, help="rows and columns of the plate")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--report", type=int, default=50, help="print results every so many steps")
    parser.add_argument("--pause", type=int, default=0, help="microseconds of sleep per step")
    parser.add_argument("--output", type=Path, help="file for the whole plate, written at the end")
    parser.add_argument("--log", type=Path, help="file to which a line is added with every report")
    return parser.parse_args()


def main() -> None:
    options = parse()
    block = Block(options.size)
    log = options.log.open("a") if options.log is not None and block.rank == 0 else None
    for step in range(1, options.steps + 1):
        block.exchange(step)
        block.advance()
        if step % options.report == 0:
            report(block, step, log)
        if options.pause:
            time.sleep(options.pause / 1e6)
    if block.rank == 0:
        print(f"after {options.steps} steps:")
    report(block, options.steps, log)
    if options.output is not None:
        block.write(options.output)
    if log is not None:
        log.close()
    leave(block.ranks)


def leave(ranks: int) -> None:
    """All pairs of ranks have talked, all are here, and what is under way arrives: see leave.h."""
    words = np.zeros((2, ranks), dtype=np.int32)
    WORLD.Alltoall(words[0], words[1])
    WORLD.Barrier()
    time.sleep(0.1)


if __name__ == "__main__":
    main()
