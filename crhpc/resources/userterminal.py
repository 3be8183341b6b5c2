"""What the job has changed of the settings of the user's own terminal, its standard streams.

A program that had switched echo or lines off, and will put back what it found, takes the terminal of its restart for
switched, too. Only what differed from what the job had found is changed there: the rest is that terminal's own.
"""
from __future__ import annotations

from dataclasses import dataclass, field

from crhpc.errors import ImageDamaged
from crhpc.kernel import ptys
from crhpc.resources import Chapter, Cut, Kind, Phase, at
from crhpc.resources.context import Dump, Restore


@dataclass(frozen=True, slots=True)
class UserTerminal:
    """A standard stream that is a terminal whose settings were other than when the job got it."""

    stream: int = field(metadata={"doc": "0, 1 or 2"})
    found: bytes = field(metadata={"doc": "struct termios2 at first"})
    changed: bytes = field(metadata={"doc": "struct termios2 at the checkpoint"})


class UserTerminalKind(Kind):
    name = "userterminal"
    chapter = Chapter.CHANNELS
    records = (UserTerminal,)
    saved = ("what the job has changed of the settings of the user's terminal, where it is a standard stream: lines, "
             "echo, signals, control characters")
    afterwards = "its size, speed and all that the job has not changed are those of the new terminal"

    @at(Cut.COLLECT)
    def dump(self, ctx: Dump) -> None:
        for stream, found in enumerate(ctx.pod.terminals):
            now = ptys.settings_if_any(ctx.pod.stdio[stream]) if found else b""
            if now and now != found:
                ctx.add(UserTerminal(stream, found, now))

    @at(Phase.CHECK)
    def check(self, ctx: Restore) -> None:
        for row in ctx.rows(UserTerminal):
            if row.stream not in (0, 1, 2) or {len(row.found), len(row.changed)} != {ptys.SETTINGS.size}:
                raise ImageDamaged(image=ctx.image, what="settings of the user's terminal that can't be")

    @at(Phase.LAST)
    def change(self, ctx: Restore) -> None:
        """As late as can be; a restart that fails puts them back."""
        for row in ctx.rows(UserTerminal):
            fd = ctx.pod.stdio[row.stream]
            now = ptys.settings_if_any(fd)
            if now:
                ptys.change(fd, _merged(now, row.found, row.changed))
                ctx.undo.callback(ptys.change, fd, now)


def _merged(now: bytes, found: bytes, changed: bytes) -> bytes:
    """Settings with those bits and characters of the second that differ from the first; speeds are the terminal's."""
    mine, old, new = (ptys.SETTINGS.unpack(settings) for settings in (now, found, changed))
    flags = zip(mine[:4], old[:4], new[:4], strict=True)
    iflag, oflag, _cflag, lflag = (m & ~(a ^ b) | b & (a ^ b) for m, a, b in flags)
    characters = bytes(m if a == b else b for m, a, b in zip(mine[5], old[5], new[5], strict=True))
    return ptys.SETTINGS.pack(iflag, oflag, mine[2], lflag, mine[4], characters, *mine[6:])
