"""What a test needs of the machine, and what happens where it is missing."""
from __future__ import annotations

import ctypes
import os
import socket
import struct

import pytest

_SO_ATTACH_FILTER = 26


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


def filters_are_allowed() -> bool:
    """Whether a socket takes a classic filter: a plain user's needs room for its machine code, and may not get any.

    net.core.bpf_jit_limit bounds it for all users together (EPERM).
    """
    accept_all = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0xFFFF))
    with socket.socket() as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER,
                            struct.pack("HxxxxxxQ", 1, ctypes.addressof(accept_all)))
        except PermissionError:
            return False
    return True
