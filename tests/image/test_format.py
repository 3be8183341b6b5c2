"""Names and directories; the manifest, as a stranger may have written it."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crhpc.errors import ImageDamaged, NoImage
from crhpc.image import format as image_format
from crhpc.image.format import (
    MANIFEST,
    MAX_MANIFEST,
    Manifest,
    ShardSummary,
    discard_temporary,
    image_name,
    image_numbers,
    new_temporary,
    read_manifest,
    remove_image,
    remove_stale_temporaries,
)

from .samples import flip, manifest_body, seal, write_sample

PLAIN_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


# -- names and directories --------------------------------------------------------------------------
def test_image_name() -> None:
    assert image_name(12) == "ckpt-000012"
    assert image_name(1234567) == "ckpt-1234567"
    with pytest.raises(ValueError):
        image_name(-1)


def test_image_numbers_counts_only_committed_directories(tmp_path: Path) -> None:
    for name in (
        "ckpt-000012",
        "ckpt-000003",
        "ckpt-1000000",
        "ckpt-12",
        "ckpt-0000012",
        "ckpt-000001x",
        "x",
        "ckpt-00002²",
        ".ckpt-000004.tmp-" + 32 * "a",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "ckpt-000007").touch()
    (tmp_path / "ckpt-000008").symlink_to("ckpt-000003")
    assert image_numbers(tmp_path) == [3, 12, 1000000]
    assert image_numbers(tmp_path / "missing") == []


def test_modes_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        image = write_sample(tmp_path, 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE(image.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in image.iterdir()} == {0o600}


def test_temporaries_are_removed_but_nothing_else(tmp_path: Path) -> None:
    image = write_sample(tmp_path, 1)
    ours = new_temporary(tmp_path, 2)
    for name in ("shard-0.h5", "master.h5", "manifest.json"):
        (ours / name).touch()
    guest = new_temporary(tmp_path, 3)
    for name in ("shard-0.h5", "notes.txt", "shard-00.h5"):
        (guest / name).touch()
    other = tmp_path / ".ckpt-000004.tmp-short"
    other.mkdir()
    remove_stale_temporaries(tmp_path)
    assert not ours.exists()
    assert sorted(path.name for path in guest.iterdir()) == ["notes.txt", "shard-00.h5"]
    assert other.exists()
    assert read_manifest(image).number == 1
    with pytest.raises(ValueError):
        discard_temporary(image)


def test_temporaries_that_are_links_are_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "master.h5").touch()
    (tmp_path / (".ckpt-000004.tmp-" + 32 * "a")).symlink_to(elsewhere)
    remove_stale_temporaries(tmp_path)
    assert (elsewhere / "master.h5").exists()


# -- removal ----------------------------------------------------------------------------------------
def test_remove_image(image: Path) -> None:
    remove_image(image)
    assert list(image.parent.iterdir()) == []


def test_remove_image_leaves_foreign_files(image: Path) -> None:
    for name in ("notes.txt", "shard-7.h5", "shard-0.h5.bak"):
        (image / name).write_text("mine")
    (image / "sub").mkdir()
    remove_image(image)
    (left,) = image.parent.iterdir()
    assert left.name.startswith(".ckpt-000012.trash-")
    assert sorted(path.name for path in left.iterdir()) == [
        "notes.txt",
        "shard-0.h5.bak",
        "shard-7.h5",
        "sub",
    ]
    assert image_numbers(image.parent) == []


def test_remove_image_refuses_what_no_manifest_names(image: Path) -> None:
    before = sorted(image.iterdir())
    flip(image / MANIFEST, 40)
    with pytest.raises(ImageDamaged):
        remove_image(image)
    (image / MANIFEST).unlink()
    with pytest.raises(NoImage):
        remove_image(image)
    assert sorted(image.iterdir()) == [path for path in before if path.name != MANIFEST]


def test_interrupted_removal_is_no_image_and_is_cleared_away(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", dies)
        with pytest.raises(KeyboardInterrupt):
            remove_image(image)
    (left,) = image.parent.iterdir()
    assert image_numbers(image.parent) == []
    with pytest.raises(NoImage, match="never committed"):
        read_manifest(left)
    remove_stale_temporaries(image.parent)
    assert list(image.parent.iterdir()) == []


# -- the manifest -----------------------------------------------------------------------------------
def test_manifest_round_trip(whole: Path) -> None:
    manifest = read_manifest(whole)
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    assert (manifest.number, manifest.format, manifest.parents) == (12, 1, [])
    assert manifest.job == {"argv": ["./app", "\udcff"], "user": "someone", "ranks": 4}
    assert [shard.node for shard in manifest.shards] == [0, 3]
    assert json.loads((whole / MANIFEST).read_text())["stats"] == {"freeze": 0.5}


def test_summary_survives_json(whole: Path) -> None:
    for shard in read_manifest(whole).shards:
        assert ShardSummary.from_json(json.loads(json.dumps(shard.to_json()))) == shard


def test_every_byte_of_the_manifest_is_sealed(image: Path) -> None:
    data = (image / MANIFEST).read_bytes()
    for offset in range(len(data)):
        changed = bytearray(data)
        changed[offset] ^= 0x20
        with pytest.raises(ValueError):
            Manifest.from_bytes(bytes(changed))
    for length in range(len(data)):
        with pytest.raises(ValueError):
            Manifest.from_bytes(data[:length])
    with pytest.raises(ValueError):
        Manifest.from_bytes(data + b"\n")


@pytest.mark.parametrize(
    ("where", "value", "complaint"),
    [
        (("shards", 0, "file"), "../shard-0.h5", "file name"),
        (("shards", 0, "file"), "/etc/passwd", "file name"),
        (("shards", 0, "file"), "shard-3.h5", "file name"),
        (("shards", 0, "node"), 3, "file name"),
        (("shards", 1), "shard", "no object"),
        (("shards", 0, "size"), -1, "size"),
        (("shards", 0, "size"), True, "size"),
        (("shards", 0, "size"), 1 << 63, "size"),
        (("shards", 0, "size"), 10, "leave the file"),
        (("shards", 0, "spans"), [[0, 5], [3, 5]], "overlap"),
        (("shards", 0, "spans"), [[0, -5]], "overlap"),
        (("shards", 0, "spans"), [[0, 1.5]], "whole numbers"),
        (("shards", 0, "spans"), [], "stored bytes differ"),
        (("shards", 0, "rows"), 1 << 40, "counts"),
        (("shards", 0, "sha256"), 64 * "A", "SHA-256"),
        (("master", "sha256"), "", "SHA-256"),
        (("master",), None, "master"),
        (("parents",), ["ckpt-000011"], "parents"),
        (("number",), "12", "number"),
        (("created",), None, "created"),
        (("job",), [], "job"),
        (("format",), 0.5, "format"),
    ],
)
def test_impossible_manifests(image: Path, where: tuple[Any, ...], value: object, complaint: str) -> None:
    body = manifest_body(image)
    inner: Any = body
    for step in where[:-1]:
        inner = inner[step]
    inner[where[-1]] = value
    seal(image, body)
    with pytest.raises(ImageDamaged, match=complaint) as caught:
        read_manifest(image)
    assert MANIFEST in str(caught.value)


def test_two_shards_of_one_node(image: Path) -> None:
    body = manifest_body(image)
    body["shards"].append(body["shards"][0])
    seal(image, body)
    with pytest.raises(ImageDamaged, match="two shards"):
        read_manifest(image)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_json_is_read_or_refused(image: Path, data: st.DataObject) -> None:
    """Whatever members are replaced by, the outcome is a manifest or an error that users know."""
    body = manifest_body(image)
    inner: Any = body
    for _ in range(data.draw(st.integers(1, 3))):
        keys = sorted(inner) if isinstance(inner, dict) else range(len(inner))
        key = data.draw(st.sampled_from(list(keys)))
        if not isinstance(inner[key], dict | list) or not inner[key] or data.draw(st.booleans()):
            inner[key] = data.draw(PLAIN_JSON)
            break
        inner = inner[key]
    before = (image / MANIFEST).read_bytes()
    seal(image, body)
    try:
        read_manifest(image)
    except (ImageDamaged, NoImage):
        pass
    finally:
        (image / MANIFEST).write_bytes(before)


def test_newer_format(image: Path) -> None:
    seal(image, {"format": 2, "something": "else"})
    with pytest.raises(NoImage, match="newer crhpc"):
        read_manifest(image)


@pytest.mark.parametrize(
    "text", ['{"format": NaN,', '{"format": ' + "[" * 100000 + ",", '{"format": ' + "9" * 5000 + ","]
)
def test_json_that_breaks_parsers(image: Path, text: str) -> None:
    import hashlib

    sealed = (text + "\n").encode()
    (image / MANIFEST).write_bytes(sealed + f'  "sha256": "{hashlib.sha256(sealed).hexdigest()}"\n}}\n'.encode())
    with pytest.raises(ImageDamaged):
        read_manifest(image)


def test_size_of_a_manifest_is_bounded(image: Path) -> None:
    os.truncate(image / MANIFEST, MAX_MANIFEST + 1)
    with pytest.raises(ImageDamaged, match="too long"):
        read_manifest(image)


def test_what_is_no_image(tmp_path: Path, image: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing", tmp_path, tmp_path / "file"):
        with pytest.raises(NoImage):
            read_manifest(path)
    (image / MANIFEST).rename(image / "elsewhere")
    (image / MANIFEST).symlink_to("elsewhere")
    with pytest.raises(ImageDamaged):
        read_manifest(image)
    (image / MANIFEST).unlink()
    os.mkfifo(image / MANIFEST)
    with pytest.raises(ImageDamaged, match="not a regular file"):
        read_manifest(image)


def test_nan_is_refused_when_written(whole: Path) -> None:
    from dataclasses import replace

    with pytest.raises(ValueError):
        replace(read_manifest(whole), stats={"a": float("nan")}).to_bytes()


def test_shard_names_have_one_form() -> None:
    pattern = image_format._SHARD
    assert pattern.fullmatch("shard-0.h5")
    assert not any(pattern.fullmatch(name) for name in ("shard-00.h5", "shard-.h5", "shard-1.h5\n", "shard-٣.h5"))
