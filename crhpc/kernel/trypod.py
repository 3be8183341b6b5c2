"""Tries a pod's namespaces, as a process of its own (``python -m crhpc.kernel.trypod``); for ``probe``.

Imports nothing that starts threads. Answers in JSON: what went wrong at each step, nothing where it worked.
"""
from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable

from crhpc.kernel import clone, namespaces

_SECONDS = 20


def try_pod() -> dict[str, str]:
    """In a process of its own: make a pod's namespaces step by step; what went wrong at each."""
    results: dict[str, str] = {}
    uid, gid = os.getuid(), os.getgid()
    flags = clone.CLONE_NEWPID | clone.CLONE_NEWNS | clone.CLONE_NEWIPC | clone.CLONE_NEWUTS
    user = clone.CLONE_NEWUSER if uid else 0

    def attempt(name: str, action: Callable[[], object]) -> None:
        try:
            action()
            results[name] = ""
        except OSError as error:
            results[name] = f"{error.filename}: {error.strerror}"

    def namespaces_of_own() -> None:
        clone.unshare(flags | user)
        if user:
            namespaces.map_own_ids(uid, gid)

    attempt("namespaces", namespaces_of_own)
    if results["namespaces"]:
        return results
    attempt("time namespace", lambda: clone.unshare(clone.CLONE_NEWTIME))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _try_inside(attempt)
        os.write(writer, json.dumps(results).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        inside = answer.read()
    os.waitpid(child, 0)
    return results | (json.loads(inside) if inside else {})


def _try_inside(attempt: Callable[[str, Callable[[], object]], None]) -> None:
    """As the first process of a pod, whose mounts go with it."""
    def chosen() -> None:
        pid, handle = clone.fork_as(77)
        if pid == 0:
            os._exit(0)
        os.close(handle)
        os.waitpid(pid, 0)

    def own_proc() -> None:
        namespaces.mount("", "/", flags=namespaces.MS_REC | namespaces.MS_SLAVE)
        namespaces.mount("proc", "/proc", "proc")

    attempt("own /proc", own_proc)
    attempt("own /dev/shm", lambda: namespaces.mount("tmpfs", "/dev/shm", "tmpfs"))
    attempt("own terminals",
            lambda: namespaces.mount("devpts", "/dev/pts", "devpts", options="newinstance,ptmxmode=0666"))
    attempt("chosen process ids", chosen)


def main() -> None:
    """Answer the parent; a pod that hangs is ended."""
    signal.alarm(_SECONDS)
    print(json.dumps(try_pod()))


if __name__ == "__main__":
    main()
