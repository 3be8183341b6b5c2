"""Images verified in another process, so that none of their libraries comes into this one."""
from __future__ import annotations

import os
import subprocess
import sys

import pytest
from scripted_agent import damage, write_image
from supervised import ROOT

from crhpc import errors
from crhpc.verify import Checking, verify_apart

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
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(errors.NoImage, match="images cannot be checked here: ImportError: no h5py"):
        verify_apart(image)


def test_nothing_heavy_is_imported(image):
    code = ("import sys; from pathlib import Path; from crhpc import cli; from crhpc.verify import verify_apart\n"
            "verify_apart(Path(sys.argv[1])); print([m for m in ('numpy', 'h5py', 'mpi4py') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code, image], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.stdout == "[]\n"


def watched(image, patience=None):
    """As the supervisor does it."""
    checking = Checking(image)
    if patience is not None:
        checking.expires -= checking._patience - patience
    else:
        os.set_blocking(checking.child.output, True)
        while checking.child.drain():
            pass
    checking.finish()


def test_beside_other_work(image):
    watched(image)
    damage(image)
    with pytest.raises(errors.ImageDamaged, match=r"ckpt-000001 is damaged: shard-0\.h5"):
        watched(image)


def test_one_that_hangs(image):
    with pytest.raises(errors.NoImage, match="checking it took more than"):
        watched(image, patience=0)


def test_one_that_nobody_waits_for(image):
    Checking(image).give_up()
