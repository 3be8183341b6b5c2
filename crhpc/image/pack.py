"""An image as one HDF5 file that needs no other: to be mailed, archived or looked into; not to be restarted."""
from __future__ import annotations

import errno
import os
from pathlib import Path

import h5py
import numpy as np

from crhpc.image.apart import verify
from crhpc.image.format import LIBVER, MANIFEST, MASTER, read_manifest

_NODES, _MANIFEST = "nodes", "manifest.json"


def pack(image: Path, target: Path) -> int:
    """Write the master with all shards in the places of its links, compressed as they are; the bytes of the new file.

    The tree, the tables and all paths are those of the image when it is opened by its master; ``manifest.json`` is
    beside them, u1 (bytes,).

    Raises:
        NoImage, ImageDamaged: the image can't be used; all of it is verified first.
        FileExistsError: there is something of the target's name.
        OSError: it can't be written; nothing is left of it.
    """
    verify(image, full=True)
    temporary = target.with_name(f".tmp-{target.name}-{os.getpid()}")
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with h5py.File(temporary, "w", libver=LIBVER) as packed:
            _fill(packed, image)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.link(temporary, target)   # which never takes the place of another file
        return target.stat().st_size
    finally:
        temporary.unlink(missing_ok=True)


def _fill(packed: h5py.File, image: Path) -> None:
    with h5py.File(image / MASTER, "r") as master:
        for name, value in master.attrs.items():
            packed.attrs[name] = value
        for name in master:
            if name != _NODES:
                master.copy(name, packed)
    packed[_MANIFEST] = np.frombuffer((image / MANIFEST).read_bytes(), dtype=np.uint8)
    nodes = packed.create_group(_NODES)
    for summary in read_manifest(image).shards:
        with h5py.File(image / summary.file, "r") as shard:
            shard.copy(f"{_NODES}/{summary.node}", nodes, name=str(summary.node))
