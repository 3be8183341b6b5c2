"""What a job may have found out about the machine that it runs on, and goes by.

Tests stand in for another machine by replacing ``here``.
"""
from __future__ import annotations

import functools
import os
import platform
from dataclasses import dataclass, field

from crhpc.image.records import U64
from crhpc.kernel import cpu
from crhpc.kernel.cpu import Component, Layout
from crhpc.resources.context import Restore


@dataclass(frozen=True, slots=True)
class Machine:
    """The node of a pod. Its clock is in none of it: the vdso and its data always are the running kernel's."""

    kernel: str
    architecture: str
    page_size: int
    processor: str
    instructions: tuple[str, ...] = field(metadata={"doc": "flags of /proc/cpuinfo that a program may rely on"})
    hwcap2: U64 = field(metadata={"doc": "AT_HWCAP2: 2: instructions for FS and GS base"})
    signal_stack: int = field(metadata={"doc": "AT_MINSIGSTKSZ: bytes that the kernel puts on a stack at a signal"})
    rseq_size: int = field(metadata={"doc": "AT_RSEQ_FEATURE_SIZE"})
    xsave_size: int = field(metadata={"doc": "bytes of an XSAVE area of the standard format; 0: unknown"})
    xsave: tuple[int, ...] = field(metadata={"doc": "of each component: number, offset, size"})

    @property
    def layout(self) -> Layout | None:
        """Of XSAVE areas; None where it is not known."""
        words = self.xsave
        found = tuple(Component(*words[i:i + 3]) for i in range(0, len(words) // 3 * 3, 3))
        sound = all(0 <= each.number < 64 and each.offset >= 576 and each.size > 0
                    and each.offset + each.size <= self.xsave_size for each in found)
        return Layout(self.xsave_size, found) if self.xsave_size and sound and len(words) % 3 == 0 else None


@functools.lru_cache
def here() -> Machine:
    """This one."""
    try:
        layout = cpu.xsave_layout()
    except OSError:
        layout = Layout(0, ())
    return Machine(
        kernel=platform.release(), architecture=platform.machine(), page_size=os.sysconf("SC_PAGE_SIZE"),
        processor=cpu.model(), instructions=tuple(sorted(cpu.instructions(cpu.flags()))),
        hwcap2=U64(cpu.auxiliary(cpu.HWCAP2)), signal_stack=cpu.auxiliary(cpu.MINSIGSTKSZ),
        rseq_size=cpu.auxiliary(cpu.RSEQ_FEATURE_SIZE), xsave_size=layout.size,
        xsave=tuple(word for each in layout.components for word in (each.number, each.offset, each.size)))


def there(ctx: Restore) -> Machine | None:
    """The image's."""
    return next(iter(ctx.rows(Machine)), None)
