"""Files, directories and devices that can't be saved; how what is in /tmp comes back."""
from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest
from need import offered

from crhpc.errors import FileGone


@pytest.mark.parametrize(("setup", "what"), [
    ("import fcntl; fd = os.open('.', os.O_RDONLY); fcntl.fcntl(fd, 1026, 4)", "watched with F_NOTIFY"),
    ("os.mkdir('dir'); fd = os.open('dir', os.O_RDONLY); os.rmdir('dir')", "/dir (deleted)"),
    ("fd = os.open('file', os.O_CREAT); os.mkdir('away'); os.link('file', 'away/file'); os.unlink('file')",
     "/file (deleted), which has another name somewhere"),
    ("pid = os.fork() or os._exit(0); fd = os.open(f'/proc/{pid}/stat', os.O_RDONLY); os.waitpid(pid, 0)",
     "/stat, of what has ended"),
    ("fd = os.open('/proc/self/ns/mnt', os.O_RDONLY)", "mnt:["),
    ("fd = ctypes.CDLL(None).syscall(447, 0); assert fd >= 0", "secret memory"),   # memfd_secret
    ("os.makedirs('/'.join(['d' * 200] * 19))\n"
     "for n in range(19): os.chdir('d' * 200)\n"
     "os.mkdir('e' * 200); os.chdir('e' * 200); os.mkdir('f' * 200)\n"
     "fd = os.open('f' * 200, os.O_RDONLY); os.chdir('/')", "a file whose path is longer than 4095 bytes"),
], ids=["dnotify", "a removed directory", "another name", "a process that has ended", "a namespace", "secret memory",
        "a path that is too long"])
def test_refused(refused, setup, what):
    if "447" in setup:
        offered(_has_secret_memory(), "memfd_secret(2) is off here")
    error = refused(setup)
    assert what in str(error), error


def _has_secret_memory() -> bool:
    fd = ctypes.CDLL(None).syscall(447, 0)
    if fd >= 0:
        os.close(fd)
    return fd >= 0


@pytest.mark.parametrize("path", ["/dev/fuse", "/dev/net/tun", "/dev/loop-control", "/dev/kmsg", "/dev/mem"])
def test_devices_with_a_state(refused, path):
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError as error:
        pytest.skip(f"{path} can't be opened here: {error.strerror}")
    error = refused(f"fd = os.open({path!r}, os.O_RDONLY)")
    assert f"descriptor 3 ({path})" in str(error)


# -- files in /tmp, which come and go -------------------------------------------------------------------
SETUP = """
fd = os.open({path!r}, os.O_CREAT | os.O_{mode}, 0o640)
{write}
os.lseek(fd, 3, 0)
"""


@pytest.mark.parametrize("mode", ["RDWR", "RDONLY"])
def test_a_file_in_tmp_is_made_again_with_its_directory(holding, in_tmp, tmp_path: Path, mode):
    place = tmp_path / "dir" / "deep"
    place.mkdir(parents=True)
    path = place / "file"
    if mode == "RDONLY":
        path.write_bytes(b"content")
        path.chmod(0o640)
    write = "os.write(fd, b'content')" if mode == "RDWR" else ""
    subject = holding(SETUP.format(path=str(path), mode=mode, write=write), "assert os.read(fd, 10) == b'tent'")
    image = subject.checkpoint(kill=True)
    path.unlink()
    place.rmdir()
    place.parent.rmdir()
    for _ in range(2):
        subject.restart(image)
        subject.check()
        assert path.read_bytes() == b"content" and path.stat().st_mode & 0o777 == 0o640
        if mode == "RDWR":
            path.write_bytes(b"whatever is in it by now")
        else:
            path.unlink()
    assert not subject.warnings


def test_a_file_in_tmp_that_is_only_read_may_be_somebody_elses(holding, in_tmp, tmp_path: Path):
    path = tmp_path / "log"
    path.write_bytes(b"content")
    subject = holding(SETUP.format(path=str(path), mode="RDONLY", write=""), "assert os.read(fd, 20) == b'tent, more'")
    image = subject.checkpoint(kill=True)
    path.write_bytes(b"content, more")
    subject.restart(image)
    subject.check()
    assert path.read_bytes() == b"content, more" and "which the job reads, has changed" in subject.warnings[0]


def test_a_link_in_tmp_is_not_followed(holding, in_tmp, tmp_path: Path):
    path, other = tmp_path / "file", tmp_path / "other"
    subject = holding(SETUP.format(path=str(path), mode="RDWR", write="os.write(fd, b'content')"))
    image = subject.checkpoint(kill=True)
    other.write_bytes(b"somebody's own")
    path.unlink()
    path.symlink_to(other)
    with pytest.raises(FileGone, match="is no regular file of yours any more"):
        subject.restart(image)
    assert other.read_bytes() == b"somebody's own"


def test_files_of_others_in_tmp_are_left_alone(holding, in_tmp, tmp_path: Path):
    if os.getuid() != 0:
        pytest.skip("only root can give files away")
    path = tmp_path / "file"
    subject = holding(SETUP.format(path=str(path), mode="RDWR", write="os.write(fd, b'content')"))
    image = subject.checkpoint(kill=True)
    os.chown(path, 12345, 12345)
    with pytest.raises(FileGone, match="is no regular file of yours any more"):
        subject.restart(image)
