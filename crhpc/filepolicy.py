"""What a restart does with the files that the job had open, where they are by now, and what it puts up with:
``--files``, ``--map`` and ``--force``.

Standard library only; travels from the command line to every node as plain data.
"""
from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Files(StrEnum):
    """``--files``."""

    ROLLBACK = "rollback"
    """As they were at the checkpoint: cut back, brought back, made again."""
    KEEP = "keep"
    """As they are now."""
    STRICT = "strict"
    """A restart is refused where a file is not what it was."""


@dataclass(frozen=True, slots=True)
class FilePolicy:
    """The options."""

    files: Files = Files.ROLLBACK
    moved: tuple[tuple[str, str], ...] = ()
    """(old, new), both absolute and without a slash at the end."""
    force: bool = False
    """Go on where a machine or a program's file is another one, and may break the job."""

    def path(self, path: str) -> str:
        """Where a path of the image leads now; the longest old one that it lies below decides."""
        return os.fsdecode(self.raw_path(os.fsencode(path)))

    def raw_path(self, path: bytes) -> bytes:
        """The same of bytes; what is no absolute path stays as it is."""
        best, result = -1, path
        for old, new in ((os.fsencode(old), os.fsencode(new)) for old, new in self.moved):
            below = old if old.endswith(b"/") else old + b"/"
            if len(old) > best and (path == old or path.startswith(below)):
                rest = path[len(below):]
                best, result = len(old), (b"" if new == b"/" else new) + (b"/" + rest if rest else b"") or b"/"
        return result

    def to_message(self) -> dict[str, Any]:
        """As a member of a JSON message."""
        return {"files": str(self.files), "moved": [list(pair) for pair in self.moved],
                "force": self.force}

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> FilePolicy:
        """The reverse."""
        return cls(Files(message.get("files", Files.ROLLBACK)),
                   tuple((old, new) for old, new in message.get("moved", ())), bool(message.get("force")))


def moved_path(text: str) -> tuple[str, str]:
    """``OLD=NEW`` of the command line.

    Raises:
        ValueError: it is not two absolute paths.
    """
    old, equals, new = text.partition("=/")
    if not equals or not old.startswith("/"):
        raise ValueError(text)
    return os.path.normpath("/" + old.lstrip("/")), os.path.normpath("/" + new.lstrip("/"))


def check_moved(moved: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """The pairs, each once.

    Raises:
        ValueError: naming a path that is to lead to two places.
    """
    found: dict[str, str] = {}
    for old, new in moved:
        if found.setdefault(old, new) != new:
            raise ValueError(old)
    return tuple(found.items())
