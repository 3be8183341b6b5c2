"""Images verified in another process, so that none of their libraries comes into this one."""
from __future__ import annotations

import os
import subprocess
import sys

import pytest
from scripted_agent import damage, write_image
from supervised import ROOT

from crhpc import errors, verify
from crhpc.verify import verify_apart

JOB = {"id": "J", "argv": ["true"], "cwd": "/", "started": 1.0}


@pytest.fixture
def image(tmp_path):
    return write_image(tmp_path, 1, JOB, {})


def test_whole(image):
    verify_apart(image)


def test_damaged(image):
    damage(image)
    with pytest.raises(errors.ImageDamaged, match=r"ckpt-000001 is damaged: shard-0\.h5"):
        verify_apart(image)


def test_missing(tmp_path):
    with pytest.raises(errors.NoImage, match=r"manifest\.json"):
        verify_apart(tmp_path / "ckpt-000009")


def test_not_checkable(image, monkeypatch, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho ImportError: no h5py >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(verify.sys, "executable", str(broken))
    with pytest.raises(errors.NoImage, match="checking it failed: ImportError: no h5py"):
        verify_apart(image)


def test_nothing_heavy_is_imported(image):
    code = ("import sys; from pathlib import Path; from crhpc import cli; from crhpc.verify import verify_apart\n"
            "verify_apart(Path(sys.argv[1])); print([m for m in ('numpy', 'h5py', 'mpi4py') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code, image], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.stdout == "[]\n"
