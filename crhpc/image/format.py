"""What an image is on disk: names, constants, its directory and its manifest.

``ckpt-000012/`` holds ``manifest.json``, ``master.h5`` and ``shard-<n>.h5``. It is written under a temporary
name and renamed once, so a directory of that name is a whole image. The manifest is the last file written:
it says which files belong to the image, how long they are, and what they hash to.
"""
from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crhpc.errors import ImageDamaged, NoImage
from crhpc.log import logger

log = logger(__name__)

FORMAT = 1
PAGE = 4096
CHUNK_ROWS = 256
CHUNK = PAGE * CHUNK_ROWS
MAX_PAGES = 1 << 52
"""Pages of one object: 64-bit addresses over 4 KiB."""
MAX_OBJECTS = 1 << 32
ZSTD_FILTER = 32015
"""Zstandard's number among the registered HDF5 filters."""
LEVEL = -1
"""Of zstd. Beside level 1 it takes a tenth to a third less time to compress numbers and Python's objects, and half
to two thirds of the time to decompress, for images that are up to an eighth larger; but bytes of a few kinds in no
order it leaves as they are, where level 1 halves them."""
LIBVER = ("v110", "v114")
"""For h5py: metadata with checksums, readable by HDF5 1.10 and later."""
TABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
RESERVED_TABLES = frozenset({"blob", "objects"})
"""``blob`` lies beside the tables; in a reference ``objects`` means the table of page objects."""

MANIFEST = "manifest.json"
MASTER = "master.h5"
MAX_MANIFEST = 64 << 20
MAX_TABLES = 64 << 30
"""Bytes of a file outside the page chunks: a sparse file could claim any number, and they are hashed."""

_IMAGE = re.compile(r"ckpt-(\d{6,18})", re.ASCII)
_TEMPORARY = re.compile(r"\.ckpt-\d{6,18}\.(?:tmp|trash)-[0-9a-f]{32}", re.ASCII)
_SHARD = re.compile(r"shard-(0|[1-9]\d{0,8})\.h5", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_SEAL = re.compile(rb'  "sha256": "([0-9a-f]{64})"\n}\n')
_SEAL_LENGTH = 81

Span = tuple[int, int]
"""(offset, length) of bytes in a file."""


# -- names and directories --------------------------------------------------------------------------
def image_name(number: int) -> str:
    """The directory name of image ``number``: ``ckpt-000012``."""
    if not 0 <= number < 10**18:
        raise ValueError(f"no image number: {number}")
    return f"ckpt-{number:06d}"


def shard_name(node: int) -> str:
    """The file name of node ``node``'s shard."""
    return f"shard-{node}.h5"


def image_numbers(directory: str | os.PathLike[str]) -> list[int]:
    """Numbers of the committed images in a directory, ascending.

    By name only: what an interrupted writer left has another name. A directory that does not exist holds
    none.
    """
    numbers = []
    with suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            match = _IMAGE.fullmatch(entry.name)
            if match and image_name(int(match[1])) == entry.name and entry.is_dir(follow_symlinks=False):
                numbers.append(int(match[1]))
    return sorted(numbers)


def new_temporary(directory: str | os.PathLike[str], number: int) -> Path:
    """Make the directory (mode 0700) in which image ``number`` is written until it is committed.

    Raises:
        OSError: ``directory`` is missing or not writable.
    """
    path = Path(directory) / f".{image_name(number)}.tmp-{uuid.uuid4().hex}"
    path.mkdir(mode=0o700)
    return path


def discard_temporary(path: str | os.PathLike[str]) -> None:
    """Remove a directory that `new_temporary` made, with the files of an image in it.

    Files that are none of an image's are left, and so is then the directory.

    Raises:
        ValueError: not a temporary's name.
        OSError: a file cannot be removed.
    """
    path = Path(path)
    if not _TEMPORARY.fullmatch(path.name):
        raise ValueError(f"{path} is no temporary of an image")
    for name in os.listdir(path):
        if name in (MANIFEST, MASTER) or _SHARD.fullmatch(name):
            (path / name).unlink(missing_ok=True)
    _remove_directory(path)


def remove_stale_temporaries(directory: str | os.PathLike[str]) -> None:
    """Remove what interrupted writers and removals left in ``directory``.

    The caller must know that no writer is at work there. What is not named like ours stays.
    """
    with os.scandir(directory) as entries:
        stale = [e.path for e in entries if _TEMPORARY.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
    for path in stale:
        discard_temporary(path)


def remove_image(path: str | os.PathLike[str]) -> None:
    """Remove an image: the files that its own manifest names, the manifest and the directory.

    The directory gets a ``.trash`` name first, so what an interruption leaves is never taken for an image
    (and is cleared away by `remove_stale_temporaries`). Foreign files in it are left there and reported.

    Raises:
        NoImage, ImageDamaged: there is no readable manifest, so nothing is known to be ours.
        OSError: the directory cannot be renamed or a file cannot be removed.
    """
    path = Path(path)
    manifest = read_manifest(path)
    trash = path.parent / f".{image_name(manifest.number)}.trash-{uuid.uuid4().hex}"
    os.rename(path, trash)
    sync_directory(path.parent)
    for name in (*(shard.file for shard in manifest.shards), MASTER, MANIFEST):
        (trash / name).unlink(missing_ok=True)
    _remove_directory(trash)


def _remove_directory(path: Path) -> None:
    try:
        path.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        log.warning("%s was not removed: it holds files that are not crhpc's", path)


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Make the names in a directory durable (fsync(2))."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# -- the manifest -----------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class ShardSummary:
    """One shard as the manifest knows it; plain data, travels between agents as JSON."""

    node: int
    file: str
    size: int
    """Bytes of the file."""
    chunks: int
    rows: int
    """Pages stored in all chunks."""
    dead_rows: int
    """Of these, pages that a later copy superseded."""
    stored: int
    """Bytes of all chunks as stored."""
    put: int
    """Bytes of pages handed to the writer, zero pages and superseded ones included."""
    zero_pages: int
    """Pages of the final state that are zero and therefore not stored."""
    spans: tuple[Span, ...]
    """(offset, length) of the file's bytes that belong to page chunks, ascending."""
    sha256: str
    """Of the file's bytes outside ``spans``."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self) | {"spans": [list(span) for span in self.spans]}

    @classmethod
    def from_json(cls, data: object) -> ShardSummary:
        """Check and read what `to_json` gave.

        Raises:
            ValueError: a field is missing or impossible.
        """
        get = _fields(data, "shard")
        node, size = get("node", int), get("size", int)
        summary = cls(
            node=node, file=get("file", str), size=size, chunks=get("chunks", int), rows=get("rows", int),
            dead_rows=get("dead_rows", int), stored=get("stored", int), put=get("put", int),
            zero_pages=get("zero_pages", int), sha256=_sha256(get("sha256", str)),
            spans=_spans(get("spans", list), size))
        if summary.file != shard_name(node) or not _SHARD.fullmatch(summary.file):
            raise ValueError(f"node {node} has the file name {summary.file!r}")
        if sum(length for _, length in summary.spans) != summary.stored:
            raise ValueError(f"{summary.file}: spans and stored bytes differ")
        if size - summary.stored > MAX_TABLES:
            raise ValueError(f"{summary.file}: more than {MAX_TABLES} bytes outside the page chunks")
        if summary.dead_rows > summary.rows or summary.rows > summary.chunks * CHUNK_ROWS:
            raise ValueError(f"{summary.file}: impossible counts of rows")
        return summary


@dataclass(frozen=True, slots=True)
class MasterSummary:
    """The master file: its length and the SHA-256 of all its bytes."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an image consists of, and what is known of its job."""

    number: int
    created: float
    """Seconds since 1970."""
    job: dict[str, Any]
    shards: list[ShardSummary]
    master: MasterSummary
    stats: dict[str, Any]
    parents: list[str]
    """Images that this one needs; none in format 1."""
    format: int = FORMAT

    def to_bytes(self) -> bytes:
        """The file: JSON whose last member is the SHA-256 of all bytes before it.

        Raises:
            ValueError, TypeError: ``job`` or ``stats`` is no plain JSON.
        """
        body = {"format": self.format, "number": self.number, "created": self.created, "job": self.job,
                "parents": self.parents, "master": asdict(self.master),
                "shards": [shard.to_json() for shard in self.shards], "stats": self.stats}
        lines = [f"  {json.dumps(name)}: {json.dumps(value, allow_nan=False)},\n"
                 for name, value in body.items()]
        sealed = ("{\n" + "".join(lines)).encode("ascii")
        return sealed + f'  "sha256": "{hashlib.sha256(sealed).hexdigest()}"\n}}\n'.encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Check the seal and every field.

        Raises:
            NewerFormat: written by a later version.
            ValueError: damaged or impossible; the message says how.
        """
        seal = _SEAL.fullmatch(data[-_SEAL_LENGTH:])
        if not seal or hashlib.sha256(data[:-_SEAL_LENGTH]).hexdigest().encode() != seal[1]:
            raise ValueError("its own SHA-256 does not match")
        try:
            get = _fields(json.loads(data.decode("ascii"), parse_constant=_no_constant), "manifest")
        except RecursionError:
            raise ValueError("nested too deeply") from None
        version = get("format", int)
        if version > FORMAT:
            raise NewerFormat(version)
        shards = [ShardSummary.from_json(shard) for shard in get("shards", list)]
        nodes = [shard.node for shard in shards]
        if len(set(nodes)) != len(nodes):
            raise ValueError("a node has two shards")
        if get("parents", list):
            raise ValueError("it has parents, which format 1 does not know")
        master = _fields(get("master", dict), "master")
        if master("size", int) > MAX_TABLES:
            raise ValueError(f"{MASTER}: more than {MAX_TABLES} bytes")
        return cls(
            format=version, number=get("number", int), created=get("created", float), job=get("job", dict),
            parents=[], shards=sorted(shards, key=lambda shard: shard.node), stats=get("stats", dict),
            master=MasterSummary(size=master("size", int), sha256=_sha256(master("sha256", str))))


class NewerFormat(Exception):
    """The manifest was written in a format that this version does not know."""


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read and check the manifest of the image at ``path``.

    Raises:
        NoImage: no such image, unreadable for this user, not committed, or of a newer format.
        ImageDamaged: the manifest is there but wrong.
    """
    if _TEMPORARY.fullmatch(Path(path).resolve().name):
        raise NoImage(path=path, why="it was never committed, or was being removed")
    try:
        fd = open_file(Path(path) / MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        raise NoImage(path=path, why=f"it has no {MANIFEST}") from None
    except PermissionError as error:
        raise NoImage(path=path, why=f"{MANIFEST}: {error.strerror}") from None
    except OSError as error:
        raise ImageDamaged(image=path, what=f"{MANIFEST}: {error.strerror}") from None
    with open(fd, "rb") as file:
        data = file.read(MAX_MANIFEST + 1)
    try:
        if len(data) > MAX_MANIFEST:
            raise ValueError("too long")
        return Manifest.from_bytes(data)
    except NewerFormat as error:
        raise NoImage(path=path, why=f"it was written by a newer crhpc (format {error})") from None
    except ValueError as error:
        raise ImageDamaged(image=path, what=f"{MANIFEST}: {error}") from None


def open_file(path: Path) -> int:
    """Open a file of an image for reading: a regular file, not a symbolic link.

    Raises:
        OSError: what open(2) says; EINVAL for anything but a regular file.
    """
    # O_NONBLOCK: a FIFO put in a file's place must not hang the reader.
    flags = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    fd = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _fields(data: object, where: str) -> Callable[[str, type], Any]:
    """A getter of typed members of one JSON object; whole numbers are 0 to 2**63 - 1."""
    if not isinstance(data, dict):
        raise ValueError(f"{where} is no object")

    def get(name: str, kind: type) -> Any:
        value: Any = data.get(name)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or (isinstance(value, int) and not 0 <= value < 1 << 63):
            raise ValueError(f"{where}.{name} is missing or of a wrong kind")
        return value
    return get


def _sha256(text: str) -> str:
    if not _SHA256.fullmatch(text):
        raise ValueError("a SHA-256 is not of 64 hexadecimal digits")
    return text


def _spans(data: Iterable[object], size: int) -> tuple[Span, ...]:
    spans: list[Span] = []
    end = 0
    for item in data:
        if not isinstance(item, list) or len(item) != 2 or any(type(n) is not int for n in item):
            raise ValueError("a span is not of two whole numbers")
        offset, length = int(item[0]), int(item[1])
        if offset < end or length <= 0 or offset + length > size:
            raise ValueError("spans overlap or leave the file")
        spans.append((offset, length))
        end = offset + length
    return tuple(spans)
