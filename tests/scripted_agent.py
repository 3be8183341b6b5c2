"""An agent for tests of the supervisor: it runs the job as a plain child and writes tiny real images.

Started in place of mpiexec (CRHPC_MPIEXEC). It cannot save a process; a "restart" runs the command again
with CRHPC_TEST_LINES set to the number of lines that its output had ("line 0", "line 1"...), so that a counting
job goes on where it was. The variable CRHPC_TEST_AGENT (JSON) scripts what goes wrong; every message received is
noted in its "log".
"""
from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from select import POLLIN, poll
from typing import Any

from crhpc import stdio
from crhpc.channel import Channel, ChannelClosed
from crhpc.filepolicy import FilePolicy
from crhpc.image.format import image_name, image_numbers, new_temporary, read_manifest

SCRIPT: dict[str, Any] = json.loads(os.environ.get("CRHPC_TEST_AGENT", "{}"))


def note(entry: dict[str, Any]) -> None:
    if "log" in SCRIPT:
        with open(SCRIPT["log"], "a", encoding="ascii") as file:
            json.dump({name: value for name, value in entry.items() if name != "env"}, file)
            file.write("\n")


def write_image(directory: Path, number: int, job: dict[str, Any], stats: dict[str, Any]) -> Path:
    """A committed image with a few pages of memory."""
    from crhpc.image.writer import ShardWriter, commit

    temporary = new_temporary(directory, number)
    with ShardWriter(temporary, 0, threads=1, memory=16 << 20) as writer:
        memory = writer.object("mm/1")
        buffer = writer.take()
        buffer.array[:8] = number % 255 + 1
        writer.put(buffer, [(memory, 0, 8)])
        shard = writer.close()
    return commit(temporary, directory / image_name(number), number=number, job=job, shards=[shard], stats=stats)


class Agent:
    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.job: subprocess.Popen[bytes] | None = None
        self.about: dict[str, Any] = {}
        self.directory = Path()
        self.output = -1

    def start(self, message: dict[str, Any], fds: list[int]) -> None:
        self.directory = Path(message["directory"])
        self.output = fds[1]
        environment, image = message.get("env"), None
        if message["op"] == "restart":
            image = Path(message["image"])
            manifest = read_manifest(image)
            policy = FilePolicy.from_message(message.get("policy", {}))
            self.about, environment = manifest.job | {"cwd": policy.path(manifest.job["cwd"])}, dict(os.environ)
            environment["CRHPC_TEST_LINES"] = str(self.bring_back(image, manifest.stats))
        else:
            self.about = message["job"]
        try:
            self.job = subprocess.Popen(self.about["argv"], env=environment, cwd=self.about["cwd"],
                                        stdin=fds[0], stdout=fds[1], stderr=fds[2], start_new_session=True)
        except OSError as error:
            self.channel.send({"op": "failed", "error": f"cannot start: {error}", "code": 127})
            sys.exit(0)
        self.channel.send({"op": "started", "pid": 2, "host_pid": self.job.pid, "image": image and str(image),
                           "tasks": 1, "seconds": 0.01})

    def bring_back(self, image: Path, stats: dict[str, Any]) -> int:
        if not stats.get("stdout"):
            return 0
        saved = stats["stdout"] | {"contents": base64.b64decode(stats["stdout"]["contents"])}
        warning = stdio.reconcile(self.output, stdio.SavedStream(**saved),
                                  self.directory / f"{image.name}.tail-{Path(saved['path']).name}")
        if warning:
            self.channel.send({"op": "warning", "text": warning})
        return sum(line.startswith(b"line ") for line in saved["contents"].splitlines())

    def checkpoint(self, message: dict[str, Any]) -> None:
        assert self.job is not None
        for phase in ("precopy", "write"):
            for done in range(0, 101, 20):
                progress = {"phase": phase, "done": done << 20, "total": 100 << 20}
                self.channel.send({"op": "progress", **progress})
                time.sleep(SCRIPT.get("slow", 0.0))
        if "checkpoint_error" in SCRIPT:
            self.channel.send({"op": "checkpoint-failed", "id": message["id"], "code": 78,
                               "error": SCRIPT["checkpoint_error"]})
            return
        os.kill(self.job.pid, signal.SIGSTOP)   # not Popen's: that would reap a job which has just ended
        os.waitid(os.P_PID, self.job.pid, os.WSTOPPED | os.WNOWAIT | os.WEXITED)
        saved = stdio.save(self.output)
        number = (image_numbers(self.directory) or [0])[-1] + 1
        stats: dict[str, Any] = {}
        if saved is not None:
            contents = base64.b64encode(saved.contents or b"").decode("ascii")
            stats["stdout"] = asdict(saved) | {"contents": contents}
        image = write_image(self.directory, number, {**self.about, "tasks": 1}, stats)
        if number in SCRIPT.get("damage", []):
            damage(image)
        if message["stop"]:
            self.job.kill()
            self.job.wait()
        else:
            os.kill(self.job.pid, signal.SIGCONT)
        self.channel.send({"op": "checkpointed", "id": message["id"], "image": str(image), "number": number,
                           "frozen": 0.012, "seconds": 0.8, "bytes": 210 << 20, "stored": 43 << 20, "tasks": 1,
                           "nodes": 1, "stopped": message["stop"]})
        if message["stop"]:
            sys.exit(0)

    def handle(self, message: dict[str, Any], fds: list[int]) -> None:
        match message["op"]:
            case "start" | "restart":
                if "fail" in SCRIPT:
                    self.channel.send({"op": "failed", **SCRIPT["fail"]})
                    sys.exit(0)
                if message.get("dry_run"):
                    self.channel.send({"op": "checked", "image": message["image"], "plans": SCRIPT.get("plans", []),
                                       "tasks": 3})
                    sys.exit(0)
                self.start(message, fds)
                for text in SCRIPT.get("warnings", []):
                    self.channel.send({"op": "warning", "text": text})
                for _ in range(SCRIPT.get("checkpoints", 0)):
                    self.checkpoint({"id": None, "stop": False})
            case "checkpoint":
                self.checkpoint(message)
            case "signal":
                assert self.job is not None
                (os.killpg if message["group"] else os.kill)(self.job.pid, message["signal"])
            case "status" if "mute" not in SCRIPT:
                assert self.job is not None
                task = {"pid": 2, "host_pid": self.job.pid, "program": "job", "threads": 1}
                pods = [{"node": 0, "host": socket.gethostname(), "tasks": [task]}]
                self.channel.send({"op": "status", "id": message["id"], "pods": pods, "last": None,
                                   "next": 42.0, "checkpointing": False})
            case "kill":
                self.end_job()
        if SCRIPT.get("die_on") == message["op"]:
            print("the scripted agent dies now", file=sys.stderr, flush=True)
            self.end_job()
            os._exit(3)

    def end_job(self) -> None:
        if self.job is not None:
            os.killpg(self.job.pid, signal.SIGKILL)

    def serve(self) -> None:
        while True:
            waiter = poll()
            waiter.register(self.channel, POLLIN)
            pidfd = -1
            if self.job is not None and self.job.returncode is None:
                pidfd = os.pidfd_open(self.job.pid)
                waiter.register(pidfd, POLLIN)
            ready = [fd for fd, _ in waiter.poll()]
            if pidfd >= 0:
                os.close(pidfd)
            if self.channel.fileno() in ready:
                try:
                    message, fds = self.channel.receive()
                except ChannelClosed:
                    note({"op": "eof"})
                    self.end_job()
                    return
                note(message)
                self.handle(message, fds)
            elif self.job is not None:
                _, status = os.waitpid(self.job.pid, 0)
                self.job.returncode = os.waitstatus_to_exitcode(status)
                self.channel.send({"op": "exited", "status": status})


def damage(image: Path) -> None:
    """Flip a bit of a page chunk."""
    with open(image / "shard-0.h5", "r+b") as file:
        offset = read_manifest(image).shards[0].spans[0][0]
        file.seek(offset + 10)
        byte = file.read(1)[0]
        file.seek(offset + 10)
        file.write(bytes((byte ^ 1,)))


def main() -> None:
    if "exit" in SCRIPT:
        print("no MPI here", file=sys.stderr, flush=True)
        sys.exit(SCRIPT["exit"])
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect("\0" + os.environ["CRHPC_SUPERVISOR"])
    channel = Channel(sock)
    channel.send({"op": "hello", "rank": 0, "size": 1, "pid": os.getpid(), "host": socket.gethostname(),
                  "secret": SCRIPT.get("secret", os.environ["CRHPC_SECRET"])})
    agent = Agent(channel)
    try:
        agent.serve()
    except ChannelClosed:
        note({"op": "eof"})
        agent.end_job()


if __name__ == "__main__":
    main()
