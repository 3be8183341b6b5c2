"""Verifying an image in another process, for the supervisor.

crhpc.image brings libraries that start threads of their own, and those would take the signals that the
supervisor waits for; nor should it carry their memory for as long as a job runs. So not even the import
happens here but in a child: this module, run with ``python -m``.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from crhpc import errors
from crhpc.launch import with_this_package

_KINDS: dict[str, type[errors.CrhpcError]] = {kind.__name__: kind for kind in (errors.NoImage, errors.ImageDamaged)}


def verify_apart(image: Path) -> None:
    """Compare every byte that a restart will read with its hash.

    Raises:
        errors.NoImage: there is none, it can't be read, or can't be checked here.
        errors.ImageDamaged: it is not whole.
    """
    child = subprocess.run([sys.executable, "-P", "-m", __name__, str(image)], env=with_this_package(os.environ),
                           stdin=subprocess.DEVNULL, capture_output=True, check=False)
    try:
        answer = json.loads(child.stdout)
    except ValueError:
        lines = child.stderr.decode("utf-8", "replace").splitlines() or [f"exit code {child.returncode}"]
        raise errors.NoImage(path=image, why=f"checking it failed: {lines[-1]}") from None
    if answer:
        raise _KINDS[answer["kind"]](**answer["fields"])


def answer_for(image: Path) -> dict[str, object]:
    """In the child: empty if the image is whole, else the error's class and fields."""
    from crhpc.image.check import verify

    try:
        verify(image)
    except (errors.NoImage, errors.ImageDamaged) as error:
        fields = {name: str(value) for name, value in error.fields.items()}
        return {"kind": type(error).__name__, "fields": fields}
    except (errors.CrhpcError, OSError) as error:
        return {"kind": "NoImage", "fields": {"path": str(image), "why": str(error)}}
    return {}


if __name__ == "__main__":
    print(json.dumps(answer_for(Path(sys.argv[1]))))
