"""Verifying an image before it is restarted, beside what else the supervisor has to do.

crhpc.image.check brings libraries that start threads of their own, and those would take the signals that the
supervisor waits for; nor should it carry their memory for as long as a job runs. So it is a child's work, and
while that works the agents come up.
"""
from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crhpc import errors
from crhpc.image import apart
from crhpc.launch import Child


def verify_apart(image: Path) -> None:
    """Compare every byte that a restart will read with its hash.

    Raises:
        errors.NoImage: there is none, it can't be read, or can't be checked here.
        errors.ImageDamaged: it is not whole.
    """
    with _told(image):
        apart.verify(image)


class Checking:
    """An image that is being verified; ``child`` is who does it, and its output has to be drained."""

    def __init__(self, image: Path) -> None:
        """Begin.

        Raises:
            errors.NoImage: it can't be checked here.
        """
        self.image = image
        self._patience = apart.patience(image)
        self.expires = time.monotonic() + self._patience
        with _told(image):
            self.child = Child(apart.command(image), apart.environment(), session=True)

    def finish(self) -> None:
        """Take in the end of the child, or end it where its time is over.

        Raises:
            errors.NoImage, errors.ImageDamaged: as ``verify_apart``.
        """
        late = time.monotonic() >= self.expires
        if late:
            self.child.kill(signal.SIGKILL)
        code = self.child.wait(None)
        self.child.drain()
        said, complaints = self.child.tail, [line for line in self.child.tail.splitlines() if line[:1] != "{"]
        self.child.close()
        if code:
            how = apart.hung(self._patience) if late else apart.ended(code)
            with _told(self.image):
                apart.result(self.image, said, "\n".join(complaints), how)

    def give_up(self) -> None:
        """Nobody waits for it any more."""
        self.child.kill(signal.SIGKILL)
        self.child.wait(None)
        self.child.close()


@contextmanager
def _told(image: Path) -> Iterator[None]:
    """Whatever keeps the image from being checked, as an error that leads to the image before it."""
    try:
        yield
    except (errors.NoImage, errors.ImageDamaged):
        raise
    except OSError as error:
        raise errors.NoImage(path=image, why=error.strerror or os.strerror(error.errno or 0)) from error
    except errors.CrhpcError as error:
        raise errors.NoImage(path=image, why=str(error)) from error
