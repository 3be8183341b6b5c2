"""A shard from put to close: what is in it, and how much memory that takes."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crhpc.image.backing import BackingFile
from crhpc.image.format import CHUNK, ShardSummary
from crhpc.image.pages import ROW, ZERO
from crhpc.image.reader import Shard
from crhpc.image.writer import ShardWriter

from .samples import (
    DESCRIPTORS,
    FILES,
    Connection,
    Descriptor,
    OpenFile,
    fill_sample,
    page,
    put_pages,
    run_python,
    small_writer,
)


def read_back(directory: Path, summary: ShardSummary) -> dict[tuple[int, int], bytes]:
    """Every page of the final state."""
    shard, found = Shard(directory, summary), {}
    for number, first, pages in shard.walk(threads=1):
        for i in range(len(pages) // 4096):
            found[number, first + i] = bytes(pages[i * 4096 : (i + 1) * 4096])
    for number, kind, first, count, _row in shard.runs().tolist():
        if kind == ZERO:
            found.update({(number, first + i): bytes(4096) for i in range(count)})
    shard.close()
    return found


# -- what comes back --------------------------------------------------------------------------------
@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(st.integers(0, 1), st.integers(0, 30), st.integers(1, 12)), min_size=1, max_size=3),
            st.integers(0, 2**32),
        ),
        max_size=8,
    )
)
def test_any_sequence_of_puts(
    tmp_path_factory: pytest.TempPathFactory, puts: list[tuple[list[tuple[int, int, int]], int]]
) -> None:
    directory, model = tmp_path_factory.mktemp("w"), {}
    with small_writer(directory) as writer:
        assert [writer.object("a"), writer.object("b")] == [0, 1]
        for pieces, seed in puts:
            count = sum(piece[2] for piece in pieces)
            seeds = [None if i % 3 == 0 else seed + i for i in range(count)]
            put_pages(writer, pieces, seeds)
            pages = [(number, first + i) for number, first, n in pieces for i in range(n)]
            model.update(
                {key: bytes(4096) if s is None else page(s).tobytes() for key, s in zip(pages, seeds, strict=True)}
            )
        summary = writer.close()
    assert read_back(directory, summary) == model
    stored = sum(1 for _, seed in ((p, s) for p, s in model.items() if s != bytes(4096)))
    assert summary.rows - summary.dead_rows == stored
    assert summary.zero_pages == len(model) - stored
    assert summary.put == sum(p[2] for pieces, _ in puts for p in pieces) * 4096


def test_pages_superseded_by_pages_zeros_and_nothing(tmp_path: Path) -> None:
    with small_writer(tmp_path) as writer:
        thing = writer.object("memory")
        put_pages(writer, [(thing, 0, 10)], list(range(10)))
        put_pages(writer, [(thing, 2, 2)], [100, None])
        writer.zero([(thing, 5, 1), (thing, 20, 2)])
        writer.forget([(thing, 7, 5)])
        put_pages(writer, [(thing, 8, 1)], [200])
        summary = writer.close()
    expected: dict[int, int | None] = {
        0: 0,
        1: 1,
        2: 100,
        3: None,
        4: 4,
        5: None,
        6: 6,
        8: 200,
        20: None,
        21: None,
    }
    assert read_back(tmp_path, summary) == {
        (thing, number): bytes(4096) if seed is None else page(seed).tobytes() for number, seed in expected.items()
    }
    assert (summary.rows, summary.dead_rows, summary.zero_pages) == (12, 6, 4)


def test_zero_pages_are_not_stored(tmp_path: Path) -> None:
    with small_writer(tmp_path) as writer:
        thing = writer.object("memory")
        for i in range(100):
            buffer = writer.take()
            buffer.array[:] = 0
            writer.put(buffer, [(thing, i * 256, 256)])
        summary = writer.close()
    assert (summary.chunks, summary.rows, summary.stored, summary.spans) == (0, 0, 0, ())
    assert summary.zero_pages == 25600
    assert summary.size < 32_000
    shard = Shard(tmp_path, summary)
    assert shard.runs().tolist() == [(thing, ZERO, 0, 25600, 0)]
    assert list(shard.walk()) == []


def test_incompressible_chunks_are_stored_as_they_are(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (256, 4096), dtype=np.uint8)
    with small_writer(tmp_path, level=1) as writer:
        thing = writer.object("memory")
        for first, data in ((0, noise), (256, noise // 16)):
            buffer = writer.take()
            buffer.array[:] = data
            writer.put(buffer, [(thing, first, 256)])
        summary = writer.close()
    shard = Shard(tmp_path, summary)
    assert shard.chunks()["raw"].tolist() == [1, 0]
    assert shard.chunks()["size"][0] == CHUNK
    assert shard.chunks()["size"][1] < CHUNK * 0.6
    with h5py.File(tmp_path / "shard-0.h5") as file:
        log = file["nodes/0/pages/log"]
        mask, data = log.id.read_direct_chunk((0, 0))
        assert (mask, data) == (1, noise.tobytes())
        assert log.id.read_direct_chunk((256, 0))[0] == 0
    assert shard.pages(thing, 0, 512) == noise.tobytes() + (noise // 16).tobytes()


def test_rows_of_a_dirty_buffer_do_not_reach_the_log(tmp_path: Path) -> None:
    """A buffer comes back with what was in it; rows that the pieces do not name are zero in the chunk."""
    with small_writer(tmp_path) as writer:
        thing = writer.object("memory")
        buffer = writer.take()
        buffer.array[:] = 7
        buffer.array[1] = 0
        writer.put(buffer, [(thing, 5, 3)])
        summary = writer.close()
    chunk = np.frombuffer(Shard(tmp_path, summary).chunk(0), dtype=np.uint8).reshape(256, 4096)
    assert chunk[:2].min() == 7
    assert not chunk[2:].any()
    assert summary.rows == 2


def test_chunks_lie_in_the_order_of_put_however_many_threads(tmp_path: Path) -> None:
    with small_writer(tmp_path, threads=8, memory=64 << 20) as writer:
        thing = writer.object("memory")
        for i in range(150):
            buffer = writer.take()
            buffer.array[:] = 0
            buffer.array[:, :8] = i + 1
            if i % 5 == 0:  # these take longer to compress
                buffer.array[:] = np.random.default_rng(i).integers(0, 9, (256, 4096), dtype=np.uint8) + 1
            writer.put(buffer, [(thing, (150 - i) * 1000, 256)])
        summary = writer.close()
    shard = Shard(tmp_path, summary)
    assert [first for _, first, _ in shard.walk()] == [(150 - i) * 1000 for i in range(150)]
    assert shard.runs()["row"].tolist() == [i * 256 for i in reversed(range(150))]


@pytest.mark.parametrize("level", [-7, 3])
def test_levels(tmp_path: Path, level: int) -> None:
    with small_writer(tmp_path, level=level) as writer:
        fill_sample(writer)
        summary = writer.close()
    assert read_back(tmp_path, summary)[0, 100] == page(1).tobytes()
    with h5py.File(tmp_path / "shard-0.h5") as file:
        filters = file["nodes/0/pages/log"].id.get_create_plist()
        assert filters.get_filter(0)[2][0] == max(1, level)


def test_summary_and_progress(tmp_path: Path) -> None:
    with small_writer(tmp_path) as writer:
        fill_sample(writer)
        writer.drain()
        put, stored = writer.progress()
        summary = writer.close()
        assert writer.close() is summary
    assert put == summary.put == 7 * 4096
    assert stored == summary.stored == sum(length for _, length in summary.spans)
    assert summary.size == (tmp_path / "shard-0.h5").stat().st_size
    assert (summary.chunks, summary.rows, summary.dead_rows, summary.zero_pages) == (2, 6, 1, 1)


def test_tables_and_tree(tmp_path: Path) -> None:
    with small_writer(tmp_path) as writer:
        fill_sample(writer)
        summary = writer.close()
    shard = Shard(tmp_path, summary)
    assert shard.tables() == ["descriptors", "files", "nothing"]
    assert shard.table(OpenFile, "files") == FILES
    assert shard.table(Descriptor, "descriptors") == DESCRIPTORS
    assert shard.table(Connection, "nothing") == []
    assert [(each.id, each.name, each.rows, each.zeros) for each in shard.objects()] == [
        (0, "mm/1141", 4, 1),
        (1, "shm/\udcfe", 1, 0),
    ]


def test_everything_of_nothing(tmp_path: Path) -> None:
    with small_writer(tmp_path) as writer:
        summary = writer.close()
    shard = Shard(tmp_path, summary)
    assert (shard.tables(), shard.objects(), list(shard.walk()), len(shard.runs())) == ([], [], [], 0)


@pytest.mark.parametrize("name", ["blob", "objects", "", "a/b", "a.b", "1a", "ä", "x" * 65, ".."])
def test_table_names(tmp_path: Path, name: str) -> None:
    with small_writer(tmp_path) as writer:
        writer.table(FILES, OpenFile, "files")
        with pytest.raises(ValueError, match="taken"):
            writer.table(FILES, OpenFile, "files")
        with pytest.raises(ValueError, match="taken"):
            writer.table(FILES, OpenFile, name)


def test_writing_is_deterministic(tmp_path: Path) -> None:
    """The same puts give the same bytes, whatever the threads do."""
    contents = []
    time.sleep(1 - time.time() % 1)   # HDF5 notes in which second a group was made
    for threads in (1, 4):
        (tmp_path / str(threads)).mkdir()
        with ShardWriter(tmp_path / str(threads), 0, threads=threads, memory=32 << 20) as writer:
            fill_sample(writer)
            thing = writer.object("more")
            for i in range(20):
                put_pages(writer, [(thing, i * 3, 4)], [i, None, i + 1, i + 2])
            writer.close()
        contents.append((tmp_path / str(threads) / "shard-0.h5").read_bytes())
    assert contents[0] == contents[1]


def test_runs_of_kind_row_only_name_rows_in_use(tmp_path: Path) -> None:
    with small_writer(tmp_path) as writer:
        fill_sample(writer)
        summary = writer.close()
    shard = Shard(tmp_path, summary)
    runs, chunks = shard.runs(), shard.chunks()
    assert chunks["rows"].tolist() == [4, 2]
    assert runs[runs["kind"] == ROW][["page", "npages", "row"]].tolist() == [
        (100, 1, 0),
        (102, 2, 256),
        (2**51, 1, 2),
        (0, 1, 3),
    ]


# -- buffers ----------------------------------------------------------------------------------------
def test_wrong_pieces_leave_the_buffer_with_the_caller(tmp_path: Path) -> None:
    with small_writer(tmp_path) as writer:
        buffer = writer.take()
        with pytest.raises(ValueError, match="unknown object"):
            writer.put(buffer, [(0, 0, 1)])
        thing = writer.object("memory")
        with pytest.raises(ValueError, match="more than 256"):
            writer.put(buffer, [(thing, 0, 257)])
        buffer.array[0] = page(1)
        writer.put(buffer, [(thing, 0, 1)])
        with pytest.raises(ValueError):
            writer.object("a\0b")
        with pytest.raises(ValueError):
            writer.object("\ud800")
        assert writer.close().rows == 1


def test_all_of_capacity_can_be_taken_and_no_more(tmp_path: Path) -> None:
    with small_writer(tmp_path) as writer:
        taken = [writer.take() for _ in range(writer.capacity // CHUNK)]
        assert len({buffer.address for buffer in taken}) == len(taken)
        with pytest.raises(RuntimeError, match="none was put"):
            writer.take()
        writer.release(taken.pop())
        taken.append(writer.take())
        thing = writer.object("memory")
        for buffer in taken:
            writer.put(buffer, [(thing, 0, 1)])
        writer.drain()
        assert len([writer.take() for _ in taken]) == len(taken)


def test_take_waits_while_all_is_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, write = threading.Event(), BackingFile.write

    def slow(self: BackingFile, data: Any) -> int:
        assert gate.wait(30)
        return write(self, data)

    with small_writer(tmp_path) as writer:
        thing = writer.object("memory")
        monkeypatch.setattr(BackingFile, "write", slow)
        for i in range(writer.capacity // CHUNK):
            put_pages(writer, [(thing, i, 1)], [i])
        got: list[object] = []
        taker = threading.Thread(target=lambda: got.append(writer.take()))
        taker.start()
        time.sleep(0.2)
        assert not got
        gate.set()
        taker.join(30)
        assert got


@pytest.mark.parametrize("memory", [0, 1 << 20, 4 << 20])
def test_too_little_memory(tmp_path: Path, memory: int) -> None:
    with pytest.raises(ValueError, match="too little"):
        ShardWriter(tmp_path, 0, memory=memory)
    assert list(tmp_path.iterdir()) == []
    ShardWriter(tmp_path, 0, memory=8 << 20).abort()


@pytest.mark.parametrize("kind", ["noise", "text"])
def test_memory_in_flight_stays_within_the_budget(tmp_path: Path, kind: str) -> None:
    """Peak resident memory of a process that puts 400 MiB while the disk is slow; its budget is 64 MiB."""
    done = run_python(
        """
        import re, sys, time
        from pathlib import Path
        import numpy as np
        from crhpc.image.backing import BackingFile
        from crhpc.image.writer import ShardWriter
        def memory(field):
            return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

        write = BackingFile.write
        def slow(self, data):
            time.sleep(0.005)
            return write(self, data)
        values = 256 if sys.argv[2] == "noise" else 9
        noise = np.random.default_rng(1).integers(0, values, (256, 4096), dtype="u1")
        ShardWriter(Path(sys.argv[1]), 1, threads=1, memory=8 << 20).close()    # what loads once is loaded
        BackingFile.write = slow
        Path("/proc/self/clear_refs").write_text("5")                           # VmHWM starts again
        before = memory("VmRSS")
        with ShardWriter(Path(sys.argv[1]), 0, threads=3, memory=64 << 20) as writer:
            thing = writer.object("memory")
            for i in range(400):
                buffer = writer.take()
                np.add(noise, i % 7, out=buffer.array)
                writer.put(buffer, [(thing, i * 256, 256)])
            writer.close()
        print(memory("VmHWM") - before)
        """,
        str(tmp_path),
        kind,
    )
    assert done.returncode == 0, done.stderr
    used = int(done.stdout)
    assert 30 << 20 < used < (64 << 20) + (6 << 20), f"{used / 2**20:.1f} MiB"


def test_held_pages_wait_and_arrive(tmp_path: Path) -> None:
    """Held back, pages are only taken; they are written in the same order when told to, or when buffers run out."""
    with ShardWriter(tmp_path, 0, memory=8 << 20) as writer:
        number = writer.object("memory")
        writer.hold()
        for first in (0, 256, 0):   # the last supersedes the first
            buffer = writer.take()
            buffer.array[:] = first // 256 + 1 if first else 7
            writer.put(buffer, [(number, first, 256)])
        assert writer.progress()[1] == 0
        writer.go()
        writer.drain()
        assert writer.progress()[1] > 0
        writer.hold()
        for index in range(3 * writer.capacity // (1 << 20)):   # more than there are buffers: they must flow
            buffer = writer.take()
            buffer.array[:] = index % 250 + 1
            writer.put(buffer, [(number, 1000 + 256 * index, 256)])
        summary = writer.close()
    assert summary.rows - summary.dead_rows == 512 + 256 * 3 * writer.capacity // (1 << 20)


def test_what_is_held_stays_in_its_order(tmp_path: Path) -> None:
    """Zeros that are noted between pages supersede those before and not those after, whenever all is written."""
    with small_writer(tmp_path) as writer:
        thing = writer.object("thing")
        writer.hold()
        put_pages(writer, [(thing, 0, 4)], [1, 2, 3, 4])
        writer.zero([(thing, 1, 2)])
        put_pages(writer, [(thing, 2, 1)], [5])
        before = writer.progress()
        writer.go()
        summary = writer.close()
    assert before[1] == 0
    found = read_back(tmp_path, summary)
    assert found[0, 1] == bytes(4096)
    assert [at for (_, at), data in sorted(found.items()) if any(data)] == [0, 2, 3]
    assert found[0, 2] == page(5).tobytes()
    assert summary.zero_pages == 1


def test_several_threads_put_pages(tmp_path: Path) -> None:
    """More than there are buffers, with zeros noted in between; held until there is no room."""
    with ShardWriter(tmp_path, 0, memory=8 << 20) as writer:
        things = [writer.object(f"thing {i}") for i in range(4)]
        writer.prepare(3 << 20)
        writer.hold()

        def work(thing: int) -> None:
            for index in range(8):
                buffer = writer.take()
                buffer.array[:] = thing * 8 + index + 1
                writer.put(buffer, [(thing, 1000 * index, 256)])
                writer.zero([(thing, 1000 * index + 300, 5)])

        threads = [threading.Thread(target=work, args=(thing,)) for thing in things]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        writer.go()
        summary = writer.close()
    found = read_back(tmp_path, summary)
    assert len(found) == 4 * 8 * 261
    for thing in things:
        for index in range(8):
            assert found[thing, 1000 * index + 255] == bytes([thing * 8 + index + 1]) * 4096
            assert found[thing, 1000 * index + 304] == bytes(4096)


# -- the same pages ---------------------------------------------------------------------------------
def test_pages_of_several_objects_are_stored_once(tmp_path: Path) -> None:
    """Of which object they are the same is resolved in the end: what comes to that one later counts."""
    with small_writer(tmp_path) as writer:
        parent, child, grandchild = (writer.object(name) for name in ("parent", "child", "grandchild"))
        put_pages(writer, [(parent, 0, 10)], list(range(1, 11)))
        writer.zero([(parent, 3, 2)])
        writer.same(child, np.array([[0, 2], [4, 4]]), parent)
        put_pages(writer, [(child, 2, 2)], [21, 22])
        writer.same(grandchild, np.array([[1, 6], [9, 3]]), child)
        put_pages(writer, [(parent, 5, 1)], [31])
        summary = writer.close()
    found = read_back(tmp_path, summary)
    for page_number in (0, 1, 4, 5, 6, 7):
        assert found[child, page_number] == found[parent, page_number]
    assert sorted(n for number, n in found if number == child) == list(range(8))
    assert {n: found[grandchild, n] for n in range(1, 7)} == {n: found[child, n] for n in range(1, 7)}
    assert sorted(n for number, n in found if number == grandchild) == list(range(1, 7)), "the child has no page 9"
    assert (summary.rows, summary.dead_rows, summary.zero_pages) == (13, 3, 2 + 1 + 1)
