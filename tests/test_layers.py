"""Imports point down only: every import statement of the package is checked, also those inside functions."""
from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "crhpc"
MODULES = sorted(PACKAGE.rglob("*.py"))

GROUND = {"crhpc", "crhpc.errors", "crhpc.log", "crhpc.channel", "crhpc.filepolicy", "crhpc.stdio"}
"""What every floor may use: the standard library only, and no opinion on floors."""

ALLOWED: dict[str, set[str]] = {
    "kernel": set(),
    "image": set(),
    "resources": {"kernel", "image"},
    "engine": {"resources", "image", "kernel"},
    "coordinator": set(),
}
"""Beside itself and the ground, the floors that each floor may import."""

ONLY_IN: dict[str, set[str]] = {
    "mpi4py": {"coordinator/transport.py"},
    "ptrace": {"kernel/ptrace.py"},
    "h5py": {"image/"},
    "zstandard": {"image/"},
    "ctypes": {"kernel/", "engine/init.py", "resources/"},
    "rich": {"cli.py", "doctor.py", "progress.py", "tables.py", "supervisor.py"},
}
"""Third-party (and dangerous) modules, and the only places that may import them."""


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """The modules that a file imports anywhere, with line numbers; ``from x import y`` gives x and x.y."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield (node.module or "", node.lineno)
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def floor(module: str) -> str:
    """The floor of a dotted name: the package below crhpc, or '' for what lies at the top."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else ""


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_imports_point_down(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0] if len(path.relative_to(PACKAGE).parts) > 1 else ""
    if not own:
        return
    for name, line in imported(path):
        if not name.startswith("crhpc.") or name in GROUND or any(name.startswith(g + ".") for g in GROUND - {"crhpc"}):
            continue
        there = floor(name)
        assert there == own or there in ALLOWED[own], f"{relative(path)}:{line} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_libraries_stay_in_their_place(path: Path) -> None:
    for name, line in imported(path):
        places = ONLY_IN.get(name.split(".")[0])
        if places is not None:
            here = relative(path)
            assert any(here == place or (place.endswith("/") and here.startswith(place)) for place in places), \
                f"{here}:{line} imports {name}"


KINDS = sorted((PACKAGE / "resources").rglob("*.py"))
SHARED = {"crhpc.resources", "crhpc.resources.aside", "crhpc.resources.contents", "crhpc.resources.context",
          "crhpc.resources.families", "crhpc.resources.filling", "crhpc.resources.inside",
          "crhpc.resources.bridge", "crhpc.resources.facts",
          "crhpc.resources.files", "crhpc.resources.questions", "crhpc.resources.residency",
          "crhpc.resources.sharing",
          "crhpc.resources.connections", "crhpc.resources.distant", "crhpc.resources.windows",
          "crhpc.resources.tcprestore",
          "crhpc.resources.moved",
          "crhpc.resources.sockets", "crhpc.resources.space", "crhpc.resources.stubs", "crhpc.resources.lineage",
          "crhpc.resources.unsavable"}


@pytest.mark.parametrize("path", KINDS, ids=relative)
def test_kinds_do_not_import_each_other(path: Path) -> None:
    for name, line in imported(path):
        if name.startswith("crhpc.resources"):
            module = name if module_exists(name) else name.rpartition(".")[0]
            assert module in SHARED, f"{relative(path)}:{line} imports {name}"


def module_exists(name: str) -> bool:
    base = ROOT / Path(*name.split("."))
    return base.with_suffix(".py").exists() or (base / "__init__.py").exists()


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_files_stay_readable(path: Path) -> None:
    """Files of about 450 lines, functions of about 40: what is longer says nothing at a glance."""
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= 470, f"{relative(path)} has {source.count(chr(10))} lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if len(node.body) > 1 and ast.get_docstring(node) else node.body[0]
            length = (node.end_lineno or 0) - first.lineno + 1
            assert length <= 44, f"{relative(path)}:{node.lineno} {node.name} has {length} lines"


HEAVY = ("numpy", "h5py", "zstandard", "mpi4py", "ptrace", "rich")


def test_the_first_process_of_a_pod_imports_nothing_heavy() -> None:
    """It must have one thread; numpy alone would start more."""
    seen: set[str] = set()
    todo = ["crhpc.engine.init"]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        base = ROOT / Path(*name.split("."))
        path = base.with_suffix(".py") if base.with_suffix(".py").exists() else base / "__init__.py"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:   # what runs at import; TYPE_CHECKING blocks don't
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
            for found in names:
                assert found.split(".")[0] not in HEAVY, f"{name}: {found}"
                if found.startswith("crhpc") and module_exists(found):
                    todo.append(found)
