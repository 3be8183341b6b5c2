"""One agent with the supervisor at its other end, a world of one rank, and real pods."""
from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from coordinator.world import InProcess, Mailboxes

from crhpc import agent as module
from crhpc.agent import Agent, ImageStore, connect_to_supervisor, temporary_directory
from crhpc.channel import Channel, ChannelClosed, Message
from crhpc.image.format import image_numbers, new_temporary
from crhpc.kernel import proc

PATIENCE = 30.0


class Side:
    """The supervisor's side of an agent, which runs in this thread; what the supervisor says it says in another."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.images = place / "images"
        self.images.mkdir(mode=0o700)
        self.channel, theirs = Channel.pair()
        self.agent = Agent(InProcess(Mailboxes(1), 0), theirs)
        self.heard: list[Message] = []
        self._in, self.input = os.pipe()
        self.output, self._out = os.pipe()

    def begin(self, op: str, **fields: Any) -> None:
        """Tell the agent to start a job, or to restart one."""
        self.channel.send({"op": op, "directory": str(self.images), "every": None, "wait_all": False, "level": 1,
                           "memory": 16 << 20, **fields}, [self._in, self._out, 2])

    def start(self, argv: list[str], **fields: Any) -> None:
        job = {"id": uuid.uuid4().hex, "argv": argv, "cwd": str(self.place), "directory": str(self.images)}
        self.begin("start", job=job, argv=argv, cwd=str(self.place), umask=0o022, ignored=[], cpus=None,
                   env=os.environ | {"TMPDIR": str(self.place)}, **fields)

    def hear(self, op: str) -> Message:
        """The next message of a kind; what comes before it is kept as well."""
        while True:
            assert select.select([self.channel], [], [], PATIENCE)[0], f"no {op} after {self.heard}"
            message, _ = self.channel.receive()
            self.heard.append(message)
            if message["op"] == op:
                return message

    def line(self) -> str:
        """The next bytes that the job writes."""
        assert select.select([self.output], [], [], PATIENCE)[0], f"the job is silent; {self.heard}"
        return os.read(self.output, 100).decode()

    def run(self, talk: Any = lambda: None) -> None:
        """Let the agent run to its end, while another thread is the supervisor."""
        problems: list[BaseException] = []

        def supervise() -> None:
            try:
                talk()
            except BaseException as problem:
                problems.append(problem)
                self.hang_up()   # and the agent ends
        thread = threading.Thread(target=supervise)
        thread.start()
        self.agent.run()
        thread.join()
        if problems:
            raise problems[0]
        self.hang_up()
        with suppress(ChannelClosed):
            while True:
                self.heard.append(self.channel.receive()[0])

    def hang_up(self) -> None:
        """As if the supervisor had died; what the agent has said can still be heard."""
        self.channel.socket.shutdown(socket.SHUT_RDWR)

    def told(self, op: str) -> list[Message]:
        return [message for message in self.heard if message["op"] == op]

    def close(self) -> None:
        assert self.agent.supervisor is not None
        signal.set_wakeup_fd(-1)   # an agent has its process for itself
        self.agent.supervisor.close()
        self.channel.close()
        for fd in (self._in, self.input, self.output, self._out, self.agent._woken, self.agent._waker):
            os.close(fd)


@pytest.fixture
def new_side(tmp_path):
    """``new_side()``: an agent, and its supervisor's side."""
    made: list[Side] = []

    def make() -> Side:
        place = tmp_path / str(len(made))
        place.mkdir()
        made.append(Side(place))
        return made[-1]
    yield make
    for side in made:
        side.close()
        assert not list(side.place.glob("crhpc-*")), "the directory for temporary files is left"


@pytest.fixture
def side(new_side):
    return new_side()


def nothing_runs() -> bool:
    """Whether no process lives below ours in a pod."""
    for child in proc.descendants(os.getpid()):
        with suppress(OSError):
            if proc.stat(child).state != "Z" and len(proc.status(child).numbers("NSpid")) > 1:
                return False
    return True


# -- a job --------------------------------------------------------------------------------------------
def test_a_job_from_beginning_to_end(side):
    side.start(["sh", "-c", "echo started; read word; exit 3"])

    def talk() -> None:
        started = side.hear("started")
        assert (started["pid"], started["image"], started["tasks"]) == (2, None, 1)
        assert proc.status(started["host_pid"]).inner("NSpid") == 2
        assert side.line() == "started\n"
        os.write(side.input, b"on\n")
    side.run(talk)
    assert [message["op"] for message in side.heard] == ["started", "exited"]
    assert side.heard[-1]["status"] == 3 << 8
    assert nothing_runs()


def test_one_that_is_killed(side):
    side.start(["sh", "-c", "kill -9 $$"])
    side.run()
    assert side.told("exited")[0]["status"] == 9


@pytest.mark.parametrize("wait_all", [False, True])
def test_what_outlives_the_command(side, wait_all):
    """It is ended with it, or waited for; the status is the command's in any case."""
    side.start(["sh", "-c", "exec 3<&0; (read word <&3; echo $word) & exit 4"], wait_all=wait_all)

    def talk() -> None:
        if wait_all:
            side.hear("started")
            os.write(side.input, b"later\n")
            assert side.line() == "later\n"
        side.hear("exited")
    side.run(talk)
    assert side.told("exited")[0]["status"] == 4 << 8
    assert nothing_runs()


def test_a_command_that_is_not_there(side):
    side.start(["no-such-program"])
    side.run()
    assert [message["op"] for message in side.heard] == ["failed"]
    assert side.heard[0]["code"] == 127
    assert "cannot start no-such-program" in side.heard[0]["error"]
    assert nothing_runs()


def test_a_restart_of_nothing(side):
    side.begin("restart", image=str(side.images / "ckpt-000001"))
    side.run()
    assert [(message["op"], message["code"]) for message in side.heard][-1] == ("failed", 75)
    assert "no usable checkpoint in" in side.heard[-1]["error"]


# -- orders -------------------------------------------------------------------------------------------
def test_signals_and_status(side):
    side.start(["sh", "-c", "trap 'echo got; exit 7' USR1; echo ready; while :; do sleep 0.01; done"])

    def talk() -> None:
        side.hear("started")
        assert side.line() == "ready\n"
        side.channel.send({"op": "status", "id": 11})
        status = side.hear("status")
        assert (status["id"], status["checkpointing"], status["last"]) == (11, False, None)
        (pod,) = status["pods"]
        assert (pod["host"], pod["tasks"][0]["pid"]) == (socket.gethostname(), 2)
        side.channel.send({"op": "signal", "signal": signal.SIGUSR1, "group": False})
        assert side.line() == "got\n"
    side.run(talk)
    assert side.told("exited")[0]["status"] == 7 << 8


COUNTING = """
import os
number = 0
while True:
    word = os.read(0, 1)
    number += word == b"x"
    os.write(1, b"%d" % number)
    if word == b"q":
        os._exit(number)
"""


def test_a_checkpoint_a_stop_and_restarts(side, new_side):
    side.start([sys.executable, "-S", "-c", COUNTING])

    def talk() -> None:
        side.hear("started")
        os.write(side.input, b"x")
        assert side.line() == "1"
        side.channel.send({"op": "checkpoint", "id": 5, "stop": False})
        done = side.hear("checkpointed")
        assert (done["id"], done["number"], done["stopped"]) == (5, 1, False)
        os.write(side.input, b"x")
        assert side.line() == "2"
        side.channel.send({"op": "checkpoint", "id": 6, "stop": True})
        done = side.hear("checkpointed")
        assert (done["id"], done["number"], done["stopped"]) == (6, 2, True)
        assert nothing_runs()
        side.hang_up()
    side.run(talk)
    assert image_numbers(side.images) == [1, 2]
    for number in (2, 1):
        goes_on_from(new_side(), side.images / f"ckpt-00000{number}", number)


def goes_on_from(side: Side, image: Path, number: int) -> None:
    side.begin("restart", image=str(image))

    def talk() -> None:
        assert side.hear("started")["image"] == str(image)
        os.write(side.input, b"x")
        assert side.line() == str(number + 1)
        os.write(side.input, b"q")
        assert side.line() == str(number + 1)
    side.run(talk)
    assert side.told("exited")[0]["status"] == (number + 1) << 8


def test_a_checkpoint_that_fails(side):
    """It is told to who asked; the job goes on."""
    side.start([sys.executable, "-S", "-c", COUNTING])

    def talk() -> None:
        side.hear("started")
        side.images.rmdir()
        side.channel.send({"op": "checkpoint", "id": 5, "stop": True})
        failed = side.hear("checkpoint-failed")
        assert (failed["id"], failed["code"]) == (5, 74)
        os.write(side.input, b"q")
    side.run(talk)
    assert side.told("exited")[0]["status"] == 0


def test_a_job_that_fails_while_its_checkpoint_is_written(side, monkeypatch):
    """That image is the newest that it will have: it is finished."""
    commit, begun, ended = ImageStore.commit, threading.Event(), threading.Event()

    def late(self, *arguments):
        begun.set()
        ended.wait(PATIENCE)
        return commit(self, *arguments)
    monkeypatch.setattr(ImageStore, "commit", late)
    side.start([sys.executable, "-S", "-c", COUNTING])

    def talk() -> None:
        side.hear("started")
        os.write(side.input, b"x")
        side.line()
        side.channel.send({"op": "checkpoint", "id": 5, "stop": False})
        assert begun.wait(PATIENCE)
        os.write(side.input, b"q")
        side.line()
        ended.set()
        side.hear("exited")
    side.run(talk)
    assert [message["op"] for message in side.heard if message["op"] != "progress"] == [
        "started", "checkpointed", "exited"]
    assert image_numbers(side.images) == [1]


# -- the end ------------------------------------------------------------------------------------------
SLEEP = ["sh", "-c", "echo ready; exec sleep 1000"]


def test_it_ends_when_the_supervisor_is_gone(side):
    side.start(SLEEP)

    def talk() -> None:
        side.hear("started")
        side.line()
        side.hang_up()
    side.run(talk)
    assert nothing_runs()


def test_it_ends_when_there_never_was_a_job(side):
    side.run(side.hang_up)
    assert side.heard == []


def test_it_ends_when_it_is_told_to(side):
    side.start(SLEEP)

    def talk() -> None:
        side.hear("started")
        side.channel.send({"op": "kill"})
    side.run(talk)
    assert side.told("exited") == []
    assert nothing_runs()


def test_a_pod_that_dies(side):
    side.start(SLEEP)

    def talk() -> None:
        started = side.hear("started")
        os.kill(proc.stat(started["host_pid"]).ppid, signal.SIGKILL)
    side.run(talk)
    assert [(message["op"], message.get("code")) for message in side.heard] == [("started", None), ("failed", 70)]
    assert nothing_runs()


@pytest.mark.parametrize("step", ["new", "commit"])
def test_a_supervisor_that_goes_while_a_checkpoint_is_taken(side, monkeypatch, step):
    """Whatever is told to nobody: the job ends, and no half image is left."""
    carry_out = getattr(ImageStore, step)

    def hang_up_first(self, *arguments):
        side.hang_up()
        return carry_out(self, *arguments)
    monkeypatch.setattr(ImageStore, step, hang_up_first)
    side.start(SLEEP)

    def talk() -> None:
        side.hear("started")
        side.line()
        side.channel.send({"op": "checkpoint", "id": 1, "stop": False})
    side.run(talk)
    assert nothing_runs()
    assert [name for name in os.listdir(side.images) if name.startswith(".")] == []


# -- what else it has ---------------------------------------------------------------------------------
def test_the_directory_for_temporary_files(tmp_path):
    """In the user's, where that is one; by its name it is known for one of ours at the restart."""
    job = {"id": "0123456789abcdef0123"}
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "closed").mkdir(mode=0o500)
    (tmp_path / "file").touch()
    for place, base in ((str(tmp_path), tmp_path), (str(tmp_path / "link"), tmp_path), ("", "/tmp"), ("here", "/tmp"),
                        (str(tmp_path / "missing"), "/tmp"), (str(tmp_path / "file"), "/tmp"),
                        (str(tmp_path / "closed"), tmp_path / "closed" if os.getuid() == 0 else "/tmp")):
        message = {"job": job, "env": {"TMPDIR": place}}
        assert temporary_directory(message) == f"{os.path.realpath(base)}/crhpc-0123456789ab"
    assert temporary_directory({"job": job, "env": {}}) == f"{os.path.realpath('/tmp')}/crhpc-0123456789ab"


def test_images_are_numbered_on(tmp_path):
    store = ImageStore()
    for name in ("ckpt-000004", "ckpt-000007", "ckpt-9", ".ckpt-000009.tmp-" + "0" * 32):
        (tmp_path / name).mkdir()
    number, temporary = store.new(str(tmp_path))
    assert (number, temporary.parent) == (8, tmp_path)
    store.discard(temporary)
    assert not temporary.exists()
    assert new_temporary(tmp_path, number) != temporary


def test_hello(monkeypatch):
    """Who it is, and the word by which the supervisor knows its own."""
    name = f"crhpc-test-{uuid.uuid4().hex}"
    monkeypatch.setenv("CRHPC_SUPERVISOR", name)
    monkeypatch.setenv("CRHPC_SECRET", "a secret")
    with pytest.raises(ConnectionRefusedError):
        connect_to_supervisor(0, 1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("\0" + name)
        listener.listen()
        channel = connect_to_supervisor(3, 8)
        other = Channel(listener.accept()[0])
        assert other.receive()[0] == {"op": "hello", "rank": 3, "size": 8, "pid": os.getpid(),
                                      "host": socket.gethostname(), "secret": "a secret"}
        channel.close()
        other.close()


def test_it_takes_no_signal_that_is_meant_for_the_job():
    """A launcher passes on what it gets; only the supervisor's word counts, and SIGKILL."""
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
            signal.SIGTSTP, signal.SIGPIPE} <= set(module._IGNORED)
    assert signal.SIGCHLD not in module._IGNORED
