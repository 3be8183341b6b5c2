"""The tree as people see it."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import pytest

from crhpc.errors import Usage
from crhpc.image.browse import Entry
from crhpc.image.reader import Image

from .samples import CONNECTIONS, DESCRIPTORS, FILES, as_plain, forge


def listing(image: Image, path: str) -> dict[str, tuple[str, str]]:
    return {entry.name: (entry.kind, entry.text) for entry in image.entries(path)}


def test_listings(whole: Path) -> None:
    with Image(whole) as image:
        assert [entry.name for entry in image.entries()] == ["job", "nodes", "tables"]
        assert listing(image, "/job")["user"] == ("value", "someone")
        assert listing(image, "/nodes").keys() == {"0", "3"}
        assert "shard-3.h5" in listing(image, "nodes/")["3"][1]
        assert listing(image, "/nodes/0") == {
            "files": ("group", "1 entries"),
            "pages": ("group", "4 entries"),
            "tables": ("group", "4 entries"),
            "tree": ("group", "1 entries"),
        }
        assert listing(image, "/nodes/0/tables")["files"] == ("table", "2 rows; An open file.")
        assert listing(image, "/nodes/0/tables")["blob"][0] == "bytes"
        assert listing(image, "/nodes/0/tables/descriptors")["file"] == (
            "column",
            "int, names files.id: what it refers to",
        )
        assert listing(image, "/nodes/0/pages")["log"][0] == "pages"
        assert listing(image, "/nodes/0/files/") == {"2": ("group", "flags=2 path=/dev/null")}
        assert image.entries("/nodes/0/tree/1141/fds") == [Entry("1", "link", "/nodes/0/files/2")]
        assert listing(image, "/tables")["connections"] == (
            "table",
            "2 rows; A connection between two nodes.",
        )


def test_descriptions(whole: Path) -> None:
    with Image(whole) as image:
        assert image.describe("/")[0]["freeze"] == 0.5
        assert image.describe("/job") == [image.job]
        assert [node["node"] for node in image.describe("/nodes")] == [0, 3]
        assert image.describe("/nodes/0/tables/descriptors") == [as_plain(row) for row in DESCRIPTORS]
        assert image.describe("/tables/connections") == [as_plain(row) for row in CONNECTIONS]
        first, second = image.describe("/nodes/3/tables/files")
        assert first == as_plain(FILES[0]) | {"data": "40 bytes: " + FILES[0].data[:32].hex() + " ..."}
        assert second == as_plain(FILES[1]) | {"data": "0 bytes"}
        assert image.describe("/nodes/0/tree/1141/fds/1") == [{"path": "/dev/null", "flags": 2}]
        assert image.describe("/nodes/0/pages/runs")[1]["kind"] == "zero"
        assert image.describe("/nodes/0/pages/objects")[0]["name"] == "mm/1141"
        for path in ("/nodes/0/tables/files", "/nodes/0/pages/chunks", "/nodes/0/pages/log", "/"):
            json.dumps(image.describe(path))


@pytest.mark.parametrize(
    "path",
    [
        "/x",
        "/nodes/7",
        "/nodes/00",
        "/nodes/0/x",
        "/nodes/0/tables/files/id",
        "/tables/x",
        "/nodes/0/tree/1141/fds/2",
        "/job/x",
        "/nodes/0/..",
    ],
)
def test_paths_that_are_not_there(whole: Path, path: str) -> None:
    with Image(whole) as image:
        for look in (image.entries, image.describe):
            with pytest.raises(Usage, match="has no"):
                look(path)


def test_links_out_of_the_file_are_named_and_not_followed(image: Path) -> None:
    secret = image.parent / "secret.h5"
    with h5py.File(secret, "w") as file:
        file.create_group("x").attrs["secret"] = 1

    def change(node: h5py.Group) -> None:
        node["tree/out"] = h5py.ExternalLink(str(secret), "/x")
        node["tree/over"] = h5py.SoftLink("/nodes/0/tree/out")

    forge(image, change)
    with Image(image) as opened:
        assert listing(opened, "/nodes/0/tree")["out"] == ("link", "leads out of the file; not followed")
        for path in ("/nodes/0/tree/out", "/nodes/0/tree/over"):
            with pytest.raises(Usage):
                opened.describe(path)


def test_bytes_are_shortened(whole: Path) -> None:
    with Image(whole) as image:
        assert len(image.describe("/nodes/0/tables/files")[0]["data"]) < 100
