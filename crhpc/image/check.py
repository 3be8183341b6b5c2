"""Whether an image is whole: each byte of its files is covered by a hash or a checksum, and all are compared.

*Quick*, what a restart does before anything is built: the manifest's own hash, each file's length and SHA-256
outside the page chunks, the crc32 of each chunk, HDF5's index against the table of chunks, the bounds of
runs and that they do not overlap, every table. *Full*: also decompresses every chunk and follows every
reference.

It runs in a child with limits of memory and time, as a crafted file can make HDF5 crash, loop or allocate::

    python -P -m crhpc.image.check PATH [--full] [--node N ...]

prints one JSON object per line: ``{"checking": FILE}`` as it goes, at the end ``{"report": {...}}`` or
``{"error": NAME, ...}``.
"""
from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from crhpc.errors import ImageDamaged, NoImage
from crhpc.image.apart import Report
from crhpc.image.format import CHUNK_ROWS, MANIFEST, MASTER, PAGE, Manifest
from crhpc.image.guard import reading
from crhpc.image.pages import page_objects
from crhpc.image.reader import Image, Shard, Tables, ahead
from crhpc.image.records import BLOB_KINDS, Table, check_column, load, slices

_BATCH = 32
"""Chunks that a thread checks in one go."""
_THREADS = 4
_MEMORY = 1 << 30
_SECONDS = 60
_BYTES_PER_SECOND = 50e6
"""How slow a core may be before the child is taken for looping."""


def check_image(path: str | os.PathLike[str], *, full: bool = False, nodes: Collection[int] | None = None,
                note: Callable[[str], None] = lambda file: None) -> Report:
    """Check an image in this process; `verify` is what untrusted images need.

    Args:
        note: called with each file's name before it is read.

    Raises:
        NoImage, ImageDamaged, OSError: as `verify`.
    """
    started = time.monotonic()
    note(MANIFEST)
    with Image(path) as image:
        shards = [shard for shard in image.nodes if not nodes or shard.node in nodes]
        missing = set(nodes or ()) - {shard.node for shard in shards}
        if missing:
            raise ImageDamaged(image=path, what=f"{MANIFEST}: it has no node {min(missing)}")
        note(MASTER)
        tables = _check_master(image, full=full)
        size = image.manifest.master.size + len(image.manifest.to_bytes())
        pages = 0
        for shard in shards:
            note(shard.file)
            tables += _check_shard(shard, full=full)
            shard.close()
            size += shard.summary.size
            pages += shard.summary.rows - shard.summary.dead_rows + shard.summary.zero_pages
        foreign = set(os.listdir(path)) - {MANIFEST, MASTER} - {shard.file for shard in image.nodes}
        return Report(path=os.fspath(path), number=image.number, full=full, nodes=len(shards), size=size,
                      tables=tables, chunks=sum(shard.summary.chunks for shard in shards), pages=pages,
                      seconds=time.monotonic() - started, foreign=tuple(sorted(foreign)))


def _check_master(image: Image, *, full: bool) -> int:
    with reading(image.path, MASTER):
        nodes = image.master.container.at("nodes")
        links = {name: nodes.get(name, getlink=True) for name in nodes}
        if any(not isinstance(link, h5py.ExternalLink) for link in links.values()):
            raise ValueError("a node is no external link")
        if ({name: (link.filename, link.path) for name, link in links.items()}
                != {str(shard.node): (shard.file, f"/nodes/{shard.node}") for shard in image.nodes}):
            raise ValueError("its links are not to the shards of the manifest")
    return _check_tables(image.master, None, full=full)


def _check_shard(shard: Shard, *, full: bool) -> int:
    with reading(shard.image, shard.file):
        chunks, runs, objects = shard.chunks(), shard.runs(), shard.objects()
        index: dict[int, tuple[int, int, int]] = {}
        if len(chunks):
            shard.container.log(f"{shard.root}/pages/log", len(chunks)).id.chunk_iter(
                lambda c: index.__setitem__(c.chunk_offset[0], (c.byte_offset, c.size, c.filter_mask)))
        table = zip(*(chunks[name].tolist() for name in ("offset", "size", "raw")), strict=True)
        if index != {i * CHUNK_ROWS: row for i, row in enumerate(table)}:
            raise ValueError("HDF5's index of the log and the table of chunks differ")
        if objects != page_objects([each.name for each in objects], runs):
            raise ValueError("the objects are not as the runs have them")
    tables = _check_tables(shard, np.array([each.id for each in objects]), full=full)

    def check_chunks(first: int) -> None:
        for i in range(first, min(first + _BATCH, len(chunks))):
            if not full:
                shard.stored(i)
            elif np.frombuffer(shard.chunk(i), dtype="u1")[int(chunks[i]["rows"]) * PAGE:].any():
                what = f"{shard.file}: chunk {i}: rows not in use hold data"
                raise ImageDamaged(image=shard.image, what=what)
    for _ in ahead(check_chunks, list(range(0, len(chunks), _BATCH)), _THREADS):
        pass
    return tables


# -- tables -----------------------------------------------------------------------------------------
def _check_tables(tables: Tables, objects: np.ndarray[Any, Any] | None, *, full: bool) -> int:
    """Read every table; returns how many there are. ``objects``: ids of the page objects."""
    names = tables.tables()
    for name in names:
        with reading(tables.image, f"{tables.file}: table {name}"):
            rows, known = tables.rows(name), tables.attributes(name)
            for column in rows.dtype.names or ():
                kind = known.get(f"kind.{column}")
                _check_values(rows, column, kind, tables)
                ref = known.get(f"ref.{column}")
                if full and ref is not None:
                    _check_references(rows[column], kind, str(ref), tables, objects)
    return len(names)


def _check_values(rows: Table, column: str, kind: Any, tables: Tables) -> None:
    check_column(rows.dtype, column, kind)
    if kind in ("bool", "strings"):
        load(rows[column], kind, tables.blob)
    elif kind in BLOB_KINDS:
        slices(rows[column], tables.blob)
        if kind == "ints" and np.any(rows[column]["length"] % 8):
            raise ValueError(f"column {column!r} is not of whole numbers")


def _check_references(values: np.ndarray[Any, Any], kind: Any, ref: str, tables: Tables,
                      objects: np.ndarray[Any, Any] | None) -> None:
    target, _, column = ref.partition(".")
    if target == "objects" and column == "id" and objects is not None:
        there: Any = objects
    elif target in tables.tables() and column in (tables.rows(target).dtype.names or ()):
        there = tables.rows(target)[column]
    else:
        raise ValueError(f"it refers to {ref}, which is missing")
    if kind == "ints":
        values = np.array([n for row in load(values, "ints", tables.blob) for n in row], dtype="<i8")
    lost = values[~np.isin(values, there)]
    if kind != "u64":
        lost = lost[lost != -1]
    if len(lost):
        raise ValueError(f"{int(lost[0])} is no {ref}")


# -- the child --------------------------------------------------------------------------------------
def main(arguments: list[str] | None = None) -> int:
    """The child's side: limits, check, JSON on standard output. Exit code 0 if the image is whole."""
    parser = argparse.ArgumentParser(prog="python -m crhpc.image.check", description="Check an image.")
    parser.add_argument("path")
    parser.add_argument("--full", action="store_true", help="decompress every page, follow every reference")
    parser.add_argument("--node", type=int, action="append", help="only this node's shard (repeatable)")
    options = parser.parse_args(arguments)
    file = MANIFEST

    def note(name: str) -> None:
        nonlocal file
        file = name
        print(json.dumps({"checking": name}), flush=True)
    try:
        note(MANIFEST)
        limit(Image(options.path).manifest, full=options.full)
        report = check_image(options.path, full=options.full, nodes=options.node, note=note)
    except (NoImage, ImageDamaged) as error:
        print(json.dumps({"error": type(error).__name__,
                          **{name: str(value) for name, value in error.fields.items()}}))
        return error.code
    except MemoryError:
        what = f"{file}: reading it takes more memory than such an image can need"
        print(json.dumps({"error": "ImageDamaged", "what": what}))
        return ImageDamaged.code
    except OSError as error:
        print(json.dumps({"error": "OSError", "errno": error.errno, "why": error.strerror,
                          "file": str(error.filename or file)}))
        return 1
    print(json.dumps({"report": asdict(report)}))
    return 0


def limit(manifest: Manifest, *, full: bool) -> None:
    """Bound this process's memory and CPU time by what an image of this size can need.

    Memory: what is mapped by now, a stack and buffers for each thread, and the tables several times over
    (they are the bytes outside the chunks). The limits are soft ones; a core dump is never made.
    """
    import resource

    tables = max([shard.size - shard.stored for shard in manifest.shards] + [manifest.master.size])
    memory = _mapped() + _MEMORY + _THREADS * (96 << 20) + 16 * tables
    work = sum(shard.size + (shard.chunks * CHUNK_ROWS * PAGE if full else 0) for shard in manifest.shards)
    for which, soft in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0),
                        (resource.RLIMIT_CPU, int(_SECONDS + work / _BYTES_PER_SECOND))):
        hard = resource.getrlimit(which)[1]
        if hard != resource.RLIM_INFINITY:
            soft = min(soft, hard)
        resource.setrlimit(which, (soft, hard))


def _mapped() -> int:
    """Bytes of address space in use; what a small process has if /proc is not there."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 1 << 30


if __name__ == "__main__":
    sys.exit(main())
