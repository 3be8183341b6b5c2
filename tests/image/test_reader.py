"""Reading: tables, walking, random access, and what plain HDF5 tools see."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zstandard

import crhpc
from crhpc.errors import ImageDamaged, NoImage
from crhpc.image import reader as module
from crhpc.image.check import check_image
from crhpc.image.format import CHUNK
from crhpc.image.pages import ROW
from crhpc.image.reader import Image, Shard
from crhpc.image.writer import ShardWriter

from .conftest import need
from .samples import (
    CONNECTIONS,
    DESCRIPTORS,
    ENVIRONMENT,
    FILES,
    ROOT,
    Connection,
    Descriptor,
    OpenFile,
    flip,
    forge,
    page,
    write_sample,
)

MEMORY, SHARED = 0, 1


@dataclass(frozen=True, slots=True)
class Later:
    id: int
    invented: int


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 chunks of two objects in turns, every third page zero, some put again."""

    def fill(writer: ShardWriter) -> None:
        objects = [writer.object("a"), writer.object("b")]
        for i in range(40):
            buffer = writer.take()
            buffer.array[:] = 0
            buffer.array[:, 0], buffer.array[:, 1] = i + 1, np.arange(256)
            buffer.array[2::3] = 0
            writer.put(buffer, [(objects[i % 2], i * 200, 128), (objects[1 - i % 2], i * 200, 128)])

    return write_sample(tmp_path_factory.mktemp("large"), 1, (0,), fill)


def expected(number: int, at: int) -> bytes | None:
    """What ``large`` holds on a page; None: nothing."""
    made = None
    for i in range(40):
        if i * 200 <= at < i * 200 + 128:
            row = at - i * 200 + (0 if i % 2 == number else 128)
            made = bytes(4096) if row % 3 == 2 else bytes([i + 1, row]) + bytes(4094)
    return made


# -- images and tables ------------------------------------------------------------------------------
def test_open_image(whole: Path) -> None:
    with crhpc.open_image(whole) as image:
        assert (image.number, image.job["user"], [shard.node for shard in image.nodes]) == (
            12,
            "someone",
            [0, 3],
        )
        assert image.connections(Connection) == CONNECTIONS
        for shard in image.nodes:
            assert shard.table(OpenFile, "files") == FILES
            assert shard.table(Descriptor, "descriptors") == DESCRIPTORS
        assert image.node(3) is image.nodes[1]
        with pytest.raises(ImageDamaged, match="no node 1"):
            image.node(1)
    with pytest.raises(NoImage):
        crhpc.open_image(whole.parent)


def test_rows_are_arrays(whole: Path) -> None:
    with Image(whole) as image:
        rows = image.node(0).rows("files")
        assert rows["id"].tolist() == [1, 2]
        assert rows["data"]["length"].tolist() == [40, 0]


def test_missing_columns_and_tables_are_damage(whole: Path) -> None:
    with Image(whole) as image:
        with pytest.raises(ImageDamaged, match=r"shard-0\.h5: table files: no column 'invented'"):
            image.node(0).table(Later, "files")
        with pytest.raises(ImageDamaged, match="missing"):
            image.node(0).table(Later, "later")


def test_files_are_closed_and_opened_again(whole: Path) -> None:
    def ours() -> int:
        links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
        return sum(os.path.lexists(link) and str(whole) in os.readlink(link) for link in links)

    image = Image(whole)
    assert ours() == 0
    shard = image.node(0)
    shard.table(OpenFile, "files")
    assert ours() == 1
    image.close()
    assert ours() == 0
    assert shard.table(OpenFile, "files") == FILES
    image.close()


# -- pages ------------------------------------------------------------------------------------------
def test_walk_yields_the_final_state(whole: Path) -> None:
    with Image(whole) as image:
        walked = [(number, first, bytes(pages)) for number, first, pages in image.node(0).walk()]
    assert walked == [
        (MEMORY, 100, page(1).tobytes()),
        (MEMORY, 2**51, page(4).tobytes()),
        (SHARED, 0, page(5).tobytes()),
        (MEMORY, 102, page(6).tobytes() + page(7).tobytes()),
    ]


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_walk_reads_each_chunk_once_and_in_order(
    large: Path, monkeypatch: pytest.MonkeyPatch, threads: int | None
) -> None:
    loaded: list[int] = []
    chunk = Shard.chunk

    def counted(self: Shard, index: int) -> bytes:
        loaded.append(index)
        return chunk(self, index)

    monkeypatch.setattr(Shard, "chunk", counted)
    found, rows = {}, []
    with Image(large) as image:
        for number, first, pages in image.nodes[0].walk(threads=threads):
            rows.append(len(loaded))
            for i in range(len(pages) // 4096):
                found[number, first + i] = bytes(pages[i * 4096 :][:4096])
    assert sorted(loaded) == list(range(40))
    assert found == {
        (number, at): made
        for number in (0, 1)
        for at in range(40 * 200)
        if (made := expected(number, at)) not in (None, bytes(4096))
    }


def test_walk_of_one_object_skips_other_chunks(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Image(large) as image:
        everything = list(image.nodes[0].walk())
        for wanted in ([0], [1], {0, 1}, []):
            some = [item for item in everything if item[0] in wanted]
            assert list(image.nodes[0].walk(wanted)) == some
    assert {item[0] for item in everything} == {0, 1}


def test_walk_stays_a_bounded_way_ahead(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, chunk = [], Shard.chunk
    monkeypatch.setattr(Shard, "chunk", lambda self, index: loaded.append(index) or chunk(self, index))  # type: ignore[func-returns-value]
    before = threading.active_count()
    with Image(large) as image:
        walk = image.nodes[0].walk(threads=3)
        next(walk)
        threading.Event().wait(0.2)
        assert 1 < len(loaded) <= 3 * 2 + 1
        walk.close()
        assert threading.active_count() == before


def test_pages_at_random(large: Path) -> None:
    rng = np.random.default_rng(3)
    with Image(large) as image:
        shard = image.nodes[0]
        for _ in range(100):
            number, first, count = int(rng.integers(2)), int(rng.integers(8000)), int(rng.integers(0, 400))
            assert shard.pages(number, first, count) == b"".join(
                expected(number, at) or bytes(4096) for at in range(first, first + count)
            )
        assert shard.pages(7, 0, 2) == bytes(8192)
        assert len(shard._cache) <= 4


def test_runs_of_one_object(large: Path) -> None:
    with Image(large) as image:
        shard = image.nodes[0]
        first, second = shard.runs(0), shard.runs(1)
        assert len(first) + len(second) == len(shard.runs())
        assert set(first["object"].tolist()) == {0}
        assert np.all(first["page"][1:] >= (first["page"] + first["npages"])[:-1])
        assert len(shard.runs(2)) == 0
        sums = {each.id: (each.rows, each.zeros) for each in shard.objects()}
        for number, runs in ((0, first), (1, second)):
            stored = int(runs["npages"][runs["kind"] == ROW].sum())
            assert sums[number] == (stored, int(runs["npages"].sum()) - stored)


# -- damage that no hash of the manifest covers -----------------------------------------------------
def damage_chunk(path: Path, index: int, at: int) -> None:
    with Image(path) as image:
        offset, size = image.nodes[0].chunks()[index][["offset", "size"]].item()
    flip(path / "shard-0.h5", offset + at % size)


@pytest.mark.parametrize("threads", [1, 3, None])
def test_spreading(large: Path, threads: int | None) -> None:
    """All that a walk gives, each chunk once, whatever its thread; the buffer is only lent."""
    with Image(large) as image:
        shard = image.nodes[0]
        for wanted in ({0, 1}, {1}, set[int]()):
            found: dict[tuple[int, int], bytes] = {}
            lock = threading.Lock()

            def take(chunk: Any, pieces: Any, found: Any = found, lock: Any = lock) -> None:
                assert chunk.shape == (CHUNK,)
                with lock:
                    for number, _kind, first, count, row in pieces.tolist():
                        for i in range(count):
                            assert (number, first + i) not in found
                            found[number, first + i] = chunk[(row + i) * 4096:(row + i + 1) * 4096].tobytes()
            shard.spread(wanted, take, threads)
            walked = {(number, first + i): bytes(pages[i * 4096:(i + 1) * 4096])
                      for number, first, pages in shard.walk(wanted) for i in range(len(pages) // 4096)}
            assert found == walked
            assert wanted == {number for number, _ in found}


def test_an_error_in_spreading_comes_out(large: Path) -> None:
    def take(chunk: Any, pieces: Any) -> None:
        raise OSError(28, "No space left on device")

    with Image(large) as image, pytest.raises(OSError, match="No space"):
        image.nodes[0].spread({0, 1}, take)


def test_a_damaged_chunk_is_found_when_it_is_read(image: Path) -> None:
    damage_chunk(image, 1, 40)
    with Image(image) as opened:
        shard = opened.node(0)
        with pytest.raises(ImageDamaged, match=r"shard-0\.h5: chunk 1: "):   # by the frame's own checksum
            shard.spread({MEMORY}, lambda chunk, pieces: None)
        with pytest.raises(ImageDamaged, match=r"shard-0\.h5: chunk 1: its crc32"):
            list(shard.walk())
        assert shard.pages(MEMORY, 100, 1) == page(1).tobytes()
        with pytest.raises(ImageDamaged, match="chunk 1"):
            shard.pages(MEMORY, 102, 1)


def test_a_missing_chunk_is_an_error_and_not_zeros(image: Path) -> None:
    """An HDF5 file without one of its chunks reads as zeros there; an image must not."""

    def change(node: h5py.Group) -> None:
        mask, data = node["pages/log"].id.read_direct_chunk((0, 0))
        del node["pages/log"]
        log = node.create_dataset(
            "pages/log",
            (512, 4096),
            "u1",
            maxshape=(None, 4096),
            chunks=(256, 4096),
            compression=32015,
            compression_opts=(1,),
            allow_unknown_filter=True,
        )
        log.id.write_direct_chunk((0, 0), data, mask)

    forge(image, change)
    with pytest.raises(ImageDamaged, match="index of the log"):
        check_image(image)


@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, 1 << 26])
def test_a_frame_of_another_length_is_refused_before_it_is_inflated(image: Path, size: int) -> None:
    bomb = zstandard.ZstdCompressor(write_checksum=size != CHUNK, write_content_size=True).compress(bytes(size))
    with Image(image) as opened:
        offset, length = opened.node(0).chunks()[0][["offset", "size"]].item()
    padding = length - len(bomb) - 8
    assert padding >= 0
    bomb += b"\x50\x2a\x4d\x18" + padding.to_bytes(4, "little") + bytes(padding)  # a skippable frame
    with open(image / "shard-0.h5", "r+b") as file:
        file.seek(offset)
        file.write(bomb)

    def change(node: h5py.Group) -> None:
        chunks = node["pages/chunks"][()]
        chunks["crc32"][0] = zlib.crc32(bomb)
        node["pages/chunks"][...] = chunks

    forge(image, change)
    with Image(image) as opened, pytest.raises(ImageDamaged, match="not a zstd frame as prescribed"):
        list(opened.node(0).walk())
    with Image(image) as opened, pytest.raises(ImageDamaged, match="not a zstd frame as prescribed"):
        opened.node(0).spread({MEMORY}, lambda chunk, pieces: None)


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("chunks", "offset", 2**63),
        ("chunks", "offset", 0),
        ("chunks", "size", 0),
        ("chunks", "size", 2**32 - 1),
        ("chunks", "rows", 300),
        ("chunks", "raw", 1),
        ("runs", "row", 4),
        ("runs", "row", 2**64 - 1),
        ("runs", "page", 0),
        ("runs", "npages", 2**64 - 1),
        ("runs", "kind", 7),
        ("runs", "object", 9),
        ("objects", "rows", 7),
        ("objects", "id", 1),
    ],
)
def test_impossible_indexes(image: Path, name: str, column: str, value: int) -> None:
    def change(node: h5py.Group) -> None:
        table = node[f"pages/{name}"][()]
        table[column][2 if name == "runs" else 0] = value
        node[f"pages/{name}"][...] = table

    forge(image, change)
    with pytest.raises(ImageDamaged, match=r"shard-0\.h5"):
        check_image(image)


# -- others' tools ----------------------------------------------------------------------------------
def test_plain_h5py_walks_from_the_master_to_tables(whole: Path) -> None:
    with h5py.File(whole / "master.h5") as master:
        assert master["job"].attrs["user"] == b"someone"
        files = master["nodes/3/tables/files"]
        assert files.attrs["title"] == b"An open file."
        assert files.attrs["doc.path"] == b"as the job sees it"
        assert files["id"].tolist() == [1, 2]
        assert files["path"][0].decode("utf-8", "surrogateescape") == FILES[0].path
        blob = master["nodes/3/tables/blob"][()]
        offset, length = files["data"][0]
        assert blob[offset : offset + length].tobytes() == FILES[0].data
        assert master["nodes/3/tree/1141/fds/1"].attrs["path"] == b"/dev/null"
        assert dict(h5py.check_enum_dtype(master["nodes/0/pages/runs"].dtype["kind"])) == {
            "row": 0,
            "zero": 1,
        }


def test_the_directory_can_be_moved(image: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "kept"
    moved.parent.mkdir()
    shutil.move(image, moved)
    with Image(moved) as opened:
        assert opened.node(0).table(OpenFile, "files") == FILES
    with h5py.File(moved / "master.h5") as master:
        assert master["nodes/0/tables/files"].shape == (2,)


def test_h5dump_reads_it(whole: Path) -> None:
    need(shutil.which("h5dump"), "h5dump is not installed (hdf5-tools)")

    def h5dump(*arguments: str) -> str:
        return subprocess.run(
            ["h5dump", *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            check=True,
            cwd=whole,
            timeout=60,
        ).stdout

    seen = h5dump("-d", "/nodes/3/tables/descriptors", "master.h5")
    assert 'H5T_STD_I64LE "pid"' in seen
    assert "1141" in seen
    assert "A descriptor of a task." in seen
    assert "row" in h5dump("-d", "/nodes/0/pages/runs", "shard-0.h5")
    for name in ("log", "chunks", "runs", "objects"):
        assert f'DATASET "{name}"' in h5dump("-H", "shard-0.h5")


def test_the_recipe_of_the_documentation(large: Path, tmp_path: Path) -> None:
    """docs/image-format.md has a reader in a few lines; it must work as printed."""
    text = (ROOT / "docs/image-format.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(compile(code, "image-format.md", "exec"), names)
    with Image(large) as image:
        for number, at in ((0, 0), (1, 5), (0, 7927), (0, 2), (0, 250), (1, 39 * 200 + 127)):
            assert names["page"](str(large), 0, number, at) == image.nodes[0].pages(number, at, 1)
    small = write_sample(tmp_path, 1)
    assert names["table"](str(small), 3, "files")[0]["names"] == ["a", ""]


def test_only_numpy_h5py_and_zstandard_are_needed(whole: Path) -> None:
    code = textwrap.dedent("""
        import sys
        for name in ("ptrace", "mpi4py", "rich", "resource", "fcntl", "crhpc.kernel", "crhpc.engine"):
            sys.modules[name] = None
        import crhpc
        with crhpc.open_image(sys.argv[1]) as image:
            print(sum(len(pages) for shard in image.nodes for _, _, pages in shard.walk()))
            image.describe("/nodes/0/tables/files")
        """)
    done = subprocess.run(
        [sys.executable, "-c", code, str(whole)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 2 * 5 * 4096


def test_defaults_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert list(module.ahead(lambda i: i * i, list(range(50)), None)) == [i * i for i in range(50)]
