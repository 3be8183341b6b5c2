"""What a manifest says of a pod beside its shard, as ``Node.describe`` gives it; and what may be believed of it."""
from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Callable
from typing import Any

from crhpc.errors import ImageDamaged

_TEMPORARY = re.compile(r"/(?:[^/\0]+/)*crhpc-[0-9a-z]{6,32}", re.ASCII)
_MOST_PIDS = 1 << 22
"""PID_MAX_LIMIT of 64-bit kernels."""


def _are_addresses(value: Any) -> bool:
    """Whether these are pairs of addresses: what the job calls this machine, and what that is."""
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(map(_is_address, pair)) for pair in value)


def _is_address(value: Any) -> bool:
    try:
        return isinstance(value, str) and str(ipaddress.ip_address(value)) == value
    except ValueError:
        return False


_DESCRIPTION: dict[str, Callable[[Any], object]] = {
    "temporary": lambda value: isinstance(value, str),
    "addresses": _are_addresses,
    "hostname": lambda value: isinstance(value, str),
    "boot_id": lambda value: isinstance(value, str) and re.fullmatch(r"[0-9a-f-]{36}", value, re.ASCII),
    "root": lambda value: isinstance(value, int) and 0 <= value < _MOST_PIDS,
    "root_status": lambda value: isinstance(value, int | None),
    "last_pid": lambda value: isinstance(value, int) and 0 <= value < _MOST_PIDS,
    "monotonic": lambda value: isinstance(value, int | float) and math.isfinite(value),
    "boottime": lambda value: isinstance(value, int | float) and math.isfinite(value)}


def check_description(image: str, described: object) -> None:
    """What the manifest says of a pod comes from whoever made the image.

    Raises:
        ImageDamaged: it is not what ``Node.describe`` gives.
    """
    def wrong(what: str) -> ImageDamaged:
        return ImageDamaged(image=image, what=f"manifest.json: {what}")

    if not isinstance(described, dict):
        raise wrong("it does not describe a pod")
    for name, fits in _DESCRIPTION.items():
        if name not in described or not fits(described[name]):
            raise wrong(f"the pod's {name} is missing or wrong")
    place = described["temporary"]
    # It will be emptied: it must be one that a job of ours made, by its name.
    if os.path.normpath(place) != place or not _TEMPORARY.fullmatch(place) or not _is_path(place):
        raise wrong(f"{place!r} is no directory for temporary files")


def _is_path(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:   # a surrogate that stands for no byte
        return False
    return True


def boot_id() -> str:
    """This machine's, of this boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
