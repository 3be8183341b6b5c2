"""docs/kinds.md is what the code says, and says all that is refused."""
from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from crhpc import kinds
from crhpc.errors import PASSING
from crhpc.resources import Kind
from crhpc.resources import kinds as all_kinds

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/kinds.md"
WITH_REFUSALS = sorted(path for floor in ("resources", "engine", "coordinator")
                       for path in (ROOT / "crhpc" / floor).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_page_is_what_the_kinds_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == kinds.page(), "docs/kinds.md is out of date: make docs"


@pytest.mark.parametrize("kind", all_kinds(), ids=lambda kind: kind.name)
def test_a_kind_says_what_it_does(kind: Kind) -> None:
    assert kind.saved
    for text in (kind.saved, kind.afterwards, *(part for pair in kind.refused for part in pair)):
        assert not text.endswith("."), "the page ends the sentence"
        assert "|" not in text and "  " not in text


def test_every_kind_has_its_place() -> None:
    text = kinds.page()
    for kind in all_kinds():
        assert f"\n### {kind.name}\n" in text
        assert all(f"| {what} | {cure} |" in text for what, cure in kind.refused)


# -- what is refused ----------------------------------------------------------------------------------------
def _text(node: ast.expr | None) -> str:
    """What can be read of a string in the source; a number in one is ``{}``."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return ""


def cures(path: Path) -> Iterator[tuple[int, str]]:
    """The cures in a source file, with their lines: of ``refuse()`` and Unsupported, and in pairs with a reason."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name == "refuse" and len(node.args) == 3:
                yield node.lineno, _text(node.args[2])
            elif name == "Unsupported":
                yield from ((node.lineno, _text(word.value)) for word in node.keywords if word.arg == "cure")
        elif isinstance(node, ast.Tuple) and len(node.elts) == 2:
            what, cure = map(_text, node.elts)
            if what and " " in cure:
                yield node.lineno, cure


def test_cures_are_found() -> None:
    found = {text for path in WITH_REFUSALS for _, text in cures(path)}
    assert {"run it without chroot", "detach the debugger", "turn off zero-copy sends"} <= found
    assert len(found) > 40


@pytest.mark.parametrize("path", WITH_REFUSALS, ids=relative)
def test_every_refusal_is_on_the_page(path: Path) -> None:
    shown = {cure for kind in all_kinds() for _what, cure in kind.refused}
    for line, cure in cures(path):
        known = re.split(r"\{\}", cure)[0].removesuffix(" by ")
        assert any(known in text for text in shown), f"{relative(path)}:{line}: no kind tells of the cure {cure!r}"


BLOCK = re.compile(r"^`(\S+)`:\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_example_is_what_the_files_hold() -> None:
    """Every piece of code in docs/adding-a-kind.md, in its order; where it leaves something out it says ``...``."""
    blocks = BLOCK.findall((ROOT / "docs/adding-a-kind.md").read_text(encoding="utf-8"))
    assert len(blocks) == 4
    for name, code in blocks:
        source = (ROOT / name).read_text(encoding="utf-8")
        place = 0
        for piece in re.split(r"^\s*\.\.\.\n", code, flags=re.MULTILINE):
            assert piece.strip("\n") in source[place:], f"{name} has no more:\n{piece}"
            place = source.index(piece.strip("\n"), place) + len(piece.strip("\n"))


def test_what_passes_is_said_with_the_cure_that_makes_the_coordinator_try_again() -> None:
    assert any(cure == PASSING for kind in all_kinds() for _, cure in kind.refused)
