"""Images and records for the tests, and how to change an image so that its hashes fit again."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from crhpc.image.backing import digest
from crhpc.image.format import (
    MANIFEST,
    MASTER,
    Manifest,
    MasterSummary,
    ShardSummary,
    image_name,
    new_temporary,
)
from crhpc.image.records import U64
from crhpc.image.writer import ShardWriter, commit

PAGE = 4096
ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
"""For an interpreter that sees the checkout and the tests."""


@dataclass(frozen=True, slots=True)
class OpenFile:
    """An open file.

    More that is not the title.
    """

    id: int
    path: str = field(metadata={"doc": "as the job sees it"})
    flags: U64
    locked: bool
    age: float
    data: bytes
    offsets: tuple[int, ...]
    names: tuple[str, ...]
    pages: int = field(metadata={"ref": "objects.id"}, default=-1)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A descriptor of a task."""

    pid: int
    fd: int
    file: int = field(metadata={"ref": "files.id", "doc": "what it refers to"})
    others: tuple[int, ...] = field(metadata={"ref": "files.id"}, default=())


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection between two nodes."""

    id: int
    a: int
    b: int
    address: str


FILES = [
    OpenFile(1, "/home/x/äß\udcff", U64(2**64 - 1), True, 1.5, b"\0\xff" * 20, (-(2**63), 0, 2**63 - 1), ("a", "")),
    OpenFile(2, "", U64(0), False, float("-inf"), b"", (), (), 0),
]
DESCRIPTORS = [Descriptor(1141, 0, 1), Descriptor(1141, 1, 2, (1, 2, -1)), Descriptor(1142, 3, -1)]
CONNECTIONS = [Connection(1, 0, 1, "10.0.0.1:80"), Connection(2, 1, 0, "")]


def page(seed: int, *, compressible: bool = True) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """4096 bytes that the seed determines; their first byte is not zero."""
    made = np.random.default_rng(seed).integers(0, 4 if compressible else 256, PAGE, dtype=np.uint8)
    made[0] |= 1
    return made


def put_pages(writer: ShardWriter, pieces: list[tuple[int, int, int]], seeds: list[int | None]) -> None:
    """Put one buffer; a seed of None is a zero page."""
    buffer = writer.take()
    for row, seed in enumerate(seeds):
        buffer.array[row] = 0 if seed is None else page(seed)
    writer.put(buffer, pieces)


def fill_sample(writer: ShardWriter) -> None:
    """Two objects, superseded and zero pages in two chunks, three tables, a tree."""
    memory, shared = writer.object("mm/1141"), writer.object("shm/\udcfe")
    put_pages(writer, [(memory, 100, 3), (memory, 2**51, 1), (shared, 0, 1)], [1, None, 3, 4, 5])
    put_pages(writer, [(memory, 102, 2)], [6, 7])
    writer.table(FILES, OpenFile, "files")
    writer.table(DESCRIPTORS, Descriptor, "descriptors")
    writer.table([], Connection, "nothing")
    writer.tree_group("files/2", {"path": "/dev/null", "flags": 2})
    writer.tree_group("tree/1141", {"program": "app"})
    writer.tree_link("tree/1141/fds/1", "files/2")


def write_sample(
    directory: Path,
    number: int,
    nodes: tuple[int, ...] = (0, 3),
    fill: Callable[[ShardWriter], None] = fill_sample,
    **options: Any,
) -> Path:
    """A committed image in ``directory``."""
    temporary = new_temporary(directory, number)
    shards = []
    for node in nodes:
        with ShardWriter(temporary, node, threads=1, memory=16 << 20, **options) as writer:
            fill(writer)
            shards.append(writer.close())
    return commit(
        temporary,
        directory / image_name(number),
        number=number,
        shards=shards,
        job={"argv": ["./app", "\udcff"], "user": "someone", "ranks": 4},
        stats={"freeze": 0.5},
        connections=CONNECTIONS,
    )


def small_writer(directory: Path, **options: Any) -> ShardWriter:
    """A writer for node 0 with few threads and little memory."""
    return ShardWriter(directory, 0, **{"threads": 2, "memory": 32 << 20} | options)


def run_python(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that sees the checkout and the tests."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        env=ENVIRONMENT,
        text=True,
        capture_output=True,
        check=False,
        **{"timeout": 120} | options,
    )


# -- changing images --------------------------------------------------------------------------------
def flip(path: Path, offset: int, mask: int = 1) -> None:
    """Change one byte of a file."""
    with open(path, "r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


def seal(path: Path, body: dict[str, Any]) -> None:
    """Write a manifest with any contents and the hash that fits."""
    lines = [f"  {json.dumps(name)}: {json.dumps(value)},\n" for name, value in body.items()]
    sealed = ("{\n" + "".join(lines)).encode()
    digested = hashlib.sha256(sealed).hexdigest()
    (path / MANIFEST).write_bytes(sealed + f'  "sha256": "{digested}"\n}}\n'.encode())


def manifest_body(path: Path) -> dict[str, Any]:
    """A manifest's members without the hash."""
    body: dict[str, Any] = json.loads((path / MANIFEST).read_text())
    del body["sha256"]
    return body


def reseal(path: Path, **changes: Any) -> None:
    """Make the manifest's lengths and hashes fit the files; ``changes`` are to node 0's summary."""

    def fresh(shard: ShardSummary) -> ShardSummary:
        size, spans = (path / shard.file).stat().st_size, shard.spans
        with open(path / shard.file, "rb") as file:
            return replace(shard, size=size, sha256=digest(file.fileno(), size, spans))

    manifest = Manifest.from_bytes((path / MANIFEST).read_bytes())
    data = (path / MASTER).read_bytes()
    shards = [fresh(shard) for shard in manifest.shards]
    shards[0] = replace(shards[0], **changes)
    master = MasterSummary(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    (path / MANIFEST).write_bytes(replace(manifest, master=master, shards=shards).to_bytes())


def forge(path: Path, change: Callable[[h5py.Group], None], file: str = "shard-0.h5", **changes: Any) -> None:
    """Change a file of an image with plain h5py, and make the manifest fit."""
    with h5py.File(path / file, "r+", libver=("v110", "v114")) as opened:
        change(opened["nodes/0"] if file != MASTER else opened)
    reseal(path, **changes)


def as_plain(record: Any) -> dict[str, Any]:
    """A record as describe() shows it, bytes apart."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(record).items()}
