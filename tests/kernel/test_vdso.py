"""The vdso of this kernel, and build ids; what is no such file raises nothing but what is said."""
from __future__ import annotations

import ctypes
import os
import random
import shutil
import subprocess
import sys

import pytest
from need import need

from crhpc.kernel import proc, vdso


def test_functions_are_where_they_are():
    """Called there."""
    (mapping,) = [m for m in proc.maps(os.getpid()) if m.name == vdso.NAME]
    seconds = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_void_p)(mapping.start + vdso.functions(vdso.own())["time"])
    assert seconds(None) > 1_700_000_000


def test_build_ids():
    assert len(vdso.build_id(vdso.own())) >= 8
    need(shutil.which("readelf"), "there is no readelf")
    said = subprocess.run(["readelf", "-n", sys.executable], capture_output=True, text=True, check=False).stdout
    with open(sys.executable, "rb") as file:
        found = vdso.build_id(file.read(16 << 10))
    assert (f"Build ID: {found.hex()}" in said) if found else "Build ID" not in said


@pytest.mark.parametrize("content", [b"", b"x", b"\x7fELF", bytes(10000), b"\x7fELF\x02\x01" + b"\xff" * 10000])
def test_no_such_file(content):
    assert vdso.build_id(content) == b""
    with pytest.raises(ValueError, match="it is no vdso"):
        vdso.functions(content)


def test_anything_at_all():
    rng, real = random.Random(7), vdso.own()
    for _ in range(2000):
        content = bytearray(real[:rng.choice([len(real), rng.randrange(len(real))])])
        for _ in range(rng.randrange(1, 20)):
            if content:
                content[rng.randrange(min(len(content), 0x800))] = rng.randrange(256)
        vdso.build_id(bytes(content))
        try:
            found = vdso.functions(bytes(content))
        except ValueError:
            continue
        assert all(0 <= at < len(content) for at in found.values())
