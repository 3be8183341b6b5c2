"""Several nodes on one machine, made of namespaces, for tests of what crosses nodes.

Needs root, iproute2 and util-linux. A node has its own network, pid, mount, ipc and uts namespaces, and its own /tmp,
/dev/shm, /run, /dev/pts, /proc, /sys and boot_id; the rest is the machine's. All nodes hang on one bridge; ``shared``
is a directory that all of them see. A node can lose its power (no FIN, no reset: its cable is pulled first) or its
cable alone.
"""
from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve()
RSH = _HERE.with_name("rsh.py")
_UNSHARE = ["unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--propagation", "private"]
_PATIENCE = 20.0


def sh(script: str) -> None:
    """Run a few lines of shell.

    Raises:
        subprocess.CalledProcessError: one of them fails; with what it said.
    """
    subprocess.run(["sh", "-euc", script], check=True, capture_output=True, text=True)


class Node:
    """One node: ``node1`` and so on."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster = cluster
        self.number = number
        self.name = f"node{number}"
        self.address = f"{cluster.net}.{number}"
        self.home = cluster.place / self.name
        self.pid = 0
        """Its first process, by the machine's number; 0 while it is off."""

    # -- power and cable ------------------------------------------------------------------------------
    def start(self) -> None:
        """Switch it on, with an empty /tmp and its old name and address."""
        self.home.mkdir(exist_ok=True)
        command = [sys.executable, "-P", str(_HERE), str(self.cluster.place), self.name, self.address]
        outer = subprocess.Popen([*_UNSHARE, *command],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/",
                                 start_new_session=True)
        assert outer.stdin is not None and outer.stdout is not None and outer.stderr is not None
        self.cluster.outer[self.number] = outer
        self.pid = _only_child(outer)
        # The same hardware address as before: others remember it for a while.
        mac = f"02:00:0a:4d:{self.cluster.subnet:02x}:{self.number:02x}"
        port = f"port{self.number}"
        sh(f"ip -n {self.cluster.switch} link del {port} 2>/dev/null || true\n"
           f"ip -n {self.cluster.switch} link add {port} type veth peer name eth0 address {mac} netns {self.pid}\n"
           f"ip -n {self.cluster.switch} link set {port} master bridge up")
        outer.stdin.write(b"go\n")
        outer.stdin.close()
        if outer.stdout.readline() != b"ready\n":
            raise RuntimeError(f"{self.name} does not start: {outer.stderr.read().decode()}")

    def cut(self) -> None:
        """Pull its cable: silence in both directions."""
        sh(f"ip -n {self.cluster.switch} link set port{self.number} down")

    def mend(self) -> None:
        sh(f"ip -n {self.cluster.switch} link set port{self.number} up")

    def kill(self) -> None:
        """Its power goes: nobody hears a goodbye."""
        if self.pid:
            self.cut()
            self._end()

    def _end(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)   # the kernel ends the rest of its pid namespace
        outer = self.cluster.outer.pop(self.number)
        outer.wait()
        for pipe in (outer.stdout, outer.stderr):
            if pipe is not None:
                pipe.close()
        self.pid = 0

    # -- commands -------------------------------------------------------------------------------------
    def command(self, argv: Sequence[str | Path], user: int | None = None) -> list[str]:
        """What runs a command on it, to be started on the machine as root; the working directory stays."""
        enter = ["nsenter", "-t", str(self.pid), "--net", "--uts", "--ipc", "--mount", "--pid", f"--wd={os.getcwd()}"]
        become = [] if user is None else ["setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups"]
        return [*enter, "--", *become, *map(str, argv)]

    def start_command(self, argv: Sequence[str | Path], *, user: int | None = None, cwd: Path | None = None,
                      environment: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
        """Start a command on it, in the environment of the tests."""
        words = self.command(argv, user)
        words = [f"--wd={cwd}" if word.startswith("--wd=") and cwd is not None else word for word in words]
        return subprocess.Popen(words, env={**os.environ, **(environment or {})}, **options)

    def run(self, script: str, *, user: int | None = None, check: bool = True) -> str:
        """Run lines of shell on it. Returns: what they say."""
        done = subprocess.run(self.command(["sh", "-c", script], user), capture_output=True, text=True, check=False,
                              timeout=120)
        if check and done.returncode:
            raise RuntimeError(f"{self.name}: {script}: {done.returncode}: {done.stderr}")
        return done.stdout


class Cluster:
    """Nodes from entry to exit; a context manager."""

    def __init__(self, count: int, place: Path, binds: Sequence[Path] = ()) -> None:
        """
        Args:
            place: an empty directory, where what the nodes need is kept.
            binds: directories under /tmp and /run that all nodes see.
        """
        unique = uuid.uuid4()
        self.subnet = unique.int % 200 + 20
        self.net = f"10.77.{self.subnet}"
        self.switch = f"crhpc-{unique.hex[:8]}"
        self.place = place
        self.shared = place / "shared"
        self.outer: dict[int, subprocess.Popen[bytes]] = {}
        self.place.chmod(0o755)
        self.shared.mkdir()
        self.shared.chmod(0o1777)
        self.nodes = [Node(self, number) for number in range(1, count + 1)]
        visible = sorted({str(path.resolve()) for path in (place, _HERE.parents[2], *binds)})
        (place / "binds").write_text(json.dumps(visible))
        names = "".join(f"{node.address} {node.name}\n" for node in self.nodes)
        (place / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        self.rsh = self.shared / "rsh"
        self.rsh.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -P {shlex.quote(str(RSH))} \"$@\"\n")
        self.rsh.chmod(0o755)

    def __enter__(self) -> Cluster:
        try:
            sh(f"ip netns add {self.switch}\nip -n {self.switch} link add bridge type bridge\n"
               f"ip -n {self.switch} link set bridge up")
            for node in self.nodes:
                node.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            if node.number in self.outer:
                node._end()
        subprocess.run(["ip", "netns", "del", self.switch], capture_output=True, check=False)
        shutil.rmtree(self.place, ignore_errors=True)

    def __getitem__(self, number: int) -> Node:
        """``cluster[1]`` is node1."""
        return self.nodes[number - 1]


def _only_child(outer: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + _PATIENCE
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
    while outer.poll() is None and time.monotonic() < deadline:
        if found := children.read_text().split():
            return int(found[0])
        time.sleep(0.002)
    raise RuntimeError(f"no namespaces: {outer.stderr.read().decode() if outer.stderr else ''}")


# -- the first process of a node --------------------------------------------------------------------------
def boot(place: Path, name: str, address: str) -> None:
    """Make the node's own view of the machine, then serve the remote shell.

    Where some of /proc is hidden no user may mount one of a new pid namespace, unless there is a whole one somewhere.
    """
    sys.path.insert(0, str(_HERE.parent))
    import rsh

    sys.stdin.readline()   # its network device is there
    home = place / name
    (home / "boot_id").write_text(f"{uuid.uuid4()}\n")   # UCX tells machines apart by it
    for top, mode in (("/tmp", 1777), ("/run", 755)):
        sh(f"mkdir -p {home}{top}\nmount -n -t tmpfs -o mode={mode} tmpfs {home}{top}")
        for path in json.loads((place / "binds").read_text()):
            if path.startswith(f"{top}/"):
                sh(f"mkdir -p {home}{path}\nmount -n --rbind {path} {home}{path}")
    sh(f"""hostname {name}
        mkdir -p {home}/whole
        mount -n -t proc proc {home}/whole
        mount -n -t proc proc /proc
        mount -n -t sysfs sysfs /sys
        mount -n -t tmpfs -o mode=1777 tmpfs /dev/shm
        mount -n -t devpts -o ptmxmode=666 devpts /dev/pts
        mount -n --bind {home}/boot_id /proc/sys/kernel/random/boot_id
        mount -n --bind {place}/hosts /etc/hosts
        ip link set lo up
        ip address add {address}/24 dev eth0
        ip link set eth0 up
        mkdir -p {home}/run/lock""")
    os.chdir(home)
    sh("mount -n --move run /run\nmount -n --move tmp /tmp")
    os.chdir("/")
    os.write(1, b"ready\n")
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(0, 1)
    rsh.serve(address)


if __name__ == "__main__":
    boot(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
