"""The first process of a pod, driven by hand where that shows more: its mounts, its numbers, and what it reaps."""
from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from crhpc.channel import Channel
from crhpc.engine import init
from crhpc.kernel import proc

from .inside import ROOT, command, next_event, python, state, until

MARGIN = 16
"""Below it the first process has its own descriptors (crhpc/engine/restore.py)."""


@contextmanager
def first_process(number: int | None = None, spec: dict | None = None) -> Iterator[tuple[Channel, int]]:
    """The channel to a pod's first process and its id; ``number`` is that of its end of the channel."""
    ours, theirs = Channel.pair()
    inherited = theirs.fileno() if number is None else os.dup2(theirs.fileno(), number)
    with subprocess.Popen([sys.executable, "-P", "-m", "crhpc.engine.init", str(inherited)], pass_fds=[inherited],
                          stdin=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)}) as unsharing:
        if number is not None:
            os.close(number)
        theirs.close()
        ours.send(spec or {"hostname": "inside"})
        message, _ = ours.receive()
        assert message["op"] == "init"
        unsharing.wait()
        ours.send({"op": "go"})
        assert ours.receive()[0] == {"op": "ready"}
        try:
            yield ours, message["pid"]
        finally:
            ours.close()
            until(lambda: state(message["pid"]) in ("", "Z"), "it does not end with its channel")


def ask(channel: Channel, op: str, fds: tuple[int, ...] = (), **fields: object) -> dict:
    channel.send({"op": op, **fields}, fds)
    while True:
        reply, received = channel.receive()
        for fd in received:
            os.close(fd)
        if reply["op"] == "reply":
            return reply


# -- its descriptors ----------------------------------------------------------------------------------
def test_the_lowest_number():
    """The next one that is free; the high one is free again."""
    low = os.dup(0)
    os.close(low)
    high = os.dup2(0, 500)
    assert init._at_the_lowest_number(high) == low
    os.close(low)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(500)


@pytest.mark.parametrize("number", [MARGIN, 400])
def test_its_descriptors_are_out_of_the_way_of_the_jobs(pods_are_allowed, number):
    with first_process(number) as (channel, pid):
        ask(channel, "read", path="/proc/version")
        assert max(proc.fds(pid)) < MARGIN


def test_the_control_socket_is_the_only_high_one(pods_are_allowed):
    a, b = socket.socketpair()
    with first_process() as (channel, pid), a, b:
        ask(channel, "read", path="/proc/version")
        before = proc.fds(pid)
        for number in (700, 20):
            assert ask(channel, "control", (a.fileno(),), number=number) == {"op": "reply"}
            ask(channel, "read", path="/proc/version")
            assert proc.fds(pid) == [*before, number]
            ask(channel, "built", root=0, last_pid=0)
            assert proc.fds(pid) == before


def test_its_limit_of_open_files_is_raised_for_it(pods_are_allowed):
    a, b = socket.socketpair()
    with first_process() as (channel, pid), a, b:
        _soft, hard = proc.limits(pid)[7]
        if hard <= 1 << 20:
            assert ask(channel, "control", (a.fileno(),), number=hard)["errno"] == 9   # EBADF: one too high
        assert ask(channel, "control", (a.fileno(),), number=min(hard, 1 << 16) - 1) == {"op": "reply"}
        assert proc.limits(pid)[7] == (hard, hard)


# -- its life -----------------------------------------------------------------------------------------
def test_it_ends_with_its_channel(pods_are_allowed):
    with first_process() as (channel, pid):
        pipe = os.pipe()
        ask(channel, "start", (0, pipe[1], 2), **command(["sleep", "1000"]))
        hosts = until(lambda: proc.children(pid), "nothing has started")
        os.close(pipe[1])
    until(lambda: not any(state(host) for host in hosts), "the job lives on")
    assert os.read(pipe[0], 1) == b""
    os.close(pipe[0])


@pytest.mark.parametrize("spec", [{}, {"hostname": ""}])
def test_a_pod_without_a_name_has_that_of_the_node(pods_are_allowed, spec):
    with first_process(spec={"clocks": None, **spec}) as (channel, _):
        assert ask(channel, "read", path="/proc/sys/kernel/hostname")["text"].strip() == socket.gethostname()


def test_it_sleeps_while_nothing_happens(pod, run):
    """In poll(2), with no signal pending and no timer running."""
    run("say('ready')\nwait()").hear()
    until(lambda: state(pod.pid) == "S", "it does not sleep")
    assert proc.read(f"/proc/{pod.pid}/timers") == b""
    switches = [proc.status(pod.pid).number("voluntary_ctxt_switches") for _ in range(2000)]
    assert switches[0] == switches[-1]


def test_it_can_not_be_ended_from_inside(run):
    """The kernel spares it what it has no handler for."""
    program = run("for n in (9, 15, 19, 1):\n    os.kill(1, n)\nsay('sent')\nwait()")
    assert program.hear() == "sent"
    assert program.pod.request({"op": "read", "path": "/proc/sys/kernel/hostname"})["text"] == "inside\n"


# -- what it reaps ------------------------------------------------------------------------------------
def test_orphans_are_reaped(pod, run):
    """However many end at once, whatever of."""
    run("""
        for number in range(50):
            def orphan():
                fork(lambda: os._exit(number) if number % 2 else os.kill(os.getpid(), 9))
            os.waitpid(fork(orphan), 0)
        say("over")
        wait()
    """).hear()
    until(lambda: len(proc.descendants(pod.pid)) == 1, "some are left")


def test_only_the_end_of_the_command_is_told(pod, run):
    """Orphans may be many, and the agent be busy."""
    program = run("""
        for _ in range(50):
            os.waitpid(fork(fork), 0)
        os._exit(5)
    """)
    assert program.ended() == 5 << 8
    events = [next_event(pod)]
    pod.request({"op": "read", "path": "/proc/version"})
    assert {event["op"] for event in [*events, *pod.events]} == {"empty"}


def test_a_number_that_is_given_again_is_not_the_commands(pod, pipes):
    """The command's own end is told once; a later process with its id is nobody."""
    pid, _ = pod.start(command(["true"]), pipes.stdio)
    while next_event(pod)["op"] != "exited":
        pass
    host = pod.fork_as(pid)
    os.kill(host, 9)
    until(lambda: not state(host), "it is not reaped")
    pod.request({"op": "read", "path": "/proc/version"})
    assert "exited" not in [event["op"] for event in pod.events]


# -- what the job sees --------------------------------------------------------------------------------
def test_proc_is_the_pods_own(run):
    program = run("""
        say(*sorted(int(name) for name in os.listdir("/proc") if name.isdigit()))
        say(os.readlink("/proc/self"))
        say(open("/proc/1/cmdline").read().split("\\0")[3])
    """)
    assert program.numbers() == [1, program.pid]
    assert program.hear() == str(program.pid)
    assert program.hear() == "crhpc.engine.init"


def test_shared_memory_is_the_pods_own(run, tmp_path):
    mine = f"/dev/shm/{tmp_path.name}"
    program = run(f"""
        say(os.listdir("/dev/shm"), oct(os.stat("/dev/shm").st_mode & 0o7777))
        open({mine!r}, "x").close()
        say("made")
        wait()
    """)
    assert program.hear() == "[] 0o1777"
    program.hear()
    assert not os.path.exists(mine)
    assert os.path.exists(f"/proc/{program.host}/root{mine}")


def test_terminals_are_the_pods_own(run):
    """Numbered from 0: those of an image are free at every restart."""
    program = run("""
        say(*sorted(os.listdir("/dev/pts")))
        ends = [os.openpty() for _ in range(3)]
        say(*(os.ttyname(slave) for _, slave in ends))
        master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
        say(*sorted(os.listdir("/dev/pts")))
        os.write(ends[0][1], b"through\\n")
        say(os.read(ends[0][0], 100))
    """)
    assert [program.hear() for _ in range(4)] == [
        "ptmx", "/dev/pts/0 /dev/pts/1 /dev/pts/2", "0 1 2 3 ptmx", r"b'through\r\n'"]


def test_no_mount_of_the_pods_comes_out(run):
    """Those of the node follow, where it shares them; the other way round nothing goes."""
    program = run("""
        with open("/proc/self/mountinfo") as file:
            lines = [line.split() for line in file]
        say(*sorted({word.partition(":")[0] for words in lines for word in words[6:words.index("-")]}))
    """)
    assert "shared" not in program.hear().split()


def test_system_v_ids_are_the_pods_own(pod, run):
    """Calls are made by the pod's first process, in the pod's namespace."""
    write = {"op": "write", "path": "/proc/sys/kernel/shm_next_id", "text": "77"}
    pod.request(write)
    made = pod.request({"op": "calls", "calls": [("shmget", [0, 5000, 0o3600])]})["done"]
    assert made[0][0] == 77
    text = run("say(open('/proc/sysvipc/shm').read().splitlines()[1])").hear().split()
    assert text[:4] == ["0", "77", "600", "5000"]
    with open("/proc/sysvipc/shm", encoding="ascii") as file:
        assert not any(line.split()[1:4] == ["77", "600", "5000"] for line in file)


# -- errors -------------------------------------------------------------------------------------------
def test_exec_errors_have_a_number_and_a_name(pods_are_allowed, tmp_path):
    script = tmp_path / "no format"
    script.write_bytes(b"\x00\x01")
    script.chmod(0o755)
    with first_process() as (channel, pid):
        for argv, fields, reply in (
                (["/no/such"], {}, (2, "/no/such")), ([str(script)], {}, (8, str(script))),
                (["true"], {"cwd": "/etc/passwd"}, (20, "/etc/passwd")), (["x" * 300], {}, (36, "x" * 300))):
            answer = ask(channel, "start", (0, 1, 2), **command(argv, **{"env": {"PATH": "/bin"}, **fields}))
            assert (answer["errno"], answer["what"]) == reply
        assert proc.children(pid) == []


def test_a_program_of_many_words(pod, pipes):
    """All of the arguments and the environment, through the channel and the exec."""
    words = [f"{number:05}" * 100 for number in range(2000)]
    environment = {f"NAME{number}": "x" * 1000 for number in range(200)} | {"PATH": os.environ["PATH"]}
    code = "say(len(sys.argv), sum(map(len, sys.argv)), len([n for n in os.environ if n[:4] == 'NAME']))"
    pod.start(command([*python(code), *words], env=environment), pipes.stdio)
    assert pipes.numbers() == [2001, 2 + sum(map(len, words)), 200]
