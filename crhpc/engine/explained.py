"""What went wrong, in the user's words: whatever the kernel, the disk or an image that makes no sense comes up with."""
from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator

from crhpc.errors import CrhpcError, ImageDamaged, RestartFailed, failed_checkpoint
from crhpc.log import logger

log = logger(__name__)

_NO_SENSE = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, StopIteration, TypeError,
             ValueError, struct.error)
"""What tables provoke that were not written by us, though each of them is as prescribed."""
_TOLD = 200


@contextlib.contextmanager
def checkpointing(directory: str) -> Iterator[None]:
    """Tell why a checkpoint failed.

    Raises:
        CrhpcError: for whatever system call failed.
    """
    try:
        yield
    except OSError as error:
        log.debug("checkpoint failed", exc_info=True)
        raise failed_checkpoint(error, directory) from error


@contextlib.contextmanager
def restarting(image: str, end: Callable[[], None]) -> Iterator[None]:
    """Tell why a restart failed.

    Args:
        end: undoes what was built.

    Raises:
        CrhpcError: for whatever happened.
    """
    try:
        yield
    except CrhpcError:
        end()
        raise
    except OSError as error:
        log.debug("restart failed", exc_info=True)
        end()
        why = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise RestartFailed(image=image, why=why, cure="run with CRHPC_LOG=debug for the details") from error
    except _NO_SENSE as error:
        log.debug("restart failed", exc_info=True)
        end()
        what = " ".join(f"{type(error).__name__}: {error}".split())[:_TOLD]
        raise ImageDamaged(image=image, what=f"its tables contradict each other ({what})") from error
