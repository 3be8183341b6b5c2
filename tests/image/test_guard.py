"""HDF5 files of a stranger: each dataset is looked at before a byte of it is read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from crhpc.errors import ImageDamaged
from crhpc.image.check import check_image
from crhpc.image.guard import Container, attributes, pick, reading
from crhpc.image.reader import Image
from crhpc.image.records import SLICE

from .samples import OpenFile, flip, forge, reseal

SECRET = b"a secret of the reader's"
PLAIN = np.dtype([("id", "<i8"), ("path", "S8")])


def replace_files(make: Callable[[h5py.Group], None]) -> Callable[[h5py.Group], None]:
    def change(node: h5py.Group) -> None:
        del node["tables/files"]
        make(node["tables"])

    return change


def refused(image: Path, complaint: str) -> None:
    """The image is found damaged, by the check and by reading."""
    with pytest.raises(ImageDamaged, match=complaint) as caught:
        check_image(image)
    assert "shard-0.h5" in str(caught.value)
    assert "secret" not in str(caught.value)
    with pytest.raises(ImageDamaged), Image(image) as opened:
        opened.node(0).table(OpenFile, "files")


def test_external_storage_is_not_read(image: Path) -> None:
    secret = image.parent / "secret"
    secret.write_bytes(SECRET)
    forge(
        image,
        replace_files(
            lambda tables: tables.create_dataset(
                "files", (len(SECRET),), "u1", external=[(str(secret), 0, len(SECRET))]
            )
        ),
    )
    with h5py.File(image / "shard-0.h5") as file:  # an ordinary reader does read it
        assert file["nodes/0/tables/files"][()].tobytes() == SECRET
    refused(image, "not stored in this file")


def test_virtual_datasets_are_not_read(image: Path) -> None:
    def make(tables: h5py.Group) -> None:
        with h5py.File(image.parent / "source.h5", "w") as source:
            source["secret"] = np.zeros(5, PLAIN)
        layout = h5py.VirtualLayout(shape=(5,), dtype=PLAIN)
        layout[:] = h5py.VirtualSource(str(image.parent / "source.h5"), "secret", shape=(5,))
        tables.create_virtual_dataset("files", layout)

    forge(image, replace_files(make))
    refused(image, "not stored in this file")


@pytest.mark.parametrize(
    "link",
    [
        h5py.ExternalLink("/etc/secret.h5", "/x"),
        h5py.ExternalLink("../other.h5", "/x"),
        h5py.SoftLink("/nodes/0/secret"),
    ],
)
def test_links_in_place_of_tables_are_not_followed(image: Path, link: Any) -> None:
    forge(image, replace_files(lambda tables: tables.__setitem__("files", link)))
    refused(image, "is a link")


def test_a_link_in_place_of_a_group_is_not_followed(image: Path) -> None:
    def change(node: h5py.Group) -> None:
        node.move("tables", "others")
        node["tables"] = h5py.SoftLink("/nodes/0/others")

    forge(image, change)
    refused(image, "is a link")


def huge(tables: h5py.Group) -> None:
    tables.create_dataset("files", (1 << 47,), PLAIN, chunks=(1 << 20,), fletcher32=True)


def one_of_many(tables: h5py.Group) -> None:
    made = tables.create_dataset("files", (1 << 20,), PLAIN, chunks=(16,), fletcher32=True)
    made[:16] = np.zeros(16, PLAIN)


def deflated(tables: h5py.Group) -> None:
    tables.create_dataset("files", data=np.zeros(1 << 20, PLAIN), chunks=(1 << 20,), compression="gzip")


def both_filters(tables: h5py.Group) -> None:
    tables.create_dataset("files", data=np.zeros(100, PLAIN), chunks=(100,), compression="gzip", fletcher32=True)


def contiguous(tables: h5py.Group) -> None:
    tables.create_dataset("files", data=np.zeros(100, PLAIN))


def without_checksum(tables: h5py.Group) -> None:
    tables.create_dataset("files", data=np.zeros(100, PLAIN), chunks=(100,))


def two_dimensions(tables: h5py.Group) -> None:
    tables.create_dataset("files", data=np.zeros((10, 10), PLAIN), chunks=(10, 10), fletcher32=True)


def short_chunk(tables: h5py.Group) -> None:
    made = tables.create_dataset("files", (100,), PLAIN, chunks=(100,), fletcher32=True)
    made.id.write_direct_chunk((0,), b"x" * 50)


def unchecked_chunk(tables: h5py.Group) -> None:
    made = tables.create_dataset("files", (100,), PLAIN, chunks=(100,), fletcher32=True)
    made.id.write_direct_chunk((0,), b"x" * 1604, filter_mask=1)


def uneven_chunks(tables: h5py.Group) -> None:
    made = tables.create_dataset("files", (200,), PLAIN, chunks=(100,), fletcher32=True)
    made.id.write_direct_chunk((0,), b"x" * 1704)
    made.id.write_direct_chunk((100,), b"x" * 1504)


def a_group(tables: h5py.Group) -> None:
    tables.create_group("files")


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (huge, "not stored in full"),
        (one_of_many, "not stored in full"),
        (deflated, "other filters"),
        (both_filters, "other filters"),
        (contiguous, "not stored in this file in chunks"),
        (without_checksum, "other filters"),
        (two_dimensions, "2 dimensions"),
        (short_chunk, "not stored in full"),
        (unchecked_chunk, "not stored in full"),
        (uneven_chunks, "not stored in full"),
        (a_group, "no dataset"),
    ],
)
def test_tables_of_other_forms(image: Path, make: Callable[[h5py.Group], None], complaint: str) -> None:
    forge(image, replace_files(make))
    refused(image, complaint)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (h5py.string_dtype(), "text"),
        (h5py.vlen_dtype("i8"), np.arange(3)),
        (h5py.ref_dtype, None),
        ("(3,)i8", 0),
        ("c16", 0),
        (">i8", 0),
        (np.dtype([("offset", "<u8"), ("length", "<u4")]), (0, 0)),
    ],
)
def test_columns_of_other_types(image: Path, column: Any, value: Any) -> None:
    dtype = np.dtype([("id", "<i8"), ("path", column)])

    def make(tables: h5py.Group) -> None:
        made = tables.create_dataset("files", (2,), dtype, chunks=(2,), fletcher32=True)
        made[...] = np.array([(1, value), (2, value)], dtype)

    forge(image, replace_files(make))
    refused(image, "other types|not stored in full")  # vlen strings cannot have a checksum


def test_a_damaged_table_is_found_by_its_checksum(image: Path) -> None:
    """With hashes that fit: what fletcher32 is for."""
    with h5py.File(image / "shard-0.h5") as file:
        found: list[int] = []
        file["nodes/0/tables/files"].id.chunk_iter(lambda chunk: found.append(chunk.byte_offset))
    flip(image / "shard-0.h5", found[0] + 3)
    reseal(image)
    refused(image, "files cannot be read, its checksum")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("shape", lambda node: node["pages/log"].resize(1 << 45, axis=0)),
        ("missing", lambda node: node.__delitem__("pages/log")),
        (
            "type",
            lambda node: (
                node.__delitem__("pages/log"),
                node.create_dataset("pages/log", (512, 4096), "u1", chunks=(256, 4096), fletcher32=True),
            ),
        ),
        (
            "chunks",
            lambda node: (
                node.__delitem__("pages/log"),
                node.create_dataset(
                    "pages/log",
                    (512, 4096),
                    "u1",
                    chunks=(128, 4096),
                    compression=32015,
                    compression_opts=(1,),
                    allow_unknown_filter=True,
                ),
            ),
        ),
        (
            "unwritten",
            lambda node: (
                node.__delitem__("pages/log"),
                node.create_dataset(
                    "pages/log",
                    (512, 4096),
                    "u1",
                    chunks=(256, 4096),
                    compression=32015,
                    compression_opts=(1,),
                    allow_unknown_filter=True,
                ),
            ),
        ),
    ],
)
def test_logs_of_other_forms(image: Path, name: str, change: Callable[[h5py.Group], None]) -> None:
    forge(image, change)
    with pytest.raises(ImageDamaged, match=r"shard-0\.h5"):
        check_image(image)


def test_files_that_are_links_or_pipes(image: Path) -> None:
    shard = image / "shard-0.h5"
    shard.rename(image.parent / "elsewhere.h5")
    shard.symlink_to(image.parent / "elsewhere.h5")
    with pytest.raises(ImageDamaged, match=r"shard-0\.h5"):
        check_image(image)
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(ImageDamaged, match="regular file"):
        check_image(image)


def test_lack_of_permission_is_no_damage(image: Path) -> None:
    with pytest.raises(PermissionError), reading(image, "x"):
        raise PermissionError(13, "Permission denied")
    with pytest.raises(ImageDamaged, match="y: Input/output error"), reading(image, "y"):
        raise OSError(5, "Input/output error")
    with pytest.raises(ImageDamaged) as caught, reading(image, "y"):
        raise ValueError("long\n\tand " * 100)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_follow_stays_in_the_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = 1
    with h5py.File(tmp_path / "a.h5", "w", libver=("v110", "v114")) as file:
        group = file.create_group("a/b")
        group["up"] = h5py.SoftLink("/a")
        group["beside"] = h5py.SoftLink("c")
        group.create_group("c")
        group["loop"] = h5py.SoftLink("/a/b/loop")
        group["out"] = h5py.ExternalLink("other.h5", "/")
        group["over"] = h5py.SoftLink("/a/b/out/secret")
    data = (tmp_path / "a.h5").read_bytes()
    container = Container(tmp_path / "a.h5", len(data), hashlib.sha256(data).hexdigest())
    assert container.follow("/a/b/up/b/beside").name == "/a/b/c"
    for path in ("/a/b/loop", "/a/b/out", "/a/b/over", "/a/b/none", "/a/b/up/b/out/secret"):
        with pytest.raises(LookupError):
            container.follow(path)
    container.close()


def test_length_and_hash_come_before_hdf5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.h5").write_bytes(b"not HDF5")
    monkeypatch.setattr(h5py, "File", lambda *arguments: pytest.fail("HDF5 saw it"))
    with pytest.raises(ValueError, match="8 bytes"):
        Container(tmp_path / "a.h5", 9, 64 * "0")
    with pytest.raises(ValueError, match="SHA-256"):
        Container(tmp_path / "a.h5", 8, 64 * "0")
    assert (
        len(
            [
                fd
                for fd in os.listdir("/proc/self/fd")
                if os.path.exists(f"/proc/self/fd/{fd}") and "a.h5" in os.readlink(f"/proc/self/fd/{fd}")
            ]
        )
        == 0
    )


def test_pick() -> None:
    table = np.zeros(2, dtype=[("a", "<i8"), ("new", "<f8"), ("b", SLICE)])
    table["a"] = [1, 2]
    assert pick(table, np.dtype([("a", "<i8")])).tolist() == [(1,), (2,)]
    for dtype in ([("c", "<i8")], [("a", "<u8")], [("b", "<i8")]):
        with pytest.raises(ValueError, match="no column"):
            pick(table, np.dtype(dtype))


def test_attributes_of_other_types_are_left_out(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w", libver=("v110", "v114")) as file:
        file.attrs["vlen"] = "text"
        file.attrs["array"] = [1, 2, 3]
        file.attrs["float"] = 1.5
        file.attrs["number"] = np.int32(7)
        file.attrs["fixed"] = np.bytes_(b"ab")
        assert attributes(file) == {"number": 7, "fixed": "ab"}
