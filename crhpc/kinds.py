"""docs/kinds.md, made of what the kinds say of themselves: ``python -m crhpc.kinds``, or ``make docs``."""
from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import crhpc
from crhpc.errors import PASSING
from crhpc.resources import Chapter, Cut, Kind, Phase, kinds
from crhpc.resources.context import table_name
from crhpc.resources.files import FileKind

_HEAD = """\
# What is saved, and what is refused

Will my job come back? Each section says what of one kind of thing is saved, what no checkpoint is taken of, with the
cure that the message names, and what is not quite as it was after a restart. What is in none of these lists is a bug,
and so is every difference that a program can see and that this page does not tell.

A checkpoint that would not come back is refused before anything of the job has been touched, and the job goes on.
`crhpc run` looks a few seconds after the start, and warns. What is only passing is tried again by itself; its cure
is *{passing}*.

Of everything that comes back, these are new, and a program that remembers the old ones sees it: inode numbers of pipes,
sockets, shared memory and private files; mount numbers; times of start and processor times of processes; sizes in
memory, as pages come back when they are touched or written; everything in `/proc` and `/sys` that tells of the machine.
Names, numbers, contents and states are as they were.

This page is made by `make docs` from the kinds themselves (`crhpc/resources/`), and a test keeps it so. How a kind is
added: [adding-a-kind.md](adding-a-kind.md).
"""

_TABLES = """\
# In the image

The tables of each kind ([image-format.md](image-format.md) tells how they are stored), with what a column means where
its name does not tell. `-> file` refers to a row of another table. The moments are those of a checkpoint (inspect,
registers, collect, content, later) and of a restart (check to registers), explained in `crhpc/resources/__init__.py`.
"""

_WIDTH = 120
_MOMENTS: list[Cut | Phase] = [*Cut, *Phase]
_TYPES = {"tuple[int, ...]": "ints", "tuple[str, ...]": "strings", "U64": "u64"}
"""Annotations as they are written, and the types of image-format.md; others have the same name."""


def page() -> str:
    """The whole of docs/kinds.md."""
    found = kinds()
    parts = [_HEAD.format(passing=PASSING), _contents(found)]
    for chapter, several in _by_chapter(found):
        parts.append(f"## {chapter.value}\n")
        parts += [_section(kind) for kind in several]
    parts.append(_TABLES)
    parts += [_in_the_image(kind) for _, several in _by_chapter(found) for kind in several]
    return "\n".join(parts)


def _by_chapter(found: list[Kind]) -> Iterator[tuple[Chapter, list[Kind]]]:
    for chapter in Chapter:
        yield chapter, [kind for kind in found if kind.chapter is chapter]


def _contents(found: list[Kind]) -> str:
    return "\n".join(f"- **{chapter.value}**: " + ", ".join(f"[{kind.name}](#{kind.name})" for kind in several)
                     for chapter, several in _by_chapter(found)) + "\n"


def _section(kind: Kind) -> str:
    lines = [f"### {kind.name}", "", *_wrapped(f"**Saved**: {kind.saved}.")]
    if kind.refused:
        lines += ["", "| refused | cure |", "|---|---|", *(f"| {what} | {cure} |" for what, cure in kind.refused)]
    if kind.afterwards:
        lines += ["", *_wrapped(f"**After a restart**: {kind.afterwards}.")]
    return "\n".join(lines) + "\n"


def _wrapped(text: str) -> Iterator[str]:
    line = ""
    for word in text.split():
        if len(line) + 1 + len(word) > _WIDTH:
            yield line
            line = ""
        line += f" {word}" if line else word
    yield line


def _in_the_image(kind: Kind) -> str:
    moments = [moment.name.lower() for moment in _MOMENTS if kind.steps(moment)]
    if isinstance(kind, FileKind):
        moments = ["with files", *moments]
    lines = [f"### {kind.name} in the image", "",
             *_wrapped(f"`{_file(kind)}`, at {', '.join(moments)}.")]
    for record in kind.records:
        lines += ["", *_wrapped(f"`{table_name(record)}`: {_title(record)}"), ""]
        lines += ["| column | type | |", "|---|---|---|"]
        lines += [f"| `{field.name}` | {_type(field)} | {_meaning(field)} |" for field in dataclasses.fields(record)]
    return "\n".join(lines) + "\n"


def _file(kind: Kind) -> str:
    """Where it stands, from the checkout."""
    return Path(inspect.getfile(type(kind))).relative_to(Path(crhpc.__file__).parents[1]).as_posix()


def _title(record: type) -> str:
    return " ".join(inspect.cleandoc(record.__doc__ or "").split()).replace("``", "`")


def _type(field: dataclasses.Field[object]) -> str:
    return _TYPES.get(str(field.type), str(field.type))


def _meaning(field: dataclasses.Field[object]) -> str:
    words = []
    if ref := field.metadata.get("ref"):
        table, _, column = ref.partition(".")
        words.append(f"-> {table}" + ("" if column == "id" else f".{column}"))
    if doc := field.metadata.get("doc"):
        words.append(doc.replace("|", "\\|"))
    if field.metadata.get("path"):
        words.append("(a path: `--map` changes it)")
    if field.metadata.get("host"):
        words.append("(an address: of where the pod is by then)")
    return " ".join(words)


if __name__ == "__main__":
    sys.stdout.write(page())
