"""The file under HDF5: errors that HDF5 must not see, hashes with gaps."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crhpc.image import backing as module
from crhpc.image.backing import BackingFile, digest, pread


def test_hdf5_reads_back_what_it_wrote(tmp_path: Path) -> None:
    values = np.arange(100_000)
    backing = BackingFile(tmp_path / "a", create=True)
    with h5py.File(backing, "w", libver=("v110", "v114")) as file:
        file.create_dataset("d", data=values, chunks=(1000,), fletcher32=True)
    backing.check()
    assert backing.size == os.fstat(backing.fd).st_size
    backing.close()
    reading = BackingFile(tmp_path / "a")
    with h5py.File(reading, "r") as file:
        assert np.array_equal(file["d"][()], values)
    reading.close()
    reading.close()
    with h5py.File(tmp_path / "a") as file:
        assert np.array_equal(file["d"][()], values)


def test_must_not_exist_when_created_and_must_when_read(tmp_path: Path) -> None:
    BackingFile(tmp_path / "a", create=True).close()
    with pytest.raises(FileExistsError):
        BackingFile(tmp_path / "a", create=True)
    with pytest.raises(FileNotFoundError):
        BackingFile(tmp_path / "b")


def test_links_and_devices_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError):
        BackingFile(tmp_path / "b")
    with pytest.raises(OSError, match="regular"):
        BackingFile(Path("/dev/zero"))
    with pytest.raises(OSError, match="regular"):
        BackingFile(tmp_path)


def test_error_is_kept_and_hdf5_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backing = BackingFile(tmp_path / "a", create=True)
    file = h5py.File(backing, "w")

    def full(*args: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "pwrite", full)
    file.create_dataset("d", data=np.arange(10_000), chunks=(10_000,), fletcher32=True)
    file.close()
    for _ in range(2):
        with pytest.raises(OSError) as caught:
            backing.check()
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == str(tmp_path / "a")
    backing.close()


def test_dropped_writes_touch_nothing(tmp_path: Path) -> None:
    backing = BackingFile(tmp_path / "a", create=True)
    file = h5py.File(backing, "w")
    backing.drop_writes()
    file["d"] = np.arange(10_000)
    file.close()
    assert (tmp_path / "a").stat().st_size < 10_000
    with pytest.raises(OSError) as caught:
        backing.check()
    assert caught.value.errno == errno.ECANCELED
    backing.close()


def test_short_reads_and_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pread_, pwrite_ = os.pread, os.pwrite
    monkeypatch.setattr(module.os, "pread", lambda fd, n, offset: pread_(fd, min(n, 7), offset))
    monkeypatch.setattr(module.os, "pwrite", lambda fd, data, offset: pwrite_(fd, data[:5], offset))
    backing = BackingFile(tmp_path / "a", create=True)
    assert backing.write(bytes(range(100))) == 100
    backing.check()
    assert pread(backing.fd, 100, 0) == bytes(range(100))
    assert pread(backing.fd, 100, 95) == bytes(range(95, 100))
    assert pread(backing.fd, 100, 200) == b""
    backing.seek(-10, os.SEEK_END)
    assert backing.read() == bytes(range(90, 100))
    assert digest(backing.fd, 100) == hashlib.sha256(bytes(range(100))).hexdigest()
    backing.close()


@settings(deadline=None)
@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=8))
def test_digest_leaves_spans_out(tmp_path_factory: pytest.TempPathFactory, data: bytes, cuts: list[int]) -> None:
    borders = sorted({min(cut, len(data)) for cut in cuts})
    spans = [(a, b - a) for a, b in zip(borders[::2], borders[1::2], strict=False)]
    kept = bytearray(data)
    for offset, length in reversed(spans):
        del kept[offset : offset + length]
    path = tmp_path_factory.mktemp("d") / "a"
    path.write_bytes(data)
    with open(path, "rb") as file:
        assert digest(file.fileno(), len(data), spans) == hashlib.sha256(kept).hexdigest()
        with pytest.raises(EOFError):
            digest(file.fileno(), len(data) + 1, spans)
