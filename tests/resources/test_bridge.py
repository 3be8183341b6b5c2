"""A job from another kernel: the image says that the vdso was another one, and the program calls where that was.

The other kernel is made up at the checkpoint: what ``vdso.own`` gives is stored in the image.
"""
from __future__ import annotations

import shutil
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from need import need
from pods import PROGRAMS, Subject, compile_program

from crhpc.errors import ImageDamaged, OtherMachine
from crhpc.image.reader import Image
from crhpc.image.records import U64
from crhpc.kernel import proc, ptrace, vdso
from crhpc.resources import bridge, memory, threads
from crhpc.resources.bridge import Piece, Vdso
from crhpc.resources.context import table_name
from crhpc.resources.space import KERNEL, Vma
from crhpc.resources.threads import Thread

REAL = vdso.own()
FUNCTIONS = vdso.functions(REAL)


def of_another_build(content: bytes = REAL) -> bytes:
    """The same code under another build id."""
    return content.replace(vdso.build_id(content), b"another build of it!")


def without_code() -> bytes:
    """Whoever runs into it, and not over a jump at a function's beginning, dies."""
    first = min(FUNCTIONS.values())
    return of_another_build()[:first] + b"\xcc" * (len(REAL) - first)


def test_that_build_is_another():
    assert vdso.build_id(of_another_build()) == b"another build of it!"
    assert vdso.functions(of_another_build()) == FUNCTIONS


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    need(shutil.which("gcc"), "there is no C compiler (gcc)")
    return compile_program(PROGRAMS / "vdso_calls.c", tmp_path_factory.mktemp("programs") / "vdso_calls")


@pytest.fixture
def subject(program, tmp_path) -> Iterator[Subject]:
    subject = Subject([str(program)], tmp_path)
    subject.start()
    yield subject
    subject.close()


def checkpoint(subject: Subject, monkeypatch: pytest.MonkeyPatch, content: bytes):
    """As on another kernel, whose vdso is ``content``."""
    with monkeypatch.context() as patch:
        patch.setattr(vdso, "own", lambda: content)
        return subject.checkpoint(kill=True)


def mappings(subject: Subject) -> dict[str, proc.Mapping]:
    assert subject.node is not None
    return {m.name: m for m in proc.maps(subject.node.root_host) if m.special}


@pytest.mark.parametrize("_time", range(3))
def test_calls_go_on_over_the_bridge(subject, monkeypatch, _time):
    """Threads are inside the old code all the time."""
    subject.start_of_vdso = mappings(subject)["[vdso]"].start
    image = checkpoint(subject, monkeypatch, of_another_build())
    subject.restart(image, compare=False)
    assert mappings(subject)["[vdso]"].start != subject.start_of_vdso
    subject.check()


@pytest.fixture
def inside(subject, monkeypatch):
    """An image of another kernel with a thread in the midst of its vdso."""
    for _ in range(100):
        image = checkpoint(subject, monkeypatch, of_another_build())
        code = next(row for row in rows(image, Vma) if row.path == "[vdso]")
        if any(code.start <= program_counter(row.registers) < code.end for row in rows(image, Thread)):
            return image
        subject.restart(image, compare=False)
    raise AssertionError("no thread is ever inside")


def rows(image, record):
    with Image(image) as opened:
        return opened.node(0).table(record, table_name(record))


def program_counter(registers: bytes) -> int:
    return ptrace.Registers.from_buffer_copy(registers).rip


def test_threads_inside_are_led_out(subject, inside, monkeypatch):
    found = []

    def led_out(ctx, task, tracee, made, registers, xstate):
        found.append(program_counter(registers))
        assert made.code.start <= found[-1] < made.code.end
        after = bridge.lead_out(ctx, task, tracee, made, registers, xstate)
        assert not made.inside(program_counter(after[0])) and len(after[1]) == len(xstate)
        return after
    monkeypatch.setattr(threads, "lead_out", led_out)
    subject.restart(inside, compare=False)
    assert found
    subject.check()


@pytest.mark.parametrize(("function", "arguments"), [("time", (0, 0)), ("clock_gettime", (5, "stack")),
                                                     ("clock_getres", (1, "stack"))])
def test_a_thread_that_would_bring_no_time(subject, inside, monkeypatch, function, arguments):
    """These read the old kernel's data and ask nobody: time(), coarse clocks, resolutions."""
    def begun(ctx, task, tracee, made, registers, xstate):
        changed = ptrace.Registers.from_buffer_copy(registers)
        changed.rip = made.code.start + FUNCTIONS[function]
        changed.rdi, changed.rsi = [changed.rsp - 4096 if each == "stack" else each for each in arguments]
        return bridge.lead_out(ctx, task, tracee, made, bytes(changed), xstate)
    monkeypatch.setattr(threads, "lead_out", begun)
    with pytest.raises(OtherMachine, match="was just reading a clock of the old kernel's"):
        subject.restart(inside, compare=False)


def test_nothing_but_the_jumps_is_used(holding, monkeypatch):
    subject = holding("", """
        before = time.monotonic(), time.time()
        assert 0 <= time.monotonic() - before[0] < 60 and 0 <= time.time() - before[1] < 60
        assert before[1] > 1.7e9 and time.clock_getres(time.CLOCK_MONOTONIC) > 0
        """)
    subject.restart(checkpoint(subject, monkeypatch, without_code()), compare=False)
    subject.check()


def test_over_two_bridges_and_back_home(subject, monkeypatch):
    """From a kernel to another, to a third, and on that one again."""
    for content in (of_another_build(), of_another_build(), REAL, REAL):
        subject.restart(checkpoint(subject, monkeypatch, content), compare=False)
    subject.check()


def test_functions_that_this_kernel_lacks_become_calls(subject, monkeypatch):
    image = checkpoint(subject, monkeypatch, of_another_build())
    monkeypatch.setattr(bridge.vdso, "functions", lambda content: FUNCTIONS if content != REAL else {})
    subject.restart(image, compare=False)
    subject.check()


def test_other_data_pages(subject, monkeypatch):
    """Before Linux 6.13 one mapping held all of them."""
    plain = memory._vma

    def older(ctx, task, mapping):
        row = plain(ctx, task, mapping)
        if row.backing != KERNEL or not row.path.startswith("[vvar"):
            return row
        pages = sorted((m for m in task.mappings if m.name.startswith("[vvar")), key=lambda m: m.start)
        if mapping.start != pages[0].start:
            return row.__class__(**{**{name: getattr(row, name) for name in row.__slots__}, "path": "[vsyscall]"})
        return row.__class__(**{**{name: getattr(row, name) for name in row.__slots__}, "path": "[vvar]",
                                "end": U64(pages[-1].end)})
    with monkeypatch.context() as patch:
        patch.setattr(memory, "_vma", older)
        image = checkpoint(subject, monkeypatch, REAL)
    subject.restart(image, compare=False)
    subject.check()


# -- where it goes --------------------------------------------------------------------------------------
CODE = Piece("[vdso]", 0x7ffff7fc9000, 0x7ffff7fcb000)
OWN = [Piece("[vvar]", 0x5000, 0x9000), Piece("[vdso]", 0x9000, 0xB000)]
CTX = SimpleNamespace(image="/image", rows=lambda record: [Vdso(REAL)])


def test_it_goes_near_the_old_code():
    made = bridge.plan(CTX, OWN, [CODE], [(0x7ffff7fd0000, 0x7ffff7ff0000, "rd ex")])
    assert made.homes == {"[vvar]": 0x7ffff7fc1000, "[vdso]": 0x7ffff7fc5000}
    assert made.slots == 0x7ffff7fc7000 and made.extent == (0x7ffff7fc1000, 0x7ffff7fc8000)
    made = bridge.plan(CTX, OWN, [CODE], [(0x7ffff7fc7000, CODE.start, "rd ex")])
    assert made.extent == (CODE.end + 0x1000, CODE.end + 0x8000)


def test_not_where_a_stack_or_the_heap_grows():
    taken = [(0x7ffff0000000, 0x7ffff7fc0000, "rd wr heap"), (0x7ffff7fe0000, 0x7ffff8000000, "rd wr gd stack"),
             (0x7ffff8000000, 0x7ffffffff000, "rd")]
    assert bridge.plan(CTX, OWN, [CODE], taken).extent == (0x7fffefff8000, 0x7fffeffff000)
    heap = (0x7fe000000000, 0x7fe000100000, "rd wr heap")   # far enough below
    assert bridge.plan(CTX, OWN, [CODE], [heap]).extent == (CODE.end + 0x1000, CODE.end + 0x8000)


def test_no_room_within_reach():
    taken = [(0x10000000, CODE.start, "rd"), (CODE.end, 0x7ffffffff000, "rd")]
    with pytest.raises(OtherMachine, match="there is no room for it"):
        bridge.plan(CTX, OWN, [CODE], taken)


# -- images that make no sense --------------------------------------------------------------------------
@pytest.mark.parametrize("content", [b"", b"\x7fELF", bytes(8192), REAL[:100], REAL[:0x300],
                                     REAL.replace(b"\x7fELF\x02", b"\x7fELF\x01")])
def test_what_is_no_vdso(content):
    ctx = SimpleNamespace(image="/image", rows=lambda record: [Vdso(content)])
    size = len(content)
    with pytest.raises(ImageDamaged):
        bridge.check(ctx, {5: [Piece("[vdso]", 0x1000, 0x1000 + size)]})


def test_another_size_than_the_mapping():
    with pytest.raises(ImageDamaged, match="another vdso"):
        bridge.check(CTX, {5: [Piece("[vdso]", 0x1000, 0x2000)]})


def test_functions_too_close_for_jumps(monkeypatch):
    monkeypatch.setattr(bridge.vdso, "functions", lambda content: {"time": 100, "getcpu": 104})
    with pytest.raises(OtherMachine, match="no room for jumps"):
        bridge.jumps(CTX, REAL)


def test_an_image_without_it():
    ctx = SimpleNamespace(image="/image", rows=lambda record: [])
    with pytest.raises(OtherMachine, match="another layout"):
        bridge.check(ctx, {5: [Piece("[vdso]", 0x1000, 0x3000)]})
