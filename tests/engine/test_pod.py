"""A pod from the agent's side: its namespaces, the command in it, and its end."""
from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import signal
import socket
import stat as modes
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crhpc.channel import ChannelClosed
from crhpc.engine import freeze as freezing
from crhpc.engine.pod import PodProcess
from crhpc.errors import CommandNotFound, NotAllowed
from crhpc.kernel import pidfd, proc

from .inside import ROOT, command, next_event, pod_at, program_in, python, state, until

SHARED_WITH_THE_NODE = {"net", "cgroup"}


def namespaces_of(pid: int | str) -> dict[str, str]:
    return {name: os.readlink(f"/proc/{pid}/ns/{name}")
            for name in ("pid", "mnt", "ipc", "uts", "user", "time", "net", "cgroup")}


def gone(*hosts: int) -> bool:
    return not any(state(host) for host in hosts)


# -- making one ---------------------------------------------------------------------------------------
def test_it_has_namespaces_of_its_own(run):
    ours, theirs = namespaces_of("self"), namespaces_of(run("wait()").host)
    own = {"pid", "mnt", "ipc", "uts"} | ({"user"} if os.getuid() else set())
    assert {name for name in ours if theirs[name] != ours[name]} == own


def test_its_first_process_is_a_child_of_ours(pod):
    """The agent is the tracer, and its death is to end the pod."""
    assert proc.stat(pod.pid).ppid == os.getpid()
    assert proc.status(pod.pid).inner("NSpid") == 1
    assert len(proc.threads(pod.pid)) == 1
    assert proc.stat(pod.pid).session == pod.pid


def test_the_user_keeps_its_ids(run):
    program = run("say(*os.getresuid(), *os.getresgid())")
    assert program.numbers() == [*os.getresuid(), *os.getresgid()]


def test_hostname(tmp_path, pods_are_allowed):
    with pod_at(tmp_path, hostname="far-away") as pod, program_in(pod, "say(socket.gethostname())") as program:
        assert program.hear() == "far-away"
    assert socket.gethostname() != "far-away"


def test_clocks_go_on_where_they_were(tmp_path, pods_are_allowed):
    with (pod_at(tmp_path, clocks={"monotonic": 1e6, "boottime": 2e6}) as pod,
          program_in(pod, "say(time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME))\nwait()") as program):
        monotonic, boottime = map(float, program.hear().split())
        now = time.monotonic() + pod.clock_offset("monotonic"), (
            time.clock_gettime(time.CLOCK_BOOTTIME) + pod.clock_offset("boottime"))
        assert 1e6 <= monotonic <= now[0] < 1e6 + 1000
        assert 2e6 <= boottime <= now[1] < 2e6 + 1000
        assert namespaces_of(program.host)["time"] != namespaces_of("self")["time"]


def test_without_clocks_it_has_the_nodes_own(pod):
    assert (pod.clock_offset("monotonic"), pod.clock_offset("boottime")) == (0.0, 0.0)


@pytest.mark.parametrize(("options", "words"), [
    ({"hostname": "x" * 65}, "sethostname: Invalid argument"),
    ({"clocks": {"monotonic": -5.0, "boottime": 1.0}}, "timens_offsets: Numerical result out of range")])
def test_a_pod_that_is_refused(tmp_path, pods_are_allowed, options, words):
    """One line with a cure; no process, no directory and no descriptor is left."""
    gc.collect()   # what earlier tests have left must not be closed in the middle
    before = proc.children(os.getpid()), os.listdir("/proc/self/fd")
    with pytest.raises(NotAllowed) as caught:
        PodProcess(str(tmp_path / "crhpc-abcdef"), **{"hostname": "inside", **options})
    assert (proc.children(os.getpid()), os.listdir("/proc/self/fd")) == before
    assert os.listdir(tmp_path) == []
    assert words in str(caught.value)
    assert "Cure: " in str(caught.value)


# -- the directory for temporary files ----------------------------------------------------------------
def test_the_directory_is_the_users_alone(pod):
    found = os.lstat(pod.temporary)
    assert (modes.S_IMODE(found.st_mode), found.st_uid) == (0o700, os.getuid())


def test_a_directory_of_the_jobs_earlier_life_is_taken(tmp_path, pods_are_allowed):
    (tmp_path / "crhpc-abcdef").mkdir()
    (tmp_path / "crhpc-abcdef" / "old").touch()
    pod = PodProcess(str(tmp_path / "crhpc-abcdef"), hostname="inside")
    pod.end()
    assert os.listdir(tmp_path) == []


def a_file(path):
    path.touch()


def a_link_to_a_directory(path):
    (path.parent / "there").mkdir()
    path.symlink_to(path.parent / "there")


def a_link_to_nothing(path):
    path.symlink_to(path.parent / "nowhere")


@pytest.mark.parametrize("make", [a_file, a_link_to_a_directory, a_link_to_nothing])
def test_what_is_in_its_place_is_neither_used_nor_removed(tmp_path, make):
    place = tmp_path / "crhpc-abcdef"
    make(place)
    before = os.lstat(place)
    with pytest.raises(NotAllowed, match="it is not a directory of yours") as caught:
        PodProcess(str(place), hostname="inside")
    assert "Cure: set TMPDIR" in str(caught.value)
    assert os.lstat(place) == before
    assert not os.path.exists(tmp_path / "nowhere")


def test_a_directory_of_another_users(tmp_path):
    place = "/"
    if os.getuid() == 0:
        place = str(tmp_path / "crhpc-abcdef")
        os.mkdir(place)
        os.chown(place, 12345, 12345)
    with pytest.raises(NotAllowed, match="it is not a directory of yours"):
        PodProcess(place, hostname="inside")
    assert os.path.isdir(place)


def test_a_directory_that_can_not_be_made(tmp_path):
    with pytest.raises(NotAllowed, match="for temporary files: No such file or directory"):
        PodProcess(str(tmp_path / "missing" / "crhpc-abcdef"), hostname="inside")


# -- the command --------------------------------------------------------------------------------------
def test_start_tells_both_of_its_ids(run):
    program = run("say(os.getpid(), os.getppid(), os.getpgid(0), os.getsid(0))\nwait()")
    assert program.numbers() == [program.pid, 1, program.pid, 1]
    assert proc.status(program.host).inner("NSpid") == program.pid
    assert proc.stat(program.host).ppid == program.pod.pid


def test_the_three_streams_and_no_other_descriptor(pod, pipes):
    extra = os.open("/", os.O_RDONLY)
    other, error = os.pipe()
    os.set_inheritable(extra, True)
    code = "say(*descriptors())\nos.write(2, b'error')\nsay(wait())"
    pod.start(command(python(code)), (*pipes.stdio[:2], error))
    os.close(error)
    assert pipes.numbers() == [0, 1, 2]
    assert os.read(other, 100) == b"error"
    pipes.tell("hello")
    assert pipes.hear() == "hello"
    os.close(other)
    os.close(extra)


def test_where_it_runs_and_with_what(pod, pipes, tmp_path):
    """The command is looked for in its own PATH; nothing of the agent's environment comes in."""
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\npwd; umask; /usr/bin/env; echo \"$0 $1\"\n")
    tool.chmod(0o755)
    environment = {"PATH": f"/nowhere:{tmp_path}", "ODD": "\udcff="}
    pod.start(command(["tool", "an argument"], env=environment, cwd=str(tmp_path), umask=0o137), pipes.stdio)
    assert [pipes.hear(), pipes.hear()] == [str(tmp_path), "0137"]
    said = [pipes.hear()]
    while said[-1] != f"{tool} an argument":
        said.append(pipes.hear())
    assert {"ODD=\udcff=", f"PATH=/nowhere:{tmp_path}"} <= set(said)
    assert {line.partition("=")[0] for line in said[:-1]} <= {"PATH", "ODD", "PWD", "OLDPWD", "SHLVL", "_"}


@pytest.mark.parametrize("ignored", [[], [signal.SIGHUP, signal.SIGPIPE, 64]])
def test_signals_are_as_they_were_outside(tmp_path, pipes, pods_are_allowed, ignored):
    """Python ignores some, the pod's first process handles others, and the agent may have blocked some."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, 40})
    try:
        with pod_at(tmp_path) as pod:
            pod.start(command(["sed", "-n", "/^Sig[BIC]/p", "/proc/self/status"], ignored=ignored), pipes.stdio)
            next_event(pod)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    masks = dict(pipes.hear().split(":\t") for _ in range(3))
    # Those that the C library keeps for itself can be neither ignored nor reset by it; whoever started us may have.
    inherited = int(next(line for line in Path("/proc/self/status").read_text().splitlines()
                         if line.startswith("SigIgn")).split()[1], 16) & (1 << 31 | 1 << 32)
    expected = sum(1 << (number - 1) for number in ignored) | inherited
    assert {name: int(mask, 16) for name, mask in masks.items()} == {"SigBlk": 0, "SigIgn": expected, "SigCgt": 0}


def test_cpus(run):
    """All that are allowed unless told otherwise."""
    allowed = os.sched_getaffinity(0)
    code = "say(*sorted(os.sched_getaffinity(0)))"
    assert set(run(code).numbers()) == allowed
    assert run(code, cpus=[max(allowed)]).numbers() == [max(allowed)]


@pytest.mark.parametrize(("argv", "fields", "words"), [
    (["no-such"], {"env": {"PATH": "/usr/bin"}}, "cannot start no-such: no-such: No such file or directory"),
    (["/no/such/\udcff"], {}, "No such file or directory"),
    (["/etc/passwd"], {}, "cannot start /etc/passwd: /etc/passwd: Permission denied"),
    (["true"], {"cwd": "/no/such/place"}, "cannot start true: /no/such/place: No such file or directory"),
    (["true"], {"cpus": [4000]}, "Invalid argument")])
def test_a_command_that_can_not_be_run(pod, pipes, argv, fields, words):
    with pytest.raises(CommandNotFound) as caught:
        pod.start(command(argv, **fields), pipes.stdio)
    assert words in str(caught.value)
    assert caught.value.code == 127
    assert proc.children(pod.pid) == []


def test_after_a_command_that_can_not_be_run_another_can(pod, pipes):
    with pytest.raises(CommandNotFound):
        pod.start(command(["no-such-program"]), pipes.stdio)
    pod.start(command(["echo", "here"]), pipes.stdio)
    assert pipes.hear() == "here"


def test_one_that_ends_at_once(pod, pipes):
    """Whether it was gone before its number here could be asked for or not."""
    for _ in range(20):
        pid, _ = pod.start(command(["true"]), pipes.stdio)
        while (event := next_event(pod))["op"] != "exited":
            pass
        assert event == {"op": "exited", "pid": pid, "status": 0}


# -- requests and events ------------------------------------------------------------------------------
def test_a_request_that_fails_tells_why(pod):
    for _ in range(2):
        with pytest.raises(FileNotFoundError) as caught:
            pod.request({"op": "read", "path": "/no/such/file"})
        assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, "/no/such/file")
    assert pod.request({"op": "read", "path": "/proc/sys/kernel/hostname"})["text"] == "inside\n"


def test_a_file_with_any_bytes_in_it(pod, tmp_path):
    """Tables of /proc hold names of files, and those any bytes."""
    (tmp_path / "table").write_bytes(b"a \xff b\n")
    assert pod.request({"op": "read", "path": str(tmp_path / "table")})["text"] == "a \udcff b\n"


def test_descriptors_that_came_with_a_request_are_closed(pod, pipes):
    """Before the next request is served."""
    pod.request({"op": "read", "path": "/proc/version"})
    before = os.listdir(f"/proc/{pod.pid}/fd")
    for argv in (["true"], ["no-such-program"]):
        with contextlib.suppress(CommandNotFound):
            pod.start(command(argv), pipes.stdio)
        pod.request({"op": "read", "path": "/proc/version"})
    assert os.listdir(f"/proc/{pod.pid}/fd") == before


def test_how_it_ended(run):
    assert os.waitstatus_to_exitcode(run("os._exit(7)").ended()) == 7
    assert os.waitstatus_to_exitcode(run("os.kill(0, 9)").ended()) == -9


def test_empty_is_told_when_the_last_has_ended(pod, run):
    """Not when the command has: what it left goes on."""
    program = run("fork(lambda: say(wait()))")
    assert program.ended() == 0
    assert not select.select([pod], [], [], 0.05)[0]
    program.tell("over")
    assert program.hear() == "over"
    assert next_event(pod) == {"op": "empty"}


def test_events_that_come_during_a_request_are_kept(pod, run):
    program = run("os._exit(3)")
    until(lambda: not state(program.host), "it does not end")
    pod.request({"op": "read", "path": "/proc/version"})
    assert [event["op"] for event in pod.events] == ["exited", "empty"]
    assert program.ended() == 3 << 8


def test_fork_as(pod):
    host = pod.fork_as(4711)
    assert proc.status(host).numbers("NSpid") == (host, 4711)
    assert proc.stat(host).ppid == pod.pid
    with pytest.raises(FileExistsError) as caught:
        pod.fork_as(4711)
    assert caught.value.filename == "clone3"
    assert os.listdir(f"/proc/{host}/fd") == os.listdir(f"/proc/{pod.pid}/fd"), "no handle of the other's"


def test_stubs_have_the_end_of_a_control_socket(pod):
    gc.collect()   # what earlier tests have left must not be closed in the middle
    before = len(os.listdir("/proc/self/fd"))
    with pod.control(50) as ours:
        theirs = pidfd.take_fd(pod.fork_as(99), 50)
        os.write(theirs, b"x")
        assert ours.recv(10) == b"x"
        os.close(theirs)
    assert len(os.listdir("/proc/self/fd")) == before
    pod.request({"op": "built", "root": 0, "last_pid": 0})
    with pytest.raises(OSError, match="Bad file descriptor"):
        pidfd.take_fd(pod.fork_as(100), 50)


def test_new_processes_get_ids_behind_the_old_ones(pod, pipes):
    pod.control(50).close()
    pod.request({"op": "built", "root": 0, "last_pid": 30000})
    assert pod.start(command(["true"]), pipes.stdio)[0] == 30001


# -- the end ------------------------------------------------------------------------------------------
def test_the_end_leaves_nothing(tmp_path, pods_are_allowed):
    """Not what hid in a session of its own, what stands still, or what no mode allows to look into."""
    gc.collect()   # what earlier tests have left must not be closed in the middle
    before = len(os.listdir("/proc/self/fd"))
    with pod_at(tmp_path) as pod, program_in(pod, """
            closed = os.environ["PLACE"] + "/closed"
            os.mkdir(closed)
            open(closed + "/file", "w").close()
            os.chmod(closed, 0)
            def away():
                os.setsid()
                signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
                fork(pause)
                pause()
            fork(away)
            for _ in range(3):
                threading.Thread(target=time.sleep, args=(1000,)).start()
            say("ready")
            """, env=dict(os.environ, PLACE=pod.temporary)) as program:
        program.hear()
        until(lambda: len(proc.descendants(pod.pid)) == 3, "they are not all there")
        init, hosts = pod.pid, proc.descendants(pod.pid)
        freezing.freeze(pod.pid)
        pod.end()
        assert gone(init, *hosts)
        assert not os.path.exists(pod.temporary)
        assert init not in proc.children(os.getpid())
        pod.end()
    assert len(os.listdir("/proc/self/fd")) == before


def test_when_its_first_process_dies_all_do(pod, run):
    program = run("fork(pause)\nsay('ready')\npause()")
    program.hear()
    hosts = proc.descendants(pod.pid)
    os.kill(pod.pid, signal.SIGKILL)
    assert pod.read_event() is None
    with pytest.raises(ChannelClosed):
        pod.request({"op": "read", "path": "/proc/version"})
    until(lambda: gone(*hosts), "they live on")


AGENT = """
import os, signal, sys
from crhpc.engine.pod import PodProcess
pod = PodProcess(sys.argv[1], hostname="inside")
pod.start({"argv": ["sh", "-c", "sleep 1000 & sleep 1000; true"], "env": dict(os.environ), "cwd": "/", "umask": 0},
          (0, 1, 2))
print(pod.pid, flush=True)
signal.pause()
"""


def test_it_dies_with_its_agent(tmp_path, pods_are_allowed):
    agent = subprocess.Popen([sys.executable, "-c", AGENT, str(tmp_path / "crhpc-abcdef")], stdout=subprocess.PIPE,
                             env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL)
    assert agent.stdout is not None
    init = int(agent.stdout.readline())
    hosts = [init, *until(lambda: len(found := proc.descendants(init)) == 3 and found, "it does not start")]
    agent.kill()
    agent.wait()
    agent.stdout.close()
    until(lambda: all(state(host) in ("", "Z") for host in hosts), "the pod lives on")


def test_pods_do_not_see_each_other(tmp_path, pods_are_allowed):
    code = "open('/dev/shm/mine', 'x')\nsay(os.listdir('/dev/shm'), *sorted(filter(str.isdigit, os.listdir('/proc'))))"
    with pod_at(tmp_path) as one, pod_at(tmp_path) as other:
        for pod in (one, other):
            with program_in(pod, code) as program:
                assert program.hear() == "['mine'] 1 2"

