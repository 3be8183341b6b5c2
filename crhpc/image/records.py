"""Records (dataclasses) as compound tables, and back.

A table is stored by the types of its record's fields, so it can be read without knowing the record:

====================  ==================================================================================
``int``               ``<i8``
``U64``               ``<u8``
``bool``              ``u1``, 0 or 1
``float``             ``<f8``
``str``               ``S``, as wide as the longest of the table; UTF-8, undecodable bytes as they were
``bytes``             (offset ``<u8``, length ``<u8``) into the blob beside the table
``tuple[int, ...]``   the same; ``<i8`` one after another
``tuple[str, ...]``   the same; each a ``<u4`` length and that many bytes
====================  ==================================================================================

A field's metadata may hold ``ref`` ("files.id": its values are values of column ``id`` of table ``files``, or
-1 for none; "objects.id" names page objects) and ``doc``. Both become attributes of the dataset.
"""
from __future__ import annotations

import dataclasses
import functools
import itertools
import struct
import sys
import typing
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NewType, TypeVar

import h5py
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Record = TypeVar("Record", bound=DataclassInstance)

U64 = NewType("U64", int)
"""A whole number of 0 to 2**64 - 1, such as an address or a set of flags."""

Kind = Literal["int", "u64", "bool", "float", "str", "bytes", "ints", "strings"]
Table = npt.NDArray[np.void]
Bytes = npt.NDArray[np.uint8]

SLICE = np.dtype([("offset", "<u8"), ("length", "<u8")])
"""What a column of kind bytes, ints or strings stores."""
BLOB_KINDS: frozenset[str] = frozenset({"bytes", "ints", "strings"})
_SCALARS: dict[str, np.dtype[Any]] = {
    "int": np.dtype("<i8"), "u64": np.dtype("<u8"), "bool": np.dtype("u1"), "float": np.dtype("<f8")}
_LENGTH = struct.Struct("<I")
_MAX_TEXT = 32 << 10
_MAX_CHUNK = 64 << 20
"""Bytes of a table's chunk: one chunk, but for giants."""


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """One field of a record."""

    name: str
    kind: Kind
    ref: str | None
    doc: str | None
    keyword: bool


@functools.cache
def columns(record: type[DataclassInstance]) -> tuple[Column, ...]:
    """The columns of a record's table.

    Raises:
        TypeError: no dataclass, or a field of a type that a table cannot hold.
    """
    if not dataclasses.is_dataclass(record):
        raise TypeError(f"{record.__name__} is no dataclass")
    hints = typing.get_type_hints(record)
    return tuple(
        Column(field.name, _kind(hints[field.name], f"{record.__name__}.{field.name}"),
               field.metadata.get("ref"), field.metadata.get("doc"), field.kw_only is True)
        for field in dataclasses.fields(record))


def _kind(hint: Any, where: str) -> Kind:
    while isinstance(hint, NewType):
        if hint is U64:
            return "u64"
        hint = hint.__supertype__
    kinds: dict[Any, Kind] = {int: "int", bool: "bool", float: "float", str: "str", bytes: "bytes",
                              tuple[int, ...]: "ints", tuple[str, ...]: "strings"}
    if hint not in kinds:
        raise TypeError(f"{where}: a table cannot hold {hint}")
    return kinds[hint]


class Blob:
    """Bytes of varying length of all tables of one shard, one after another."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.size = 0

    def append(self, data: bytes) -> tuple[int, int]:
        """Add ``data``; returns its (offset, length)."""
        offset = self.size
        if data:
            self._parts.append(bytes(data))
            self.size += len(data)
        return offset, len(data)

    def array(self) -> Bytes:
        """All of it, shape (size,)."""
        return np.frombuffer(b"".join(self._parts), dtype=np.uint8)


# -- to a table -------------------------------------------------------------------------------------
def encode(rows: Sequence[Record], record: type[Record], blob: Blob) -> Table:
    """Records to a structured array of shape (len(rows),); what varies in length goes to ``blob``.

    Raises:
        TypeError, ValueError: a value that its column cannot hold: out of range, a NUL in a str, a lone
            surrogate that stands for no byte.
    """
    stored = [(c.name, *_store(c, [getattr(row, c.name) for row in rows], record, blob))
              for c in columns(record)]
    table = np.zeros(len(rows), dtype=np.dtype([(name, dtype) for name, dtype, _ in stored]))
    for name, _, values in stored:
        table[name] = values
    return table


def _store(column: Column, values: list[Any], record: type[Any], blob: Blob) -> tuple[np.dtype[Any], Any]:
    try:
        if column.kind in _SCALARS:
            return _SCALARS[column.kind], _numbers(column.kind, values)
        if column.kind == "str":
            encoded = [_text(value) for value in values]
            width = max(map(len, encoded), default=0) or 1
            return h5py.string_dtype("utf-8", width), np.array(encoded, dtype=f"S{width}")
        return SLICE, np.array([blob.append(_PACK[column.kind](value)) for value in values], dtype=SLICE)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{record.__name__}.{column.name}: {error}") from error


def _numbers(kind: str, values: list[Any]) -> npt.NDArray[Any]:
    # array.array is strict where numpy is not: no float for an int, no wrap-around.
    if kind == "bool":
        if any(value is not True and value is not False for value in values):
            raise TypeError("not a bool")
        return np.array(values, dtype=np.uint8)
    code = {"int": "q", "u64": "Q", "float": "d"}[kind]
    return np.frombuffer(array(code, values), dtype=np.dtype(code))


def _text(value: str) -> bytes:
    if "\0" in value:
        raise ValueError(f"a NUL in {value!r}")
    return value.encode("utf-8", "surrogateescape")


def _pack_ints(values: Iterable[int]) -> bytes:
    packed = array("q", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _pack_strings(values: Iterable[str]) -> bytes:
    encoded = [value.encode("utf-8", "surrogateescape") for value in values]
    return b"".join(_LENGTH.pack(len(item)) + item for item in encoded)


_PACK: dict[str, Callable[[Any], bytes]] = {"bytes": bytes, "ints": _pack_ints, "strings": _pack_strings}


# -- from a table -----------------------------------------------------------------------------------
def decode(table: Table, record: type[Record], blob: Bytes) -> list[Record]:
    """The records that a structured array holds; columns that the record lacks are ignored.

    Raises:
        ValueError: a column is missing or of another type, or points outside ``blob``.
    """
    fields = columns(record)
    for column in fields:
        check_column(table.dtype, column.name, column.kind)
    values = [load(table[column.name], column.kind, blob) for column in fields]
    if not fields:
        return [record() for _ in range(len(table))]
    if not any(column.keyword for column in fields):
        return list(itertools.starmap(record, zip(*values, strict=True)))
    names = [column.name for column in fields]
    return [record(**dict(zip(names, row, strict=True))) for row in zip(*values, strict=True)]


def check_column(dtype: np.dtype[Any], name: str, kind: Kind) -> None:
    """Raise ValueError unless ``dtype`` has a column ``name`` as a field of this kind is stored."""
    if dtype.fields is None or name not in dtype.fields:
        raise ValueError(f"no column {name!r}")
    stored = dtype.fields[name][0]
    expected = SLICE if kind in BLOB_KINDS else _SCALARS.get(kind)
    if stored.kind != "S" if expected is None else stored != expected:
        raise ValueError(f"column {name!r} is stored as {stored}, not as {kind}")


def load(values: npt.NDArray[Any], kind: Kind, blob: Bytes) -> list[Any]:
    """One column's values as Python objects.

    Raises:
        ValueError: a value that no writer of the format makes.
    """
    if kind == "bool":
        if values.size and int(values.max()) > 1:
            raise ValueError("a bool is neither 0 nor 1")
        return list(values.astype(bool).tolist())
    if kind == "str":
        return [value.decode("utf-8", "surrogateescape") for value in values.tolist()]
    if kind in BLOB_KINDS:
        return [_UNPACK[kind](piece) for piece in slices(values, blob)]
    return list(values.tolist())


def slices(values: npt.NDArray[Any], blob: Bytes) -> Iterator[bytes]:
    """The pieces of ``blob`` that a column of `SLICE` names.

    Raises:
        ValueError: at once, if one lies outside the blob.
    """
    if values.dtype != SLICE:
        raise ValueError(f"no column of (offset, length): {values.dtype}")
    offsets, lengths = values["offset"], values["length"]
    size = np.uint64(blob.size)
    if np.any(lengths > size) or np.any(offsets > size - np.minimum(lengths, size)):
        raise ValueError("a value lies outside the blob")
    return (blob[offset:offset + length].tobytes()
            for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True))


def _unpack_ints(data: bytes) -> tuple[int, ...]:
    values = array("q")
    values.frombytes(data)      # ValueError unless whole numbers of 8 bytes
    if sys.byteorder == "big":
        values.byteswap()
    return tuple(values)


def _unpack_strings(data: bytes) -> tuple[str, ...]:
    found, at = [], 0
    while at < len(data):
        if at + _LENGTH.size > len(data):
            raise ValueError("a string's length is cut off")
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if at + length > len(data):
            raise ValueError("a string is cut off")
        found.append(data[at:at + length].decode("utf-8", "surrogateescape"))
        at += length
    return tuple(found)


_UNPACK: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes, "ints": _unpack_ints, "strings": _unpack_strings}


# -- datasets ---------------------------------------------------------------------------------------
def describe(record: type[DataclassInstance]) -> dict[str, str]:
    """The attributes that explain a record's table: ``title``, and of column c ``kind.c, ref.c, doc.c``."""
    attributes: dict[str, str] = {}
    title = (record.__doc__ or "").strip().partition("\n")[0]
    if title and not title.startswith(f"{record.__name__}("):   # dataclasses make one of their own
        attributes["title"] = title
    for column in columns(record):
        attributes[f"kind.{column.name}"] = column.kind
        if column.ref:
            attributes[f"ref.{column.name}"] = column.ref
        if column.doc:
            attributes[f"doc.{column.name}"] = column.doc
    return attributes


def write_table(group: Any, name: str, table: npt.NDArray[Any], attributes: Mapping[str, str | int]) -> None:
    """Make a dataset of one dimension, in one chunk (of at most 64 MiB), with fletcher32.

    Args:
        group: an h5py.Group.
        table: shape (n,).
    """
    rows = max(1, min(len(table), _MAX_CHUNK // table.dtype.itemsize))
    dataset = group.create_dataset(name, data=table, maxshape=(None,) if not len(table) else table.shape,
                                   chunks=(rows,), fletcher32=True)
    write_attributes(dataset, attributes)


def write_attributes(target: Any, attributes: Mapping[str, str | int]) -> None:
    """New attributes of a group or dataset: ``<i8`` or fixed-length UTF-8. A text ends at a NUL or 32 KiB.

    An image has thousands, and h5py's own way to make one takes several times as long.
    """
    for name, value in attributes.items():
        if isinstance(value, int):
            kind, content = _attribute_type(-1), np.array(value, "<i8")
        else:
            data = value.encode("utf-8", "surrogateescape").partition(b"\0")[0][:_MAX_TEXT]
            kind, content = _attribute_type(len(data) or 1), np.array(data, f"S{len(data) or 1}")
        h5py.h5a.create(target.id, name.encode(), kind, _scalar()).write(content, kind)


@functools.lru_cache(256)
def _attribute_type(length: int) -> Any:
    """HDF5's type for UTF-8 of a length; -1: for a whole number."""
    dtype = np.dtype("<i8") if length < 0 else h5py.string_dtype("utf-8", length)
    return h5py.h5t.py_create(dtype, logical=True)


@functools.lru_cache(1)
def _scalar() -> Any:
    return h5py.h5s.create(h5py.h5s.SCALAR)
