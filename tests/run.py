"""All tests: as the user who asks, and if that is root, at the same time as a plain user, as most users are.

Both sleep more than they compute, and what one leaves behind can't be taken for the other's, by its owner. What has
nothing to do with a user's rights is tested once; tests marked ``shared`` are divided between the two.
The plain user is a user id that nobody has. It gets a copy of this checkout, as root's may lie where others
can't read; and its environments, unless those of the checkout are readable. ``make test`` runs this.
"""
from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SYSTEM_PYTHON = Path("/usr/bin/python3")
ENVIRONMENTS = {".venv": "import crhpc, h5py, mpi4py, numpy, pytest, rich, zstandard",
                ".venv-openmpi": "import mpi4py, numpy"}
_LEFT_OUT = (".git", ".venv*", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis", "build", "demo-run",
             "checkpoints")
_NO_TESTS = 5   # pytest.ExitCode
_PYTEST = ["-m", "pytest", "-o", "tmp_path_retention_policy=failed", "-o", "tmp_path_retention_count=1"]


def main() -> int:
    arguments = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))   # and the plain user's files go, too
    tests = [*_PYTEST, *arguments]
    if os.getuid() != 0:
        return subprocess.run([sys.executable, *tests], cwd=ROOT, check=False).returncode
    user = _unused_user()
    with _checkout_of(user) as place, tempfile.TemporaryFile() as output:
        plain = _start_as(user, place, [str(place / "checkout/.venv/bin/python"), *tests], output.fileno())
        try:
            _title(f"tests as {_name(os.getuid())}")
            code = subprocess.run([sys.executable, *tests], cwd=ROOT, env=os.environ | {"CRHPC_TEST_SHARE": "root"},
                                  check=False).returncode
            plain.wait()
        finally:
            plain.terminate()
            plain.wait()
        _title(f"tests as a plain user, id {user}")
        output.seek(0)
        sys.stdout.buffer.write(output.read())
        sys.stdout.flush()
    return code or (plain.returncode if plain.returncode != _NO_TESTS else 0)   # all that was asked for runs once


def _start_as(user: int, place: Path, command: list[str], output: int) -> subprocess.Popen[bytes]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "SUDO_"))}
    for name in ("TMPDIR", "PYTHONDONTWRITEBYTECODE"):   # the first is root's, perhaps; see also conftest.py
        kept.pop(name, None)
    environment = kept | {"HOME": str(place / "home"), "USER": "plain", "LOGNAME": "plain",
                          "CRHPC_TEST_PURE": "0", "CRHPC_TEST_SHARE": "plain"}
    return subprocess.Popen(command, cwd=place / "checkout", env=environment, umask=0o022, user=user, group=user,
                            extra_groups=[], stdin=subprocess.DEVNULL, stdout=output, stderr=output)


@contextmanager
def _checkout_of(user: int) -> Iterator[Path]:
    """A place with a ``home`` and a ``checkout`` of the user's, with environments that it can use."""
    place = Path(tempfile.mkdtemp(prefix="crhpc-tests-", dir="/var/tmp"))
    try:
        place.chmod(0o755)
        (place / "home").mkdir()
        checkout = place / "checkout"
        _copy(checkout)
        _own(place, user)
        if not _share_environments(user, place):
            _make_environments(checkout)
            _own(place, user)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _copy(target: Path) -> None:
    """The files of this checkout: those that git knows or would take, else all that were not made here."""
    listing = subprocess.run(["git", "-c", "safe.directory=*", "ls-files", "-z", "-co", "--exclude-standard"],
                             cwd=ROOT, capture_output=True, check=False) if shutil.which("git") else None
    if listing is None or listing.returncode:
        shutil.copytree(ROOT, target, symlinks=True, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        return
    for name in map(os.fsdecode, filter(None, listing.stdout.split(b"\0"))):
        source = ROOT / name
        if source.is_file():   # else it was removed, and git was not told
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name, follow_symlinks=False)


def _share_environments(user: int, place: Path) -> bool:
    """Link to the environments of this checkout, if the user can run what is in them."""
    links = {place / "checkout" / name: test for name, test in ENVIRONMENTS.items()}
    for link in links:
        link.symlink_to(ROOT / link.name)
    if all(_can_use(user, place, link, test) for link, test in links.items()):
        return True
    for link in links:
        link.unlink()
    return False


def _can_use(user: int, place: Path, environment: Path, test: str) -> bool:
    try:
        return _start_as(user, place, [str(environment / "bin/python"), "-c", test], subprocess.DEVNULL).wait() == 0
    except PermissionError:
        return False


def _make_environments(checkout: Path) -> None:
    """Environments that everybody can use, made as root: the way to the packages is root's, perhaps."""
    if not SYSTEM_PYTHON.exists():
        sys.exit(f"tests as a plain user need a Python that everybody can run, as {SYSTEM_PYTHON}")
    _title("environments for the plain user")
    subprocess.run(["make", f"PYTHON={SYSTEM_PYTHON}", "venvs"], cwd=checkout, umask=0o022, check=True)


def _own(place: Path, user: int) -> None:
    subprocess.run(["chown", "-Rh", f"{user}:{user}", place], check=True)


def _unused_user() -> int:
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    return next(user for user in range(59001, 60000) if user not in taken)


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"


def _title(text: str) -> None:
    print(f"\n======== {text} ========", flush=True)


if __name__ == "__main__":
    sys.exit(main())
