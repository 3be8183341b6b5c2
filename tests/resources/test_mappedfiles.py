"""Programs and libraries that are other ones at the restart than at the checkpoint."""
from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from need import need
from pods import Subject

from crhpc.errors import FileGone, ImageDamaged, OtherBuild
from crhpc.filepolicy import FilePolicy
from crhpc.image.reader import Image
from crhpc.kernel import vdso
from crhpc.resources import mappedfiles
from crhpc.resources.mappedfiles import MappedFile

FORCE = FilePolicy(force=True)
SOURCE = """
const char table[100000] = {{ {first}, {second} }};
int answer(void) {{ return {answer}; }}
int first(int i) {{ return table[i]; }}
"""
SETUP = """
library = ctypes.CDLL({path!r})
assert library.answer() == 7
"""
CHECK = "assert library.answer() == 7 and library.first(0) == 1 and library.first(1) == 2"


@pytest.fixture
def build(tmp_path):
    """``build(name, answer)``: a library; with the same arguments the same, build id and all."""
    need(shutil.which("gcc"), "there is no C compiler (gcc)")

    def make(name: str, answer: int = 7, first: int = 1, second: int = 2, *options: str) -> str:
        path, source = str(tmp_path / name), tmp_path / "library.c"
        source.write_text(SOURCE.format(answer=answer, first=first, second=second), encoding="ascii")
        if os.path.exists(path):
            os.unlink(path)
        subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-Wl,--build-id", *options, "-o", path, str(source)],
                       check=True)
        return path
    return make


def start(holding, path: str, check: str = CHECK) -> Subject:
    subject: Subject = holding(SETUP.format(path=path), check)
    return subject


def refused(subject: Subject, image, error=OtherBuild) -> str:
    with pytest.raises(error) as caught:
        subject.restart(image)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def named(path: str) -> str:
    with open(path, "rb") as file:
        return f"build id {vdso.build_id(file.read(16 << 10)).hex()[:10]}"


def test_what_is_recorded(holding, build):
    path = build("one.so")
    subject = start(holding, path)
    with Image(subject.checkpoint(kill=True)) as opened:
        rows = {row.path: row for row in opened.node(0).table(MappedFile, "mapped_file")}
    assert rows[path].size == os.path.getsize(path) and len(rows[path].build_id) == 20 and len(rows[path].digest) == 16
    assert any("libc" in each for each in rows) and not any(each.startswith("[") for each in rows)
    subject.kill()


def test_another_build_is_refused(holding, build):
    """What the job has not touched yet would come from it."""
    path = build("one.so")
    before = named(path)
    subject = start(holding, path)
    image = subject.checkpoint(kill=True)
    build("one.so", 7, 1, 3)
    line = refused(subject, image)
    assert f"{path} is another build ({named(path)}, it was {before}); pid" in line and "has it mapped" in line
    assert "--map OLD=NEW" in line and "--force" in line
    build("one.so")   # the very same again, with another time and inode
    subject.restart(image)
    subject.check()


def test_another_build_by_force(holding, build):
    path = build("one.so")
    subject = start(holding, path, CHECK.replace("(1) == 2", "(1) == 3"))
    image = subject.checkpoint(kill=True)
    build("one.so", 7, 1, 3)
    subject.restart(image, FORCE, compare=False)
    assert any(line.startswith("--force: ") and path in line for line in subject.warnings)
    subject.check()


def test_the_file_has_moved(holding, build, tmp_path):
    (tmp_path / "old").mkdir()
    path = build("old/one.so")
    subject = start(holding, path)
    image = subject.checkpoint(kill=True)
    os.rename(tmp_path / "old", tmp_path / "new")
    assert f"{path} cannot be opened (No such file or directory)" in refused(subject, image, FileGone)
    moved = FilePolicy(moved=((str(tmp_path / "old"), str(tmp_path / "new")),))
    subject.restart(image, moved, compare=False)
    subject.check()
    build("new/one.so", 8)
    with pytest.raises(OtherBuild, match=r"new/one\.so is another build"):
        subject.restart(image, moved)


def test_the_same_build_with_another_content(holding, build):
    """As tools do that change a library's paths."""
    path = build("one.so")
    subject = start(holding, path)
    image = subject.checkpoint(kill=True)
    with open(path, "r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"changed!")
    assert f"{path} is another file: it holds something else" in refused(subject, image)
    with open(path, "ab") as file:
        file.write(b"more")
    size = os.path.getsize(path)
    assert f"{path} is another file: it has {size} bytes, it had {size - 4}" in refused(subject, image)


def test_what_has_no_build_id(holding, build):
    path = build("one.so", 7, 1, 2, "-Wl,--build-id=none")
    subject = start(holding, path)
    image = subject.checkpoint(kill=True)
    build("one.so", 7, 1, 3, "-Wl,--build-id=none")
    assert "holds something else" in refused(subject, image)
    build("one.so")
    assert f"is another build ({named(path)}, it was without a build id)" in refused(subject, image)


def test_a_file_of_data(holding, tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"d" * 200_000)
    subject = holding(f"""
        import mmap
        with open({str(path)!r}, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
        """, "assert mapped[:] == b'd' * 200000")
    image = subject.checkpoint(kill=True)
    os.unlink(path)
    path.write_bytes(b"e" * 200_000)
    assert f"{path} is another file: it holds something else" in refused(subject, image)
    path.write_bytes(b"d" * 200_000)
    subject.restart(image)
    subject.check()


@pytest.mark.parametrize("what", ["directory", "fifo", "nothing", "link to nowhere", "device"])
def test_no_file_at_all(holding, build, what):
    """Nothing hangs, and nothing is done to a device."""
    path = build("one.so")
    subject = start(holding, path)
    image = subject.checkpoint(kill=True)
    os.unlink(path)
    if what == "directory":
        os.mkdir(path)
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "link to nowhere":
        os.symlink("nowhere", path)
    elif what == "device":
        os.symlink("/dev/tty", path)
    line = refused(subject, image, FileGone)
    assert path in line and ("is no regular file" in line or "cannot be opened" in line)


def test_an_image_that_names_a_fifo(holding, build, monkeypatch):
    """One of a stranger's, that says nothing of the file but that it is to be mapped."""
    path = build("one.so")
    subject = start(holding, path)
    image = subject.checkpoint(kill=True)
    monkeypatch.setattr(mappedfiles, "by_name", lambda row: False)
    os.unlink(path)
    os.mkfifo(path)
    assert f"{path!r} can't be mapped, it is no regular file" in refused(subject, image, ImageDamaged)


def test_replaced_while_the_job_runs(holding, build):
    """By then it has no name, and is in the image whole."""
    path = build("one.so")
    subject = start(holding, path)
    build("one.so", 9)
    image = subject.checkpoint(kill=True)
    subject.restart(image)
    assert not subject.warnings
    subject.check()


def test_replaced_during_the_checkpoint(holding, build, monkeypatch):
    path = build("one.so")
    subject = start(holding, path)
    plain = mappedfiles._open

    def other(*ways):
        if path in ways:
            build("one.so", 9)
        return plain(*ways)
    with monkeypatch.context() as patch:
        patch.setattr(mappedfiles, "_open", other)
        image = subject.checkpoint(kill=True)
    build("one.so")
    subject.restart(image)
    assert any(f"nobody can tell whether {path} is what it was" in line for line in subject.warnings)
    subject.check()


def test_files_are_read_once(holding, build, monkeypatch):
    path = build("one.so")
    subject = start(holding, path)
    read = []
    plain = mappedfiles._read
    monkeypatch.setattr(mappedfiles, "_read", lambda fd, size: read.append(size) or plain(fd, size))
    subject.checkpoint()
    first = len(read)
    assert first > 3
    image = subject.checkpoint(kill=True)
    assert len(read) == first
    with Image(image) as opened:
        assert all(row.digest for row in opened.node(0).table(MappedFile, "mapped_file"))


@pytest.mark.parametrize("size", [0, 1, 4095, 16384, 16385, 81919, 81920, 81921, 100000, 1 << 30, (1 << 40) + 5])
def test_pieces(size):
    found = list(mappedfiles.pieces(size))
    assert all(offset >= 0 and length >= 0 and offset + length <= size for offset, length in found)
    assert sum(length for _, length in found) == (size if size <= 81920 else 81920)
    assert found == sorted(found) and max(offset + length for offset, length in found) == size
