"""The kinds of kernel object that a job is made of.

One module a kind: its record (a frozen dataclass, a row of a table in the image), its dump and its restore,
side by side. Kinds are found, never listed: a module in this package, or in ``files`` for what a
descriptor can refer to, that defines a subclass of ``Kind`` or ``FileKind`` is part of crhpc.

A kind gives steps of its work to moments of a checkpoint (``Cut``) or of a restart (``Phase``) with
``@at``. Steps of one moment don't depend on each other. A kind reaches other kinds' objects through the
context (``Dump``, ``Restore``) by id, never by import. Barriers over nodes lie between moments, in the
engine's methods, never in a kind.
"""
from __future__ import annotations

import enum
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar


class Cut(enum.Enum):
    """The moments of a dump. Every thread of the pod stands still in all but the last."""

    INSPECT = "inspect"
    """Look from outside and raise Unsupported; nothing has been touched yet."""
    REGISTERS = "registers"
    """What must be read before a thread is borrowed for remote calls."""
    COLLECT = "collect"
    """Everything but contents; remote calls are possible. Shared objects get their ids."""
    CONTENT = "content"
    """Pages, and the contents of files and queues."""
    LATER = "later"
    """After the thaw, in another thread: what the job can't change any more. No task may be touched."""


class Phase(enum.IntEnum):
    """The moments of a restart, in their order. Nothing of the job runs before the last is over."""

    CHECK = enum.auto()
    """Compare with this machine and its files; refuse before anything is made."""
    POD = enum.auto()
    """What exists without a task: private directories."""
    OBJECTS = enum.auto()
    """Shared memory and the files that are in the image, with their contents."""
    TREE = enum.auto()
    """Empty tasks with their ids, parents, sessions and groups."""
    THREADS = enum.auto()
    """The threads beside each leader."""
    SPACE = enum.auto()
    """Each task's old address space gone, its mappings made."""
    PAGES = enum.auto()
    """The mappings' contents."""
    OPEN = enum.auto()
    """One open file description for each in the image, held by the agent."""
    CONNECT = enum.auto()
    """Sockets: listeners before connections, then what was in flight."""
    INSTALL = enum.auto()
    """Descriptors at their numbers in every task."""
    WATCH = enum.auto()
    """What needs descriptors at their numbers, before limits are set: epoll, filters of calls."""
    STATE = enum.auto()
    """Attributes of tasks and threads: names, signal actions, scheduling, limits."""
    CREDENTIALS = enum.auto()
    """Ids and capabilities; the tasks lose their power over the pod."""
    QUEUE = enum.auto()
    """Pending signals; no signal may be sent to a task by us from here on."""
    TIMERS = enum.auto()
    """Timers start: the last use of the scratch area's runner."""
    LAST = enum.auto()
    """Single remote calls only: the runner may reset SIGTRAP's action."""
    REGISTERS = enum.auto()
    """Registers and signal masks; our scratch memory is gone."""


Moment = Cut | Phase
Step = Callable[..., None]
_F = TypeVar("_F", bound=Step)


def at(moment: Moment) -> Callable[[_F], _F]:
    """Mark a method as the kind's step at a moment; it takes the context and nothing else."""
    def mark(function: _F) -> _F:
        function.__dict__.setdefault("moments", []).append(moment)
        return function
    return mark


class Chapter(enum.Enum):
    """Where docs/kinds.md tells of a kind."""

    PROCESSES = "Processes and threads"
    MEMORY = "Memory and what it holds"
    FILES = "Files and directories"
    CHANNELS = "Pipes, terminals and sockets"
    EVENTS = "Signals, timers and events"
    IPC = "System V and POSIX IPC"


class Kind:
    """One kind of kernel object, or of a task's attributes; docs/kinds.md is made of what it says of itself."""

    name: ClassVar[str] = ""
    chapter: ClassVar[Chapter]
    records: ClassVar[tuple[type, ...]] = ()
    """Its tables in the image."""
    saved: ClassVar[str] = ""
    """What comes back as it was."""
    refused: ClassVar[tuple[tuple[str, str], ...]] = ()
    """What no checkpoint is taken of, and the cure, as the message has it."""
    afterwards: ClassVar[str] = ""
    """What is not as it was after a restart; what a restart is refused for."""
    registry: ClassVar[list[type[Kind]]] = []
    _steps: ClassVar[dict[Moment, list[str]]] = {}
    """Names of methods; to look for them takes long, and the job would stand still meanwhile."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._steps = {}
        for name in dir(cls):
            for moment in getattr(getattr(cls, name), "moments", ()):
                cls._steps.setdefault(moment, []).append(name)
        if cls.name:
            Kind.registry.append(cls)

    def steps(self, moment: Moment) -> list[Step]:
        """The kind's methods for a moment."""
        return [getattr(self, name) for name in self._steps.get(moment, ())]


def kinds() -> list[Kind]:
    """One of each kind, found by loading every module of this package, in the order of their names."""
    for package in (importlib.import_module("crhpc.resources"), importlib.import_module("crhpc.resources.files")):
        for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            importlib.import_module(info.name)
    return [cls() for cls in sorted(Kind.registry, key=lambda cls: cls.name)]


def run_steps(found: list[Kind], moment: Moment, context: object) -> None:
    """Let every kind do its work of one moment."""
    for kind in found:
        for step in kind.steps(moment):
            step(context)
