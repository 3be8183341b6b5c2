"""Files of the user's that have changed between a checkpoint and a restart, under every policy."""
from __future__ import annotations

import fcntl
import os
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from holding import NewSubject, told
from need import need
from pods import PROGRAMS, Subject, compile_program

from crhpc.engine.node import Node
from crhpc.errors import FileChanged, FileGone
from crhpc.filepolicy import FilePolicy, Files
from crhpc.image.format import read_manifest
from crhpc.resources.userfiles import samples

KEEP, STRICT = FilePolicy(Files.KEEP), FilePolicy(Files.STRICT)
MIB = 1 << 20
UNIT = b"one of many of 24 bytes "
SMALL, LARGE = UNIT * 50, UNIT * (6 * MIB // 24)


def held(holding: NewSubject, content: bytes = SMALL, mode: str = "os.O_RDWR", position: int | None = None,
         check: str = "", name: str = "file") -> tuple[Subject, Path, Path]:
    """A program that has a file open; killed at its checkpoint. The subject, the file and the image."""
    at = len(content) if position is None else position
    subject = holding(f"""
        with open({name!r}, "wb") as file: file.write({UNIT!r} * {len(content) // len(UNIT)})
        fd = os.open({name!r}, {mode})
        os.lseek(fd, {at}, 0)
        """, check or f"assert os.lseek(fd, 0, 1) == {at}")
    return subject, subject.work / name, subject.checkpoint(kill=True)


def kept(subject: Subject) -> dict[str, bytes]:
    """What restarts have put beside the images."""
    return {path.name: path.read_bytes() for path in subject.images.glob("ckpt-*.*")}


def add(path: Path, more: bytes = b"written after the checkpoint") -> None:
    with path.open("ab") as file:
        file.write(more)


def change(path: Path, at: int = 10) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"CHANGED")


# -- what was written to --------------------------------------------------------------------------------
def test_what_was_added_is_cut_off_and_kept(holding):
    subject, path, image = held(holding)
    add(path, b"first")
    subject.restart(image)
    subject.check()
    assert path.read_bytes() == SMALL and kept(subject) == {"ckpt-000001.tail-file": b"first"}
    add(path, b"second")
    subject.restart(image)
    subject.check()
    assert kept(subject) == {"ckpt-000001.tail-file": b"first", "ckpt-000001.tail-file.2": b"second"}
    assert subject.warnings == []


@pytest.mark.parametrize("harm", ["rewritten", "shorter", "rewritten and longer", "emptied", "replaced", "gone"])
def test_a_small_file_is_brought_back(holding, harm):
    subject, path, image = held(holding)
    stat = path.stat()
    match harm:
        case "rewritten":
            change(path)
        case "shorter":
            os.truncate(path, 500)
        case "rewritten and longer":
            change(path)
            add(path)
        case "emptied":
            os.truncate(path, 0)
        case "replaced":
            path.rename(path.with_name("other"))
            path.write_bytes(b"a new file of the same name")
        case "gone":
            path.unlink()
    was = path.read_bytes() if path.exists() else None
    subject.restart(image)
    subject.check()
    assert path.read_bytes() == SMALL
    assert (path.stat().st_mtime_ns, path.stat().st_mode) == (stat.st_mtime_ns, stat.st_mode)
    assert kept(subject) == ({} if was is None else {"ckpt-000001.was-file": was})
    assert subject.warnings == []


def test_a_copy_of_a_file_is_as_good(holding):
    subject, path, image = held(holding, LARGE)
    shutil.copyfile(path, path.with_name("copy"))
    path.with_name("copy").replace(path)
    subject.restart(image, STRICT)
    subject.check()
    assert subject.warnings == [] and kept(subject) == {}


@pytest.mark.parametrize("at", [0, 20 << 10, len(LARGE) - 10], ids=["start", "middle", "end"])
def test_a_large_file_that_was_rewritten_is_refused(holding, at):
    offset = next(start for start, length in samples(len(LARGE)) if start + length > at)
    subject, path, image = held(holding, LARGE)
    change(path, max(at, offset))
    with pytest.raises(FileChanged, match=r"holds something else than at the checkpoint.*--files keep"):
        subject.restart(image)
    assert path.read_bytes() != LARGE and kept(subject) == {}
    subject.restart(image, KEEP)
    subject.check()
    assert [line for line in subject.warnings if "it stays as it is" in line]


def test_a_large_file_that_is_shorter_is_refused(holding):
    subject, path, image = held(holding, LARGE)
    os.truncate(path, 1000)
    with pytest.raises(FileChanged, match=f"has 1000 bytes, it had {len(LARGE)}"):
        subject.restart(image)
    assert path.stat().st_size == 1000


def test_a_large_file_that_is_not_only_added_to_is_brought_back(holding):
    subject, path, image = held(holding, LARGE, position=100)
    change(path, 3 * MIB + 5)   # where no sample is
    subject.restart(image)
    subject.check()
    assert path.read_bytes() == LARGE


def test_a_large_file_that_was_added_to_is_cut_back(holding):
    subject, path, image = held(holding, LARGE, "os.O_WRONLY | os.O_APPEND")
    add(path)
    subject.restart(image)
    subject.check()
    assert path.read_bytes() == LARGE and list(kept(subject)) == ["ckpt-000001.tail-file"]


def test_tails_keep_their_holes(holding):
    subject, path, image = held(holding)
    with path.open("r+b") as file:
        file.seek(1 << 35)
        file.write(b"far")
    subject.restart(image)
    subject.check()
    (tail,) = subject.images.glob("ckpt-*.tail-file")
    assert path.read_bytes() == SMALL
    assert tail.stat().st_size == (1 << 35) + 3 - len(SMALL) and tail.stat().st_blocks < 100


def test_a_name_too_long_for_a_tail(holding):
    name = "n" * 255
    subject, path, image = held(holding, name=name)
    add(path)
    subject.restart(image)
    subject.check()
    assert list(kept(subject)) == ["ckpt-000001.tail-" + "n" * 200]


@pytest.mark.parametrize("mode", ["os.O_WRONLY", "os.O_WRONLY | os.O_APPEND", "os.O_RDWR | os.O_SYNC"])
def test_a_file_that_may_not_be_opened_any_more(holding, mode):
    """The job's own descriptor does it."""
    subject, path, image = held(holding, mode=mode)
    change(path)
    path.chmod(0o400)
    subject.restart(image, compare=False)
    subject.check()
    assert path.read_bytes() == SMALL and path.stat().st_mode & 0o777 == 0o400


def test_a_file_that_nobody_may_read(holding):
    """What can't be read can't be compared; what was added can be told all the same."""
    subject, path, image = held(holding, mode="os.O_WRONLY")
    add(path)
    path.chmod(0o200)
    subject.restart(image)
    subject.check()
    path.chmod(0o600)
    assert path.read_bytes() == SMALL


def test_keep_leaves_all_as_it_is(holding):
    subject, path, image = held(holding, position=3, check="assert os.lseek(fd, 0, 1) == 3")
    add(path)
    before = path.read_bytes(), path.stat()
    subject.restart(image, KEEP)
    subject.check()
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before[0], before[1].st_mtime_ns)
    assert kept(subject) == {} and subject.warnings == []
    os.truncate(path, 10)
    subject.restart(image, KEEP)
    subject.check()
    assert path.stat().st_size == 10
    assert "file has 10 bytes, it had 1200; it stays as it is (--files keep)" in subject.warnings[0]


@pytest.mark.parametrize("mode", ["os.O_RDWR", "os.O_RDONLY"])
def test_strict_refuses_whatever_has_changed(holding, mode):
    subject, path, image = held(holding, mode=mode)
    subject.restart(image, STRICT)
    subject.kill()
    for harm in (lambda: add(path), lambda: change(path), lambda: os.truncate(path, 10)):
        path.write_bytes(SMALL)
        harm()
        before = path.read_bytes()
        with pytest.raises(FileChanged, match="restart with --files rollback"):
            subject.restart(image, STRICT)
        assert path.read_bytes() == before
    path.unlink()
    with pytest.raises(FileGone):
        subject.restart(image, STRICT)
    path.write_bytes(SMALL)
    subject.restart(image, STRICT)
    subject.check()


# -- what was only read ---------------------------------------------------------------------------------
def test_a_change_of_a_file_that_is_read_is_reported(holding):
    subject, path, image = held(holding, mode="os.O_RDONLY")
    change(path)
    subject.restart(image)
    subject.check()
    assert len(subject.warnings) == 1 and f"{path}, which the job reads, has changed" in subject.warnings[0]
    assert path.read_bytes() != SMALL and kept(subject) == {}


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_a_new_time_is_no_change(holding, content):
    subject, path, image = held(holding, content, mode="os.O_RDONLY")
    os.utime(path, (1, 1))
    subject.restart(image, STRICT)
    subject.check()
    assert subject.warnings == []


# -- what is gone or elsewhere ----------------------------------------------------------------------------
def test_a_file_that_is_gone_and_not_in_the_image(holding):
    subject, path, image = held(holding, mode="os.O_RDONLY")
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(FileGone, match=rf"{path} cannot be found .*python.*--map OLD=NEW"):
        subject.restart(image)
    subject.restart(image, FilePolicy(moved=((str(path), str(path.with_name("elsewhere"))),)), compare=False)
    subject.check()


def test_a_directory_that_has_moved(holding):
    """With all that was in it: files, the working directory, a fifo, a socket, a place, mapped files."""
    subject = holding("""
        os.mkdir("dir")
        os.chdir("dir")
        fd = os.open("file", os.O_CREAT | os.O_RDWR)
        os.write(fd, b"content")
        listing = os.open(".", os.O_RDONLY)
        place = os.open("file", os.O_PATH)
        os.mkfifo("fifo")
        fifo = os.open("fifo", os.O_RDWR)
        os.write(fifo, b"in the fifo")
        import mmap
        shared = mmap.mmap(fd, 4096 if os.truncate("file", 4096) is None else 0)
        private = mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("sock")
        listener.listen()
        """, """
        assert os.getcwd().endswith("/moved"), os.getcwd()
        assert os.read(fifo, 20) == b"in the fifo"
        assert os.path.samestat(os.fstat(fd), os.stat("file")) and os.path.samestat(os.fstat(place), os.stat("file"))
        assert os.readlink(f"/proc/self/fd/{fd}").endswith("/moved/file")
        shared[0:7] = b"through"
        assert open("file", "rb").read(7) == b"through" == private[0:7]
        assert sorted(os.listdir(listing)) == ["fifo", "file", "sock"]
        client = socket.socket(socket.AF_UNIX)
        client.connect("sock")
        """)
    image = subject.checkpoint(kill=True)
    old, new = subject.work / "dir", subject.work / "moved"
    old.rename(new)
    with pytest.raises(FileGone) as caught:
        subject.restart(image)
    lines = told(subject, caught.value)
    assert all("--map OLD=NEW" in line for line in lines), lines
    assert {path for path in ("dir", "dir/file") if any(f"{subject.work}/{path} " in line for line in lines)} == {
        "dir", "dir/file"}
    policy = FilePolicy(moved=((str(old), str(new)),))
    subject.restart(image, policy, compare=False)
    again = subject.checkpoint(kill=True)
    subject.restart(again)   # by now it is at home there
    subject.check()
    assert not old.exists()


def test_all_that_is_missing_is_told_at_once(holding):
    names = [f"file{n}" for n in range(30)]
    subject = holding(f"""
        fds = [os.open(name, os.O_CREAT | os.O_RDONLY) for name in {names}]
        os.mkdir("dir")
        listing = os.open("dir", os.O_RDONLY)
        """)
    image = subject.checkpoint(kill=True)
    for name in names[1:]:
        (subject.work / name).unlink()
    (subject.work / "dir").rmdir()
    with pytest.raises(FileGone) as caught:
        subject.restart(image)
    lines = told(subject, caught.value)
    assert len(lines) == 22 and any("and 9 more" in line for line in lines), lines
    assert not any("file0 " in line for line in lines)


def test_what_was_made_again_goes_when_the_restart_fails(holding):
    subject = holding("""
        fd = os.open("small", os.O_CREAT | os.O_RDWR)
        os.write(fd, b"content")
        other = os.open("other", os.O_CREAT | os.O_RDWR)
        fcntl.flock(other, fcntl.LOCK_EX)
        """, "assert os.pread(fd, 10, 0) == b'content'")
    image = subject.checkpoint(kill=True)
    (subject.work / "small").unlink()
    outside = os.open(subject.work / "other", os.O_RDONLY)
    fcntl.flock(outside, fcntl.LOCK_SH)
    with pytest.raises(Exception, match="is locked by"):
        subject.restart(image)
    assert not (subject.work / "small").exists()
    os.close(outside)
    subject.restart(image)
    subject.check()
    assert (subject.work / "small").read_bytes() == b"content"


def test_where_the_directory_is_gone_too_the_file_has_moved_with_it(holding):
    subject = holding("os.mkdir('dir'); fd = os.open('dir/small', os.O_CREAT | os.O_RDWR); os.write(fd, b'content')")
    image = subject.checkpoint(kill=True)
    shutil.rmtree(subject.work / "dir")
    with pytest.raises(FileGone, match="--map OLD=NEW"):
        subject.restart(image)
    assert not (subject.work / "dir").exists()


def test_something_else_has_the_name(holding):
    subject, path, image = held(holding)
    path.unlink()
    path.mkdir()
    for policy in (None, KEEP, STRICT):
        with pytest.raises(FileGone, match="is no regular file"):
            subject.restart(image, policy)


# -- a dry run ------------------------------------------------------------------------------------------
def dry_run(image: Path, policy: FilePolicy | None = None) -> tuple[list[str], list[str]]:
    warnings: list[str] = []
    node = Node(0, memory=64 << 20, level=1, warn=warnings.append)
    described = read_manifest(image).job["pods"]["0"]
    return node.check(str(image), described, (policy or FilePolicy()).to_message()), warnings


def test_a_dry_run_tells_what_would_be_done(holding):
    subject = holding("""
        fds = [os.open(name, os.O_CREAT | os.O_RDWR) for name in ("same", "longer", "other", "gone")]
        for fd in fds: os.write(fd, b"content")
        """)
    image = subject.checkpoint(kill=True)
    assert dry_run(image) == ([], [])
    work = subject.work
    add(work / "longer")
    os.truncate(work / "other", 3)
    (work / "gone").unlink()
    before = {path.name: path.read_bytes() for path in work.iterdir()}
    plans, warnings = dry_run(image)
    assert sorted(plans) == [
        f"{work}/gone is gone; it is made again with the 7 bytes that it held",
        f"{work}/longer has 35 bytes, it had 7; it is cut back, and the end is kept beside the image",
        f"{work}/other has 3 bytes, it had 7; it is brought back, and what it holds is kept beside the image"]
    assert warnings == []
    with pytest.raises((FileChanged, FileGone)):
        dry_run(image, STRICT)
    assert {path.name: path.read_bytes() for path in work.iterdir()} == before and kept(subject) == {}
    plans, warnings = dry_run(image, KEEP)
    assert plans == [f"{work}/gone is gone; it is made again with the 7 bytes that it held"] and len(warnings) == 1


# -- samples --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [0, 1, 4096, 65536, 65537, 70000, 100000, MIB, MIB + 1, 1 << 40])
def test_samples_lie_in_the_file_apart_and_reach_both_ends(size):
    pieces = list(samples(size))
    assert pieces[0][0] == 0 and sum(pieces[-1]) == size
    if size > 65536:
        assert len(pieces) == 16 and sum(length for _, length in pieces) == 88 << 10
        if size > MIB:
            for (start, length), (behind, _) in pairwise(pieces):
                assert start + length <= behind
    else:
        assert pieces == [(0, size)]


# -- programs -------------------------------------------------------------------------------------------
def test_a_program_that_has_moved(tmp_path: Path):
    need(shutil.which("gcc"), "there is no C compiler (gcc)")
    old, new = tmp_path / "bin", tmp_path / "elsewhere"
    old.mkdir()
    program = compile_program(PROGRAMS / "eventfd.c", old / "program")
    subject = Subject([str(program)], tmp_path)
    try:
        subject.start()
        image = subject.checkpoint(kill=True)
        old.rename(new)
        with pytest.raises(FileGone, match="--map OLD=NEW"):
            subject.restart(image)
        subject.restart(image, FilePolicy(moved=((str(old), str(new)),)), compare=False)
        assert subject.node is not None
        assert os.readlink(f"/proc/{subject.node.root_host}/exe") == f"{new}/program"
        again = subject.checkpoint(kill=True)
        subject.restart(again)
        subject.check()
    finally:
        subject.close()
