"""The commit: shards in a temporary directory become an image. One process does it, when all have fsynced."""
from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py

from crhpc.image.backing import BackingFile, digest
from crhpc.image.format import (
    FORMAT,
    LIBVER,
    MANIFEST,
    MASTER,
    Manifest,
    MasterSummary,
    ShardSummary,
    image_name,
    open_file,
    sync_directory,
)
from crhpc.image.records import Blob, describe, encode, write_attributes, write_table

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def commit(temporary: Path, final: Path, *, number: int, job: dict[str, Any], shards: Sequence[ShardSummary],
           stats: dict[str, Any], connections: Sequence[DataclassInstance] | None = None) -> Path:
    """Write the master and the manifest, make all durable, and rename; returns ``final``.

    Only the rename makes the image exist; an error before it leaves the temporary directory as it is.

    Args:
        final: beside ``temporary``, of the name that `image_name` gives ``number``.
        job, stats: plain JSON. What is scalar in ``job`` becomes attributes of ``/job`` as well.
        connections: records of one type, the table ``/tables/connections`` of the master.

    Raises:
        ValueError: no shards, a shard that is not as its summary says, or no plain JSON.
        FileExistsError: ``final`` exists.
        OSError: what the system says.
    """
    temporary, final = Path(temporary), Path(final)
    if final.name != image_name(number) or final.parent.resolve() != temporary.parent.resolve():
        raise ValueError(f"{final} is not where image {number} belongs")
    if not shards or len({shard.node for shard in shards}) != len(shards):
        raise ValueError("an image has one shard of each node, and at least one")
    for shard in shards:
        _check_shard(temporary, shard)
    master = _write_master(temporary / MASTER, job, sorted(shards, key=lambda shard: shard.node), connections)
    manifest = Manifest(number=number, created=time.time(), job=job, parents=[], master=master,
                        shards=sorted(shards, key=lambda shard: shard.node), stats=stats)
    _write_file(temporary / MANIFEST, manifest.to_bytes())
    sync_directory(temporary)
    # rename(2) would take the place of an empty directory.
    if os.path.lexists(final):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final))
    os.rename(temporary, final)
    sync_directory(final.parent)
    return final


def _check_shard(directory: Path, shard: ShardSummary) -> None:
    # An open makes a network file system fetch the true length; stat(2) may answer from its cache.
    fd = open_file(directory / shard.file)
    try:
        size = os.fstat(fd).st_size
    finally:
        os.close(fd)
    if size != shard.size:
        raise ValueError(f"{shard.file} has {size} bytes, {shard.size} were written")


def _write_master(path: Path, job: dict[str, Any], shards: Sequence[ShardSummary],
                  connections: Sequence[DataclassInstance] | None) -> MasterSummary:
    backing = BackingFile(path, create=True)
    try:
        with h5py.File(backing, "w", libver=LIBVER) as file:
            write_attributes(file, {"format": FORMAT})
            write_attributes(file.create_group("job"), {
                name: value if isinstance(value, int | str) and not _too_large(value) else json.dumps(value)
                for name, value in job.items() if isinstance(value, int | str | float)})
            nodes = file.create_group("nodes")
            for shard in shards:
                nodes[str(shard.node)] = h5py.ExternalLink(shard.file, f"/nodes/{shard.node}")
            tables, blob = file.create_group("tables"), Blob()
            if connections:
                record = type(connections[0])
                write_table(tables, "connections", encode(connections, record, blob), describe(record))
            write_table(tables, "blob", blob.array(), {})
        backing.check()
        backing.sync()
        return MasterSummary(size=backing.size, sha256=digest(backing.fd, backing.size))
    finally:
        backing.close()


def _too_large(value: int | str) -> bool:
    return isinstance(value, int) and not -2**63 <= value < 2**63


def _write_file(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)
