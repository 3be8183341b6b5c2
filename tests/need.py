"""What a test needs of the machine, and what happens where it is missing."""
from __future__ import annotations

import os

import pytest


def need(condition: object, reason: str) -> None:
    """Skip the test unless the condition holds; with CRHPC_TEST_ALL=1 (set in CI) fail it.

    Args:
        reason: what the machine lacks.
    """
    if condition:
        return
    if os.environ.get("CRHPC_TEST_ALL") == "1":
        pytest.fail(f"{reason}, and CRHPC_TEST_ALL=1 lets no test be skipped", pytrace=False)
    pytest.skip(reason)


def offered(condition: object, reason: str) -> None:
    """Skip the test unless the kernel, or the user's rights, offer what it needs: nobody can install that, CI neither.

    Args:
        reason: what is missing.
    """
    if not condition:
        pytest.skip(reason)
