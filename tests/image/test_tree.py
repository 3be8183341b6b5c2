"""Groups and links for people."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest

from crhpc.image.tree import Tree


def test_groups_and_links_as_h5py_sees_them(tmp_path: Path) -> None:
    tree = Tree()
    tree.group("files/2", {"path": "/dev/null"})
    tree.group("tree/1141", {"program": "app"})
    tree.link("tree/1141/fds/1", "files/2")
    tree.link("tree/1141/fds/\udcff", "files/missing")
    tree.group("tree", {"n": 1})  # was made on the way; now it gets attributes
    with h5py.File(tmp_path / "t.h5", "w", libver=("v110", "v114")) as file:
        tree.write(file.create_group("nodes/0"))
    with h5py.File(tmp_path / "t.h5") as file:
        assert file["nodes/0/tree/1141/fds/1"].attrs["path"] == b"/dev/null"
        assert file["nodes/0/tree/1141/fds"].get("1", getlink=True).path == "/nodes/0/files/2"
        assert sorted(file["nodes/0/tree/1141/fds"]) == ["1", "\\udcff"]
        assert file["nodes/0/tree"].attrs["n"] == 1


@pytest.mark.parametrize("path", ["", "/a", "a/", "a//b", "a/../b", "./a", "a\0b", "tables/x", "pages", "pages/log"])
def test_impossible_paths(path: str) -> None:
    with pytest.raises(ValueError):
        Tree().group(path, {})
    with pytest.raises(ValueError):
        Tree().link(path, "files/2")


def test_taken_paths() -> None:
    tree = Tree()
    tree.group("a/b", {})
    tree.link("a/c", "a/b")
    for path in ("a/b", "a/c"):
        with pytest.raises(ValueError, match="taken"):
            tree.group(path, {})
    for path in ("a", "a/b", "a/c"):
        with pytest.raises(ValueError, match="taken"):
            tree.link(path, "x")
    for add in (lambda: tree.group("a/c/d", {}), lambda: tree.link("a/c/d", "x")):
        with pytest.raises(ValueError, match="through a link"):
            add()
    with pytest.raises(ValueError, match="not a path"):
        tree.link("d", "../x")
