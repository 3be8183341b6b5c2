"""Damage of every sort is found; the child's end, however it comes, is damage too."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from crhpc.errors import CrhpcError, ImageDamaged, NoImage
from crhpc.image import check as module
from crhpc.image.apart import Report, verify
from crhpc.image.check import check_image, main
from crhpc.image.format import MANIFEST, MASTER, read_manifest
from crhpc.image.reader import Image
from crhpc.image.writer import ShardWriter

from .samples import (
    ENVIRONMENT,
    FILES,
    Descriptor,
    OpenFile,
    flip,
    forge,
    manifest_body,
    put_pages,
    reseal,
    seal,
    write_sample,
)

FLIPS = 1000
Damage = Callable[[Path, random.Random], str]


def flipped(image: Path, chance: random.Random) -> str:
    """Change one byte, all bytes of all files equally likely; says which."""
    files = sorted(image.iterdir())
    at = chance.randrange(sum(path.stat().st_size for path in files))
    for path in files:
        if at < path.stat().st_size:
            mask = chance.randrange(1, 256)
            flip(path, at, mask)
            return f"{path.name}: byte {at} ^ {mask}"
        at -= path.stat().st_size
    raise AssertionError


def truncated(image: Path, chance: random.Random) -> str:
    """Cut one file off anywhere."""
    path = chance.choice(sorted(image.iterdir()))
    length = chance.randrange(path.stat().st_size)
    os.truncate(path, length)
    return f"{path.name}: {length} bytes"


def lengthened(image: Path, chance: random.Random) -> str:
    """Garbage, or zeros, behind a file."""
    path = chance.choice(sorted(image.iterdir()))
    with open(path, "ab") as file:
        file.write(chance.choice([b"\0", b"garbage", b"\n", bytes(4096)]))
    return f"{path.name}: longer"


def zeroed(image: Path, chance: random.Random) -> str:
    """512 bytes, a sector, become zero."""
    path = chance.choice(sorted(image.iterdir()))
    data = bytearray(path.read_bytes())
    while True:
        at = chance.randrange(len(data))
        if any(data[at : at + 512]):
            break
    data[at : at + 512] = bytes(len(data[at : at + 512]))
    path.write_bytes(data)
    return f"{path.name}: zero from {at}"


def undetected(image: str, damage: Damage, seed: int, count: int, full: bool) -> list[str]:
    """In a process of its own: damage a copy many times over; what the check did not see."""
    missed, chance = [], random.Random(seed)
    original = {path.name: path.read_bytes() for path in Path(image).iterdir()}
    copy = Path(image).parent / f"{seed}" / Path(image).name
    shutil.copytree(image, copy)
    for _ in range(count):
        what = damage(copy, chance)
        try:
            check_image(copy, full=full)
            missed.append(what)
        except (ImageDamaged, NoImage):
            pass
        for name, data in original.items():
            if (copy / name).read_bytes() != data:
                (copy / name).write_bytes(data)
    check_image(copy, full=True)
    return missed


def damage_many(image: Path, damage: Damage, count: int, full: bool = False) -> list[str]:
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("fork")) as pool:
        parts = [pool.submit(undetected, str(image), damage, seed, count // 4, full) for seed in range(4)]
        return [missed for part in parts for missed in part.result()]


# -- damage by chance -------------------------------------------------------------------------------
def test_a_whole_image(whole: Path) -> None:
    for full in (False, True):
        report = check_image(whole, full=full)
        assert report == Report(
            path=str(whole),
            number=12,
            full=full,
            nodes=2,
            tables=7,
            chunks=4,
            pages=12,
            size=sum(path.stat().st_size for path in whole.iterdir()),
            foreign=(),
            seconds=report.seconds,
        )
        assert 0 < report.seconds < 10


@pytest.mark.parametrize(("damage", "count"), [(flipped, FLIPS), (truncated, 200), (lengthened, 40), (zeroed, 200)])
def test_damage_anywhere_is_found(image: Path, damage: Damage, count: int) -> None:
    assert damage_many(image, damage, count) == []


def test_damage_anywhere_is_found_by_the_full_check(image: Path) -> None:
    assert damage_many(image, flipped, 100, full=True) == []


def test_damage_in_chunks_stored_raw_is_found(tmp_path: Path) -> None:
    def fill(writer: ShardWriter) -> None:
        thing, buffer = writer.object("noise"), writer.take()
        buffer.array[:] = np.random.default_rng(1).integers(0, 256, (256, 4096), dtype=np.uint8)
        writer.put(buffer, [(thing, 0, 256)])

    image = write_sample(tmp_path, 1, (0,), fill)
    with Image(image) as opened:
        assert opened.nodes[0].chunks()["raw"].tolist() == [1]
    assert damage_many(image, flipped, 100) == []


@pytest.mark.parametrize("name", [MASTER, "shard-0.h5", "shard-3.h5"])
def test_each_file_missing(image: Path, name: str) -> None:
    (image / name).unlink()
    for run in (check_image, verify):
        with pytest.raises(ImageDamaged, match=f"{name}: is missing"):
            run(image)


def test_without_a_manifest_it_is_no_image(image: Path) -> None:
    (image / MANIFEST).unlink()
    for run in (check_image, verify):
        with pytest.raises(NoImage, match=MANIFEST):
            run(image)
    seal(image, {"format": 99})
    with pytest.raises(NoImage, match="newer"):
        verify(image)


def test_shards_of_another_image_are_found(image: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = write_sample(
        tmp_path / "other", 12, fill=lambda writer: put_pages(writer, [(writer.object("x"), 0, 1)], [1])
    )
    for name in (MASTER, "shard-3.h5"):
        mixed = tmp_path / name / "ckpt-000012"
        shutil.copytree(image, mixed)
        shutil.copy(other / name, mixed / name)
        if (other / name).read_bytes() != (image / name).read_bytes():
            with pytest.raises(ImageDamaged, match=name):
                check_image(mixed)
    shutil.copy(image / "shard-0.h5", image / "shard-3.h5")
    with pytest.raises(ImageDamaged, match=r"shard-3\.h5"):
        check_image(image)


def test_foreign_files_are_reported_only(image: Path) -> None:
    (image / "notes.txt").touch()
    (image / "shard-9.h5").touch()
    assert check_image(image).foreign == ("notes.txt", "shard-9.h5")
    assert verify(image).foreign == ("notes.txt", "shard-9.h5")


# -- what only a look inside shows ------------------------------------------------------------------
def test_references_are_followed(tmp_path: Path) -> None:
    def with_rows(*rows: Descriptor, files: list[OpenFile] = FILES) -> Callable[[ShardWriter], None]:
        def fill(writer: ShardWriter) -> None:
            writer.object("memory")
            writer.table(files, OpenFile, "files")
            writer.table(rows, Descriptor, "descriptors")

        return fill

    good = write_sample(tmp_path, 1, (0,), with_rows(Descriptor(1, 1, 2), Descriptor(1, 2, -1, (1, -1))))
    check_image(good, full=True)
    wrong = {
        2: with_rows(Descriptor(1, 1, 3)),
        3: with_rows(Descriptor(1, 1, 1, (2, 7))),
        4: with_rows(files=[OpenFile(1, "", FILES[0].flags, True, 0.0, b"", (), (), 1)]),
    }
    for number, fill in wrong.items():
        image = write_sample(tmp_path, number, (0,), fill)
        check_image(image)
        with pytest.raises(ImageDamaged, match=r"is no (files|objects)\.id"):
            check_image(image, full=True)


def test_references_to_nothing(tmp_path: Path) -> None:
    image = write_sample(tmp_path, 1, (0,), lambda writer: writer.table([Descriptor(1, 1, -1)], Descriptor, "fds"))
    with pytest.raises(ImageDamaged, match=r"refers to files\.id, which is missing"):
        check_image(image, full=True)


def test_rows_not_in_use_must_be_zero(image: Path) -> None:
    def change(node: h5py.Group) -> None:
        chunks = node["pages/chunks"][()]
        chunks["rows"][1] -= 1
        node["pages/chunks"][...] = chunks
        runs = node["pages/runs"][()]
        runs["npages"][2] -= 1
        node["pages/runs"][...] = runs
        objects = node["pages/objects"][()]
        objects["rows"][0] -= 1
        node["pages/objects"][...] = objects

    forge(image, change, rows=5)
    check_image(image)
    with pytest.raises(ImageDamaged, match="rows not in use"):
        check_image(image, full=True)


@pytest.mark.parametrize(
    ("column", "value"), [("locked", 3), ("data", (10**9, 1)), ("names", (0, 3)), ("offsets", (0, 9))]
)
def test_values_that_no_writer_makes(image: Path, column: str, value: Any) -> None:
    def change(node: h5py.Group) -> None:
        table = node["tables/files"][()]
        table[column][0] = value
        node["tables/files"][...] = table

    forge(image, change)
    with pytest.raises(ImageDamaged, match="table files"):
        check_image(image)


@pytest.mark.parametrize(
    "link",
    [
        h5py.ExternalLink("/etc/other.h5", "/nodes/0"),
        h5py.ExternalLink("shard-3.h5", "/nodes/3"),
        h5py.ExternalLink("../shard-0.h5", "/nodes/0"),
        h5py.SoftLink("/job"),
        None,
    ],
)
def test_links_of_the_master(image: Path, link: Any) -> None:
    def change(master: h5py.File) -> None:
        del master["nodes/0"]
        if link is not None:
            master["nodes/0"] = link

    forge(image, change, MASTER)
    with pytest.raises(ImageDamaged, match=r"master\.h5"):
        check_image(image)


def test_no_byte_is_left_out_of_the_hashes(image: Path) -> None:
    """Spans that hide bytes outside the chunks from the hash, in a manifest that fits otherwise."""
    summary = read_manifest(image).shards[0]
    offset, length = summary.spans[-1]
    assert offset + length < summary.size
    wider = (*summary.spans[:-1], (offset, length + 1))
    data = (image / summary.file).read_bytes()
    for span in reversed(wider):
        data = data[: span[0]] + data[sum(span) :]
    changes = {"spans": wider, "stored": summary.stored + 1, "sha256": hashlib.sha256(data).hexdigest()}
    reseal(image, **changes)
    with pytest.raises(ImageDamaged, match="not those of the manifest"):
        check_image(image)


def test_pages_that_were_left_out_are_missed(image: Path) -> None:
    """A run taken out, in a shard that fits otherwise: the manifest knows how many pages there are."""

    def change(node: h5py.Group) -> None:
        objects, runs = node["pages/objects"][()], node["pages/runs"][()]
        objects["zeros"][0] -= 1
        node["pages/objects"][...] = objects
        del node["pages/runs"]
        node.create_dataset("pages/runs", data=runs[runs["kind"] == 0], chunks=(4,), fletcher32=True)

    forge(image, change)
    with pytest.raises(ImageDamaged, match="other numbers of pages"):
        check_image(image)
    forge(image, lambda node: None, zero_pages=0)
    check_image(image, full=True)


def test_some_nodes_only(image: Path) -> None:
    flip(image / "shard-3.h5", 100)
    for run in (check_image, verify):
        assert run(image, nodes=[0]).nodes == 1
        with pytest.raises(ImageDamaged, match=r"shard-3\.h5"):
            run(image, nodes=[0, 3])
        with pytest.raises(ImageDamaged, match="no node 7"):
            run(image, nodes=[7])


# -- the child --------------------------------------------------------------------------------------
@pytest.mark.parametrize("full", [False, True])
def test_the_child_reports(whole: Path, full: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # not found by the working directory
    report = verify(whole, full=full)
    assert (report.number, report.full, report.nodes, report.pages, report.foreign) == (12, full, 2, 12, ())


def test_a_path_like_an_option(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image.rename(image.parent / "--full")
    monkeypatch.chdir(image.parent)
    report = verify("--full")
    assert (report.path, report.full) == ("--full", False)


def test_the_child_does_not_import_from_the_working_directory(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('fooled')")
    monkeypatch.chdir(tmp_path)
    assert verify(whole).number == 12


def test_the_child_finds_damage(image: Path) -> None:
    chance = random.Random(5)
    original = {path: path.read_bytes() for path in image.iterdir()}
    for _ in range(8):
        what = flipped(image, chance)
        with pytest.raises((ImageDamaged, NoImage)) as caught:
            verify(image)
        assert what.partition(":")[0] in str(caught.value)
        for path, data in original.items():
            path.write_bytes(data)
    verify(image, full=True)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Another program in place of the child's interpreter."""

    def install(script: str) -> None:
        path = tmp_path / "python"
        path.write_text("#!/bin/sh\n" + script)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(module.sys, "executable", str(path))

    return install


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("kill -SEGV $$", "shard-0.h5: checking it ended with SIGSEGV"),
        ("kill -KILL $$", "SIGKILL"),
        ("kill -XCPU $$", "SIGXCPU"),
        ("exit 3", "ended with code 3"),
        ("exit 0", "ended with code 0"),
        ('printf \'{"report": {"pa\'', "ended with code 0"),
        ("exec sleep 60", "took more than 1 s"),
    ],
)
def test_a_crash_of_the_child_is_damage(whole: Path, fake: Callable[[str], None], script: str, complaint: str) -> None:
    fake(f'echo \'{{"checking": "shard-0.h5"}}\'\n{script}\n')
    with pytest.raises(ImageDamaged, match=complaint):
        verify(whole, timeout=1)


def test_a_child_that_cannot_start_is_not_damage(whole: Path, fake: Callable[[str], None]) -> None:
    fake("echo 'ModuleNotFoundError: no h5py' >&2; exit 1")
    with pytest.raises(CrhpcError, match="cannot be checked here: ModuleNotFoundError") as caught:
        verify(whole)
    assert not isinstance(caught.value, ImageDamaged | NoImage)


def test_errors_of_the_system_are_not_damage(whole: Path, fake: Callable[[str], None]) -> None:
    fake("""echo '{"error": "OSError", "errno": 24, "why": "Too many open files", "file": "shard-0.h5"}'""")
    with pytest.raises(OSError) as caught:
        verify(whole)
    assert caught.value.errno == errno.EMFILE


def limited(image: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Code in a process that has set itself the limits for an image."""
    whole_code = textwrap.dedent("""
        import sys, resource
        from crhpc.image.check import limit
        from crhpc.image.format import read_manifest
        limit(read_manifest(sys.argv[1]), full=False)
        """) + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", whole_code, str(image)],
        env=ENVIRONMENT,
        text=True,
        capture_output=True,
        check=False,
        timeout=60,
    )


def test_memory_of_the_child_is_limited(whole: Path) -> None:
    done = limited(
        whole,
        """
        import numpy as np
        np.ones(100 << 20)
        try:
            np.ones(4 << 30)
        except MemoryError:
            print("refused")
        """,
    )
    assert done.stdout == "refused\n", done.stderr


def test_time_of_the_child_is_limited(whole: Path) -> None:
    done = limited(
        whole,
        """
        for which in (resource.RLIMIT_CPU, resource.RLIMIT_CORE):
            print(resource.getrlimit(which)[0], flush=True)
        resource.setrlimit(resource.RLIMIT_CPU, (1, resource.RLIM_INFINITY))
        while True:
            pass
        """,
    )
    assert done.returncode == -signal.SIGXCPU
    assert done.stdout == "60\n0\n"


def test_limits_grow_with_the_image(image: Path) -> None:
    body = manifest_body(image)
    body["shards"][0]["size"] += 100 << 30
    body["shards"][0]["spans"].append([50 << 30, 50 << 30])
    body["shards"][0]["stored"] += 50 << 30
    seal(image, body)
    code = "print(*(resource.getrlimit(which)[0] for which in (resource.RLIMIT_CPU, resource.RLIMIT_AS)))"
    seconds, memory = map(int, limited(image, code).stdout.split())
    assert seconds > 2000
    assert memory > 16 * (50 << 30)


def test_limits_that_are_there_already_are_kept(whole: Path) -> None:
    done = limited(whole, "print(*resource.getrlimit(resource.RLIMIT_CPU))")
    assert int(done.stdout.split()[1]) == resource.getrlimit(resource.RLIMIT_CPU)[1]


def test_output_of_main(image: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "limit", lambda *arguments, **options: None)
    assert main([str(image), "--full"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("checking") for line in lines[:-1]] == [
        MANIFEST,
        MANIFEST,
        MASTER,
        "shard-0.h5",
        "shard-3.h5",
    ]
    assert lines[-1]["report"]["pages"] == 12
    monkeypatch.setattr(module, "check_image", lambda *arguments, **options: bytes(1 << 60))
    assert main([str(image)]) == 75
    assert "more memory" in json.loads(capsys.readouterr().out.splitlines()[-1])["what"]


# -- crafted images through the real child ----------------------------------------------------------
def petabytes(node: h5py.Group) -> None:
    del node["tables/files"]
    node.create_dataset("tables/files", (1 << 47,), [("id", "<i8")], chunks=(1 << 20,), fletcher32=True)


def outside(node: h5py.Group) -> None:
    del node["tables/files"]
    node.create_dataset("tables/files", (100,), "u1", external=[("/etc/passwd", 0, 100)])


def linked(node: h5py.Group) -> None:
    del node["tables/files"]
    node["tables/files"] = h5py.ExternalLink("/etc/passwd", "/")


@pytest.mark.parametrize("change", [petabytes, outside, linked])
def test_crafted_images(image: Path, change: Callable[[h5py.Group], None]) -> None:
    forge(image, change)
    with pytest.raises(ImageDamaged, match=r"shard-0\.h5"):
        verify(image)


def test_a_sparse_claim_in_the_manifest(image: Path) -> None:
    """A file of a terabyte that takes no space on the disk, and hours to hash."""
    body = manifest_body(image)
    os.truncate(image / "shard-0.h5", 1 << 40)
    body["shards"][0]["size"] = 1 << 40
    seal(image, body)
    with pytest.raises(ImageDamaged, match="more than"):
        verify(image)
