"""Watches that can't be saved, or not now."""
from __future__ import annotations

import os

import pytest

from crhpc.errors import PASSING, FileGone

WATCH = """
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.inotify_init1(os.O_NONBLOCK)
def watch(path, mask): return libc.inotify_add_watch(fd, path.encode(), mask)
"""


def test_unread_events_are_waited_for(refused):
    error = refused(WATCH + "assert watch('.', 0x100) == 1; open('new', 'w').close()",
                    "assert len(os.read(fd, 1000)) == 32")
    assert "inotify events that are not read yet" in str(error) and error.passing and str(error).endswith(PASSING)


def test_a_file_that_can_be_anywhere(refused):
    """Renamed into a place that nothing of the job tells of."""
    error = refused(WATCH + """
import tempfile
hidden = "/".join(["hidden"] * 6)
os.makedirs(hidden)
open("watched", "w").close()
assert watch("watched", 2) == 1
os.rename("watched", hidden + "/x")
""", "open(hidden + '/x', 'w').write('x'); assert os.read(fd, 100)[4:8] == bytes([2, 0, 0, 0])")
    assert "inotify watch 1 of a file whose name can't be found (ino:" in str(error)


def test_numbers_that_nobody_waits_for(refused):
    error = refused(WATCH + """
for n in range((1 << 17) + 1): libc.inotify_rm_watch(fd, watch(".", 0x100))
assert watch(".", 0x100) == (1 << 17) + 2
while True:
    try: os.read(fd, 1 << 20)
    except BlockingIOError: break
""")
    assert "inotify watch 131074: numbers that high take too long" in str(error)


def test_fanotify(refused):
    error = refused("fd = ctypes.CDLL(None).fanotify_init(0x200, os.O_RDONLY); assert fd >= 0")   # FAN_REPORT_FID
    assert "[fanotify]" in str(error)


def test_a_watched_file_that_is_gone(holding):
    subject = holding(WATCH + "os.mkdir('dir'); assert watch('dir', 0x100) == 1")
    image = subject.checkpoint(kill=True)
    (subject.work / "dir").rmdir()
    with pytest.raises(FileGone, match=f"{subject.work}/dir cannot be watched .*--map OLD=NEW"):
        subject.restart(image)


def test_a_watched_directory_that_is_open_too(holding):
    subject = holding(WATCH + "place = os.open('.', os.O_RDONLY); assert watch('.', 0x100) == 1",
                      "open('new', 'w').close(); assert os.read(fd, 1000)[4:8] == bytes([0, 1, 0, 0])")
    subject.restart(subject.checkpoint(kill=True))
    subject.check()


def test_a_job_sees_nothing_of_what_a_restart_does(holding):
    """Files are cut back, brought back and made again, and directories filled: no event."""
    subject = holding(WATCH + """
names = ["longer", "other", "gone"]
fds = [os.open(name, os.O_CREAT | os.O_RDWR) for name in names]
for n in fds: os.write(n, b"content")
os.mkdir(os.environ["TMPDIR"] + "/private")
open(os.environ["TMPDIR"] + "/private/file", "w").write("content")
for path in [".", *names, os.environ["TMPDIR"], os.environ["TMPDIR"] + "/private"]: assert watch(path, 0xfff) > 0
""", """
try: raise AssertionError(os.read(fd, 10000))
except BlockingIOError: pass
os.utime("longer")
assert os.read(fd, 10000)
""")
    image = subject.checkpoint(kill=True)
    with (subject.work / "longer").open("ab") as file:
        file.write(b"more")
    os.truncate(subject.work / "other", 2)
    (subject.work / "gone").unlink()
    subject.restart(image)
    subject.check()
    assert (subject.work / "longer").read_bytes() == b"content" == (subject.work / "other").read_bytes()
