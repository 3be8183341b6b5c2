"""Leases, and locks that somebody else has by the time of a restart."""
from __future__ import annotations

import subprocess
import sys

import pytest

from crhpc.errors import FileLocked

LEASE = """
fd = os.open("file", os.O_CREAT | os.O_RDONLY, 0o600)
fcntl.fcntl(fd, 1024, fcntl.{kind})   # F_SETLEASE
"""


@pytest.mark.parametrize("kind", ["F_RDLCK", "F_WRLCK"])
def test_a_lease_is_refused(refused, kind):
    error = refused(LEASE.format(kind=kind), f"assert fcntl.fcntl(fd, 1025) == fcntl.{kind}")
    assert "a lease of " in str(error) and "/file (F_SETLEASE)" in str(error)


OFD = "fcntl.fcntl(fd, 37, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 5, 10, 0))"
LOCKED = {"flock": "fcntl.flock(fd, fcntl.LOCK_EX)", "posix": "fcntl.lockf(fd, fcntl.LOCK_EX, 10, 5)", "ofd": OFD}
OUTSIDE = """
import fcntl, os, sys, struct
fd = os.open(sys.argv[1], os.O_RDWR)
{take}
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("kind", LOCKED)
def test_a_lock_that_somebody_has_taken_meanwhile(holding, kind):
    others = "fcntl.flock(os.open('another', os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX)"
    setup = f"fd = os.open('file', os.O_CREAT | os.O_RDWR)\n{LOCKED[kind]}\n{others}\nos.write(fd, b'before')"
    subject = holding(setup, "assert os.lseek(fd, 0, 1) == 6")
    image = subject.checkpoint(kill=True)
    path = subject.work / "file"
    with path.open("ab") as file:
        file.write(b"after")
    # in a process of its own: this one is the agent too, and closes the file now and then
    command = [sys.executable, "-c", OUTSIDE.format(take=LOCKED[kind]), str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as outside:
        pid = int(outside.stdout.readline())
        with pytest.raises(FileLocked) as caught:
            subject.restart(image)
        known = f"process {pid} (python" if kind != "ofd" else "another process"
        assert f"{path} is locked by {known}" in str(caught.value)
        assert path.read_bytes() == b"beforeafter"   # nothing of the user's was touched
    subject.restart(image)
    subject.check()
    assert path.read_bytes() == b"before"
