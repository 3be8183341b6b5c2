"""A job from another kernel: its calls into that kernel's vdso are led to this one's.

Programs have asked where clock_gettime and the others begin, and keep the addresses. So the old vdso stays where it
was, as plain memory, with a jump at each of its functions to the one of the same name in this kernel's vdso, which
comes to lie somewhere else, with its data; or to a system call where this kernel has no such function. The pages of
data that the old code reads (vvar) are zeros: to it that is a machine whose clock only the kernel can read
(include/vdso/datapage.h, VDSO_CLOCKMODE_NONE), and it makes a system call.

A thread that was inside the old code goes on there, step by step, before the jumps are put in. One that reads a clock
without a system call then has read zeros: such a restart is refused.
"""
from __future__ import annotations

import contextlib
import itertools
import os
import signal
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from crhpc.errors import ImageDamaged, OtherMachine
from crhpc.kernel import proc, ptrace, vdso, vm
from crhpc.kernel.libc import PAGE
from crhpc.kernel.tracee import Tracee, event, wait
from crhpc.resources.context import Restore, Task

_CALLS = {"gettimeofday": 96, "time": 201, "clock_gettime": 228, "clock_getres": 229, "getcpu": 309, "getrandom": 318}
_PREFIX = "__vdso_"
_FAR = bytes.fromhex("49bb"), bytes.fromhex("41ffe3")
"""``mov r11, ADDRESS`` and ``jmp r11``, which belongs to nobody at a call."""
_CALL = b"\xb8", bytes.fromhex("0f05c3")
"""``mov eax, NUMBER``; ``syscall; ret``."""
_NO_QUESTIONS = bytes.fromhex("4983f8ff" "7508" "48c7c0daffffff" "c3")
"""In front of getrandom: a question for the size of its state (vgetrandom_alloc) is answered with ENOSYS."""
_NOTHING = bytes.fromhex("48c7c0daffffff" "c3")
_JUMP, _JUMP_SIZE = b"\xe9", 5
_SLOT = 64
_REACH = (1 << 31) - (1 << 20)
_GROWTH = 1 << 36
_LOWEST, _HIGHEST = 0x10000000, 0x7FFFFFFFF000
_PRIVATE_FIXED = 0x2 | 0x20 | 0x100000
_READ, _CODE = 1, 5
_INSTRUCTION = b"\x0f\x05"
_STEPS = 200_000
_CURE = "restart on a node with the kernel of the checkpoint"


@dataclass(frozen=True, slots=True)
class Vdso:
    """The code that the kernel has mapped into every process of the pod, and that they call."""

    content: bytes = field(metadata={"doc": "the pages that are called [vdso] in the table vma"})


@dataclass(frozen=True, slots=True)
class Piece:
    """One mapping of the kernel's: of the image or of a stub."""

    name: str
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Bridge:
    """Where everything lies in one task."""

    code: Piece
    data: tuple[Piece, ...]
    homes: dict[str, int]
    """Where this kernel's mappings come to lie, by their names."""
    slots: int
    """A page of ours between both."""

    def inside(self, address: int) -> bool:
        """Whether a thread is on its way through the old code."""
        return self.code.start <= address < self.code.end or self.slots <= address < self.slots + PAGE

    @property
    def extent(self) -> tuple[int, int]:
        """From the lowest to the highest address that was not taken before."""
        return min(self.homes.values()), self.slots + PAGE


# -- whether and where ----------------------------------------------------------------------------------
def same_pages(ctx: Restore, own: list[Piece], there: list[Piece]) -> bool:
    """Whether this kernel's pages can take the place of the image's.

    Its vdso is the same where the build id is, though the kernel chooses a few instructions by the processor.
    """
    if {piece.name: piece.size for piece in own} != {piece.name: piece.size for piece in there}:
        return False
    ours, theirs = vdso.own(), _content(ctx)
    return theirs == ours or (vdso.build_id(ours) != b"" and vdso.build_id(theirs) == vdso.build_id(ours))


def check(ctx: Restore, pieces: dict[int, list[Piece]]) -> None:
    """See whether all calls can be led over, before anything is made.

    Args:
        pieces: the kernel's mappings in each task of the image.

    Raises:
        CrhpcError: they can't.
    """
    own = [Piece(m.name, m.start, m.end) for m in proc.maps(os.getpid()) if m.name.startswith(("[vvar", vdso.NAME))]
    for there in pieces.values():
        if same_pages(ctx, own, there):
            continue
        code = next((piece for piece in there if piece.name == vdso.NAME), None)
        content = _content(ctx)
        if code is None or code.size != len(content):
            raise ImageDamaged(image=ctx.image, what="a process has another vdso than the image")
        jumps(ctx, content)


def plan(ctx: Restore, own: list[Piece], there: list[Piece], taken: Sequence[tuple[int, int, str]]) -> Bridge:
    """Find room for this kernel's mappings.

    Args:
        own: of a stub; there: of the image.
        taken: everything else of the image, as (start, end, flags), ascending.
    """
    code = next(piece for piece in there if piece.name == vdso.NAME)
    low, high = min(piece.start for piece in own), max(piece.end for piece in own)
    place = _place(code, sorted([*taken, *((piece.start, piece.end, "") for piece in there)]), high - low + PAGE)
    if place is None:
        raise OtherMachine(image=ctx.image, what="this kernel's vdso is another one, and there is no room for it",
                           cure=_CURE)
    data = tuple(piece for piece in there if piece is not code)
    return Bridge(code, data, {piece.name: place + piece.start - low for piece in own}, place + high - low)


def _place(code: Piece, taken: list[tuple[int, int, str]], size: int) -> int | None:
    """Near the old code, so that a short jump is enough; and far from where a stack or the heap grows."""
    found = []
    below = (0, _LOWEST, "")
    for above in (*taken, (_HIGHEST, _HIGHEST, "")):
        low = below[1] + (_GROWTH if "heap" in below[2].split() else PAGE)
        high = above[0] - (_GROWTH if "gd" in above[2].split() else PAGE)
        if high - low >= size:
            found += [low, high - size]
        below = max(below, above, key=lambda each: each[1])
    within = [here for here in found if abs(here - code.start) < _REACH]
    return min(within, key=lambda here: abs(here - code.start), default=None)


def _content(ctx: Restore) -> bytes:
    rows = ctx.rows(Vdso)
    if not rows:
        raise OtherMachine(image=ctx.image, what="this kernel's vdso has another layout", cure=_CURE)
    return rows[0].content


def jumps(ctx: Restore, content: bytes) -> dict[int, str]:
    """Where in the old code jumps go, and the function that each stands for.

    Raises:
        CrhpcError: it is no such code, or its functions lie too close.
    """
    try:
        found = {at: name.removeprefix(_PREFIX) for name, at in vdso.functions(content).items()}
    except ValueError as error:
        raise ImageDamaged(image=ctx.image, what=f"of its vdso: {error}") from None
    edges = [*sorted(found), len(content)]
    if len(found) > PAGE // _SLOT or any(b - a < _JUMP_SIZE for a, b in itertools.pairwise(edges)):
        raise OtherMachine(image=ctx.image, what="this kernel's vdso is another one, and the old one has no room for "
                                                 "jumps to it", cure=_CURE)
    return found


# -- building it ----------------------------------------------------------------------------------------
def build(ctx: Restore, task: Task, bridge: Bridge) -> None:
    """Put the old code back, as it was, with data of zeros; and the page between both."""
    with task.area.batch() as batch:
        for piece in bridge.data:
            batch.call("mmap", piece.start, piece.size, _READ, _PRIVATE_FIXED, -1, 0)
        batch.call("mmap", bridge.code.start, bridge.code.size, _CODE, _PRIVATE_FIXED, -1, 0)
        batch.call("mmap", bridge.slots, PAGE, _CODE, _PRIVATE_FIXED, -1, 0)
    with contextlib.closing(vm.Memory(task.host)) as memory:
        memory.write(bridge.code.start, _content(ctx))


def open_it(ctx: Restore, task: Task, bridge: Bridge) -> None:
    """Put the jumps in; no thread may be inside the old code any more."""
    ours = {name.removeprefix(_PREFIX): at for name, at in vdso.functions(vdso.own()).items()}
    with contextlib.closing(vm.Memory(task.host)) as memory:
        for number, (at, name) in enumerate(sorted(jumps(ctx, _content(ctx)).items())):
            slot = bridge.slots + number * _SLOT
            memory.write(slot, slot_code(name, bridge.homes[vdso.NAME] + ours[name] if name in ours else None))
            entry = bridge.code.start + at
            memory.write(entry, _JUMP + struct.pack("<i", slot - entry - _JUMP_SIZE))


def slot_code(name: str, target: int | None) -> bytes:
    """What a function does now: go on at ``target``, or make a system call."""
    if target is not None:
        return _FAR[0] + struct.pack("<Q", target) + _FAR[1]
    if name not in _CALLS:
        return _NOTHING
    call = _CALL[0] + struct.pack("<I", _CALLS[name]) + _CALL[1]
    return _NO_QUESTIONS + call if name == "getrandom" else call


# -- threads inside -------------------------------------------------------------------------------------
def lead_out(ctx: Restore, task: Task, tracee: Tracee, bridge: Bridge, registers: bytes,
             xstate: bytes) -> tuple[bytes, bytes]:
    """Let a thread go on, step by step, until it has left the old code; its registers then.

    Raises:
        OtherMachine: what it brings along is no time.
    """
    ptrace.set_regset(tracee.tid, xstate)
    current = ptrace.Registers.from_buffer_copy(registers)
    asked = read = False
    with _closed(task, bridge) as reopen:
        for _ in range(_STEPS):
            if not bridge.inside(current.rip):
                break
            asked = asked or _is_call(tracee, current.rip)
            ptrace.set_registers(tracee.tid, current)
            if _stepped(tracee):
                current = ptrace.get_registers(tracee.tid)
            elif read:
                raise _stuck(ctx, tracee)
            else:   # it wants to read the old kernel's data
                read = True
                reopen()
        if bridge.inside(current.rip) or (read and not asked):
            raise _stuck(ctx, tracee)
    return bytes(current), ptrace.get_regset(tracee.tid)


def _stuck(ctx: Restore, tracee: Tracee) -> OtherMachine:
    return OtherMachine(image=ctx.image, cure=f"restart another image, or {_CURE}", what=(
        f"thread {tracee.tid} was just reading a clock of the old kernel's that this one does not have"))


@contextlib.contextmanager
def _closed(task: Task, bridge: Bridge) -> Iterator[Callable[[], None]]:
    """The pages of data can't be read; yields what opens them."""
    def protect(protection: int) -> None:
        for piece in bridge.data:
            task.call("mprotect", piece.start, piece.size, protection)

    protect(0)
    try:
        yield lambda: protect(_READ)
    finally:
        protect(_READ)


def _is_call(tracee: Tracee, address: int) -> bool:
    return tracee.read(address, len(_INSTRUCTION)) == _INSTRUCTION


def _stepped(tracee: Tracee) -> bool:
    """One instruction; False where it can't read memory."""
    ptrace.step(tracee.tid)
    while True:
        status = wait(tracee.tid)
        assert status is not None
        if event(status) == 0 and os.WSTOPSIG(status) in (signal.SIGTRAP, signal.SIGSEGV):
            return os.WSTOPSIG(status) == signal.SIGTRAP
        ptrace.step(tracee.tid)
