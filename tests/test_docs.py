"""What the documentation names is there: files, links, options, variables, messages."""
from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from crhpc import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = (ROOT / "docs/cli.md").read_text(encoding="utf-8")


def name(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_and_links(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    files = set(re.findall(r"`((?:\w+/)*\w+\.(?:py|md|[ch]))`", text)) - {"kind.c", "doc.c", "ref.c"}
    places = [ROOT, ROOT / "crhpc", ROOT / "crhpc/resources", ROOT / "docs"]
    assert not [file for file in files if not any((place / file).exists() for place in places)]
    for link, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", text):
        target = page.parent / link if link else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, anchor


def commands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (action for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(action.choices)


@pytest.mark.parametrize("command", commands())
def test_options(command: str) -> None:
    """Each option is in the command's line of docs/cli.md, with its help, and nothing else is."""
    parser = commands()[command]
    options = {option for action in parser._actions for option in action.option_strings} - {"-h", "--help", "--verbose"}
    lines = re.findall(rf"^crhpc {command}\b(.*(?:\n  .*)*)", COMMANDS, re.MULTILINE)
    assert options == set(re.findall(r"(?<=\[)--?[\w-]+", lines[0])), lines[0]
    assert all(action.help and action.help != argparse.SUPPRESS for action in parser._actions)
    assert parser.format_help()


def test_variables() -> None:
    internal = {"CRHPC_SUPERVISOR", "CRHPC_SECRET", "CRHPC_MONITOR", "CRHPC_PATIENCE"}   # from a supervisor to agents
    used = {variable for path in (ROOT / "crhpc").rglob("*.py")
            for variable in re.findall(r"\bCRHPC_[A-Z]+\b", path.read_text(encoding="utf-8"))}
    assert used - internal == set(re.findall(r"\bCRHPC_[A-Z]+\b", COMMANDS))


def test_tests_that_run_once_are_there() -> None:
    from conftest import PURE

    assert all((ROOT / "tests" / path).exists() for path in PURE)
