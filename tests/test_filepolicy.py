"""Where the paths of an image lead to: --map."""
from __future__ import annotations

import json

import pytest

from crhpc.filepolicy import FilePolicy, Files, check_moved, moved_path


@pytest.mark.parametrize(("text", "pair"), [
    ("/a=/b", ("/a", "/b")), ("/a/=/b//c/", ("/a", "/b/c")), ("/a=b=/c", ("/a=b", "/c")), ("/=/x", ("/", "/x")),
    ("//a=//b", ("/a", "/b")), ("/a=/", ("/a", "/")), ("/a=/b=/c", ("/a", "/b=/c"))])
def test_two_paths(text: str, pair: tuple[str, str]) -> None:
    assert moved_path(text) == pair


@pytest.mark.parametrize("text", ["", "/a", "/a=", "=/b", "a=/b", "/a=b"])
def test_no_two_paths(text: str) -> None:
    with pytest.raises(ValueError):
        moved_path(text)


def test_one_place_may_not_be_two() -> None:
    assert check_moved([("/a", "/b"), ("/c", "/b"), ("/a", "/b")]) == (("/a", "/b"), ("/c", "/b"))
    with pytest.raises(ValueError, match="/a"):
        check_moved([("/a", "/b"), ("/a", "/c")])


POLICY = FilePolicy(moved=(("/old", "/new"), ("/old/deep", "/elsewhere"), ("/back", "/"), ("/\udcff", "/bytes")))


@pytest.mark.parametrize(("path", "now"), [
    ("/old", "/new"), ("/old/x", "/new/x"), ("/older", "/older"), ("/old/deep", "/elsewhere"),
    ("/old/deep/x y\n", "/elsewhere/x y\n"), ("/old/deeper", "/new/deeper"), ("/back", "/"), ("/back/a", "/a"),
    ("/\udcff/\udcfe", "/bytes/\udcfe"), ("", ""), ("old/x", "old/x"), ("socket:[1]", "socket:[1]"),
    ("/new/old", "/new/old")])
def test_where_a_path_leads(path: str, now: str) -> None:
    assert POLICY.path(path) == now


def test_all_that_there_is() -> None:
    everything = FilePolicy(moved=(("/", "/mnt"), ("/usr", "/usr")))
    assert everything.path("/home/x") == "/mnt/home/x"
    assert everything.path("/") == "/mnt"
    assert everything.path("/usr/bin") == "/usr/bin"


def test_bytes_that_are_no_path() -> None:
    assert POLICY.raw_path(b"\0/old/x") == b"\0/old/x"
    assert POLICY.raw_path(b"/old/x") == b"/new/x"


def test_as_a_message() -> None:
    policy = FilePolicy(Files.STRICT, (("/a", "/b"),))
    assert FilePolicy.from_message(json.loads(json.dumps(policy.to_message()))) == policy
    assert FilePolicy.from_message({}) == FilePolicy()
    with pytest.raises(ValueError):
        FilePolicy.from_message({"files": "whatever"})
