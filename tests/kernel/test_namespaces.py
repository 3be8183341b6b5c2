"""The namespaces of a pod, each in a process of its own."""
from __future__ import annotations

import os

import pytest

from crhpc.kernel import namespaces

from .targets import OWN_PIDS, apart, target


def test_a_user_keeps_its_ids_and_gets_power_over_what_is_its_own():
    said = apart(OWN_PIDS + """
before = os.getresuid(), os.getresgid()
own(clone.CLONE_NEWUTS)
say((os.getresuid(), os.getresgid()) == before)
say(open("/proc/self/uid_map").read().split())
namespaces.set_hostname("elsewhere")
say(socket.gethostname())
""")
    assert said.splitlines() == ["True", str([str(os.getuid())] * 2 + ["1"]), "elsewhere"]


def test_other_ids_are_refused_at_once():
    said = apart("""
from crhpc.kernel import clone, namespaces
uid, gid = os.getuid(), os.getgid()
clone.unshare(clone.CLONE_NEWUSER)
namespaces.map_own_ids(uid, gid)
try:
    namespaces.map_own_ids(uid, gid)   # a map is written once
except OSError as error:
    say(type(error).__name__)
say(os.getuid() == uid, os.getgid() == gid)
""")
    assert said.splitlines() == ["PermissionError", "True True"]


def test_write_file_shows_the_refusal(tmp_path):
    with pytest.raises(OSError, match="Invalid argument"):
        namespaces.write_file(f"/proc/{os.getpid()}/oom_score_adj", "no number")
    with pytest.raises(FileNotFoundError):
        namespaces.write_file(str(tmp_path / "no" / "file"), "x")


def test_mounts_of_its_own(tmp_path):
    said = apart(OWN_PIDS + """
place = sys.argv[1]
def work():
    namespaces.mount("", "/", flags=namespaces.MS_REC | namespaces.MS_SLAVE)
    namespaces.mount("tmpfs", place, "tmpfs", namespaces.MS_NOSUID, "mode=1777,size=64k")
    open(place + "/inside", "w").close()
    say(oct(os.stat(place).st_mode & 0o7777), os.listdir(place))
    os.mkdir(place + "/again")
    namespaces.mount(place, place + "/again", flags=namespaces.MS_BIND)
    say(os.listdir(place + "/again"))
    namespaces.mount("proc", "/proc", "proc")
    say([name for name in os.listdir("/proc") if name.isdigit()])
own(clone.CLONE_NEWNS)
as_first(work)
say(os.listdir(place))
""", str(tmp_path))
    assert said.splitlines()[:1] == ["0o1777 ['inside']"]
    assert set(eval(said.splitlines()[1])) == {"inside", "again"}
    assert said.splitlines()[2] == "['1']"
    assert os.listdir(tmp_path) == []


def test_a_mount_that_fails_names_its_place(tmp_path):
    said = apart(OWN_PIDS + """
own(clone.CLONE_NEWNS)
for arguments in (("tmpfs", sys.argv[1] + "/missing", "tmpfs"), ("x", "/", "no-such-fs")):
    try:
        namespaces.mount(*arguments)
    except OSError as error:
        say(error.errno, error.filename)
""", str(tmp_path))
    assert said.splitlines() == [f"2 mount of tmpfs on {tmp_path}/missing", "19 mount of no-such-fs on /"]


def test_clocks_go_on_where_they_were():
    """Read by the child, after and before readings of this side: between them it must lie."""
    said = apart(OWN_PIDS + """
import time
def work():
    say(time.clock_gettime(time.CLOCK_MONOTONIC), time.clock_gettime(time.CLOCK_BOOTTIME))
own(clone.CLONE_NEWTIME)
before = time.clock_gettime(time.CLOCK_MONOTONIC)
namespaces.set_clock_offsets(1e6, 2e6)
as_first(work)
say(time.clock_gettime(time.CLOCK_MONOTONIC) - before)
say(namespaces.clock_offsets()["monotonic"] / 1e9 + before)
""")
    inside, took, offset = said.splitlines()
    monotonic, boottime = map(float, inside.split())
    assert 1e6 <= monotonic <= 1e6 + float(took)
    assert 2e6 <= boottime <= 2e6 + float(took)
    assert 1e6 - float(took) <= float(offset) <= 1e6


def test_a_clock_of_a_clock():
    """A second generation: the offsets of the first one count too."""
    said = apart(OWN_PIDS + """
import time
def inner():
    say(time.clock_gettime(time.CLOCK_MONOTONIC))
def work():
    clone.unshare(clone.CLONE_NEWTIME)
    namespaces.set_clock_offsets(5000.5, 6000.5)
    as_first(inner)
    say(time.clock_gettime(time.CLOCK_MONOTONIC))
own(clone.CLONE_NEWTIME)
namespaces.set_clock_offsets(1e6, 1e6)
as_first(work)
""")
    inner, outer = map(float, said.splitlines())
    assert 5000.5 <= inner <= 5000.5 + (outer - 1e6)
    assert outer >= 1e6


def test_a_clock_that_would_become_negative():
    said = apart(OWN_PIDS + """
own(clone.CLONE_NEWTIME)
try:
    namespaces.set_clock_offsets(-5.0, 10.0)
except OSError as error:
    say(error.errno)
""")
    assert said == "34"   # ERANGE


def test_clock_offsets_of_another_process():
    assert set(namespaces.clock_offsets()) == {"monotonic", "boottime"}
    assert namespaces.clock_offsets(os.getpid()) == namespaces.clock_offsets()
    with pytest.raises(FileNotFoundError):
        namespaces.clock_offsets(1 << 30)


def test_the_end_of_a_parent_ends_its_child():
    """The last to hold the pipe is the grandchild: its end is the end of the pipe."""
    reader, writer = os.pipe()
    try:
        with target("""
            from crhpc.kernel import namespaces
            ready, go = os.pipe()
            if os.fork() == 0:
                namespaces.die_with_parent()
                os.write(go, b"x")
                signal.pause()
            os.read(ready, 1)
            say("ready")
            wait()
        """, pass_fds=[writer]) as parent:
            parent.hear()
            os.close(writer)
            writer = -1
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
