"""An image's tree for people and tools: what lies at a path, and a table's rows as plain values.

Paths are those of the HDF5 files: ``/job``, ``/tables/connections``, ``/nodes/0/tables/files``,
``/nodes/0/tree/1141/fds/1``. The step from the master to a shard is taken here, by the manifest; links
inside a shard are followed in that file only.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import h5py

from crhpc.errors import Usage
from crhpc.image.guard import attributes, reading
from crhpc.image.records import BLOB_KINDS, SLICE, Kind, load

if TYPE_CHECKING:
    import numpy as np

    from crhpc.image.reader import Image, Tables

_HEAD = 32
"""Bytes shown of a longer value."""
_KINDS: dict[str, Kind] = {"i": "int", "u": "u64", "f": "float", "S": "str"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a listing."""

    name: str
    kind: Literal["group", "table", "pages", "bytes", "link", "column", "value"]
    text: str
    """Number of rows, a link's target, a group's attributes, a column's type, a value."""


def entries(image: Image, path: str = "/") -> list[Entry]:
    """What lies in a group; a table's columns.

    Raises:
        Usage: no such path.
        ImageDamaged: a file on the way is wrong.
    """
    names = [name for name in path.split("/") if name]
    if not names:
        return [Entry("job", "group", _brief(image.job)), Entry("nodes", "group", f"{len(image.nodes)}"),
                Entry("tables", "group", " ".join(image.master.tables()))]
    if names == ["job"]:
        return [Entry(name, "value", str(value)) for name, value in image.job.items()]
    if names == ["nodes"]:
        return [Entry(str(shard.node), "group", f"{shard.file}, {shard.summary.size} bytes, "
                      f"{shard.summary.rows - shard.summary.dead_rows} pages") for shard in image.nodes]
    owner, found = _locate(image, names)
    with reading(image.path, owner.file):
        if isinstance(found, h5py.Dataset):
            return _columns(found)
        return [_entry(found, name) for name in found]


def describe(image: Image, path: str) -> list[dict[str, Any]]:
    """A table's rows; of a group, one dict of its attributes. Values are plain: they can become JSON.

    Bytes become text: how many there are, and the first 32 in hexadecimal.

    Raises:
        Usage: no such path.
        ImageDamaged: a file on the way is wrong.
    """
    names = [name for name in path.split("/") if name]
    if not names:
        return [{"number": image.number, "created": image.manifest.created, **image.manifest.stats}]
    if names == ["job"]:
        return [dict(image.job)]
    if names == ["nodes"]:
        return [{k: v for k, v in shard.summary.to_json().items() if k != "spans"} for shard in image.nodes]
    owner, found = _locate(image, names)
    with reading(image.path, owner.file):
        if not isinstance(found, h5py.Dataset) or found.dtype.fields is None:
            return [dict(attributes(found))]
        return _rows(owner, found)


def _locate(image: Image, names: list[str]) -> tuple[Tables, Any]:
    """The file in which a path lies, and the group or dataset there."""
    owner = image.master if names[0] == "tables" else None
    if names[0] == "nodes":
        owner = next((shard for shard in image.nodes if str(shard.node) == names[1]), None)
    if owner is None:
        raise Usage(what=f"{image.path} has no /{'/'.join(names)}")
    with reading(image.path, owner.file):
        try:
            return owner, owner.container.follow("/".join(names))
        except LookupError:
            raise Usage(what=f"{image.path} has no /{'/'.join(names)}") from None


def _entry(group: Any, name: str) -> Entry:
    link = group.get(name, getlink=True)
    if isinstance(link, h5py.SoftLink):
        return Entry(name, "link", link.path)
    if not isinstance(link, h5py.HardLink):
        return Entry(name, "link", "leads out of the file; not followed")
    child = group[name]
    known = attributes(child)
    title = str(known.get("title", ""))
    if not isinstance(child, h5py.Dataset):
        return Entry(name, "group", _brief(known) or f"{len(child)} entries")
    if child.dtype.fields is not None:
        return Entry(name, "table", "; ".join(filter(None, [f"{child.shape[0]} rows", title])))
    kind: Literal["pages", "bytes"] = "pages" if len(child.shape) == 2 else "bytes"
    return Entry(name, kind, "; ".join(filter(None, [f"{child.shape[0]}", title])))


def _columns(table: Any) -> list[Entry]:
    known = attributes(table)
    found = []
    for name in table.dtype.names or ():
        text = str(known.get(f"kind.{name}", table.dtype[name]))
        if f"ref.{name}" in known:
            text += f", names {known[f'ref.{name}']}"
        if f"doc.{name}" in known:
            text += f": {known[f'doc.{name}']}"
        found.append(Entry(name, "column", text))
    return found


def _rows(owner: Tables, table: Any) -> list[dict[str, Any]]:
    rows = owner.container.table(table.name)
    known = attributes(table)
    values = {name: [_plain(value) for value in _load(rows[name], known.get(f"kind.{name}"), owner)]
              for name in rows.dtype.names or ()}
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def _load(values: np.ndarray[Any, Any], kind: str | int | None, owner: Tables) -> list[Any]:
    names = h5py.check_enum_dtype(values.dtype)
    if names:
        texts = {number: text for text, number in names.items()}
        return [texts.get(value, value) for value in values.tolist()]
    if values.dtype == SLICE:
        return load(values, kind if kind in BLOB_KINDS else "bytes", owner.blob)  # type: ignore[arg-type]
    return load(values, "bool" if kind == "bool" else _KINDS[values.dtype.kind], owner.blob)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        more = " ..." if len(value) > _HEAD else ""
        return f"{len(value)} bytes" + (f": {value[:_HEAD].hex()}{more}" if value else "")
    return list(value) if isinstance(value, tuple) else value


def _brief(values: Mapping[str, Any]) -> str:
    text = " ".join(f"{name}={value}" for name, value in values.items())
    return text if len(text) <= 100 else text[:97] + "..."
