"""``Node``: the one door to a node's share of the job. Plain data in, plain data out; no MPI, no other node."""
from __future__ import annotations

import contextlib
import os
import resource
import socket
import time
from base64 import b85decode, b85encode
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from crhpc.engine import freeze as freezing
from crhpc.engine.description import boot_id, check_description
from crhpc.engine.doorway import Doorway
from crhpc.engine.dump import Cutting, survey, write_tables, write_tree
from crhpc.engine.explained import checkpointing, restarting
from crhpc.engine.pod import PodProcess
from crhpc.engine.redirect import Redirector
from crhpc.engine.restore import Rebuilding, preview
from crhpc.engine.watch import watch
from crhpc.errors import ENDING, PASSING, CheckpointFailed, ImageDamaged
from crhpc.filepolicy import FilePolicy
from crhpc.image.reader import Image
from crhpc.image.writer import ShardWriter
from crhpc.kernel import addresses, proc
from crhpc.log import Steps, logger
from crhpc.resources import kinds
from crhpc.resources.context import Dump, Pod
from crhpc.resources.distant import LeftBehind, forget
from crhpc.resources.files.tcp import distant, endpoints, left_behind, windows

log = logger(__name__)

_PARTLY_FILLED = 16 << 20
"""For the buffers that are not full when a file or a segment is at its end."""


class Node:
    """A node of the job. One checkpoint or one restart at a time; all calls but ``write`` from one thread."""

    def __init__(self, number: int, *, memory: int, level: int, warn: Callable[[str], None]) -> None:
        """
        Args:
            number: this node's among the job's.
            memory: bytes that pages in flight may take.
            level: of zstd.
            warn: takes lines for the user.
        """
        self.number = number
        self.memory = memory
        self.level = level
        self.warn = warn
        self.kinds = kinds()
        self.pod: PodProcess | None = None
        self.context: Pod | None = None
        self.root = 0
        """The job's first process, by the pod's number."""
        self.root_host = 0
        self.root_status: int | None = None
        """Its wait status once it has ended, while others of the job may go on."""
        self.steps = Steps()
        self._doorway = Doorway()
        self._names: dict[str, str] = {}
        """What the pod is called, wherever it is: of the node where it began."""
        self._addresses: list[list[str]] = []
        """The addresses that the job knows it by, with those of this machine that are behind them."""
        self._remembered: dict[str, Any] = {}
        self._writer: ShardWriter | None = None
        self._frozen: freezing.Frozen | None = None
        self._cutting: Cutting | None = None
        self._dump: Dump | None = None
        self._image: Image | None = None
        self._rebuilding: Rebuilding | None = None
        self._redirector: Redirector | None = None

    def addresses(self, name: str) -> list[str]:
        """This machine's, those first that a name of it stands for."""
        return addresses.known_by(name)

    # -- a new job --------------------------------------------------------------------------------
    def start(self, command: dict[str, Any] | None, stdio: tuple[int, int, int], temporary: str,
              files: dict[str, dict[str, Any]] | None = None) -> dict[str, int]:
        """Make a pod and start a command in it; its ids.

        Args:
            command: argv, env, cwd, umask, cpus, ignored signals; None where the pod waits for ``spawn``.
            temporary: the pod's directory for temporary files.
            files: what is put there, by name: text and mode.

        Raises:
            NotAllowed: the system refuses the pod.
            CommandNotFound: the command can't be run.
        """
        self._names = {"hostname": socket.gethostname(), "boot_id": boot_id()}
        self._addresses = [[address, address] for address in addresses.own_addresses()]
        self.pod = PodProcess(temporary, hostname=self._names["hostname"], boot_id=self._names["boot_id"])
        self.context = self.pod.context(stdio)
        for name, file in (files or {}).items():
            path = os.path.join(self.pod.place, name)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, file["mode"]), "w", encoding="utf-8") as out:
                out.write(file["text"])
        if command is not None:
            environment = {**command["env"], "TMPDIR": temporary}
            self.root, self.root_host = self.pod.start({**command, "env": environment}, stdio)
        _allow_many_descriptors()
        return {"pid": self.root, "host_pid": self.root_host, "tasks": int(command is not None)}

    def listen(self, address: str) -> int:
        """Expect connections of another node to a command that will be spawned; the port.

        Raises:
            NotAllowed: this is not an address of the node's.
        """
        return self._doorway.open(address)

    def spawn(self, command: str, environment: dict[str, str], peers: list[tuple[str, int]]) -> int:
        """Start a command line of the job's remote shell; its pid in the pod.

        Args:
            peers: where the connections to its streams come from: standard input and output, standard error, and the
                one over which its exit status goes.

        Raises:
            CrhpcError: they don't come, or there is no shell.
        """
        assert self.pod is not None
        with self._doorway.taken(peers) as (both, errors, status):
            place = environment.get("HOME", "/")
            # Who only left a daemon behind is over: that has the streams, but not the status.
            line = f"( {command}\n) 3>&-; echo $? >&3"
            return self.pod.start({"argv": ["/bin/sh", "-c", line], "root": False, "umask": 0o022,
                                   "cwd": place if os.path.isdir(place) else "/",
                                   "env": {**environment, "TMPDIR": self.pod.temporary}},
                                  (both, both, errors, status))[0]

    # -- checkpoint -------------------------------------------------------------------------------
    def precopy(self, directory: str) -> None:
        """Open the shard in an image's temporary directory.

        Raises:
            CrhpcError: it can't be written.
        """
        self.steps = Steps()
        with checkpointing(directory):
            self._writer = ShardWriter(Path(directory), self.number, level=self.level, memory=self.memory)
        # Shared memory counts for each that has it: better too many buffers than a page fault for each in the freeze.
        sizes = [proc.resident(host) for host in proc.descendants(self.pod.pid)] if self.pod else []
        self._writer.prepare(sum(sizes) + _PARTLY_FILLED)

    def freeze(self) -> int:
        """Stop every thread of the pod; how many tasks there are.

        Raises:
            CrhpcError: something can't be stopped, or the job is just ending: nothing would be left to restart.
        """
        assert self.pod is not None
        if self._redirector is not None:
            self._redirector.pause()
        try:
            with self.steps.step("freeze", log):
                self._frozen = freezing.freeze(self.pod.pid)
        except BaseException:
            self._go_on_redirecting()
            raise
        if self.root and self.root_status is None and all(task.pid != self.root for task in self._frozen.tasks):
            raise CheckpointFailed(why=ENDING, cure=PASSING)
        return len(self._frozen.tasks) + len(self._frozen.zombies)

    def settle(self) -> list[Any]:
        """Wait until what is under way from other nodes has arrived; ``cut`` does the rest.

        Returns: senders to other nodes whose window is full: their own and the other end's name.

        Raises:
            CrhpcError: something can't be saved. The pod is unchanged and still frozen.
        """
        assert self.pod is not None and self.context is not None
        assert self._frozen is not None and self._writer is not None
        self._writer.hold()   # the cores are for the copy while the job waits
        self._cutting = Cutting(self._frozen, self.pod, self.context, self._writer, self.kinds, self._remembered,
                                self.steps)
        with checkpointing(str(self._writer.path.parent)):
            self._cutting.begin()
            return list(windows(self._cutting.ctx).full())

    def expect(self, senders: list[Any]) -> int:
        """Look for receivers of this node whose senders, elsewhere, have a full window; how many there are.

        Raises:
            CrhpcError: one can't be read empty; the pod is unchanged.
        """
        assert self._cutting is not None
        return windows(self._cutting.ctx).expect(_named(senders))

    def drain(self) -> bool:
        """Read those empty once; whether the senders of this node have nothing left. Until all have not."""
        assert self._cutting is not None
        return windows(self._cutting.ctx).drain()

    def taken(self) -> list[Any]:
        """What was read: the sender's and the receiver's name, and the bytes, for ``refill`` there."""
        assert self._cutting is not None
        return [[one, other, b85encode(data).decode()] for one, other, data in windows(self._cutting.ctx).taken()]

    def refill(self, returned: list[Any]) -> None:
        """Send again what receivers elsewhere have read."""
        assert self._cutting is not None
        windows(self._cutting.ctx).refill([(*_named([(a, b)])[0], b85decode(data)) for a, b, data in returned])

    def cut(self) -> list[dict[str, Any]]:
        """Take everything of the frozen pod; the ends of its connections, as plain rows.

        Raises:
            CrhpcError: something can't be saved. The pod is unchanged and still frozen.
        """
        if self._cutting is None:
            self.settle()
        assert self._cutting is not None and self._writer is not None
        cutting, self._cutting = self._cutting, None
        with checkpointing(str(self._writer.path.parent)):
            self._dump = cutting.finish()
        return endpoints(self._dump)

    def thaw(self) -> float:
        """Let the pod go on; the seconds that it stood still."""
        assert self._frozen is not None
        seconds, self._frozen = freezing.thaw(self._frozen), None
        self._go_on_redirecting()
        if self._writer is not None:
            self._writer.go()
        return seconds

    def _go_on_redirecting(self) -> None:
        if self._redirector is not None:
            self._redirector.resume()

    def write(self) -> dict[str, Any]:
        """Finish the shard; its summary. May run in another thread than the rest, while the job goes on.

        Raises:
            CrhpcError: it can't be written.
        """
        assert self._writer is not None and self._dump is not None
        with checkpointing(str(self._writer.path.parent)), self.steps.step("write", log):
            write_tables(self._dump, self.kinds)
            write_tree(self._dump)
            summary = self._writer.close()
        self._writer = self._dump = None
        return summary.to_json()

    def progress(self) -> tuple[int, int]:
        """Bytes taken and bytes stored of the checkpoint under way."""
        writer = self._writer
        return writer.progress() if writer is not None else (0, 0)

    def abort(self) -> None:
        """Give a checkpoint up: the pod goes on, the shard goes. Never raises."""
        cutting, self._cutting = self._cutting, None
        if cutting is not None:
            cutting.close()
        if self._frozen is not None:
            self.thaw()
        writer, self._writer, self._dump = self._writer, None, None
        if writer is not None:
            writer.abort()

    def describe(self) -> dict[str, Any]:
        """What a restart needs to know of the pod beside its shard."""
        assert self.pod is not None
        ahead = {name: self.pod.clock_offset(name) for name in ("monotonic", "boottime")}
        monotonic, boottime = time.clock_gettime(time.CLOCK_MONOTONIC), time.clock_gettime(time.CLOCK_BOOTTIME)
        return {"temporary": self.pod.temporary, "root": self.root, "root_status": self.root_status,
                **self._names, "addresses": self._addresses,
                "monotonic": monotonic + ahead["monotonic"], "boottime": boottime + ahead["boottime"],
                "last_pid": int(self.pod.request({"op": "read", "path": "/proc/sys/kernel/ns_last_pid"})["text"])}

    # -- restart ----------------------------------------------------------------------------------
    def check(self, image: str, described: dict[str, Any], policy: dict[str, Any]) -> list[str]:
        """What ``build`` and the rest would do to the user's files, a line each; nothing is made.

        The standard streams are left out: those of a restart are its own.

        Args:
            as for ``build``.

        Raises:
            CrhpcError: it can't be restarted here.
        """
        with restarting(image, self.end), Image(image) as opened, open(os.devnull, "rb+", buffering=0) as nothing:
            files = FilePolicy.from_message(policy)
            check_description(image, described)
            context = Pod(os.getpid(), files.path(described["temporary"]), stdio=(nothing.fileno(),) * 3)
            return preview(opened.node(self.number), Path(image), context, self.kinds, self.warn, files)

    def left(self, image: str) -> list[Any]:
        """What closed connections with other nodes keep of ports that the pod of an image needs: family and two names.

        Raises:
            CrhpcError: the image is damaged.
        """
        with restarting(image, self.end), Image(image) as opened:
            return [[row.family, row.local, row.remote] for row in left_behind(opened.node(self.number))]

    def forget(self, rows: Sequence[Any]) -> None:
        """End those of other nodes whose other end was here."""
        forget([LeftBehind(family, (one[0], one[1]), (other[0], other[1])) for family, one, other in rows])

    def build(self, image: str, described: dict[str, Any], stdio: tuple[int, int, int],
              policy: dict[str, Any] | None = None, places: dict[str, Any] | None = None, *,
              guest: bool = False) -> int:
        """Rebuild the pod of an image up to its open files, all stopped; how many tasks it has.

        Args:
            described: what ``describe`` gave at the checkpoint.
            policy: of files, as FilePolicy.to_message gives it.
            places: what became of the addresses that the job knows, as crhpc/coordinator/placement.py reckons it.
            guest: another pod of the job is on this machine, too, and has the directory for temporary files.

        Raises:
            CrhpcError: it can't be restarted here.
        """
        with restarting(image, self.end):
            self.steps = Steps()
            self._image = Image(image)
            check_description(image, described)
            files = FilePolicy.from_message(policy or {})
            self._names = {name: described[name] for name in ("hostname", "boot_id")}
            self.pod = PodProcess(files.path(described["temporary"]), self.number if guest else None,
                                  hostname=described["hostname"],
                                  boot_id=described["boot_id"],
                                  clocks={"monotonic": described["monotonic"], "boottime": described["boottime"]})
            self.context = self.pod.context(stdio)
            self._addresses = places["addresses"] if places else described["addresses"]
            if places:
                self.context.redirects.place(places)
            self.root, self.root_status = described["root"], described["root_status"]
            _allow_many_descriptors()
            self._rebuilding = Rebuilding(self._image.node(self.number), Path(image), self.pod, self.context,
                                          self.kinds, self.warn, self.steps, files)
            self._rebuilding.build()
            if self.root and self.root_status is None and self.root not in self._rebuilding.ctx.tasks:
                raise ImageDamaged(image=image, what=f"the job's first process, {self.root}, is not in it")
        return len(self._rebuilding.ctx.tasks)

    def offer(self, links: Sequence[dict[str, int]]) -> dict[str, tuple[str, int]]:
        """Listen for connections with other nodes that began there; addresses by number.

        Args:
            links: of this node: number, file, the other node and its file, and whether this end offers.

        Raises:
            CrhpcError: it can't be restarted here.
        """
        assert self._rebuilding is not None and self._image is not None
        with restarting(str(self._image.path), self.end):
            return distant(self._rebuilding.ctx).offer(links)

    def reach(self, links: Sequence[dict[str, int]], offers: dict[str, Any]) -> dict[str, tuple[str, int]]:
        """Connect to what other nodes offer; the names of this node's ends, by number.

        Raises:
            CrhpcError: it can't be restarted here.
        """
        assert self._rebuilding is not None and self._image is not None
        with restarting(str(self._image.path), self.end):
            return distant(self._rebuilding.ctx).reach(links, offers)

    def connect(self, links: Sequence[dict[str, int]] = (), names: dict[str, Any] | None = None) -> list[Any]:
        """Connect the sockets; the ports that had to move, as ``Redirects.for_others`` gives them.

        Args:
            links: as for ``offer``.
            names: what all nodes gave for ``reach``.

        Raises:
            CrhpcError: it can't be restarted here.
        """
        assert self._rebuilding is not None and self._image is not None and self.context is not None
        with restarting(str(self._image.path), self.end):
            distant(self._rebuilding.ctx).accept(links, names or {})
            self._rebuilding.connect()
            return self.context.redirects.for_others()

    def finish(self, ports: Sequence[Any] = ()) -> None:
        """Finish all tasks, still stopped.

        Args:
            ports: what all nodes gave for ``connect``.

        Raises:
            CrhpcError: it can't be restarted here.
        """
        assert self._rebuilding is not None and self._image is not None and self.context is not None
        with restarting(str(self._image.path), self.end):
            self.context.redirects.learn(ports)
            self._rebuilding.finish()

    def release(self, last_pid: int) -> dict[str, int]:
        """Let the restarted pod go; the ids of the job's first process (host_pid 0 if it had ended)."""
        assert self._rebuilding is not None and self._image is not None
        tasks, notifiers = self._rebuilding.ctx.tasks, self._rebuilding.ctx.notifiers
        self.root_host = tasks[self.root].host if self.root in tasks else 0
        self._rebuilding.release(self.root if self.root_status is None else 0, last_pid)
        if notifiers and self.context is not None:
            self._redirector = Redirector(self.context.redirects, notifiers)
            self._redirector.start()
        self._image.close()
        self._image = self._rebuilding = None
        return {"pid": self.root, "host_pid": self.root_host, "tasks": len(tasks)}

    # -- while it runs ----------------------------------------------------------------------------
    @property
    def due(self) -> float | None:
        """When ``tend`` is due whatever happens, by CLOCK_MONOTONIC in seconds."""
        return None if watch.due is None else watch.due / 1e9

    def tend(self) -> None:
        """See to threads whose calls are watched to their end, such as those whose time is over."""
        watch.tend()

    def signal(self, number: int, *, group: bool) -> None:
        """Send a signal to the job's first process, or to its whole process group, which may outlive it."""
        with contextlib.suppress(ProcessLookupError):
            alive = self.root_host and self.root_status is None
            if not group:
                if alive:
                    os.kill(self.root_host, number)
                return
            leader = os.getpgid(self.root_host) if alive else self.pod.group(self.root) if self.pod else 0
            if leader:
                os.killpg(leader, number)

    def tasks(self) -> list[dict[str, Any]]:
        """The pod's processes: pid, host_pid, program, threads."""
        return self.pod.tasks() if self.pod is not None else []

    def survey(self) -> tuple[list[str], list[dict[str, Any]]]:
        """What a checkpoint would refuse now, one line each, and the ends of connections; the pod runs on."""
        return survey(self.pod, self.context, self.kinds) if self.pod and self.context else ([], [])

    def end(self) -> None:
        """End every process of the pod; one that is frozen does not run again."""
        freezing.give_up(self._frozen)
        self._frozen = None
        self.abort()
        self._doorway.close()
        if self._rebuilding is not None:
            self._rebuilding.close()
            self._rebuilding = None
        if self._image is not None:
            self._image.close()
            self._image = None
        if self.pod is not None:
            self.pod.end()
            self.pod = None
        if self._redirector is not None:
            self._redirector.stop()
            self._redirector = None


def _named(pairs: list[Any]) -> list[Any]:
    return [((one[0], one[1]), (other[0], other[1])) for one, other in pairs]


def _allow_many_descriptors() -> None:
    """The agent holds each open file of the pod once."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
