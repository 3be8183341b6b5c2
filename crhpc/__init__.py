"""crhpc: checkpoint and restart of unmodified MPI jobs.

The package's root imports nothing heavy: the first process of a pod starts from it,
and ``open_image`` needs h5py and zstandard alone.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from crhpc.image.reader import Image

__version__ = "0.1.0"
__all__ = ["__version__", "open_image"]


def open_image(path: str | os.PathLike[str]) -> Image:
    """Open one committed checkpoint for reading; see docs/image-format.md.

    Raises:
        crhpc.errors.ImageDamaged: the manifest, a shard or a reference is wrong.
        crhpc.errors.NoImage: there is no image at ``path``.
    """
    from crhpc.image.reader import Image

    return Image(path)
