"""Start afresh or resume, and from which image: the decision, apart from the doing.

The images prove themselves: each names its job. The record of the last job (state.json) adds whether that
one is done; where the record is missing, as in a copied directory, the newest image stands in for it.
"""
from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from crhpc import errors
from crhpc.filepolicy import FilePolicy
from crhpc.image.format import image_name, image_numbers, read_manifest
from crhpc.jobdir import JobState

T = TypeVar("T")


class Mode(StrEnum):
    """``--resume``."""

    AUTO = "auto"
    NEVER = "never"
    REQUIRE = "require"


@dataclass(frozen=True, slots=True)
class Command:
    """What makes two command lines the same job."""

    argv: tuple[str, ...]
    cwd: str


@dataclass(frozen=True, slots=True)
class Found:
    """A committed image in the directory, as far as its manifest tells."""

    number: int
    path: Path
    job: str | None
    """The id of its job; None where the manifest is unreadable."""
    command: Command | None = None
    started: float = 0.0
    """When its job was started first."""
    taken: float | None = None
    pods: int = 1
    """How many hosts it is of."""


@dataclass(frozen=True, slots=True)
class _Last:
    """The last job of the directory, from its record or from its newest image."""

    id: str | None
    command: Command | None
    finished: bool
    superseded: frozenset[int]


def look(directory: Path) -> list[Found]:
    """The committed images of a directory, as far as their manifests tell."""
    return [look_at(directory / image_name(number), number) for number in image_numbers(directory)]


def look_at(path: Path, number: int = 0) -> Found:
    """One image; with ``number`` where its manifest can't be read."""
    try:
        manifest = read_manifest(path)
        job = manifest.job
        command = Command(tuple(map(str, job["argv"])), str(job["cwd"]))
        return Found(manifest.number, path, str(job["id"]), command, float(job["started"]), manifest.created,
                     max(1, len(manifest.shards)))
    except (errors.CrhpcError, KeyError, TypeError, ValueError):
        return Found(number, path, None)


def moved(state: JobState | None, found: Sequence[Found], policy: FilePolicy) -> tuple[JobState | None, list[Found]]:
    """The same, with working directories where they are by now (``--map``)."""
    def there(image: Found) -> Found:
        command = image.command
        return image if command is None else replace(image, command=Command(command.argv, policy.path(command.cwd)))

    return state and replace(state, cwd=policy.path(state.cwd)), [there(image) for image in found]


def candidates(mode: Mode, state: JobState | None, found: Sequence[Found], command: Command,
               directory: Path) -> list[Found]:
    """The images to try, newest first; none means: start afresh.

    Raises:
        errors.OtherJob: an unfinished job of another command would be lost.
        errors.NoImage: ``require``, and there is nothing to resume.
    """
    if mode is Mode.NEVER:
        return []
    last = _last_job(state, found)
    why, usable = "there is none", list[Found]()
    if last is not None and last.finished:
        why = "its last job is finished"
    elif last is not None:
        why = "its last job ended before the first one"
        usable = [image for image in newest_first(found)
                  if image.job in (last.id, None) and image.number not in last.superseded]
    if usable and last is not None and last.command not in (command, None):
        raise errors.OtherJob(directory=directory, command=_difference(last.command, command))
    if mode is Mode.REQUIRE and not usable:
        raise errors.NoImage(path=directory, why=why)
    return usable


def newest_usable(images: Iterable[Found], use: Callable[[Found], T], damaged: Callable[[str], None],
                  directory: Path) -> T:
    """What ``use`` makes of the first of ``images`` that it can use; why it can't of others is told to ``damaged``.

    Raises:
        errors.NoImage: it can use none.
    """
    tried: list[Path] = []
    why = "there is none"
    for image in images:
        try:
            return use(image)
        except (errors.NoImage, errors.ImageDamaged) as error:
            damaged(str(error))
            tried.append(image.path)
            why = f"none of {len(tried)} can be used, the newest that was tried is {tried[0].name}"
    raise errors.NoImage(path=directory, why=why)


def to_restart(state: JobState | None, found: Sequence[Found]) -> list[Found]:
    """For ``crhpc restart DIR``, which asks for no command line: the images to try, newest first."""
    given_up = state.superseded if state is not None else ()
    return newest_first(image for image in found if image.number not in given_up) or newest_first(found)


def newest_first(found: Iterable[Found]) -> list[Found]:
    """By number, downward."""
    return sorted(found, key=lambda image: image.number, reverse=True)


def superseded(image: Found, found: Iterable[Found], state: JobState | None) -> tuple[int, ...]:
    """The images that nobody resumes by default once ``image`` has been: newer ones, other jobs' ones."""
    before = set(state.superseded) if state is not None and state.id == image.job else set()
    return tuple(sorted(
        other.number for other in found
        if other.number > image.number or other.number in before - {image.number}
        or other.job not in (image.job, None)))


def _last_job(state: JobState | None, found: Sequence[Found]) -> _Last | None:
    if state is not None:
        return _Last(state.id, Command(state.argv, state.cwd), state.finished, frozenset(state.superseded))
    for image in newest_first(found):
        if image.job is not None:
            return _Last(image.job, image.command, finished=False, superseded=frozenset())
    return _Last(None, None, finished=False, superseded=frozenset()) if found else None


def _difference(other: Command | None, command: Command) -> str:
    if other is None:
        return "unknown"
    text = shlex.join(other.argv)
    return text if other.cwd == command.cwd else f"{text}, in {other.cwd}"
