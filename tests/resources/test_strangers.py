"""Images of strangers: whatever their tables say, a restart comes to an end, says why in one line, and leaves nothing.

``CRHPC_TEST_STRANGERS=2000`` tries so many changes.
"""
from __future__ import annotations

import faulthandler
import gc
import json
import os
import random
import shutil
import signal
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from holding import python_holding
from pods import Subject
from strangers import HOLDS_MUCH, Change, at_random, changed

from crhpc.engine.node import Node
from crhpc.errors import CrhpcError
from crhpc.image.format import read_manifest
from crhpc.image.reader import Image
from crhpc.kernel import proc
from crhpc.resources import kinds
from crhpc.resources.context import table_name
from crhpc.resources.files.epoll import Epoll

_TRIES = int(os.environ.get("CRHPC_TEST_STRANGERS", "24"))
_SECONDS = 60
NAMES = ("file", "dir", "fifo", "link", "new", "dir/new", "../canary/new")


class Stranger:
    """An image of a job that does not run any more, and a place that no restart may touch."""

    def __init__(self, place: Path) -> None:
        self.canary, self.said = place / "canary", place / "said"
        (self.canary / "dir").mkdir(parents=True)
        (self.canary / "file").write_text("sings", encoding="ascii")
        os.mkfifo(self.canary / "fifo")
        os.symlink("file", self.canary / "link")
        self.subject = Subject(python_holding(HOLDS_MUCH, ""), place)
        self.subject.start()
        self.image = self.subject.checkpoint(kill=True)
        self.described: dict[str, Any] = read_manifest(self.image).job["pods"]["0"]
        with Image(self.image) as opened:
            shard = opened.node(0)
            self.tables = {record: shard.table(record, table_name(record)) for kind in kinds()
                           for record in kind.records if table_name(record) in shard.tables()}
        self.untouched = self.look()

    def look(self) -> list[tuple[object, ...]]:
        """What is in the place."""
        found: list[tuple[object, ...]] = []
        for path in sorted(self.canary.rglob("*")):
            stat = path.lstat()
            found.append((str(path), stat.st_mode, stat.st_uid, stat.st_size, stat.st_mtime_ns))
        return found

    def restart(self, change: Change) -> str:
        """Up to the release, in a process of its own; what it said, empty if nothing went wrong."""
        pid = os.fork()
        if pid == 0:
            signal.alarm(2 * _SECONDS)
            try:
                with self.said.open("w", encoding="utf-8") as said:
                    faulthandler.dump_traceback_later(_SECONDS, exit=True, file=said)
                    said.write(json.dumps(self._attempt(change)))
            finally:
                os._exit(0)
        status = os.waitpid(pid, 0)[1]
        text = self.said.read_text(encoding="utf-8")
        assert status == 0, f"it ended with {status:#x}: {text}"
        outcome: str = json.loads(text)
        assert not os.path.exists(self.described["temporary"])
        assert self.look() == self.untouched
        return outcome

    def _attempt(self, change: Change) -> str:
        gc.collect()   # what earlier tests have left must not be closed in the middle
        before = os.listdir("/proc/self/fd")
        node = Node(0, memory=64 << 20, level=1, warn=lambda text: None)
        outcome = ""
        try:
            with changed(change):
                node.build(str(self.image), dict(self.described), self.subject._stdio)
                node.connect()
        except CrhpcError as error:
            outcome = str(error)
            if "\n" in outcome or error.code not in (75, 78):
                outcome = f"WRONG: {error.code}: {outcome}"
        except BaseException:
            outcome = f"WRONG: {traceback.format_exc()}"
        node.end()
        gc.collect()
        left = set(os.listdir("/proc/self/fd")) - set(before)
        if proc.children(os.getpid()) or len(left) > 1:   # one is that of the listing
            outcome = f"WRONG: processes {proc.children(os.getpid())} and descriptors {left} are left; {outcome}"
        return outcome


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stranger]:
    made = Stranger(tmp_path_factory.mktemp("strangers"))
    yield made
    made.subject.close()
    shutil.rmtree(made.canary)


def test_nothing_is_changed(stranger):
    assert stranger.restart(lambda record, rows: rows) == ""


@pytest.mark.parametrize("seed", range(_TRIES))
def test_any_change(stranger, seed):
    what, change = at_random(random.Random(seed), stranger.tables, [str(stranger.canary / name) for name in NAMES])
    outcome = stranger.restart(change)
    assert not outcome.startswith("WRONG"), f"{what}: {outcome}"


def test_tables_that_contradict_each_other(stranger):
    outcome = stranger.restart(lambda record, rows: [] if record is Epoll else rows)
    assert outcome.startswith(f"{stranger.image} is damaged: its tables contradict each other (KeyError: "), outcome
