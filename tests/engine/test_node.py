"""The door to a node's share of a job: what may be called when, and what is left whenever it ends."""
from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import time
from contextlib import contextmanager

import pytest

from crhpc.engine.description import check_description
from crhpc.errors import (
    CheckpointFailed,
    CommandNotFound,
    CrhpcError,
    DiskFull,
    NotAllowed,
    Unsupported,
)
from crhpc.image.format import ShardSummary
from crhpc.kernel import proc

from .inside import PATIENCE, TALKING, command, goes_on, gone, hosts, next_event, one_line, ready, state, until


# -- a new job ----------------------------------------------------------------------------------------
def test_start(job):
    told = ready(job)
    assert told == {"pid": 2, "host_pid": job.node.root_host, "tasks": 1}
    assert proc.status(told["host_pid"]).inner("NSpid") == told["pid"]
    assert os.path.isdir(job.temporary)


def test_the_directory_for_temporary_files_is_the_jobs(job, tmp_path):
    job.start("""
        import tempfile
        say(os.environ["TMPDIR"], tempfile.mkdtemp().startswith(os.environ["TMPDIR"] + "/"), os.uname().nodename)
    """, env=os.environ | {"TMPDIR": str(tmp_path)})
    assert job.hear() == f"{job.temporary} True {socket.gethostname()}"


def test_a_command_that_is_not_there(job):
    with pytest.raises(CommandNotFound, match="cannot start no-such-program"):
        job.node.start(command(["no-such-program"]), job.stdio, job.temporary)
    job.node.end()
    assert not os.path.exists(job.temporary)


def test_a_pod_that_is_not_allowed(job, tmp_path):
    with pytest.raises(NotAllowed) as caught:
        job.node.start(command(["true"]), job.stdio, str(tmp_path / "missing" / "crhpc-abcdef"))
    assert one_line(caught.value)
    job.node.end()


# -- a checkpoint that is given up --------------------------------------------------------------------
STEPS = ["precopy", "freeze", "cut", "describe", "thaw"]


def up_to(job, last: str) -> str:
    """The first steps of a checkpoint; the directory of its shard."""
    directory = str(job.new_image())
    for step in STEPS[:STEPS.index(last) + 1]:
        getattr(job.node, step)(*[directory] * (step == "precopy"))
    return directory


@pytest.mark.parametrize("last", STEPS)
def test_abort_at_any_point(job, last):
    """The job goes on, no shard is left, and the next checkpoint is as good as any."""
    ready(job)
    threads = len(os.listdir("/proc/self/task"))
    directory = up_to(job, last)
    for _ in range(2):
        job.node.abort()
        assert os.listdir(directory) == []
        assert goes_on(job)
    until(lambda: len(os.listdir("/proc/self/task")) == threads, "a thread is left")
    job.checkpoint()
    assert goes_on(job)


def test_abort_of_nothing(job):
    job.node.abort()
    ready(job)
    job.node.abort()
    assert goes_on(job)


@pytest.mark.parametrize("last", STEPS)
def test_end_at_any_point(job, last):
    """What stands still does not run again; nothing is left."""
    ready(job)
    found = hosts(job)
    directory = up_to(job, last)
    if last not in ("precopy", "thaw"):
        job.tell("never heard")
    for _ in range(2):
        job.node.end()
        assert gone(*found)
    assert job.silent()
    assert os.listdir(directory) == []
    assert not os.path.exists(job.temporary)
    assert job.node.pod is None


def test_end_after_a_checkpoint_leaves_the_image(job):
    ready(job)
    image = job.checkpoint()
    job.node.end()
    assert sorted(os.listdir(image)) == ["manifest.json", "master.h5", "shard-0.h5"]


def test_end_of_a_node_without_a_job(job):
    job.node.end()


# -- a checkpoint -------------------------------------------------------------------------------------
def test_what_is_told_of_it(job):
    ready(job, "fork(pause)\nos.waitid(os.P_PID, fork(), os.WEXITED | os.WNOWAIT)\n" + TALKING)
    job.node.precopy(str(job.new_image()))
    assert job.node.progress() == (0, 0)
    began = time.monotonic()
    assert job.node.freeze() == 3, "zombies count"
    assert job.node.cut() == []
    assert job.node.progress()[0] > 0
    time.sleep(0.01)
    assert 0.01 <= job.node.thaw() <= time.monotonic() - began
    summary = ShardSummary.from_json(job.node.write())
    assert (summary.node, summary.file) == (0, "shard-0.h5")
    assert job.node.progress() == (0, 0)
    assert set(job.node.steps.seconds) == {"freeze", "inspect", "registers", "collect", "content", "write"}
    assert goes_on(job)


def test_describe(job):
    ready(job)
    described = job.node.describe()
    assert {name: described[name] for name in ("temporary", "root", "root_status", "hostname")} == {
        "temporary": job.temporary, "root": 2, "root_status": None, "hostname": socket.gethostname()}
    assert 0 <= time.monotonic() - described["monotonic"] <= PATIENCE
    assert 0 <= time.clock_gettime(time.CLOCK_BOOTTIME) - described["boottime"] <= PATIENCE
    assert described["last_pid"] == 2
    check_description("/image", described)


def test_write_while_the_job_goes_on(job):
    ready(job)
    up_to(job, "thaw")
    assert goes_on(job)
    job.node.write()
    assert goes_on(job)


@contextmanager
def files_no_longer_than(size: int):
    """This process can't write more into any file (Python ignores SIGXFSZ)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_shard_that_can_not_be_written(job):
    ready(job)
    directory = up_to(job, "thaw")
    with files_no_longer_than(4096), pytest.raises(CheckpointFailed, match="File too large") as caught:
        job.node.write()
    assert one_line(caught.value)
    job.node.abort()
    assert os.listdir(directory) == []
    job.checkpoint()
    assert goes_on(job)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(job, number):
    ready(job)
    up_to(job, "thaw")

    def full() -> None:
        raise OSError(number, os.strerror(number), "shard-0.h5")
    job.node._writer.close = full
    with pytest.raises(DiskFull, match=f"no checkpoint was taken: {job.images} is full") as caught:
        job.node.write()
    assert one_line(caught.value)
    job.node.abort()
    assert goes_on(job)


def test_a_directory_that_is_gone(job):
    ready(job)
    with pytest.raises(CrhpcError, match="No such file or directory") as caught:
        job.node.precopy(str(job.images / "missing" / "x"))
    assert one_line(caught.value)
    job.node.abort()
    assert goes_on(job)


def test_what_can_not_be_stopped(job):
    ready(job, "threading.Thread(target=lambda: exec('while True: say(wait())')).start()\n"
               "say('ready')\nctypes.CDLL(None).syscall(60, 0)")
    until(lambda: state(job.node.root_host) == "Z", "its first thread does not end")
    job.node.precopy(str(job.new_image()))
    with pytest.raises(Unsupported) as caught:
        job.node.freeze()
    assert one_line(caught.value)
    job.node.abort()
    job.tell("on")
    assert job.hear() == "on"


def test_what_can_not_be_saved(job):
    """After it has been refused it stands still, until it is let go."""
    ready(job, "sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)\n" + TALKING)
    job.node.precopy(str(job.new_image()))
    job.node.freeze()
    with pytest.raises(Unsupported, match="a socket of type AF_NETLINK") as caught:
        job.node.cut()
    assert one_line(caught.value)
    assert {state(task["host_pid"]) for task in job.node.tasks()} == {"t"}
    job.node.abort()
    assert goes_on(job)
    assert job.node.survey()[0] == [str(caught.value)]


def test_one_that_is_killed_before_the_cut(job):
    """No checkpoint, said in one line; the others go on."""
    ready(job, "pid = fork(pause)\n" + TALKING)
    job.node.precopy(str(job.new_image()))
    job.node.freeze()
    (host,) = proc.children(job.node.root_host)
    os.kill(host, signal.SIGKILL)
    until(lambda: state(host) == "Z", "it does not die")
    with pytest.raises(CrhpcError, match="no checkpoint was taken: ") as caught:
        job.node.cut()
    assert one_line(caught.value)
    job.node.abort()
    assert goes_on(job)


def test_one_whose_first_process_has_just_ended(job):
    """An image of that would be the newest, and there would be nothing to restart in it."""
    ready(job)
    os.kill(job.node.root_host, signal.SIGKILL)
    until(lambda: not job.node.tasks(), "it does not die")
    job.node.precopy(str(job.new_image()))
    with pytest.raises(CrhpcError, match="no checkpoint was taken: the job's command has just ended") as caught:
        job.node.freeze()
    assert caught.value.passing
    job.node.abort()
    assert job.ended() == signal.SIGKILL


def test_calls_out_of_order_are_errors(job):
    for call in (job.node.freeze, job.node.cut, job.node.thaw, job.node.write, job.node.describe, job.node.connect):
        with pytest.raises(AssertionError):
            call()
    ready(job)
    for call in (job.node.cut, job.node.thaw, job.node.write, job.node.connect):
        with pytest.raises(AssertionError):
            call()
    assert goes_on(job)


# -- while it runs ------------------------------------------------------------------------------------
LISTENING = """
def listen(word):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)   # written to at once, whatever Python is about to do
    signal.signal(signal.SIGUSR1, lambda number, frame: None)
    say(word, os.getpid())
    while True:
        os.read(reader, 1)
        say("got", os.getpid())
"""


def test_a_signal_to_the_first_process(job):
    job.start(LISTENING + "fork(lambda: listen('child'))\nlisten('root')")
    child = max(int(job.hear().split()[1]) for _ in range(2))
    job.node.signal(signal.SIGUSR1, group=False)
    assert job.hear() == "got 2"
    job.node.signal(signal.SIGUSR1, group=True)
    assert {job.hear(), job.hear()} == {"got 2", f"got {child}"}


def test_a_signal_to_the_group_of_one_that_moved(job):
    """It is sent where the process is now."""
    job.start(LISTENING + """
other = fork(lambda: (os.setpgid(0, 0), listen("child")))
wait()
os.setpgid(0, other)
listen("moved")
""")
    child = job.numbers_of("child")
    job.tell()
    job.numbers_of("moved")
    job.node.signal(signal.SIGUSR1, group=True)
    assert {job.hear(), job.hear()} == {"got 2", f"got {child}"}


def test_a_signal_to_those_that_the_first_process_left(job):
    """A shell's background jobs: Ctrl-C is for the whole group, whoever of it is left."""
    job.start(LISTENING + "fork(lambda: listen('child'))\nos._exit(0)")
    child = job.numbers_of("child")
    job.ended()
    job.node.signal(signal.SIGUSR1, group=False)
    job.node.signal(signal.SIGUSR1, group=True)
    assert job.hear() == f"got {child}"
    assert job.silent()


def test_a_signal_to_those_that_the_first_process_left_after_a_restart(job):
    job.start(LISTENING + "fork(lambda: listen('child'))\nos._exit(0)")
    child = job.numbers_of("child")
    job.ended()
    image = job.checkpoint(stop=True)
    assert job.restart(image)["host_pid"] == 0
    job.node.signal(signal.SIGUSR1, group=False)
    job.node.signal(signal.SIGUSR1, group=True)
    assert job.hear() == f"got {child}"
    assert job.silent()


def test_a_signal_to_nobody(job):
    """The number may be anybody's by now: whoever has it is left alone."""
    for group in (False, True):
        job.node.signal(signal.SIGKILL, group=group)
    ready(job)
    job.tell("end")
    job.tell("0")
    job.ended()
    bystander = os.fork()
    if bystander == 0:
        signal.pause()
        os._exit(0)
    try:
        os.setpgid(bystander, bystander)
        job.node.root_host = bystander
        for group in (False, True):
            job.node.signal(signal.SIGKILL, group=group)
        assert state(bystander) in ("S", "R")
    finally:
        os.kill(bystander, signal.SIGKILL)
        os.waitpid(bystander, 0)


def test_tasks(job):
    job.start("""
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        fork(lambda: os.execvp("sleep", ["sleep", "1000"]))
        say("ready")
        pause()
    """)
    job.hear()
    until(lambda: job.node.tasks()[-1]["program"] == "sleep", "it does not begin")
    root, child = job.node.tasks()
    assert (root["pid"], root["host_pid"], root["threads"]) == (2, job.node.root_host, 2)
    assert root["program"].startswith("python")
    assert (child["threads"], proc.status(child["host_pid"]).inner("NSpid")) == (1, child["pid"])


def test_tasks_and_survey_of_nothing(job):
    assert job.node.tasks() == []
    assert job.node.survey() == ([], [])


def test_survey(job):
    ready(job, "listener = socket.create_server(('127.0.0.1', 0))\n" + TALKING)
    lines, ends = job.node.survey()
    assert (lines, len(ends)) == ([], 1)
    assert goes_on(job)


def test_the_end_of_the_first_process_is_an_event(job):
    ready(job)
    job.tell("end")
    job.tell("3")
    assert job.ended() == 3 << 8
    assert next_event(job.node.pod) == {"op": "empty"}
