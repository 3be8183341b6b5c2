"""The job's remote shell: an agent that answers as ours do, with the command as a child of the test."""
from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from crhpc import rsh
from crhpc.channel import Channel

SECRET = "ab" * 32
RSH = Path(rsh.__file__)


class Agent:
    """Starts commands here; the connections are TCP, as between nodes."""

    def __init__(self, place: Path) -> None:
        self.name = f"crhpc-test-{uuid.uuid4().hex}"
        self.asked: list[dict[str, str]] = []
        self.refuse = ""
        self.started: list[subprocess.Popen[bytes]] = []
        self.file = place / "rsh.json"
        self.file.write_text(json.dumps({"socket": self.name, "secret": SECRET}))
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind("\0" + self.name)
        self._server.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._server.accept()
            except OSError:
                return
            with sock:
                channel = Channel(sock)
                message, _ = channel.receive()
                self.asked.append(message)
                if self.refuse:
                    channel.send({"error": self.refuse})
                    continue
                pairs = [_connection() for _ in range(3)]
                channel.send({}, [near.fileno() for near, _ in pairs])
                for near, _ in pairs:
                    near.close()
                self._start(message["command"], [far.detach() for _, far in pairs])

    def _start(self, command: str, fds: list[int]) -> None:
        line = f"({command}\n) {fds[2]}>&-; echo $? >&{fds[2]}"   # not for dash, whose numbers have one digit
        self.started.append(subprocess.Popen(["/bin/bash", "-c", line], stdin=fds[0], stdout=fds[0], stderr=fds[1],
                                             pass_fds=[fds[2]], start_new_session=True))
        for fd in fds:
            os.close(fd)

    def close(self) -> None:
        with suppress(OSError):   # a second time
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for process in self.started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 9)   # what it has left, too
            process.wait()


def _connection() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        return near, server.accept()[0]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(tmp_path)
    yield agent
    agent.close()


@pytest.fixture
def shell(agent: Agent) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*words: str, given: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-S", "-E", "-P", str(RSH), str(agent.file), *words], input=given,
                              capture_output=True, text=True, timeout=30, check=False)
    return run


@pytest.mark.parametrize(("words", "found"), [
    (["node2", "orted", "-mca", "x"], ("node2", "orted -mca x")),
    (["-x", "-o", "BatchMode=yes", "me@node2", "  a", "b;c "], ("node2", "  a b;c ")),
    (["-x", "--", "10.0.0.1", "ls"], ("10.0.0.1", "ls")),
    (["-xl", "node2", "ls"], ("node2", "ls")),
])
def test_the_command_line_is_sshs(words, found):
    assert rsh.parse(words) == found


@pytest.mark.parametrize("words", [[], ["node1"], ["-x"], ["-o"]])
def test_a_command_line_that_makes_no_sense(words):
    with pytest.raises(ValueError, match="no host"):
        rsh.parse(words)


def test_the_streams_and_the_status(shell, agent):
    done = shell("node2", "cat; echo oops >&2; exit 7", given="some\ninput\n")
    assert (done.stdout, done.stderr, done.returncode) == ("some\ninput\n", "oops\n", 7)
    (asked,) = agent.asked
    assert asked.pop("env")["PATH"] == os.environ["PATH"]
    assert asked == {"op": "spawn", "secret": SECRET, "host": "node2", "command": "cat; echo oops >&2; exit 7"}


def test_much_in_both_directions(shell):
    text = "".join(f"line {number}\n" for number in range(200000))
    done = shell("node2", "cat", given=text)
    assert done.stdout == text
    assert done.returncode == 0


def test_a_command_that_does_not_exist(shell):
    done = shell("node2", "no-such-command-at-all")
    assert done.returncode == 127
    assert "not found" in done.stderr


def test_a_daemon_that_is_left_does_not_hold_it_up(shell, agent):
    done = shell("node2", "echo started; sleep 30 & exit 0")
    assert (done.stdout, done.returncode) == ("started\n", 0)


def test_a_lost_connection(agent):
    """Its other end goes without a word: no status comes, and that is no success."""
    command = [sys.executable, "-S", "-E", "-P", str(RSH), str(agent.file), "node2", "echo up; exec sleep 30"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        sleeper = Path(f"/proc/{agent.started[0].pid}/task/{agent.started[0].pid}/children").read_text().split()
        agent.started[0].kill()
        for pid in map(int, sleeper):
            os.kill(pid, 9)
        assert process.wait(20) == 255


def test_refused(shell, agent):
    agent.refuse = "node9 is no host of this job"
    done = shell("node9", "true")
    assert (done.stderr, done.returncode) == ("crhpc: remote shell: node9 is no host of this job\n", 255)


def test_nobody_there(shell, agent):
    agent.close()
    done = shell("node2", "true")
    assert done.returncode == 255
    assert len(done.stderr.splitlines()) == 1


def test_it_stays_small(shell, agent):
    """It lives as long as the job, once for each node."""
    with subprocess.Popen([sys.executable, "-S", "-E", "-P", str(RSH), str(agent.file), "node2", "echo up; cat"],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        status = Path(f"/proc/{process.pid}/status").read_text()
        threads = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("Threads:"))
        resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
        assert (threads, resident < 25000) == (1, True)
        process.communicate(timeout=20)
        assert process.returncode == 0
