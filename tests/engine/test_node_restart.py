"""Restarts that fail, or are given up; and images that say of their pods what no job of ours can have said."""
from __future__ import annotations

import gc
import hashlib
import os

import pytest

from crhpc.engine.description import check_description
from crhpc.errors import CrhpcError, ImageDamaged, RestartFailed
from crhpc.kernel import proc

from .inside import TALKING, goes_on, gone, hosts, one_line, ready


# -- a restart that fails -----------------------------------------------------------------------------
def contents(directory) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


@pytest.fixture
def image(job):
    """Of a job that does not run any more; it maps a file and works in a directory."""
    work = job.images.parent / "work"
    work.mkdir()
    (work / "file").touch()
    os.truncate(work / "file", 100 << 20)   # what is small and in /tmp comes back
    ready(job, """
with open("file", "rb") as file:
    mapped = mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ)
os.mkdir("here")
os.chdir("here")
""" + TALKING, cwd=str(work))
    return job.checkpoint(stop=True)


def no_file(job, image, described):
    os.unlink(job.images.parent / "work" / "file")


def no_directory(job, image, described):
    os.rmdir(job.images.parent / "work" / "here")


def damaged(job, image, described):
    data = bytearray((image / "shard-0.h5").read_bytes())
    data[len(data) // 3] ^= 0xFF
    (image / "shard-0.h5").write_bytes(data)


def no_shard(job, image, described):
    os.unlink(image / "shard-0.h5")


def no_place(job, image, described):
    described["temporary"] = "/no/such/place/crhpc-abcdef"


def a_taken_place(job, image, described):
    with open(described["temporary"], "x", encoding="ascii"):
        pass


def no_name(job, image, described):
    described["hostname"] = "x" * 100


def no_clock(job, image, described):
    described["monotonic"] = -1e5


@pytest.mark.parametrize("spoil", [
    no_file, no_directory, damaged, no_shard, no_place, a_taken_place, no_name, no_clock],
    ids=lambda function: function.__name__)
def test_a_restart_that_fails(job, image, spoil):
    """One line; no process, no descriptor, no directory is left, and the image is as it was."""
    described = job.described(image)
    spoil(job, image, described)
    job.node = job.new_node()
    gc.collect()   # what the last one remembered
    gc.collect()   # what earlier tests have left must not be closed in the middle
    before = contents(image), sorted(os.listdir(job.images.parent)), len(os.listdir("/proc/self/fd"))
    children = proc.children(os.getpid())
    with pytest.raises(CrhpcError) as caught:
        job.node.build(str(image), described, job.stdio)
        job.node.connect()
    assert one_line(caught.value)
    assert caught.value.code in (75, 78)
    assert job.node.pod is None
    assert (contents(image), sorted(os.listdir(job.images.parent)), len(os.listdir("/proc/self/fd"))) == before
    assert [child for child in proc.children(os.getpid()) if child not in children] == []
    assert job.silent()


def test_after_a_restart_that_failed_another_works(job, image):
    os.rename(job.images.parent / "work", job.images.parent / "away")
    with pytest.raises(CrhpcError):
        job.restart(image)
    os.rename(job.images.parent / "away", job.images.parent / "work")
    job.restart(image)
    assert goes_on(job)


@pytest.mark.parametrize("last", ["build", "connect"])
def test_end_of_a_restart_at_any_point(job, image, last):
    job.tell("never")
    job.node = job.new_node()
    assert job.node.build(str(image), job.described(image), job.stdio) == 1
    if last == "connect":
        job.node.connect()
    found = hosts(job)
    job.node.end()
    assert gone(*found)
    assert job.silent()
    assert not os.path.exists(job.temporary)


def test_an_image_of_other_nodes(job, image):
    job.node = job.new_node()
    job.node.number = 5
    with pytest.raises(ImageDamaged, match="it has no node 5"):
        job.node.build(str(image), job.described(image), job.stdio)


def test_an_image_without_the_jobs_first_process(job, image):
    """Its end would never come."""
    with pytest.raises(ImageDamaged, match="first process, 4000, is not in it"):
        job.restart(image, root=4000)
    assert job.node.pod is None


@pytest.mark.parametrize("last_pid", [-1, 1 << 40])
def test_a_last_id_that_no_pod_can_have(job, image, last_pid):
    """It comes from whoever made the image."""
    with pytest.raises((ImageDamaged, RestartFailed)) as caught:
        job.restart(image, last_pid=last_pid)
    assert one_line(caught.value)
    assert job.node.pod is None


# -- what an image says of its pod --------------------------------------------------------------------
GOOD = {"temporary": "/tmp/crhpc-0123456789ab", "root": 2, "root_status": None, "hostname": "node", "monotonic": 5.5,
        "boottime": 6, "last_pid": 100, "boot_id": "0" * 36, "addresses": [["10.0.0.1", "10.0.0.2"]]}


def test_what_describe_gives_is_taken():
    check_description("/image", GOOD)
    check_description("/image", GOOD | {"root_status": 256, "more": "than that", "temporary": "/a b/crhpc-abcdef"})


@pytest.mark.parametrize("described", [None, [], "x", 5, {}, {"temporary": "/tmp/crhpc-abcdef"}])
def test_what_is_no_description(described):
    with pytest.raises(ImageDamaged, match=r"/image is damaged: manifest\.json: "):
        check_description("/image", described)


@pytest.mark.parametrize(("name", "value"), [
    *((name, value) for name in GOOD for value in (
        ["10.0.0.1"], {}, "x" if name not in ("temporary", "hostname") else 5)),
    ("addresses", [["10.0.0.1"]]), ("addresses", [["10.0.0.1", "node"]]), ("addresses", [["10.0.0.1", 5]]),
    *((name, None) for name in GOOD if name != "root_status"),
    ("monotonic", float("inf")), ("boottime", float("nan")), ("last_pid", 1.5)])
def test_a_description_with_a_wrong_field(name, value):
    with pytest.raises(ImageDamaged, match=f"/image is damaged: manifest.json: the pod's {name} is missing or wrong"):
        check_description("/image", GOOD | {name: value})


@pytest.mark.parametrize("place", [
    "", "/", "/tmp", "crhpc-abcdef", "./crhpc-abcdef", "/tmp/crhpc-abc", "/tmp/crhpc-abcdef/", "/tmp/crhpc-ABCDEF",
    "/tmp//crhpc-abcdef", "/tmp/../crhpc-abcdef", "/tmp/./crhpc-abcdef", "/tmp/crhpc-abcdef/x", "/tmp/crhpc-abc..def",
    "/tmp/xcrhpc-abcdef", "/tmp/crhpc-abcdef\n", "/home/user", "/tmp/crhpc-" + "a" * 40, "//crhpc-abcdef",
    "/tmp/\0/crhpc-abcdef", "/tmp/\ud800/crhpc-abcdef"])
def test_a_place_that_no_job_of_ours_had(place):
    """It is emptied at the restart."""
    with pytest.raises(ImageDamaged, match="is no directory for temporary files") as caught:
        check_description("/image", GOOD | {"temporary": place})
    assert one_line(caught.value)
