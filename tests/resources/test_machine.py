"""Images of other machines: what ``facts.here`` gives at the checkpoint or at the restart stands in for one."""
from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from need import offered
from pods import Subject

from crhpc.engine.node import Node
from crhpc.errors import CrhpcError, ImageDamaged, OtherMachine
from crhpc.filepolicy import FilePolicy
from crhpc.image.reader import Image
from crhpc.image.records import U64
from crhpc.kernel import advice, ptrace
from crhpc.kernel.cpu import Component
from crhpc.resources import facts, threads
from crhpc.resources.facts import Machine
from crhpc.resources.threads import Thread

REAL = facts.here()
FORCE = FilePolicy(force=True)
HELD = ("import mmap\nvalue = bytes(range(256)) * 100", "assert value == bytes(range(256)) * 100")


def on(patch: pytest.MonkeyPatch, **different: object) -> None:
    """From now on this machine is another one."""
    patch.setattr(facts, "here", lambda: replace(REAL, **different))


@pytest.fixture
def subject(holding) -> Subject:
    return holding(*HELD)


def refused(subject: Subject, image, policy: FilePolicy | None = None) -> OtherMachine:
    """It is, with one line, and nothing is left."""
    with pytest.raises(OtherMachine) as caught:
        subject.restart(image, policy)
    assert subject.node is not None and subject.node.pod is None
    assert str(caught.value).startswith(f"{image} cannot be restarted here: ") and "\n" not in str(caught.value)
    assert caught.value.code == 78
    return caught.value


def test_what_is_recorded(subject):
    image = subject.checkpoint(kill=True)
    with Image(image) as opened:
        assert opened.node(0).table(Machine, "machine") == [REAL]
        described = opened.describe("/nodes/0/machine")
    assert described[0]["kernel"] == REAL.kernel and described[0]["processor"] == REAL.processor
    assert REAL.page_size == 4096 and "sse2" in REAL.instructions and REAL.layout is not None


@pytest.mark.parametrize(("different", "what"), [
    ({"architecture": "aarch64"}, "this machine is aarch64, the job ran on x86_64"),
    ({"page_size": 65536}, "pages have 65536 bytes here, the job's have 4096"),
], ids=["architecture", "page size"])
def test_what_nothing_can_make_good(subject, monkeypatch, different, what):
    image = subject.checkpoint(kill=True)
    on(monkeypatch, **different)
    for policy in (None, FORCE):
        assert what in str(refused(subject, image, policy))


def test_a_processor_that_lacks_instructions(subject, monkeypatch):
    with monkeypatch.context() as patch:
        on(patch, instructions=(*REAL.instructions, "amx_tile", "zzz"), processor="a better one")
        image = subject.checkpoint(kill=True)
    error = refused(subject, image)
    assert f"({REAL.processor}) lacks amx_tile zzz, which the job may use (it ran on a better one)" in str(error)
    subject.restart(image, FORCE)
    assert any(line.startswith("--force: ") and "lacks amx_tile zzz" in line for line in subject.warnings)
    subject.check()


def test_many_instructions_are_counted(subject, monkeypatch):
    image = subject.checkpoint(kill=True)
    on(monkeypatch, instructions=())
    assert f" and {len(REAL.instructions) - 8} more, which" in str(refused(subject, image))


def test_more_instructions_do_no_harm(subject, monkeypatch):
    image = subject.checkpoint(kill=True)
    on(monkeypatch, instructions=(*REAL.instructions, "zzz"))
    subject.restart(image)
    assert not subject.warnings
    subject.check()


def test_a_dry_run_tells_too(subject, monkeypatch):
    image = subject.checkpoint(kill=True)
    with Image(image) as opened:
        described = opened.manifest.job["pods"]["0"]
    on(monkeypatch, instructions=())
    with pytest.raises(OtherMachine, match="lacks"):
        Node(0, memory=64 << 20, level=1, warn=subject.warnings.append).check(str(image), described, {})


def test_instructions_that_the_kernel_forbids(subject, monkeypatch):
    with monkeypatch.context() as patch:
        on(patch, hwcap2=U64(REAL.hwcap2 | 1))
        image = subject.checkpoint(kill=True)
    on(monkeypatch, hwcap2=U64(REAL.hwcap2 & ~1))
    assert "here programs have no MWAIT in programs" in str(refused(subject, image))
    subject.restart(image, FORCE)
    subject.check()


def test_an_older_kernel(subject, monkeypatch):
    with monkeypatch.context() as patch:
        on(patch, kernel="9999.1-new")
        image = subject.checkpoint(kill=True)
    subject.restart(image)
    assert any(f"the job ran on Linux 9999.1-new, this is {REAL.kernel}" in line for line in subject.warnings)
    subject.check()


def test_images_of_before_there_was_a_record(subject, monkeypatch):
    monkeypatch.setattr(facts, "there", lambda ctx: None)
    subject.restart(subject.checkpoint(kill=True))
    subject.check()


# -- registers ------------------------------------------------------------------------------------------
def moved_layout() -> tuple[int, tuple[int, ...]]:
    """This processor's components in the opposite order, and room behind them."""
    assert REAL.layout is not None
    at, words = 576, []
    for component in reversed(REAL.layout.components):
        words[:0] = [component.number, at, component.size]
        at += component.size
    return at + 64, tuple(words)


def test_another_layout_of_vector_registers(subject, monkeypatch):
    """The image's areas are of a processor that has them elsewhere, as one of another maker has."""
    size, words = moved_layout()
    plain = ptrace.get_regset

    def elsewhere(tid, kind=ptrace.NT_X86_XSTATE):
        there = replace(REAL, xsave_size=size, xsave=words).layout
        return threads.cpu.converted(plain(tid, kind), REAL.layout, there)
    with monkeypatch.context() as patch:
        on(patch, xsave_size=size, xsave=words)
        patch.setattr(threads.ptrace, "get_regset", elsewhere)
        image = subject.checkpoint(kill=True)
    subject.restart(image)
    subject.check()


def test_registers_that_this_processor_lacks(subject, monkeypatch):
    plain = ptrace.get_regset
    with monkeypatch.context() as patch:
        on(patch, xsave_size=REAL.xsave_size + 64, xsave=(*REAL.xsave, 40, REAL.xsave_size, 64))
        patch.setattr(threads.ptrace, "get_regset", lambda tid: _with_component(plain(tid), 40, 64))
        image = subject.checkpoint(kill=True)
    for policy in (None, FORCE):
        assert "uses XSAVE component 40, which this processor lacks" in str(refused(subject, image, policy))


def _with_component(area: bytes, number: int, size: int) -> bytes:
    changed = bytearray(area + b"x" * size)
    changed[512:520] = (int.from_bytes(area[512:520], "little") | 1 << number).to_bytes(8, "little")
    return bytes(changed)


STACK = """
import ctypes
libc = ctypes.CDLL(None)
room = ctypes.create_string_buffer(16384)
stack = (ctypes.c_size_t * 3)(ctypes.addressof(room), 0, 16384)
assert libc.sigaltstack(stack, None) == 0
"""


def test_a_signal_stack_that_is_too_small(holding, monkeypatch):
    """Programs ask how large it has to be, and make it so."""
    subject = holding(STACK)
    image = subject.checkpoint(kill=True)
    on(monkeypatch, signal_stack=16385)
    assert "has 16384 bytes, this processor's registers need 16385" in str(refused(subject, image))
    subject.restart(image, FORCE)
    subject.check()


def test_a_signal_stack_that_is_large_enough(holding, monkeypatch):
    subject = holding(STACK)
    image = subject.checkpoint(kill=True)
    on(monkeypatch, signal_stack=16384)
    subject.restart(image)
    subject.check()


# -- what the kernel must be able to do -----------------------------------------------------------------
DROPPABLE = """
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
at = libc.mmap(None, ctypes.c_size_t(4096), 3, 0x28, -1, ctypes.c_long(0))
"""
SEALED = """
import mmap
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
at = libc.mmap(None, ctypes.c_size_t(4096), 3, 0x22, -1, ctypes.c_long(0))
assert libc.syscall(462, ctypes.c_void_p(at), ctypes.c_size_t(4096), 0) == 0
"""
GUARDED = SEALED.replace("libc.syscall(462, ctypes.c_void_p(at), ctypes.c_size_t(4096), 0)",
                         "libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(4096), 102)")


@pytest.mark.parametrize(("setup", "test", "what"), [
    (DROPPABLE, "knows_droppable", "droppable memory"), (SEALED, "knows_seals", "sealed memory"),
    (GUARDED, "knows_guards", "guard regions")], ids=["droppable", "sealed", "guards"])
def test_an_older_kernel_that_lacks_what_the_job_uses(holding, monkeypatch, setup, test, what):
    offered(getattr(advice, test)(), f"this kernel has no {what}")
    subject = holding(setup)
    image = subject.checkpoint(kill=True)
    with monkeypatch.context() as patch:
        patch.setattr(advice, test, lambda: False)
        assert f"this kernel has no {what}" in str(refused(subject, image))
    subject.restart(image)
    subject.check()


def test_names_of_memory_are_not_worth_a_refusal(holding, monkeypatch):
    offered(advice.knows_names(), "this kernel does not name memory")
    subject = holding(SEALED.replace("libc.syscall(462, ctypes.c_void_p(at), ctypes.c_size_t(4096), 0)", (
        "libc.prctl(0x53564d41, 0, ctypes.c_void_p(at), ctypes.c_size_t(4096), b'name')")))
    image = subject.checkpoint(kill=True)
    monkeypatch.setattr(advice, "knows_names", lambda: False)
    subject.restart(image, compare=False)
    subject.check()


# -- images that make no sense --------------------------------------------------------------------------
def row(**different: object) -> Thread:
    good = {"pid": 5, "tid": 5, "name": b"x", "registers": bytes(216), "xstate": bytes(1000), "mask": U64(0),
            "rseq_address": U64(0), "rseq_size": 0, "rseq_signature": U64(0), "robust_list": U64(0), "robust_size": 0,
            "clear_tid": U64(0), "altstack": bytes(24), "call": -1, "moved": 0, "wanted": 0, "guarded": False,
            "until": -1}
    return Thread(**{**good, **different})   # type: ignore[arg-type]


@pytest.mark.parametrize("different", [
    {"registers": b""}, {"registers": bytes(215)}, {"xstate": bytes(100)}, {"altstack": b""}, {"name": b"x" * 16}])
def test_a_thread_of_no_form(different):
    ctx = SimpleNamespace(image="/image", rows=lambda record: [row(**different)] if record is Thread else [REAL])
    with pytest.raises(ImageDamaged, match="the state of thread 5 is not as prescribed"):
        threads.ThreadsKind().check(ctx)


@pytest.mark.parametrize(("size", "known", "good"), [
    (0, 28, True), (32, 28, True), (32, 0, True), (32, 40, True), (40, 40, True), (40, 48, False), (48, 0, False)])
def test_areas_for_restartable_sequences(monkeypatch, size, known, good):
    """The kernel takes 32 bytes, or as many as it fills (kernel/rseq.c)."""
    on(monkeypatch, rseq_size=known)
    ctx = SimpleNamespace(image="/image", rows=lambda record: [row(rseq_size=size)] if record is Thread else [REAL])
    try:
        threads.ThreadsKind().check(ctx)
        assert good
    except CrhpcError as error:
        assert not good and f"the area of {size} bytes" in str(error)


def test_a_layout_of_no_sense():
    good = replace(REAL, xsave=(2, 576, 256), xsave_size=832)
    assert good.layout is not None and good.layout.components == (Component(2, 576, 256),)
    for xsave in ((2,), (2, 576), (-1, 576, 8), (64, 576, 8), (2, 0, 8), (2, 576, -8), (2, 1 << 40, 8), (2, 576, 257)):
        assert replace(good, xsave=xsave).layout is None
    assert replace(REAL, xsave=(), xsave_size=0).layout is None
