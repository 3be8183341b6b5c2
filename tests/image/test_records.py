"""Records to tables and back, as arrays and through HDF5."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NewType

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crhpc.image.records import (
    SLICE,
    U64,
    Blob,
    columns,
    decode,
    describe,
    encode,
    write_attributes,
    write_table,
)

from .samples import FILES, OpenFile

INT = st.integers(-(2**63), 2**63 - 1)
# What os.fsdecode gives: text without NUL, undecodable bytes as lone surrogates.
TEXT = st.binary(max_size=12).map(lambda data: data.replace(b"\0", b"?").decode("utf-8", "surrogateescape"))
ROWS = st.lists(
    st.builds(
        OpenFile,
        id=INT,
        path=TEXT,
        flags=st.integers(0, 2**64 - 1).map(U64),
        locked=st.booleans(),
        age=st.floats(allow_nan=False),
        data=st.binary(max_size=40),
        offsets=st.lists(INT, max_size=4).map(tuple),
        names=st.lists(st.binary(max_size=8).map(lambda data: data.decode("utf-8", "surrogateescape")), max_size=4).map(
            tuple
        ),
        pages=INT,
    ),
    max_size=6,
)
Address = NewType("Address", U64)
Count = NewType("Count", int)


@dataclass(frozen=True, slots=True)
class Named:
    address: Address
    count: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Keywords:
    b: int
    a: str


@dataclass(frozen=True, slots=True)
class Older:
    id: int
    path: str


@dataclass(frozen=True, slots=True)
class Newer:
    id: int
    path: str
    colour: int


@dataclass(frozen=True, slots=True)
class Wrong:
    id: str


@dataclass(frozen=True, slots=True)
class Lists:
    items: list[int]


def round_trip(rows: list[Any], record: type[Any]) -> list[Any]:
    blob = Blob()
    blob.append(b"something before")
    table = encode(rows, record, blob)
    assert len(table) == len(rows)
    return decode(table, record, blob.array())


# -- round trips ------------------------------------------------------------------------------------
@settings(max_examples=200, deadline=None)
@given(ROWS)
def test_all_types(rows: list[OpenFile]) -> None:
    back = round_trip(rows, OpenFile)
    assert back == rows
    assert [math.copysign(1, row.age) for row in back] == [math.copysign(1, row.age) for row in rows]
    assert all(type(row.locked) is bool and type(row.id) is int and type(row.names) is tuple for row in back)


@settings(max_examples=30, deadline=None)
@given(rows=ROWS)
def test_all_types_through_a_file(tmp_path_factory: pytest.TempPathFactory, rows: list[OpenFile]) -> None:
    path = tmp_path_factory.mktemp("t") / "t.h5"
    blob = Blob()
    with h5py.File(path, "w", libver=("v110", "v114")) as file:
        write_table(file, "files", encode(rows, OpenFile, blob), describe(OpenFile))
        write_table(file, "blob", blob.array(), {})
    with h5py.File(path) as file:
        assert file["files"].fletcher32
        assert file["files"].chunks == (max(1, len(rows)),)
        assert decode(file["files"][()], OpenFile, file["blob"][()]) == rows


def test_nan_stays_nan() -> None:
    (row,) = round_trip([OpenFile(1, "", U64(0), True, math.nan, b"", (), ())], OpenFile)
    assert math.isnan(row.age)


def test_new_types_and_keywords() -> None:
    assert [column.kind for column in columns(Named)] == ["u64", "int"]
    rows = [Named(Address(U64(2**64 - 1)), Count(-5))]
    assert round_trip(rows, Named) == rows
    others = [Keywords(a="x", b=1), Keywords(a="", b=2)]
    assert round_trip(others, Keywords) == others


def test_columns_are_what_the_format_says() -> None:
    dtype = encode(FILES, OpenFile, Blob()).dtype
    longest = max(len(row.path.encode("utf-8", "surrogateescape")) for row in FILES)
    assert [(name, dtype[name]) for name in dtype.names or ()] == [
        ("id", np.dtype("<i8")),
        ("path", np.dtype(f"S{longest}")),
        ("flags", np.dtype("<u8")),
        ("locked", np.dtype("u1")),
        ("age", np.dtype("<f8")),
        ("data", SLICE),
        ("offsets", SLICE),
        ("names", SLICE),
        ("pages", np.dtype("<i8")),
    ]


def test_blob_holds_values_one_after_another() -> None:
    blob = Blob()
    table = encode(FILES, OpenFile, blob)
    offset, length = table["offsets"][0].item()
    assert blob.array()[offset : offset + length].view("<i8").tolist() == list(FILES[0].offsets)
    offset, length = table["names"][0].item()
    assert blob.array()[offset : offset + length].tobytes() == b"\1\0\0\0a\0\0\0\0"


# -- what cannot be stored --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", 2**63),
        ("id", -(2**63) - 1),
        ("id", 1.5),
        ("id", "1"),
        ("flags", -1),
        ("flags", 2**64),
        ("path", "a\0b"),
        ("path", "a\0"),
        ("path", "\ud800"),
        ("path", b"a"),
        ("locked", 1),
        ("age", "1"),
        ("offsets", (2**63,)),
        ("names", ("\ud800",)),
        ("data", "text"),
    ],
)
def test_values_that_no_column_holds(name: str, value: object) -> None:
    values: dict[str, Any] = {
        "id": 1,
        "path": "",
        "flags": 0,
        "locked": False,
        "age": 0.0,
        "data": b"",
        "offsets": (),
        "names": (),
    }
    encode([OpenFile(**values)], OpenFile, Blob())
    with pytest.raises((ValueError, AttributeError), match=rf"OpenFile\.{name}"):
        encode([OpenFile(**values | {name: value})], OpenFile, Blob())


def test_types_that_no_table_holds() -> None:
    with pytest.raises(TypeError, match=r"Lists\.items"):
        columns(Lists)
    with pytest.raises(TypeError, match="no dataclass"):
        columns(int)  # type: ignore[arg-type]


# -- versions ---------------------------------------------------------------------------------------
def test_unknown_columns_are_ignored_and_missing_ones_refused() -> None:
    blob = Blob()
    table = encode(FILES, OpenFile, blob)
    assert decode(table, Older, blob.array()) == [Older(row.id, row.path) for row in FILES]
    with pytest.raises(ValueError, match="colour"):
        decode(table, Newer, blob.array())
    with pytest.raises(ValueError, match="stored as int64"):
        decode(table, Wrong, blob.array())


# -- values that no writer makes --------------------------------------------------------------------
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("data", (0, 10**6)),
        ("data", (2**64 - 1, 2)),
        ("data", (2**63, 2**63)),
        ("data", (10**6, 0)),
        ("offsets", (0, 7)),
        ("names", (0, 3)),
        ("names", (4, 4)),
    ],
)
def test_slices_are_checked(column: str, value: tuple[int, int]) -> None:
    blob = Blob()
    blob.append(b"\xff" * 16)
    table = encode(FILES[1:], OpenFile, blob)
    table[column][0] = value
    with pytest.raises(ValueError):
        decode(table, OpenFile, blob.array())


def test_a_bool_is_0_or_1() -> None:
    table = encode(FILES, OpenFile, blob := Blob())
    table["locked"] = 2
    with pytest.raises(ValueError, match="bool"):
        decode(table, OpenFile, blob.array())


# -- attributes -------------------------------------------------------------------------------------
def test_attributes_explain_the_table() -> None:
    found = describe(OpenFile)
    assert found["title"] == "An open file."
    assert found["kind.names"] == "strings"
    assert found["doc.path"] == "as the job sees it"
    assert found["ref.pages"] == "objects.id"
    assert "title" not in describe(Older)


def test_attributes_are_of_fixed_length(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w", libver=("v110", "v114")) as file:
        write_attributes(file, {"a": "äß", "empty": "", "n": -5, "nul": "x\0y", "long": "y" * 100_000})
        assert file.attrs.get_id("a").dtype.kind == "S"
        assert bytes(file.attrs["a"]).decode() == "äß"
        assert (file.attrs["empty"], file.attrs["n"], file.attrs["nul"]) == (b"", -5, b"x")
        assert 30_000 < len(file.attrs["long"]) < 64_000


def test_a_giant_table_has_several_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crhpc.image.records._MAX_CHUNK", 64)
    table = np.arange(20).astype([("a", "<i8")])
    with h5py.File(tmp_path / "a.h5", "w", libver=("v110", "v114")) as file:
        write_table(file, "t", table, {})
        assert file["t"].chunks == (8,)
        assert file["t"][()].tolist() == table.tolist()
