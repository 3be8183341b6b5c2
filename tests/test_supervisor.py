"""The supervisor as its own process, with an agent that runs the job as a plain child."""
from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from supervised import PATIENCE, Workspace, read_terminal, until

from crhpc import task
from crhpc.channel import Channel, ChannelClosed
from crhpc.jobdir import JobDirectory, JobState, Status, read_running, read_state
from crhpc.progress import Report
from crhpc.supervisor import Supervisor
from crhpc.task import Options, Task

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]

# A parent and a child in one process group; each notes the signals that it gets.
FAMILY = """
import os, signal, sys, time
who = "child" if os.fork() == 0 else "parent"
def note(number, frame):
    with open(sys.argv[1], "a") as file:
        file.write(f"{who} {signal.Signals(number).name}\\n")
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGWINCH, signal.SIGCONT):
    signal.signal(number, note)
open(sys.argv[1] + "." + who, "w").close()
end = time.monotonic() + 60
while time.monotonic() < end and not os.path.exists(sys.argv[1] + ".end"):
    time.sleep(0.01)
"""


@pytest.fixture
def space(tmp_path):
    made = Workspace(tmp_path)
    yield made
    made.clean()


class Family:
    """A job of two processes."""

    def __init__(self, space: Workspace) -> None:
        self.file = space.path / "family"
        self.command = [sys.executable, "-c", FAMILY, str(self.file)]

    def up(self) -> None:
        until(lambda: all(Path(f"{self.file}.{who}").exists() for who in ("parent", "child")), "the family")

    def seen(self, count: int) -> list[str]:
        def read():
            lines = self.file.read_text().splitlines() if self.file.exists() else []
            return lines if len(lines) >= count else None
        until(read, f"{count} signals")
        time.sleep(0.1)   # for those that should not come
        return sorted(self.file.read_text().splitlines())

    def end(self) -> None:
        Path(f"{self.file}.end").touch()


# -- the job and its exit code ----------------------------------------------------------------------
@pytest.mark.parametrize(("command", "code"), [
    (["true"], 0), (["sh", "-c", "exit 7"], 7), (["sh", "-c", "exit 255"], 255),
    (["sh", "-c", "kill -9 $$"], 137), (["sh", "-c", "kill -TERM $$"], 143)])
def test_exit_code_of_the_job(space, command, code):
    assert space.call("run", "--", *command).returncode == code
    state = read_state(space.images)
    assert (state.status, state.exit_code) == (Status.FAILED if code else Status.FINISHED, code)
    assert read_running(space.images) is None


def test_the_job_has_the_users_streams_environment_and_directory(space):
    code = "import os, sys; print(sys.stdin.read(), os.environ['MINE'], os.getcwd()); print('bad', file=sys.stderr)"
    process = space.start("run", "--", sys.executable, "-c", code, stdin=subprocess.PIPE,
                          more={"MINE": "value", "PMI_RANK": "3"})
    out, err = process.communicate(b"input", timeout=PATIENCE)
    assert out.decode() == f"input value {space.path}\n"
    assert b"bad\n" in err
    (start,) = space.notes("start")
    assert start["argv"] == [sys.executable, "-c", code]
    assert start["cwd"] == str(space.path)
    assert start["job"].keys() == {"id", "argv", "cwd", "directory", "started"}
    assert start["directory"] == start["job"]["directory"] == str(space.images)


def test_the_jobs_environment_is_untouched(space):
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    outer = {"PMI_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "BYTES": "\udcff"}
    done = space.call("run", "--", sys.executable, "-c", show, more=outer)
    seen = json.loads(done.stdout)
    assert seen == {**space.environment(), **outer, **{name: seen[name] for name in ("LC_CTYPE",) if name in seen}}


def test_closed_streams_become_dev_null(space):
    code = "import os; open('streams', 'w').write(' '.join(os.readlink(f'/proc/self/fd/{n}') for n in range(3)))"
    done = space.call("run", "--", sys.executable, "-c", code, stdin=None, stdout=None, stderr=None,
                      preexec_fn=lambda: os.closerange(0, 3))
    assert done.returncode == 0
    assert (space.path / "streams").read_text() == "/dev/null /dev/null /dev/null"


def test_options_reach_the_agent(space):
    space.call("run", "--every", "1.5m", "--wait-all", "--memory", "1G", "--level", "3", "--", "true", umask=0o027)
    space.call("run", "--every", "0", "--", "true")
    one, two = space.notes("start")
    assert {name: one[name] for name in ("every", "wait_all", "memory", "level", "umask", "ignored")} == {
        "every": 90.0, "wait_all": True, "memory": 1 << 30, "level": 3, "umask": 0o027, "ignored": []}
    assert (two["every"], two["wait_all"], two["memory"]) == (None, False, 256 << 20)


def test_standard_output_is_the_jobs_alone(space):
    done = space.call("run", "-v", "--", "sh", "-c", "echo job; sleep 0.3", script={"checkpoints": 2})
    assert done.stdout == "job\n"
    assert all(line.startswith("crhpc: ") for line in done.stderr.splitlines())
    assert "checkpoint 2: 1 process, frozen 12 ms, 210 MiB saved as 43 MiB in 0.8 s" in done.stderr


def test_quiet_without_v(space):
    done = space.call("run", "--", "sh", "-c", "sleep 0.3", script={"checkpoints": 2})
    assert done.stderr == f"crhpc: started, a checkpoint every 10 min, in {space.images}\n"


def test_a_warning_is_said_once(space):
    done = space.call("run", "--", "true", script={"warnings": ["GPU in use\n", "GPU in use\n", "other"]})
    assert done.stderr.splitlines()[1:] == ["crhpc: GPU in use ", "crhpc: other"]


# -- what goes wrong --------------------------------------------------------------------------------
def test_a_job_that_cannot_be_started(space):
    space.images.mkdir()
    done = space.call("run", "--", "true", script={"fail": {"error": "no user namespaces. Cure: ask", "code": 78}})
    assert (done.returncode, done.stderr) == (78, "crhpc: no user namespaces. Cure: ask\n")
    assert read_state(space.images) is None


def test_a_launcher_that_fails(space):
    done = space.call("run", "--", "true", script={"exit": 3})
    assert done.returncode == 69
    assert "crhpc: | no MPI here\n" in done.stderr
    assert "ended with exit code 3" in done.stderr


def test_an_agent_that_dies(space):
    done = space.call("run", "--", *SLEEPER, script={"die_on": "start"})
    assert done.returncode == 69
    assert "crhpc: | the scripted agent dies now\n" in done.stderr
    assert "the agent on " in done.stderr
    assert "the same command line resumes" in done.stderr
    assert read_state(space.images).status is Status.FAILED


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_an_agent_that_is_killed(space):
    process = space.start("run", "--", *SLEEPER)
    assert process.stdout.readline() == b"up\n"
    (agent,) = children(process.pid)
    (job,) = children(agent)
    os.kill(agent, signal.SIGKILL)
    process.wait(PATIENCE)
    os.kill(job, signal.SIGKILL)   # this agent's job is not tied to it
    err = process.stderr.read()
    assert process.returncode == 69
    assert b"its launcher ended with SIGKILL" in err


def test_the_death_of_the_supervisor_reaches_the_agent(space):
    process = space.start("run", "--", *SLEEPER)
    assert process.stdout.readline() == b"up\n"
    process.kill()
    assert process.wait(PATIENCE) == -signal.SIGKILL
    space.noted("eof")
    assert process.stdout.read() == b""   # and the job is gone: nobody holds the pipe
    assert space.call("run", "--", "true").returncode == 0, "the directory is free"


def test_no_agent_with_a_wrong_secret(space, monkeypatch):
    done = space.call("run", "--", "true", script={"secret": "guessed"})
    assert done.returncode == 69
    assert space.notes("start") == []


def test_no_other_users(space, monkeypatch):
    """As root with another user's process, else with one that is taken for another's."""
    process = space.start("run", "--", *SLEEPER)
    assert process.stdout.readline() == b"up\n"
    name = read_running(space.images).socket
    code = ("import os, socket, sys\nif os.getuid() == 0: os.setuid(54321)\ns = socket.socket(socket.AF_UNIX)\n"
            "s.connect('\\0' + sys.argv[1])\ntry:\n s.sendall(b'\\x0f\\0\\0\\0{\"op\":\"status\"}')\n"
            " print(len(s.recv(100)))\nexcept ConnectionError: print(0)\n")
    answer = subprocess.run([sys.executable, "-c", code, name], capture_output=True, check=True).stdout
    assert (answer == b"0\n") == (os.getuid() == 0)
    process.kill()
    process.wait()

    with JobDirectory.take(space.path / "other") as directory:
        made = Supervisor(directory, Task(state=job_state(), image=None), options(), Report(verbose=False))
        with made._listen() as listener, socket.socket(socket.AF_UNIX) as client:
            monkeypatch.setattr(Channel, "peer_uid", lambda self: os.getuid() + 1)
            client.connect(listener.getsockname())
            made._accept(listener)
            with pytest.raises(ChannelClosed):
                Channel(client).receive()


def job_state() -> JobState:
    return JobState(id="J", argv=("true",), cwd="/", status=Status.RUNNING, started=1.0)


def options() -> Options:
    return Options(every=None, keep=2, wait_all=False, memory=1 << 28, level=1)


def test_strangers_on_the_socket_do_no_harm(space):
    process = space.start("run", "--", *SLEEPER)
    assert process.stdout.readline() == b"up\n"
    name = read_running(space.images).socket
    for data in (b"", b"\xff\xff\xff\xff", b"\x02\0\0\0[]", b"\x02\0\0\0{}", b"\x0e\0\0\0{\"op\":\"hello\"}",
                 b"\x10\0\0\0{\"op\":\"nothing\"}"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("\0" + name)
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            assert client.recv(100) == b""
    assert space.call("status", "--json").returncode == 0
    assert process.poll() is None


def test_a_directory_belongs_to_one(space):
    process = space.start("run", "--", *SLEEPER)
    assert process.stdout.readline() == b"up\n"
    for words in (["run", "--", "true"], ["restart", str(space.images)]):
        done = space.call(*words)
        assert done.returncode == 78
        assert f"belongs to a running job (process {process.pid} on {socket.gethostname()})" in done.stderr
    assert stat.S_IMODE((space.images / "run.json").stat().st_mode) == 0o600
    assert process.poll() is None


# -- signals ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGWINCH"])
def test_a_signal_from_a_process_reaches_the_first_process_of_the_job(space, name):
    family = Family(space)
    process = space.start("run", "--", *family.command)
    family.up()
    process.send_signal(signal.Signals[name])
    assert family.seen(1) == [f"parent {name}"]
    family.end()
    assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize(("key", "name"), [(b"\x03", "SIGINT"), (b"\x1c", "SIGQUIT")])
def test_a_signal_from_the_terminal_reaches_the_whole_group(space, key, name):
    family = Family(space)
    process, master = space.on_terminal("run", "--", *family.command)
    family.up()
    os.write(master, key)
    assert family.seen(2) == [f"child {name}", f"parent {name}"]
    family.end()
    assert process.wait(PATIENCE) == 0
    read_terminal(master)


def test_a_resized_terminal(space):
    import fcntl
    import termios

    family = Family(space)
    process, master = space.on_terminal("run", "--", *family.command)
    family.up()
    fcntl.ioctl(master, termios.TIOCSWINSZ, b"\x20\0\x60\0\0\0\0\0")
    assert family.seen(2) == ["child SIGWINCH", "parent SIGWINCH"]
    family.end()
    assert process.wait(PATIENCE) == 0
    read_terminal(master)


def test_signals_reach_a_job_that_was_resumed(space):
    family = Family(space)
    process = space.start("run", "--", *family.command)
    family.up()
    process.send_signal(signal.SIGUSR2)
    assert process.wait(PATIENCE) == 85
    for who in ("parent", "child"):
        Path(f"{family.file}.{who}").unlink()
    process = space.start("run", "--", *family.command)
    family.up()
    assert len(os.listdir(f"/proc/{process.pid}/task")) == 2, "no library's thread may take the signals"
    process.send_signal(signal.SIGTERM)
    assert family.seen(1) == ["parent SIGTERM"]
    family.end()
    assert process.wait(PATIENCE) == 0


def test_stop_and_continue(space):
    family = Family(space)
    process, master = space.on_terminal("run", "--", *family.command)
    family.up()
    os.write(master, b"\x1a")
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    (sent,) = space.noted("signal")
    assert (sent["signal"], sent["group"]) == (signal.SIGTSTP, True)
    process.send_signal(signal.SIGCONT)
    assert set(family.seen(2)) == {"child SIGCONT", "parent SIGCONT"}
    family.end()
    assert process.wait(PATIENCE) == 0
    read_terminal(master)


def test_a_second_interrupt_ends_all(space):
    family = Family(space)   # it survives SIGINT
    process = space.start("run", "--", *family.command)
    family.up()
    process.send_signal(signal.SIGINT)
    assert family.seen(1) == ["parent SIGINT"]
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    space.noted("kill")
    assert process.stdout.read() == b""
    assert read_state(space.images).status is Status.FAILED


def test_a_job_that_an_interrupt_ends(space):
    process = space.start("run", "--", *SLEEPER)
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) in (1, 130)   # Python dies of it by the signal


def test_a_signal_before_the_job_is_there_ends_the_launch(space):
    silent = space.path / "mpiexec"
    silent.write_text("#!/bin/sh\ntouch launched\nexec sleep 600\n")
    silent.chmod(0o755)
    process = space.start("run", "--", *SLEEPER, more={"CRHPC_MPIEXEC": str(silent)})
    until((space.path / "launched").exists, "the launch")
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 143


def test_agents_that_never_come(space, monkeypatch):
    silent = space.path / "mpiexec"
    silent.write_text("#!/bin/sh\necho waiting for a node\nexec sleep 600\n")
    silent.chmod(0o755)
    code = ("import sys; from crhpc import cli, supervisor; supervisor.HELLO_SECONDS = 0.5\n"
            "sys.exit(cli.main(['run', '--', 'true']))")
    done = subprocess.run([sys.executable, "-c", code], cwd=space.path, capture_output=True, text=True, check=False,
                          env=space.environment() | {"CRHPC_MPIEXEC": str(silent)}, timeout=PATIENCE)
    assert done.returncode == 69
    assert "| waiting for a node" in done.stderr
    assert "no agent came within 0.5 s" in done.stderr


def test_nohup(space):
    process = space.start("run", "--", *SLEEPER, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGHUP)
    assert space.call("status").returncode == 0
    assert space.notes("signal") == []
    assert space.notes("start")[0]["ignored"] == [signal.SIGHUP]
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 143


# -- checkpoints ------------------------------------------------------------------------------------
def test_usr1_takes_a_checkpoint(space):
    process = space.start("run", "-v", "--", *SLEEPER)
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGUSR1)
    until(space.image_numbers, "an image")
    assert space.notes("checkpoint")[0]["stop"] is False
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143
    assert b"checkpoint 1: 1 process" in err
    assert b"the job ended with SIGTERM; the same command line resumes it from ckpt-000001 (" in err


def test_usr2_takes_one_and_stops(space):
    process = space.start("run", "--", *SLEEPER)
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGUSR2)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 85
    assert b"checkpointed to ckpt-000001 and ended" in err
    state = read_state(space.images)
    assert (state.status, state.exit_code) == (Status.STOPPED, 85)


def test_a_signal_before_the_start_waits_for_it(space):
    slow = space.path / "mpiexec"
    slow.write_text(f"#!/bin/sh\ntouch launched\nsleep 0.5\nexec {space.environment()['CRHPC_MPIEXEC']}\n")
    slow.chmod(0o755)
    process = space.start("run", "--", *SLEEPER, more={"CRHPC_MPIEXEC": str(slow)})
    until((space.path / "launched").exists, "the launch")
    process.send_signal(signal.SIGUSR2)
    assert process.wait(PATIENCE) == 85


def test_checkpoint_command(space):
    process = space.start("run", "--", *SLEEPER)
    assert process.stdout.readline() == b"up\n"
    done = space.call("checkpoint")
    image = space.images / "ckpt-000001"
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"checkpoint 1: 1 process, frozen 12 ms, 210 MiB saved as 43 MiB in 0.8 s: {image}\n"
    assert process.poll() is None
    done = space.call("checkpoint", str(space.images), "--stop")
    assert done.returncode == 0
    assert process.wait(PATIENCE) == 85
    assert space.image_numbers() == [1, 2]
    assert space.call("checkpoint").returncode == 69


def test_a_failing_checkpoint_harms_nobody(space):
    script = {"checkpoint_error": "cannot save a GPU of pid 7 (app). Cure: x"}
    process = space.start("run", "--", *SLEEPER, script=script)
    assert process.stdout.readline() == b"up\n"
    for _ in range(2):
        done = space.call("checkpoint", "--stop")
        assert (done.returncode, done.stdout) == (78, "")
        assert done.stderr == "crhpc: cannot save a GPU of pid 7 (app). Cure: x\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143
    assert err.count(b"cannot save a GPU") == 2


def test_a_periodic_failure_is_said_once(space):
    done = space.call("run", "--", "true", script={"checkpoints": 3, "checkpoint_error": "disk full. Cure: x"})
    assert (done.returncode, done.stderr.count("disk full")) == (0, 1)


def test_who_waits_for_a_checkpoint_is_told_of_the_end(space):
    process = space.start("run", "--", "sh", "-c", "echo up; sleep 600", script={"slow": 2.0})
    assert process.stdout.readline() == b"up\n"
    waiting = space.start("checkpoint")
    space.noted("checkpoint")
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)   # or the two would be one
    process.send_signal(signal.SIGINT)
    _, err = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode == 69
    assert b"ended before the checkpoint was complete" in err
    process.wait(PATIENCE)


def test_status(space):
    process = space.start("run", "--", *SLEEPER)
    assert process.stdout.readline() == b"up\n"
    space.call("checkpoint")
    until(lambda: json.loads(space.call("status", "--json").stdout)["verified"] == 1, "the verification")
    status = json.loads(space.call("status", "--json").stdout)
    assert status["job"]["argv"] == SLEEPER
    assert status["supervisor"] == {"host": socket.gethostname(), "pid": process.pid}
    assert (status["running"], status["last"]["number"], status["agents"]["next"]) == (True, 1, 42.0)
    assert status["agents"]["pods"][0]["tasks"][0]["program"] == "job"
    text = space.call("status").stdout
    assert "last checkpoint  1, " in text
    assert "verified" in text


def test_status_of_busy_agents(space):
    process = space.start("run", "--", *SLEEPER, script={"mute": True})
    assert process.stdout.readline() == b"up\n"
    done = space.call("status")
    assert done.returncode == 0
    assert "the agents are busy" in done.stdout


# -- retention --------------------------------------------------------------------------------------
def kept(space, wanted: list[int]) -> None:
    until(lambda: space.image_numbers() == wanted, f"{wanted}, not {space.image_numbers()}")


@pytest.mark.parametrize(("keep", "wanted"), [("2", [4, 5]), ("1", [5]), ("0", [1, 2, 3, 4, 5])])
def test_old_images_go(space, keep, wanted):
    process = space.start("run", "--keep", keep, "--", *SLEEPER)
    assert process.stdout.readline() == b"up\n"
    for number in range(1, 6):
        space.call("checkpoint")
        until(lambda number=number: json.loads(space.call("status", "--json").stdout)["verified"] == number, "verify")
    kept(space, wanted)
    process.send_signal(signal.SIGTERM)
    process.wait(PATIENCE)


def test_none_goes_while_its_successor_is_not_good(space):
    process = space.start("run", "--keep", "1", "--", *SLEEPER, script={"damage": [2, 3]})
    assert process.stdout.readline() == b"up\n"
    for _ in range(3):
        space.call("checkpoint")
        time.sleep(1.0)
    assert space.image_numbers() == [1, 2, 3]
    space.call("checkpoint")
    kept(space, [4])
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE)
    assert b"ckpt-000002 is damaged" in err
    assert b"ckpt-000003 is damaged" in err
    assert err.count(b"older images are kept") == 2


def test_images_of_an_earlier_job_go_with_the_first_good_one(space):
    assert space.call("run", "--", "sleep", "0.3", script={"checkpoints": 2}).returncode == 0
    assert space.image_numbers() == [1, 2], "they are kept after success"
    process = space.start("run", "--", *SLEEPER)
    assert process.stdout.readline() == b"up\n"
    assert space.image_numbers() == [1, 2]
    space.call("checkpoint")
    kept(space, [3])
    process.send_signal(signal.SIGTERM)
    process.wait(PATIENCE)


# -- resuming ---------------------------------------------------------------------------------------
COUNT = """
import os, sys, time
for i in range(int(os.environ.get("CRHPC_TEST_LINES", "0")), 40):
    print("line", i, flush=True)
    time.sleep(0.05)
"""
COUNTER = [sys.executable, "-c", COUNT]

pytestmark = pytest.mark.shared


@pytest.mark.parametrize("mode", ["w", "a"])
def test_output_in_a_file_is_that_of_an_uninterrupted_run(space, mode):
    """Killed whole, resumed by the same command line with > or >>, twice, then finished."""
    wanted = "".join(f"line {i}\n" for i in range(40))
    for op in ("start", "restart"):
        with open(space.path / "out", mode) as out:
            process = space.start("run", "--", *COUNTER, stdout=out)
        space.noted(op)
        time.sleep(0.4)
        assert space.call("checkpoint").returncode == 0
        time.sleep(0.3)
        process.kill()
        process.wait()
        space.noted("eof", len(space.notes("start") + space.notes("restart")))
    with open(space.path / "out", mode) as out:
        process = space.start("run", "--", *COUNTER, stdout=out)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert (space.path / "out").read_text() == wanted
    assert b"crhpc: resumed from ckpt-000002: 1 process in 10 ms\n" in err
    tails = sorted(path.name for path in space.images.glob("*.tail-*"))
    assert tails == ([] if mode == "w" else ["ckpt-000001.tail-out", "ckpt-000002.tail-out"])


def test_crhpcs_own_words_do_not_spoil_a_shared_file(space):
    """Both streams in one file: nothing is said before the file is what it was."""
    for code in (85, 0):
        with open(space.path / "out", "w") as out:
            process = space.start("run", "--", *COUNTER, stdout=out, stderr=out)
        if code:
            until(lambda: "line 5" in (space.path / "out").read_text(), "some lines")
            process.send_signal(signal.SIGUSR2)
        assert process.wait(PATIENCE) == code
    lines = (space.path / "out").read_text().splitlines()
    assert [line for line in lines if line.startswith("line ")] == [f"line {i}" for i in range(40)]
    assert sum(line.startswith("crhpc: started") for line in lines) == 1
    assert sum("resumed from ckpt-000001" in line for line in lines) == 1


def test_a_damaged_image_gives_way_to_the_one_before(space):
    assert space.call("run", "--", "sh", "-c", "sleep 0.5; exit 3",
                      script={"checkpoints": 3, "damage": [3]}).returncode == 3
    done = space.call("run", "--", "sh", "-c", "sleep 0.5; exit 3")
    assert done.returncode == 3
    first, second, third = done.stderr.splitlines()
    assert "ckpt-000003 is damaged: shard-0.h5" in first
    assert second.startswith("crhpc: resumed from ckpt-000002")
    assert "resumes it from ckpt-000002" in third


def test_all_damaged(space):
    script = {"checkpoints": 2, "damage": [1, 2]}
    assert space.call("run", "--", "sh", "-c", "sleep 0.5; exit 3", script=script).returncode == 3
    done = space.call("run", "--", "sh", "-c", "sleep 0.5; exit 3")
    assert done.returncode == 75
    assert "no usable checkpoint in" in done.stderr.splitlines()[-1]
    assert len(space.notes("restart")) == 0
    assert space.call("restart", str(space.images / "ckpt-000001")).returncode == 75
    assert space.call("run", "--resume", "never", "--", "true").returncode == 0


def test_file_options_reach_the_agent_at_a_restart(space):
    space.call("run", "--", "sh", "-c", "sleep 0.5; exit 1", script={"checkpoints": 1})
    done = space.call("restart", str(space.images))
    assert space.notes("restart")[-1]["policy"] == {"files": "rollback", "moved": [], "force": False}
    space.call("restart", str(space.images), "--files", "keep", "--map", "/a/=/b", "--map", "/a/c=/d/")
    moved = [["/a", "/b"], ["/a/c", "/d"]]
    assert space.notes("restart")[-1]["policy"] == {"files": "keep", "moved": moved, "force": False}
    space.call("run", "--files", "strict", "--", "sh", "-c", "sleep 0.5; exit 1")
    assert space.notes("restart")[-1]["policy"] == {"files": "strict", "moved": [], "force": False}
    assert "policy" not in space.notes("start")[0]
    assert done.returncode == 1


def test_a_job_whose_directory_has_moved_is_the_same_job(space):
    """The same command line, in the new place, and --map."""
    (space.path / "old").mkdir()
    words = ["--", "sh", "-c", "sleep 0.5; exit 1"]
    space.call("run", *words, script={"checkpoints": 1}, cwd=space.path / "old")
    (space.path / "old").rename(space.path / "new")
    assert space.call("run", *words, cwd=space.path / "new").returncode == 78
    done = space.call("run", "--map", f"{space.path}/old={space.path}/new", *words, script={"checkpoints": 1},
                      cwd=space.path / "new")
    assert done.returncode == 1 and "resumed from ckpt-000001" in done.stderr
    assert json.loads((space.images / "state.json").read_text())["cwd"] == f"{space.path}/new"
    assert space.call("run", *words, cwd=space.path / "new").returncode == 1   # from a checkpoint that was made there


def test_a_dry_run_tells_and_changes_nothing(space):
    space.call("run", "--", "sh", "-c", "sleep 0.5; exit 1", script={"checkpoints": 1})
    before = (space.images / "state.json").read_text()
    done = space.call("restart", str(space.images), "--dry-run", script={"plans": ["/out would be\nshorter"]})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "/out would be shorter\nckpt-000001 can be restarted: 3 processes\n"
    assert (space.images / "state.json").read_text() == before
    done = space.call("restart", str(space.images), "--dry-run", script={"fail": {"error": "no", "code": 75}})
    assert (done.returncode, done.stdout, done.stderr) == (75, "", "crhpc: no\n")


def test_restart_of_a_directory_and_of_an_image(space):
    assert space.call("run", "--", "sh", "-c", "sleep 0.5; exit 3", script={"checkpoints": 3}).returncode == 3
    for words, number in ((["restart", str(space.images)], 3),
                          (["restart", str(space.images / "ckpt-000002")], 2),
                          (["restart", str(space.images / "ckpt-000002")], 2),
                          (["run", "--", "sh", "-c", "sleep 0.5; exit 3"], 2)):
        done = space.call(*words)
        assert done.returncode == 3
        assert space.notes("restart")[-1]["image"] == str(space.images / f"ckpt-{number:06d}")
    assert len({read_state(space.images).id, *(note["job"]["id"] for note in space.notes("start"))}) == 1


def test_another_command_is_refused_until_it_may(space):
    assert space.call("run", "--", "sh", "-c", "sleep 0.3; exit 3", script={"checkpoints": 1}).returncode == 3
    done = space.call("run", "--", "true")
    assert done.returncode == 78
    assert "unfinished job of another command (sh -c 'sleep 0.3; exit 3')" in done.stderr
    assert space.call("run", "--resume", "never", "--", "true").returncode == 0
    assert space.image_numbers() == [1]


def test_after_a_finished_job_a_new_one(space):
    for _ in range(2):
        assert space.call("run", "--", "sleep", "0.3", script={"checkpoints": 1}).returncode == 0
    assert len(space.notes("start")) == 2
    assert space.notes("start")[0]["job"]["id"] != space.notes("start")[1]["job"]["id"]
    done = space.call("run", "--resume", "require", "--", "sleep", "0.3")
    assert (done.returncode, "its last job is finished" in done.stderr) == (75, True)


def test_half_written_images_are_cleared_away(space):
    space.call("run", "--", "true")
    stale = space.images / f".ckpt-000007.tmp-{'0' * 32}"
    stale.mkdir()
    (stale / "shard-0.h5").write_bytes(b"half")
    space.call("run", "--", "true")
    assert not stale.exists()


# -- rest and motion --------------------------------------------------------------------------------
def test_idle_costs_nothing(space):
    process = space.start("run", "--", *SLEEPER)
    assert process.stdout.readline() == b"up\n"
    time.sleep(0.5)

    def ticks() -> int:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])
    before = ticks()
    time.sleep(4)
    used = (ticks() - before) / os.sysconf("SC_CLK_TCK")
    assert used <= 0.05, "a sleeping supervisor uses no processor time"


def test_a_slow_checkpoint_shows_on_a_terminal(space):
    process, master = space.on_terminal("run", "--", "sleep", "2.5", script={"slow": 0.15, "checkpoints": 1})
    text = read_terminal(master)
    assert process.wait(PATIENCE) == 0
    assert "MiB of 100 MiB" in text
    assert "checkpoint 1:" not in text


def test_umask_is_read_without_changing_it():
    before = os.umask(0o022)
    try:
        os.umask(0o027)
        assert task._umask() == 0o027
        assert task._umask() == 0o027
    finally:
        os.umask(before)
