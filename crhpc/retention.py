"""Which images may go, and when: only those that a newer one, verified from its bytes on disk, has replaced.

Verifying and removing run in a child process of lowest priority, so that neither holds up the job or
the supervisor; it is this module, run with ``python -m``. One at a time: where commits come faster than
they can be verified, the newest is next.
"""
from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from crhpc import errors
from crhpc.launch import Child, with_this_package


def expired(existing: Collection[int], verified: int, keep: int, superseded: Collection[int] = (),
            damaged: Collection[int] = ()) -> list[int]:
    """The images to remove now that ``verified`` is known to be good.

    Args:
        keep: how many of this job to leave; 0 leaves all.
        superseded: images that nothing would resume, of other jobs or of a time line that was given up.
        damaged: images that failed; they don't count as kept.
    """
    if keep == 0:
        return []
    good = sorted(number for number in existing
                  if number <= verified and number not in superseded and number not in damaged)
    kept = {*good[-keep:], verified}
    return sorted(number for number in existing if number < verified and number not in kept)


class Retention:
    """The images of a running job: what was committed, verified and found damaged."""

    def __init__(self, directory: Path, keep: int, superseded: Collection[int]) -> None:
        self.verified: int | None = None
        self._directory = directory
        self._keep = keep
        self._superseded = sorted(superseded)
        self._damaged: set[int] = set()
        self._waiting: int | None = None
        self._at_work: int | None = None

    def committed(self, number: int) -> None:
        """An image is there and waits to be verified."""
        self._waiting = number

    def next_child(self, environment: Mapping[str, str]) -> Child | None:
        """The process that verifies the image that waits; None if none does, or one is at work.

        Raises:
            OSError: it can't be started.
        """
        if self._waiting is None or self._at_work is not None:
            return None
        self._at_work, self._waiting = self._waiting, None
        task = {"directory": str(self._directory), "number": self._at_work, "keep": self._keep,
                "superseded": self._superseded, "damaged": sorted(self._damaged)}
        command = [sys.executable, "-P", "-m", __name__, json.dumps(task)]
        return Child(command, with_this_package(environment), session=True)

    def ended(self, output: str) -> str | None:
        """Take in what the process found. Returns: None, or why the image is not good."""
        number, self._at_work = self._at_work, None
        assert number is not None
        last = output.splitlines()[-1] if output else "no answer"
        try:
            result = json.loads(last)
            if result["verified"] == number:
                self.verified = number
                return str(result["why"]) if "why" in result else None
            why = str(result["why"])
        except (ValueError, TypeError, KeyError):
            why = f"checking image {number} failed: {last}"
        self._damaged.add(number)
        return why


# -- the child --------------------------------------------------------------------------------------
def verify_and_remove(task: Mapping[str, Any]) -> dict[str, Any]:
    """Verify one image deeply; if it is good, remove those that it replaces.

    Returns: ``verified`` (its number, or None), ``removed``, and ``why`` if something went wrong.
    """
    from crhpc.image.apart import verify
    from crhpc.image.format import image_name, image_numbers, remove_image

    directory, number = Path(task["directory"]), int(task["number"])
    try:
        verify(directory / image_name(number), full=True)
    except (errors.CrhpcError, OSError) as error:
        return {"verified": None, "removed": [], "why": str(error)}
    result: dict[str, Any] = {"verified": number, "removed": []}
    for old in expired(image_numbers(directory), number, task["keep"], task["superseded"], task["damaged"]):
        try:
            remove_image(directory / image_name(old))
            for kept in [*directory.glob(f"{image_name(old)}.tail-*"), *directory.glob(f"{image_name(old)}.was-*")]:
                kept.unlink(missing_ok=True)
            result["removed"].append(old)
        except (errors.CrhpcError, OSError) as error:
            result["why"] = f"cannot remove an old image: {error}"
    return result


if __name__ == "__main__":
    os.nice(19)
    print(json.dumps(verify_and_remove(json.loads(sys.argv[1]))))
