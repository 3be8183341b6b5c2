"""The commit is atomic: before the rename there is no image, after it there is a whole one."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import pytest

from crhpc.errors import ImageDamaged, NoImage
from crhpc.image.check import check_image
from crhpc.image.format import (
    ShardSummary,
    image_name,
    image_numbers,
    new_temporary,
    read_manifest,
    remove_stale_temporaries,
)
from crhpc.image.reader import Image
from crhpc.image.writer import ShardWriter, commit

from .samples import CONNECTIONS, ENVIRONMENT, Connection, fill_sample


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Path, list[ShardSummary]]:
    """A temporary directory with two closed shards."""
    temporary, shards = new_temporary(tmp_path, 5), []
    for node in (1, 0):
        with ShardWriter(temporary, node, threads=1, memory=16 << 20) as writer:
            fill_sample(writer)
            shards.append(writer.close())
    return temporary, shards


def do(prepared: tuple[Path, list[ShardSummary]], **changes: Any) -> Path:
    temporary, shards = prepared
    arguments: dict[str, Any] = {
        "number": 5,
        "job": {"user": "x", "argv": ["a"], "n": 4, "f": 0.5, "flag": True, "huge": 2**70},
        "shards": shards,
        "stats": {},
        "connections": CONNECTIONS,
    }
    return commit(temporary, temporary.parent / image_name(5), **arguments | changes)


def test_what_it_makes(prepared: tuple[Path, list[ShardSummary]]) -> None:
    before = time.time()
    final = do(prepared)
    assert sorted(path.name for path in final.iterdir()) == [
        "manifest.json",
        "master.h5",
        "shard-0.h5",
        "shard-1.h5",
    ]
    assert image_numbers(final.parent) == [5]
    assert [path.name for path in final.parent.iterdir()] == ["ckpt-000005"]
    report = check_image(final, full=True)
    assert (report.number, report.nodes, report.chunks, report.pages, report.foreign) == (5, 2, 4, 12, ())
    with h5py.File(final / "master.h5") as master:
        link = master["nodes"].get("1", getlink=True)
        assert (link.filename, link.path) == ("shard-1.h5", "/nodes/1")
        attributes = master["job"].attrs
        assert (attributes["user"], attributes["n"], attributes["f"], attributes["flag"]) == (
            b"x",
            4,
            b"0.5",
            1,
        )
        assert attributes["huge"] == str(2**70).encode()
        assert "argv" not in attributes
        assert master["tables/connections"]["a"].tolist() == [row.a for row in CONNECTIONS]
        assert before <= read_manifest(final).created <= time.time()


@pytest.mark.parametrize("connections", [None, []])
def test_without_connections(prepared: tuple[Path, list[ShardSummary]], connections: list[Connection] | None) -> None:
    with Image(do(prepared, connections=connections)) as image:
        assert image.connections(Connection) == []
        assert image.master.tables() == []


def test_everything_is_durable_before_the_rename(
    prepared: tuple[Path, list[ShardSummary]], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def noted(fd: int) -> None:
        done.append("fsync " + Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        fsync(fd)

    def renamed(*arguments: Any) -> None:
        done.append("rename")
        rename(*arguments)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "rename", renamed)
    final = do(prepared)
    assert done == [
        "fsync master.h5",
        "fsync manifest.json",
        f"fsync {prepared[0].name}",
        "rename",
        f"fsync {final.parent.name}",
    ]


def test_the_shard_is_durable_when_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: done.append(os.fstat(fd).st_size))
    with ShardWriter(tmp_path, 0, threads=1, memory=16 << 20) as writer:
        fill_sample(writer)
        summary = writer.close()
    assert done == [summary.size]


@pytest.mark.parametrize("call", ["fsync", "rename", "pwrite"])
@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_a_failure_leaves_no_image(
    prepared: tuple[Path, list[ShardSummary]], monkeypatch: pytest.MonkeyPatch, call: str, nth: int
) -> None:
    calls, real = 0, getattr(os, call)

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= nth:
            raise OSError(errno.EIO, "Input/output error")
        return real(*arguments)

    monkeypatch.setattr(os, call, failing)
    parent = prepared[0].parent
    if call == "rename" and nth > 1:
        do(prepared)  # there is one rename only
        return
    with pytest.raises(OSError) as caught:
        do(prepared)
    assert caught.value.errno == errno.EIO
    monkeypatch.undo()
    if call == "fsync" and nth == 4:  # the image is there, and whole; how durable is unknown
        check_image(parent / image_name(5), full=True)
        return
    assert image_numbers(parent) == []
    with pytest.raises((NoImage, ImageDamaged)):
        check_image(prepared[0])
    remove_stale_temporaries(parent)
    assert list(parent.iterdir()) == []


def test_an_existing_image_is_not_replaced(prepared: tuple[Path, list[ShardSummary]]) -> None:
    final = prepared[0].parent / image_name(5)
    final.mkdir()  # rename(2) would take the place of an empty one
    with pytest.raises(FileExistsError):
        do(prepared)
    assert list(final.iterdir()) == []


def test_what_does_not_fit_together(prepared: tuple[Path, list[ShardSummary]]) -> None:
    temporary, shards = prepared
    for changes in (
        {"number": 6},
        {"shards": []},
        {"shards": [shards[0], shards[0]]},
        {"shards": [replace(shards[0], size=shards[0].size + 1), shards[1]]},
        {"stats": {"a": float("inf")}},
    ):
        with pytest.raises(ValueError):
            do(prepared, **changes)
        (temporary / "master.h5").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        do(prepared, shards=[*shards, replace(shards[0], node=7, file="shard-7.h5")])
    with pytest.raises(TypeError):
        do(prepared, job={"a": {1, 2}})
    assert image_numbers(temporary.parent) == []


def test_a_writer_killed_at_any_moment_leaves_no_half_image(tmp_path: Path) -> None:
    """SIGKILL after a random time, many times over; the directory of each round is looked at whole."""
    code = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from image.samples import write_sample
        for number in range(1, 10**6):
            start = time.monotonic()
            write_sample(Path(sys.argv[1]), number)
            print(number, time.monotonic() - start, flush=True)
        """)
    chance = random.Random(7)
    committed = interrupted = 0
    for round_ in range(20):
        directory = tmp_path / str(round_)
        directory.mkdir()
        with subprocess.Popen(
            [sys.executable, "-c", code, str(directory)], env=ENVIRONMENT, text=True, stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            seconds = float(writer.stdout.readline().split()[1])  # for one image, on this machine, now
            time.sleep(chance.uniform(0.0, 4 * seconds))
            writer.send_signal(signal.SIGKILL)
            told = [1] + [int(line.split()[0]) for line in writer.stdout if line.endswith("\n")]
        numbers = image_numbers(directory)
        assert numbers[: len(told)] == told
        assert len(numbers) <= len(told) + 1  # committed, but killed before it could tell
        for number in numbers:
            check_image(directory / image_name(number), full=True)
        left = set(directory.iterdir()) - {directory / image_name(number) for number in numbers}
        assert len(left) <= 1
        for path in left:
            assert path.name.startswith(".")
            with pytest.raises((NoImage, ImageDamaged)):
                check_image(path)
        remove_stale_temporaries(directory)
        assert len(list(directory.iterdir())) == len(numbers)
        committed, interrupted = committed + len(numbers), interrupted + len(left)
    assert committed > 20
    assert interrupted > 5
