"""What of limits is refused or told; what is saved is in tests/programs/limits.c."""
from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from crhpc.kernel import proc
from crhpc.resources.limits import LimitsKind, OomScore, ResourceLimit

from .forking import forking

_CRAMPED = "resource.setrlimit(resource.RLIMIT_AS, (1 << 20, 1 << 20))"


@pytest.mark.skipif(os.getuid() == 0, reason="root may raise any limit")
def test_no_room_at_all_is_refused(refused):
    assert "a process that may have no more memory" in str(refused(forking(f"fork(lambda: {_CRAMPED})")))


@pytest.fixture
def child():
    process = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"],
                               stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def ctx(child):
    rows, warnings = {ResourceLimit: [], OomScore: []}, []
    task = SimpleNamespace(host=child.pid)
    return SimpleNamespace(tasks={2: task}, rows=rows.get, warn=warnings.append, warnings=warnings)


@pytest.mark.skipif(os.getuid() == 0, reason="root may raise any limit")
def test_a_hard_limit_above_ours_is_lowered_and_told(ctx, child):
    resource.prlimit(child.pid, resource.RLIMIT_CORE, (10, 20))
    ctx.rows(ResourceLimit).append(ResourceLimit(2, resource.RLIMIT_CORE, 15, 30))
    LimitsKind().restore(ctx)
    assert resource.prlimit(child.pid, resource.RLIMIT_CORE) == (15, 20)
    assert ctx.warnings == ["limit 'Max core file size' of pid 2 is 20 here, it was 30"]


def test_unlimited_is_more_than_any_limit(ctx, child):
    ctx.rows(ResourceLimit).append(ResourceLimit(2, resource.RLIMIT_CORE, 0, 1 << 40))
    ctx.rows(ResourceLimit).append(ResourceLimit(2, resource.RLIMIT_CPU, (1 << 64) - 1, (1 << 64) - 1))
    LimitsKind().restore(ctx)
    limits = proc.limits(child.pid)
    assert limits[resource.RLIMIT_CORE][0] == 0
    assert limits[resource.RLIMIT_CPU] == ((1 << 64) - 1, (1 << 64) - 1)


@pytest.mark.skipif(os.getuid() == 0, reason="root may do it")
def test_a_score_that_may_not_be_set_is_told(ctx, child):
    ctx.rows(OomScore).append(OomScore(2, -900))
    LimitsKind().restore(ctx)
    assert ctx.warnings == ["oom_score_adj -900 of pid 2 may not be set here"]
    child.send_signal(signal.SIGKILL)
