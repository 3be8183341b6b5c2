"""Every way in which writing a shard can fail: nothing is left, the error is the system's, nothing crashes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crhpc.image import backing as backing_module
from crhpc.image.writer import ShardWriter

from .conftest import need
from .samples import (
    ENVIRONMENT,
    fill_sample,
    put_pages,
    run_python,
    small_writer,
)


# -- failures ---------------------------------------------------------------------------------------
def test_the_file_must_not_exist(tmp_path: Path) -> None:
    (tmp_path / "shard-0.h5").write_text("mine")
    with pytest.raises(FileExistsError):
        small_writer(tmp_path)
    assert (tmp_path / "shard-0.h5").read_text() == "mine"
    with pytest.raises(FileNotFoundError):
        small_writer(tmp_path / "missing")


def test_abort_leaves_nothing(tmp_path: Path) -> None:
    threads = threading.active_count()
    writer = small_writer(tmp_path)
    thing = writer.object("memory")
    for i in range(100):
        put_pages(writer, [(thing, i, 1)], [i])
    writer.abort()
    writer.abort()
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() == threads
    for call in (writer.take, writer.drain, writer.close, lambda: writer.zero([(thing, 0, 1)])):
        with pytest.raises(OSError):
            call()


def test_leaving_the_context_early_aborts(tmp_path: Path) -> None:
    with pytest.raises(KeyError), small_writer(tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_descriptors_and_threads_are_given_back(tmp_path: Path) -> None:
    threads, fds = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for i in range(5):
        with ShardWriter(tmp_path, i, threads=2, memory=16 << 20) as writer:
            fill_sample(writer)
            writer.close()
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == (threads, fds)


@pytest.mark.parametrize("call", ["take", "put", "drain", "close", "zero"])
def test_an_error_of_the_disk_reaches_every_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*args: Any) -> int:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with small_writer(tmp_path) as writer:
        thing = writer.object("memory")
        spare = writer.take()
        monkeypatch.setattr(backing_module.os, "pwrite", full)
        put_pages(writer, [(thing, 0, 1)], [1])
        with pytest.raises(OSError):
            writer.drain()
        calls: dict[str, Callable[[], object]] = {
            "take": writer.take,
            "put": lambda: writer.put(spare, [(thing, 0, 1)]),
            "drain": writer.drain,
            "close": writer.close,
            "zero": lambda: writer.zero([(thing, 0, 1)]),
        }
        for _ in range(2):
            with pytest.raises(OSError) as caught:
                calls[call]()
            assert caught.value.errno == errno.EDQUOT
            assert caught.value.filename == str(tmp_path / "shard-0.h5")
    assert list(tmp_path.iterdir()) == []


def test_an_error_wakes_a_waiting_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    def full(*args: Any) -> int:
        assert gate.wait(30)
        raise OSError(errno.ENOSPC, "No space left on device")

    with small_writer(tmp_path) as writer:
        thing = writer.object("memory")
        monkeypatch.setattr(backing_module.os, "pwrite", full)
        threading.Timer(0.3, gate.set).start()
        with pytest.raises(OSError) as caught:
            for i in range(1000):
                put_pages(writer, [(thing, i, 1)], [i])
        assert caught.value.errno == errno.ENOSPC
        assert i < 100
    assert list(tmp_path.iterdir()) == []


def test_an_error_at_every_single_write(tmp_path: Path) -> None:
    """In a process of its own: with a failing write HDF5 itself ends in SIGSEGV, which is what is avoided."""
    done = run_python(
        """
        import errno, os, sys
        from pathlib import Path
        from crhpc.image import backing
        from crhpc.image.writer import ShardWriter
        from image.samples import fill_sample

        pwrite, ftruncate, fsync = os.pwrite, os.ftruncate, os.fsync
        calls = limit = 0
        def counted(call):
            def work(*arguments):
                global calls
                calls += 1
                if limit and calls >= limit:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return call(*arguments)
            return work
        backing.os.pwrite, backing.os.ftruncate, backing.os.fsync = map(counted, (pwrite, ftruncate, fsync))
        directory = Path(sys.argv[1])
        def write():
            with ShardWriter(directory, 0, threads=1, memory=16 << 20) as writer:
                fill_sample(writer)
                writer.close()
        write()
        total = calls
        (directory / "shard-0.h5").unlink()
        for limit in range(1, total + 1):
            calls = 0
            try:
                write()
            except OSError as error:
                assert error.errno == errno.ENOSPC, error
                assert not list(directory.iterdir())
            else:
                raise AssertionError(f"call {limit} of {total} failed and nobody noticed")
        print(total)
        """,
        str(tmp_path),
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    assert int(done.stdout) > 20


def test_a_full_disk(tmp_path: Path) -> None:
    """A real tmpfs of 3 MiB, in a mount namespace: what fits and what does not, at each stage."""
    mount = tmp_path / "mount"
    mount.mkdir()
    unshare = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    probe = subprocess.run([*unshare, "mount", "-t", "tmpfs", "none", str(mount)], capture_output=True, check=False)
    need(shutil.which("unshare") and probe.returncode == 0, "no mount namespace can be made here")
    code = textwrap.dedent("""
        import errno, os, subprocess, sys
        from pathlib import Path
        import numpy as np
        from crhpc.image.writer import ShardWriter
        from image.samples import OpenFile, U64

        place = Path(sys.argv[1])
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", place], check=True)
        noise = np.random.default_rng(1).integers(0, 256, (256, 4096), dtype="u1")
        outcomes = []
        for chunks, blob in ((1, 0), (40, 0), (2, 1 << 20), (1, 3 << 20), (2, 900_000), (2, 1_045_000)):
            try:
                with ShardWriter(place, 0, threads=2, memory=16 << 20) as writer:
                    thing = writer.object("memory")
                    for i in range(chunks):
                        buffer = writer.take()
                        buffer.array[:] = noise
                        writer.put(buffer, [(thing, i * 256, 256)])
                    writer.table([OpenFile(1, "", U64(0), True, 0.0, bytes(blob), (), ())], OpenFile, "files")
                    writer.close()
                outcomes.append(0)
                (place / "shard-0.h5").unlink()
            except OSError as error:
                outcomes.append(error.errno)
            assert not list(place.iterdir())
            assert os.statvfs(place).f_bfree == os.statvfs(place).f_blocks
        print(outcomes)
        """)
    done = subprocess.run(
        [*unshare, sys.executable, "-c", code, str(mount)],
        env=ENVIRONMENT,
        text=True,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    full = errno.ENOSPC
    assert json.loads(done.stdout) == [0, full, full, full, 0, full]


def test_an_error_in_compression_ends_the_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: ShardWriter, buffer: Any, rows: int) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(ShardWriter, "_pack", broken)
    with small_writer(tmp_path) as writer:
        thing = writer.object("memory")
        put_pages(writer, [(thing, 0, 1)], [1])
        with pytest.raises(RuntimeError, match="no more") as caught:
            writer.close()
        assert isinstance(caught.value.__cause__, MemoryError)
    assert list(tmp_path.iterdir()) == []
