"""How much of private memory goes into an image, and how it is found."""
from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from need import need
from pods import PROGRAMS, Subject, compile_program

from crhpc.image.reader import Image
from crhpc.kernel import proc
from crhpc.kernel.libc import PAGE
from crhpc.resources import families

MEMORY = 6 << 20
"""Of tests/programs/copy_on_write.c: a fourth of it is changed by the child, another by the grandchild."""


@pytest.fixture
def family(tmp_path):
    need(shutil.which("gcc"), "there is no C compiler (gcc)")
    subject = Subject([str(compile_program(PROGRAMS / "copy_on_write.c", tmp_path / "copy_on_write"))], tmp_path)
    yield subject
    subject.close()


def _stored(image: Path) -> int:
    with Image(image) as opened:
        (shard,) = opened.nodes
        summary = shard.summary
        assert summary.rows - summary.dead_rows <= summary.rows
        return (summary.rows - summary.dead_rows) * PAGE


_ROOTS = pytest.param(True, marks=pytest.mark.skipif(os.getuid() != 0, reason="only root sees frames"))


@pytest.mark.parametrize("frames", [_ROOTS, False], ids=["frames", "compared"])
def test_pages_that_relatives_share_are_stored_once(family, monkeypatch, frames):
    """Three processes with 6 MiB each, of which there are 9 in all; by frames as root sees them, or by contents."""
    if not frames:
        monkeypatch.setattr(families, "_FRAME", np.uint64(0))
    family.start()
    image = family.checkpoint(kill=True)
    assert MEMORY * 3 / 2 <= _stored(image) < MEMORY * 3 / 2 + (2 << 20)
    family.restart(image)
    family.check()


@pytest.mark.parametrize("frames", [_ROOTS, False], ids=["frames", "compared"])
def test_what_relatives_share_they_share_after_a_checkpoint(family, monkeypatch, frames):
    """Reading must not give each its own copy, in the job."""
    if not frames:
        monkeypatch.setattr(families, "_FRAME", np.uint64(0))
    family.start()
    before = _resident(family)
    family.checkpoint()
    after = _resident(family)
    assert after < before + (1 << 20), "the job takes more memory than before the checkpoint"
    assert before < 3 * MEMORY, "they did not share anything"
    family.check()


def _resident(subject: Subject) -> int:
    """Bytes of memory of all processes of a pod together (Pss, proc(5))."""
    rollups = [proc.read(f"/proc/{host}/smaps_rollup") for host in proc.descendants(subject.node.pod.pid)]
    return sum(int(rollup.split(b"\nPss:")[1].split()[0]) * 1024 for rollup in rollups)


def test_what_was_shared_is_stored_for_each_after_a_restart(family):
    """It is each process's own then; the image says so, and the second generation is right all the same."""
    family.start()
    family.restart(family.checkpoint(kill=True))
    family.restart(image := family.checkpoint(kill=True))
    assert _stored(image) >= 3 * MEMORY
    family.check()


def test_pages_of_zeros_take_no_room(holding):
    subject = holding("""
        import mmap
        memory = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.write(bytes(32 << 20))
        memory.write(b"x" * 5000)
    """, "assert memory[32 << 20] == 120 and memory[:32 << 20] == bytes(32 << 20)")
    image = subject.checkpoint(kill=True)
    with Image(image) as opened:
        summary = opened.nodes[0].summary
        assert summary.zero_pages >= (32 << 20) // PAGE
        assert summary.rows * PAGE < 32 << 20
    subject.restart(image)
    subject.check()


def test_little_memory_for_buffers(holding, monkeypatch):
    """As little as the writer takes: every buffer is in use several times."""
    subject = holding("import random; data = random.Random(1).randbytes(40 << 20)",
                      "assert data == random.Random(1).randbytes(40 << 20)")
    subject.node.memory = 8 << 20
    image = subject.checkpoint(kill=True)
    subject.restart(image)
    subject.check()
