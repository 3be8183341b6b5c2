"""HDF5 files of an image, opened so that nothing in them is trusted.

An image may come from a stranger. HDF5 would read any file for it (external storage, external links,
virtual datasets), allocate what a few bytes claim, and return zeros for what is missing. So the file is
hashed before HDF5 sees it, links are followed here and not by HDF5, and each dataset must be of the plain
form that the format prescribes before a byte of it is read. What this does not stop (a crafted file whose
manifest was made to fit) runs in a child with limits first: see ``check``.
"""
from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zstandard

from crhpc.errors import ImageDamaged
from crhpc.image.backing import BackingFile, digest
from crhpc.image.format import CHUNK_ROWS, PAGE, ZSTD_FILTER, Span
from crhpc.image.records import SLICE, Bytes, Table

_FLETCHER32 = 3
_CHECKSUM = 4
"""Bytes that fletcher32 adds to a chunk."""
_MAX_ATTRIBUTE = 64 << 10
_MAX_LINKS = 40
_COLUMNS = (SLICE, *(np.dtype(name) for name in ("<i8", "<u8", "<u4", "<u2", "u1", "<f8")))
# What is wrong with this machine or process is not the image's fault.
_NOT_DAMAGE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM}


@contextmanager
def reading(image: Path, file: str) -> Iterator[None]:
    """Turn whatever a wrong file provokes into ImageDamaged, naming the file in one line."""
    try:
        yield
    except OSError as error:
        if error.errno in _NOT_DAMAGE:
            raise
        missing = isinstance(error, FileNotFoundError)
        what = "is missing" if missing else error.strerror if error.strerror else str(error)
        raise ImageDamaged(image=image, what=f"{file}: {_one_line(what)}") from error
    except (ArithmeticError, AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError,
            zstandard.ZstdError) as error:
        raise ImageDamaged(image=image, what=f"{file}: {_one_line(str(error))}") from error


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else line[:200] + " ..."


class Container:
    """One HDF5 file of an image, open for reading and whole according to the manifest.

    Its methods raise ValueError, OSError and what else h5py gives; call them inside `reading`.
    """

    def __init__(self, path: Path, size: int, sha256: str, spans: Sequence[Span] = ()) -> None:
        """Open ``path`` if it has ``size`` bytes and those outside ``spans`` hash to ``sha256``."""
        self.backing = BackingFile(path)
        try:
            if self.backing.size != size:
                raise ValueError(f"it has {self.backing.size} bytes, the manifest says {size}")
            if digest(self.backing.fd, size, spans) != sha256:
                raise ValueError("its SHA-256 does not match the manifest's")
            self.file = h5py.File(self.backing, "r")
            self._groups: dict[str, Any] = {"": self.file}
        except BaseException:
            self.backing.close()
            raise

    def close(self) -> None:
        """Close the file; again is harmless."""
        with suppress(Exception):
            self._groups.clear()
            self.file.close()
        self.backing.close()

    # -- links --------------------------------------------------------------------------------------
    def child(self, group: Any, name: str) -> Any:
        """The group or dataset to which ``name`` is a hard link.

        Raises:
            LookupError: there is none; ValueError: it is a link of another kind.
        """
        link = group.get(name, getlink=True) if isinstance(group, h5py.Group) else None
        if link is None:
            raise LookupError(f"{group.name.rstrip('/')}/{name} is missing")
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{group.name}/{name} is a link")
        return group[name]

    def at(self, path: str) -> Any:
        """The group or dataset at a path of hard links."""
        above, _, name = path.strip("/").rpartition("/")
        if above not in self._groups:   # each is looked at once: all tables are in one
            self._groups[above] = self.at(above)
        return self.child(self._groups[above], name)

    def follow(self, path: str) -> Any:
        """The same, following soft links too, but never out of this file.

        Raises:
            LookupError: no such path, or a link that leads nowhere.
        """
        names = [name for name in path.split("/") if name][::-1]
        found, hops = self.file, 0
        while names:
            name = names.pop()
            link = found.get(name, getlink=True) if isinstance(found, h5py.Group) else None
            if isinstance(link, h5py.HardLink):
                found = found[name]
            elif isinstance(link, h5py.SoftLink) and hops < _MAX_LINKS:
                hops += 1
                found = self.file if link.path.startswith("/") else found
                names += [part for part in link.path.split("/") if part not in ("", ".")][::-1]
            else:
                raise LookupError(f"no {path}")
        return found

    # -- datasets -----------------------------------------------------------------------------------
    def table(self, path: str) -> Table:
        """A table's rows, shape (n,)."""
        dataset = self.at(path)
        check_plain(dataset)
        dtype = dataset.dtype
        if dtype.fields is None or any(field[0] not in _COLUMNS and field[0].kind != "S"
                                       for field in dtype.fields.values()):
            raise ValueError(f"{path} has columns of other types than a table's")
        rows: Table = _contents(dataset)
        return rows

    def blob(self, path: str) -> Bytes:
        """The bytes beside the tables, shape (n,)."""
        dataset = self.at(path)
        check_plain(dataset)
        if dataset.dtype != np.uint8:
            raise ValueError(f"{path} is not of bytes")
        data: Bytes = _contents(dataset)
        return data

    def log(self, path: str, chunks: int) -> Any:
        """The dataset of pages, if it is as prescribed and has this many chunks."""
        dataset = self.at(path)
        _check_storage(dataset, [ZSTD_FILTER])
        if (dataset.dtype != np.uint8 or dataset.chunks != (CHUNK_ROWS, PAGE)
                or dataset.shape != (chunks * CHUNK_ROWS, PAGE)):
            raise ValueError(f"{path} is not of {chunks} chunks of {CHUNK_ROWS} pages")
        return dataset


def _check_storage(dataset: Any, filters: list[int]) -> None:
    """Raise ValueError unless it is a chunked dataset of this file with just these filters."""
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{dataset.name} is no dataset")
    properties = dataset.id.get_create_plist()
    # Neither external storage (a contiguous layout) nor a virtual dataset is chunked.
    if properties.get_layout() != h5py.h5d.CHUNKED:
        raise ValueError(f"{dataset.name} is not stored in this file in chunks")
    if [properties.get_filter(i)[0] for i in range(properties.get_nfilters())] != filters:
        raise ValueError(f"{dataset.name} has other filters than the format's")


def _contents(dataset: Any) -> Any:
    try:
        return dataset[()]
    except OSError as error:
        raise ValueError(f"{dataset.name} cannot be read, its checksum does not match: {error}") from error


def check_plain(dataset: Any) -> None:
    """Raise ValueError unless a dataset of one dimension has all its chunks, each of its full length.

    What it claims to hold is thereby held by the file: memory to read it is bounded by the file's size.
    """
    _check_storage(dataset, [_FLETCHER32])
    if len(dataset.shape) != 1:
        raise ValueError(f"{dataset.name} has {len(dataset.shape)} dimensions")
    rows, per_chunk, size = dataset.shape[0], dataset.chunks[0], dataset.id.get_type().get_size()
    count = -(-rows // per_chunk)
    length = per_chunk * size + _CHECKSUM
    # First what costs nothing whatever is claimed: the list below is as long as the claim.
    if dataset.id.get_storage_size() != count * length:
        raise ValueError(f"{dataset.name} is not stored in full")
    found: list[tuple[int, int, int]] = []
    if count:
        dataset.id.chunk_iter(lambda c: found.append((c.chunk_offset[0], c.size, c.filter_mask)))
    if sorted(found) != [(i * per_chunk, length, 0) for i in range(count)]:
        raise ValueError(f"{dataset.name} is not stored in full")


def pick(table: Table, dtype: np.dtype[Any]) -> Table:
    """The columns of ``dtype``; others, of a later writer, are left out.

    Raises:
        ValueError: one is missing or of another type.
    """
    fields: Any = table.dtype.fields or {}
    picked: Table = np.zeros(len(table), dtype=dtype)
    for name in dtype.names or ():
        if name not in fields or fields[name][0] != dtype[name]:
            raise ValueError(f"no column {name!r} as prescribed")
        picked[name] = table[name]
    return picked


def attributes(target: Any) -> dict[str, str | int]:
    """The attributes of a group or dataset that are whole numbers or texts of fixed length."""
    found: dict[str, str | int] = {}
    for name in target.attrs:
        attribute = target.attrs.get_id(name)
        if attribute.shape != () or attribute.get_storage_size() > _MAX_ATTRIBUTE:
            continue
        if attribute.dtype.kind in "iu":
            found[name] = int(target.attrs[name])
        elif attribute.dtype.kind == "S":
            found[name] = bytes(_scalar(attribute)).decode("utf-8", "surrogateescape")
    return found


def _scalar(attribute: Any) -> bytes:
    value = np.zeros((), dtype=attribute.dtype)
    attribute.read(value)
    result: bytes = value.item()
    return result
