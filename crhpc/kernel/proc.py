"""/proc as dataclasses: pure parsers (bytes in, dataclass out) and the readers that feed them (proc(5)).

Process ids are those of the /proc that is read (this process's pid namespace) unless a name says
otherwise.
"""
from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cached_property


def read(path: str) -> bytes:
    """A whole file of /proc.

    Raises:
        OSError: ENOENT or ESRCH once the process is gone.
    """
    with open(path, "rb", buffering=0) as file:
        parts = []
        while part := file.read(1 << 16):
            parts.append(part)
    return b"".join(parts)


def _lines(content: bytes) -> list[bytes]:
    """What the kernel ends with a newline; names may hold all else that Python takes for the end of a line."""
    return content.removesuffix(b"\n").split(b"\n") if content else []


# -- tasks --------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Stat:
    """``/proc/PID/stat``; the addresses and the exit code are zero without the right to trace."""

    pid: int
    comm: str
    state: str
    ppid: int
    pgrp: int
    session: int
    tty: int
    foreground: int
    flags: int
    nice: int
    start_time: int
    exit_signal: int
    processor: int
    start_code: int
    end_code: int
    start_stack: int
    start_data: int
    end_data: int
    start_brk: int
    arg_start: int
    arg_end: int
    env_start: int
    env_end: int
    exit_code: int


def parse_stat(content: bytes) -> Stat:
    """The fields are numbered as in proc(5); the name may hold anything, brackets too."""
    head, _, tail = content.rpartition(b")")
    pid, _, comm = head.partition(b"(")
    fields = tail.split()

    def field(number: int) -> int:
        return int(fields[number - 3])

    return Stat(
        pid=int(pid), comm=os.fsdecode(comm), state=fields[0].decode(), ppid=field(4), pgrp=field(5), session=field(6),
        tty=field(7), foreground=field(8), flags=field(9), nice=field(19), start_time=field(22), exit_signal=field(38),
        processor=field(39), start_code=field(26), end_code=field(27), start_stack=field(28), start_data=field(45),
        end_data=field(46), start_brk=field(47), arg_start=field(48), arg_end=field(49), env_start=field(50),
        env_end=field(51), exit_code=field(52))


@dataclass(frozen=True, slots=True)
class Status:
    """``/proc/PID/status``. The lists NSpid and the like run from the reader's namespace inwards."""

    fields: dict[str, str]

    def number(self, name: str, base: int = 10, default: int = 0) -> int:
        """The first number of a field."""
        words = self.fields.get(name, "").split()
        return int(words[0], base) if words else default

    def numbers(self, name: str) -> tuple[int, ...]:
        """All numbers of a field."""
        return tuple(int(word) for word in self.fields.get(name, "").split())

    def inner(self, name: str) -> int:
        """The innermost id of NSpid, NStgid, NSpgid or NSsid."""
        return self.numbers(name)[-1]


def parse_status(content: bytes) -> Status:
    pairs = (os.fsdecode(line).partition(":") for line in _lines(content))
    return Status({name: value.strip() for name, _, value in pairs})


def stat(pid: int, tid: int | None = None) -> Stat:
    """Of a process, or of one of its threads."""
    return parse_stat(read(_task(pid, tid) + "/stat"))


def status(pid: int, tid: int | None = None) -> Status:
    """Of a process, or of one of its threads."""
    return parse_status(read(_task(pid, tid) + "/status"))


_GLANCE = re.compile(rb"\nNSpid:[\t0-9]*\t([0-9]+)\n.*\nSigPnd:\t([0-9a-f]+)\nShdPnd:\t([0-9a-f]+)\n", re.DOTALL)


def glance(pid: int, tid: int) -> tuple[int, int]:
    """A thread's innermost id, and the signals that wait for it or its process: the quick part of ``status``."""
    fd = os.open(f"/proc/{pid}/task/{tid}/status", os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = _GLANCE.search(os.read(fd, 1 << 16))
    finally:
        os.close(fd)
    if found is None:
        raise ProcessLookupError(3, "no such thread", f"status of thread {tid}")
    return int(found[1]), int(found[2], 16) | int(found[3], 16)


def _task(pid: int, tid: int | None) -> str:
    return f"/proc/{pid}" if tid is None else f"/proc/{pid}/task/{tid}"


def threads(pid: int) -> list[int]:
    """The thread ids of a process, ascending; empty once it is gone."""
    try:
        return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    except (FileNotFoundError, ProcessLookupError):
        return []


def children(pid: int, tid: int | None = None) -> list[int]:
    """The child processes of all threads of a process or of one of them, zombies too (CONFIG_PROC_CHILDREN)."""
    found: list[int] = []
    for parent in threads(pid) if tid is None else [tid]:
        try:
            found += map(int, read(f"/proc/{pid}/task/{parent}/children").split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def descendants(pid: int) -> list[int]:
    """All processes below one, parents before their children."""
    found: list[int] = []
    queue = [pid]
    while queue:
        below = children(queue.pop(0))
        found += below
        queue += below
    return found


def comm(pid: int, tid: int | None = None) -> bytes:
    """A thread's name, without the line's end."""
    return read(_task(pid, tid) + "/comm").removesuffix(b"\n")


def program(pid: int) -> str:
    """What people call a process: the base name of its executable, else its thread's name."""
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)"))
    except OSError:
        try:
            return os.fsdecode(comm(pid))
        except OSError:
            return "gone"


def auxv(pid: int) -> bytes:
    """The auxiliary vector as the kernel keeps it."""
    return read(f"/proc/{pid}/auxv")


def resident(pid: int) -> int:
    """Bytes of a process's memory that are there and no file's; 0 once it is gone."""
    try:
        found = status(pid)
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 1024 * sum(found.number(name) for name in ("RssAnon", "RssShmem"))   # a zombie has no such lines


# -- mappings -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Mapping:
    """One line of ``maps`` and its VmFlags of ``smaps``: ``[start, end)``, page-aligned."""

    start: int
    end: int
    read: bool
    write: bool
    execute: bool
    shared: bool
    offset: int
    device: int
    inode: int
    name: str
    flags: frozenset[str] = frozenset()
    swap: int = 0
    """Bytes swapped out."""
    page_size: int = 4096
    protection_key: int = 0

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def protection(self) -> int:
        """PROT_READ | PROT_WRITE | PROT_EXEC as mmap(2) takes it."""
        return self.read | self.write << 1 | self.execute << 2

    @cached_property
    def deleted(self) -> bool:
        """Whether the file's name is gone; the kernel says so behind the path."""
        return self.name.endswith(" (deleted)")

    @property
    def path(self) -> str:
        """The file's path without the kernel's remark."""
        return self.name.removesuffix(" (deleted)") if self.deleted else self.name

    @property
    def special(self) -> bool:
        """A page of the kernel's own: vdso, vvar, vsyscall, uprobes."""
        return self.inode == 0 and (self.name.startswith("[v") or self.name == "[uprobes]")


def _unescape(name: bytes) -> str:
    return os.fsdecode(name.replace(b"\\012", b"\n"))


def parse_maps_line(line: bytes) -> Mapping:
    words = line.rstrip(b"\n").split(None, 5)
    start, _, end = words[0].partition(b"-")
    major, _, minor = words[3].partition(b":")
    allowed = words[1]
    return Mapping(
        start=int(start, 16), end=int(end, 16), read=allowed[0:1] == b"r", write=allowed[1:2] == b"w",
        execute=allowed[2:3] == b"x", shared=allowed[3:4] == b"s", offset=int(words[2], 16),
        device=os.makedev(int(major, 16), int(minor, 16)), inode=int(words[4]),
        name=_unescape(words[5]) if len(words) > 5 else "")


def parse_maps(content: bytes) -> list[Mapping]:
    return [parse_maps_line(line) for line in _lines(content)]


_VM_FLAGS = re.compile(rb"\nVmFlags:([^\n]*)\n?")


def parse_smaps(content: bytes) -> list[Mapping]:
    """As ``parse_maps``, with VmFlags, Swap, KernelPageSize and ProtectionKey."""
    found: list[Mapping] = []
    start = 0
    for flags in _VM_FLAGS.finditer(content):   # the last line of each mapping
        head, _, fields = content[start:flags.start()].partition(b"\n")
        start = flags.end()
        known = parse_maps_line(head).__dict__ | {
            "flags": frozenset(flags[1].decode().split()), "swap": _field(b"\n" + fields, b"\nSwap:", 0) * 1024,
            "page_size": _field(fields, b"KernelPageSize:", 4) * 1024,
            "protection_key": _field(fields, b"ProtectionKey:", 0)}
        found.append(Mapping(**known))
    return found


def _field(fields: bytes, name: bytes, default: int) -> int:
    at = fields.find(name)
    return int(fields[at + len(name):].split(None, 1)[0]) if at >= 0 else default


def maps(pid: int) -> list[Mapping]:
    """The mappings of a process, without their flags (quick)."""
    return parse_maps(read(f"/proc/{pid}/maps"))


def smaps(pid: int) -> list[Mapping]:
    """The mappings of a process with their flags."""
    return parse_smaps(read(f"/proc/{pid}/smaps"))


# -- descriptors --------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class FdInfo:
    """``/proc/PID/fdinfo/N``: ``flags`` as open(2) knows them, O_CLOEXEC among them."""

    position: int
    flags: int
    mount: int
    inode: int
    extra: tuple[tuple[str, str], ...]

    def field(self, name: str) -> str | None:
        """The first value of a line that only some kinds of file have."""
        return next((value for key, value in self.extra if key == name), None)

    def all(self, name: str) -> list[str]:
        """The rest of every line that starts with the word."""
        return [value for key, value in self.extra if key == name]


def parse_fdinfo(content: bytes) -> FdInfo:
    known = {"pos": "0", "flags": "0", "mnt_id": "0", "ino": "0"}
    extra: list[tuple[str, str]] = []
    for line in map(os.fsdecode, _lines(content)):
        name, _, value = line.partition(":")
        if name in known and not extra:
            known[name] = value.strip()
        elif line.startswith("inotify "):
            extra.append(("inotify", line.removeprefix("inotify ")))
        else:
            extra.append((name.strip(), value.strip()))
    return FdInfo(int(known["pos"]), int(known["flags"], 8), int(known["mnt_id"]), int(known["ino"]), tuple(extra))


def fdinfo(pid: int, fd: int) -> FdInfo:
    return parse_fdinfo(read(f"/proc/{pid}/fdinfo/{fd}"))


def fds(pid: int) -> list[int]:
    """The open descriptors of a process, ascending."""
    return sorted(int(name) for name in os.listdir(f"/proc/{pid}/fd"))


# -- limits and the machine ---------------------------------------------------------------------------
LIMITS = ("Max cpu time", "Max file size", "Max data size", "Max stack size", "Max core file size", "Max resident set",
          "Max processes", "Max open files", "Max locked memory", "Max address space", "Max file locks",
          "Max pending signals", "Max msgqueue size", "Max nice priority", "Max realtime priority",
          "Max realtime timeout")
"""The lines of ``/proc/PID/limits`` in the order of the RLIMIT_ numbers."""

RLIM_INFINITY = (1 << 64) - 1


def parse_limits(content: bytes) -> list[tuple[int, int]]:
    """(soft, hard) of every resource, indexed by its RLIMIT_ number."""
    lines = {line[:25].strip(): line[25:].split() for line in content.decode().splitlines()[1:]}

    def number(word: str) -> int:
        return RLIM_INFINITY if word == "unlimited" else int(word)

    return [(number(lines[name][0]), number(lines[name][1])) for name in LIMITS]


def limits(pid: int) -> list[tuple[int, int]]:
    return parse_limits(read(f"/proc/{pid}/limits"))


@dataclass(frozen=True, slots=True)
class PosixTimer:
    """One entry of ``/proc/PID/timers`` (timer_create(2))."""

    id: int
    signal: int
    value: int
    """sigev_value, as an address."""
    notify: str
    target: int
    clock: int


def parse_timers(content: bytes) -> list[PosixTimer]:
    found: list[PosixTimer] = []
    for block in ("\n" + content.decode()).split("\nID: ")[1:]:
        lines = block.splitlines()
        fields = dict(line.split(": ", 1) for line in lines[1:])
        signal, _, value = fields["signal"].partition("/")
        notify, _, target = fields["notify"].partition("/")
        kind, _, number = target.partition(".")
        found.append(PosixTimer(int(lines[0]), int(signal), int(value, 16) if "null" not in value else 0,
                                notify if kind == "pid" else f"{notify}/tid", int(number), int(fields["ClockID"])))
    return found

