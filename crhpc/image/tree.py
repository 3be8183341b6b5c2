"""Groups and soft links for people: ``/nodes/0/tree/1141/fds/1`` leads to ``/nodes/0/files/2``.

Nothing is restored from them; h5ls and h5dump show the job in them as it was.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import h5py

from crhpc.image.records import write_attributes

_TAKEN = ("tables", "pages")


class Tree:
    """Collects paths relative to ``/nodes/<n>`` and writes them at the end."""

    def __init__(self) -> None:
        self._groups: dict[str, Mapping[str, str | int]] = {}
        self._links: dict[str, str] = {}
        self._parents: set[str] = set()

    def group(self, path: str, attributes: Mapping[str, str | int]) -> None:
        """A group with attributes; the groups above it come by themselves.

        Raises:
            ValueError: an impossible path, or one that is taken.
        """
        if path in self._groups or path in self._links:
            raise ValueError(f"the path {path!r} is taken")
        self._enter(path)
        self._groups[path] = dict(attributes)

    def link(self, path: str, target: str) -> None:
        """A soft link; the target need not exist.

        Raises:
            ValueError: an impossible path, or one that is taken.
        """
        if path in self._groups or path in self._links or path in self._parents:
            raise ValueError(f"the path {path!r} is taken")
        _parts(target)
        self._enter(path)
        self._links[path] = target

    def _enter(self, path: str) -> None:
        parts = _parts(path)
        if parts[0] in _TAKEN:
            raise ValueError(f"the path {path!r} is taken")
        above = ["/".join(parts[:i]) for i in range(1, len(parts))]
        if any(parent in self._links for parent in above):
            raise ValueError(f"the path {path!r} leads through a link")
        self._parents.update(above)

    def write(self, root: Any) -> None:
        """Make everything below ``root``, the h5py.Group ``/nodes/<n>``."""
        for path, attributes in self._groups.items():
            write_attributes(root.require_group(_readable(path)), attributes)
        for path, target in self._links.items():
            root[_readable(path)] = h5py.SoftLink(f"{root.name}/{_readable(target)}")


def _parts(path: str) -> list[str]:
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in path:
        raise ValueError(f"not a path in an image: {path!r}")
    return parts


def _readable(path: str) -> str:
    """HDF5 wants names in UTF-8; bytes that are not become escapes."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")
