"""An image as one file."""
from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from crhpc.errors import ImageDamaged
from crhpc.image.format import MANIFEST, MASTER
from crhpc.image.pack import pack

from .samples import flip, write_sample


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return write_sample(tmp_path / "images", 5)


def contents(path: Path) -> dict[str, object]:
    """Everything in a file, by its path."""
    found: dict[str, object] = {}

    def look(group: h5py.Group) -> None:
        found[group.name] = dict(group.attrs)
        for name in group:
            link = group.get(name, getlink=True)
            where = f"{group.name.rstrip('/')}/{name}"
            if isinstance(link, h5py.SoftLink):
                found[where] = link.path
            elif isinstance(group[name], h5py.Group):
                look(group[name])
            else:
                found[where] = (group[name].dtype, group[name].shape, group[name].compression, group[name].chunks)
    with h5py.File(path, "r") as file:
        look(file)
    return found


def test_it_holds_all_of_the_image_and_needs_nothing_else(image, tmp_path):
    expected = contents(image / MASTER)
    manifest = (image / MANIFEST).read_bytes()
    with h5py.File(image / MASTER, "r") as master:
        log = master["nodes/3/pages/log"]
        chunks = [log.id.read_direct_chunk((row, 0)) for row in range(0, len(log), log.chunks[0])]
    target = tmp_path / "out.h5"
    assert pack(image, target) == target.stat().st_size
    image.rename(tmp_path / "gone")
    found = contents(target)
    assert found.pop("/manifest.json")[1] == (len(manifest),)
    assert found == expected
    with h5py.File(target, "r") as file:
        log = file["nodes/3/pages/log"]
        assert [log.id.read_direct_chunk((row, 0)) for row in range(0, len(log), log.chunks[0])] == chunks
        assert np.asarray(file["manifest.json"]).tobytes() == manifest
    assert os.listdir(tmp_path / "images") == []


def test_what_is_there_stays(image, tmp_path):
    target = tmp_path / "out.h5"
    target.write_text("mine")
    with pytest.raises(FileExistsError):
        pack(image, target)
    assert target.read_text() == "mine"
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_damaged_image_is_not_packed(image, tmp_path):
    flip(image / MASTER, 100)
    with pytest.raises(ImageDamaged):
        pack(image, tmp_path / "out.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


def test_a_place_that_can_not_be_written(image, tmp_path):
    with pytest.raises(OSError, match="No such file"):
        pack(image, tmp_path / "nowhere" / "out.h5")
