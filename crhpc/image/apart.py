"""Checking an image in a child with limits, from the parent's side: needs none of the libraries that the check needs.

A crafted file can make HDF5 crash, loop or allocate, so the check itself (``check``) runs in a process of its own,
and who asks for it need not even load what it is made of.
"""
from __future__ import annotations

import json
import os
import signal
import site
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from crhpc.errors import CrhpcError, ImageDamaged, NoImage

_SECONDS = 60
_BYTES_PER_SECOND_OF_DISK = 5e6
"""How slow a file system may be before the child is taken for hung."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was looked at and found sound."""

    path: str
    number: int
    full: bool
    nodes: int
    size: int
    """Bytes of all files checked."""
    tables: int
    chunks: int
    pages: int
    """In the final state, zero pages included."""
    seconds: float
    foreign: tuple[str, ...]
    """Names in the directory that the manifest does not know."""


def verify(path: str | os.PathLike[str], *, full: bool = False, nodes: Collection[int] | None = None,
           timeout: float | None = None) -> Report:
    """Check an image in a child process with limits.

    Args:
        nodes: only these nodes' shards (the manifest and the master always); all if None or empty.
        timeout: seconds until the child is killed; by default generous, by the image's size.

    Raises:
        NoImage: there is none at ``path``, or one of a newer format.
        ImageDamaged: it is not whole, or the child crashed, hung or was killed over it.
        OSError: the files cannot be opened (permission, descriptors).
        CrhpcError: the check itself does not work here.
    """
    words = command(path, full=full, nodes=nodes)
    limit = patience(path) if timeout is None else timeout
    with subprocess.Popen(words, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, errors="replace") as child:
        try:
            output, complaints = child.communicate(timeout=limit)
            how = ended(child.returncode)
        except subprocess.TimeoutExpired:
            child.kill()
            output, complaints = child.communicate()
            how = hung(limit)
        finally:
            child.kill()                                        # an interrupted caller leaves none behind
    return result(path, output, complaints, how)


def command(path: str | os.PathLike[str], *, full: bool = False, nodes: Collection[int] | None = None) -> list[str]:
    """The child's command line."""
    return [sys.executable, "-P", "-m", "crhpc.image.check", *["--full"] * full,
            *(f"--node={node}" for node in nodes or ()), "--", os.fspath(path)]


def patience(path: str | os.PathLike[str]) -> float:
    """Seconds after which the child is taken for hung; generous, by the image's size."""
    return 5 * _SECONDS + _size(Path(path)) / _BYTES_PER_SECOND_OF_DISK


def environment() -> dict[str, str]:
    """The child's: it finds this very package, and reserves little address space that it does not use."""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    root = str(Path(__file__).resolve().parents[2])
    if root not in map(os.path.realpath, [*site.getsitepackages(), site.getusersitepackages()]):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return environment


def ended(code: int) -> str:
    if code < 0:
        return f"checking it ended with {signal.Signals(-code).name}"
    return f"checking it ended with code {code}"


def hung(limit: float) -> str:
    """The child was killed for it, in words."""
    return f"checking it took more than {limit:.0f} s"


def result(path: str | os.PathLike[str], output: str, complaints: str, how: str) -> Report:
    """What the child said.

    Args:
        complaints: what came on its standard error.
        how: it ended, where it did not come to an end of its own.

    Raises:
        NoImage, ImageDamaged, OSError, CrhpcError: as ``verify``.
    """
    file = None
    for line in output.splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            continue                                            # cut off by its end
        file = said.get("checking", file)
        if "report" in said:
            return Report(**said["report"] | {"foreign": tuple(said["report"]["foreign"])})
        if said.get("error") == "NoImage":
            raise NoImage(path=path, why=said["why"])
        if said.get("error") == "ImageDamaged":
            raise ImageDamaged(image=path, what=said["what"])
        if said.get("error") == "OSError":
            raise OSError(said["errno"], said["why"], said["file"])
    if file is None:
        reason = (complaints.strip().splitlines() or [how])[-1]
        raise CrhpcError(what=f"images cannot be checked here: {reason}")
    raise ImageDamaged(image=path, what=f"{file}: {how}")


def _size(path: Path) -> int:
    """Bytes of all files in an image's directory."""
    try:
        with os.scandir(path) as entries:
            return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
    except OSError:
        return 0
