"""What crhpc says while it works: lines on standard error, and steps that name, time and count.

A logger per module, named like the module; ``CRHPC_LOG=memory=debug,engine=info`` sets levels by the last
part of the module's name or by package, ``CRHPC_LOG=debug`` sets all. Nothing is configured at import.
"""
from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

PREFIX = "crhpc: "


_levels: dict[str, int] = {}
"""By the last part of a module's name: many modules are loaded after the program has begun."""


def logger(module: str) -> logging.Logger:
    """The logger of a module; call it with ``__name__``."""
    found = logging.getLogger(module)
    if (level := _levels.get(module.rpartition(".")[2])) is not None:
        found.setLevel(level)
    return found


def configure(*, verbose: bool = False, environment: str | None = None) -> None:
    """Send log lines to standard error. For programs, never at import.

    Args:
        verbose: show the steps (INFO) of every module.
        environment: what stands in ``CRHPC_LOG``; read from the environment when None.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(PREFIX + "%(message)s"))
    root = logging.getLogger("crhpc")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(logging.INFO if verbose else logging.WARNING)
    spec = os.environ.get("CRHPC_LOG", "") if environment is None else environment
    _levels.clear()
    for item in filter(None, (part.strip() for part in spec.split(","))):
        name, _, level = item.rpartition("=")
        number = logging.getLevelName(level.upper())
        if not isinstance(number, int):
            continue
        if not name:
            root.setLevel(number)
            continue
        _levels[name] = number
        logging.getLogger(f"crhpc.{name}").setLevel(number)   # a package: its modules follow
        for known in list(logging.root.manager.loggerDict):
            if known.startswith("crhpc.") and known.rpartition(".")[2] == name:
                logging.getLogger(known).setLevel(number)


@dataclass(slots=True)
class Steps:
    """Seconds and bytes of each named step of one operation, in order; goes into the image's stats."""

    seconds: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, log: logging.Logger | None = None) -> Iterator[None]:
        """Time what runs inside; a step that is entered again adds up."""
        start = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
            if log is not None:
                log.debug("%s: %.1f ms", name, spent * 1e3)

    def count(self, name: str, size: int) -> None:
        """Add ``size`` bytes to a step's count."""
        self.bytes[name] = self.bytes.get(name, 0) + size
