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
import signal
import site
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from crhpc.errors import CrhpcError, ImageDamaged, NoImage
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
_BYTES_PER_SECOND_OF_DISK = 5e6
"""How slow a file system may be before the child is taken for hung."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was looked at and found sound."""

    path: str
    number: int
    full: bool
    nodes: int
    size: int
    """Bytes of all files checked."""
    tables: int
    chunks: int
    pages: int
    """In the final state, zero pages included."""
    seconds: float
    foreign: tuple[str, ...]
    """Names in the directory that the manifest does not know."""


def verify(path: str | os.PathLike[str], *, full: bool = False, nodes: Collection[int] | None = None,
           timeout: float | None = None) -> Report:
    """Check an image in a child process with limits.

    Args:
        nodes: only these nodes' shards (the manifest and the master always); all if None or empty.
        timeout: seconds until the child is killed; by default generous, by the image's size.

    Raises:
        NoImage: there is none at ``path``, or one of a newer format.
        ImageDamaged: it is not whole, or the child crashed, hung or was killed over it.
        OSError: the files cannot be opened (permission, descriptors).
        CrhpcError: the check itself does not work here.
    """
    command = [sys.executable, "-P", "-m", "crhpc.image.check", *["--full"] * full,
               *(f"--node={node}" for node in nodes or ()), "--", os.fspath(path)]
    limit = 5 * _SECONDS + _size(Path(path)) / _BYTES_PER_SECOND_OF_DISK if timeout is None else timeout
    with subprocess.Popen(command, env=_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, errors="replace") as child:
        try:
            output, complaints = child.communicate(timeout=limit)
            how = _ended(child.returncode)
        except subprocess.TimeoutExpired:
            child.kill()
            output, complaints = child.communicate()
            how = f"checking it took more than {limit:.0f} s"
        finally:
            child.kill()                                        # an interrupted caller leaves none behind
    return _result(path, output, complaints, how)


def _environment() -> dict[str, str]:
    """The child's: it finds this very package, and reserves little address space that it does not use."""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    root = str(Path(__file__).resolve().parents[2])
    if root not in map(os.path.realpath, [*site.getsitepackages(), site.getusersitepackages()]):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return environment


def _ended(code: int) -> str:
    if code < 0:
        return f"checking it ended with {signal.Signals(-code).name}"
    return f"checking it ended with code {code}"


def _result(path: str | os.PathLike[str], output: str, complaints: str, how: str) -> Report:
    """What the child said; if it did not come to an end, how it ended."""
    file = None
    for line in output.splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            continue                                            # cut off by its end
        file = said.get("checking", file)
        if "report" in said:
            return Report(**said["report"] | {"foreign": tuple(said["report"]["foreign"])})
        if said.get("error") == "NoImage":
            raise NoImage(path=path, why=said["why"])
        if said.get("error") == "ImageDamaged":
            raise ImageDamaged(image=path, what=said["what"])
        if said.get("error") == "OSError":
            raise OSError(said["errno"], said["why"], said["file"])
    if file is None:
        reason = (complaints.strip().splitlines() or [how])[-1]
        raise CrhpcError(what=f"images cannot be checked here: {reason}")
    raise ImageDamaged(image=path, what=f"{file}: {how}")


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


def _size(path: Path) -> int:
    """Bytes of all files in an image's directory."""
    try:
        with os.scandir(path) as entries:
            return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
    except OSError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
