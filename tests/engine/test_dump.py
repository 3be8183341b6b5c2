"""The cut of one pod: moments in their order, refusals that touch nothing, and what is written of it."""
from __future__ import annotations

import gc
import os
import socket

import h5py
import pytest

from crhpc.engine.dump import survey, write_tables, write_tree
from crhpc.errors import PASSING, Unsupported
from crhpc.image.commit import commit
from crhpc.image.format import new_temporary
from crhpc.image.reader import Image
from crhpc.image.writer import ShardWriter
from crhpc.kernel import proc, ptrace
from crhpc.log import Steps
from crhpc.resources import Cut, Kind, at, kinds
from crhpc.resources.context import Dump, table_name
from crhpc.resources.files import Descriptor, File
from crhpc.resources.files.stdio import StandardStream
from crhpc.resources.tree import Process

from .inside import cut, frozen, state, until, untraced

ALL = kinds()
BEFORE_THE_THAW = [moment for moment in Cut if moment is not Cut.LATER]
NETLINK = "sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)"
FILTER = """
libc = ctypes.CDLL(None)
allow = ctypes.create_string_buffer((6).to_bytes(4, "little") + (0x7FFF0000).to_bytes(4, "little"))
program = ctypes.create_string_buffer((1).to_bytes(8, "little") + ctypes.addressof(allow).to_bytes(8, "little"))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program) == 0
"""


class Watcher(Kind):
    """Notes its moments; one of them may fail. (A kind without a name is nobody's but this file's.)"""

    def __init__(self, fails: dict[Cut, BaseException] | None = None) -> None:
        self.fails = fails or {}
        self.seen: list[tuple[Cut, bool]] = []
        """Each moment, and whether calls could be made in the job's name."""
        self.closed = False

    def note(self, moment: Cut, ctx: Dump) -> None:
        self.seen.append((moment, any(task.mapped_area is not None for task in ctx.tasks)))
        if moment is Cut.INSPECT:
            ctx.closing.callback(setattr, self, "closed", True)
        if moment in self.fails:
            raise self.fails[moment]

    @at(Cut.CONTENT)
    def content(self, ctx: Dump) -> None:
        self.note(Cut.CONTENT, ctx)

    @at(Cut.INSPECT)
    def inspect(self, ctx: Dump) -> None:
        self.note(Cut.INSPECT, ctx)

    @at(Cut.LATER)
    def later(self, ctx: Dump) -> None:
        self.note(Cut.LATER, ctx)

    @at(Cut.REGISTERS)
    def registers(self, ctx: Dump) -> None:
        self.note(Cut.REGISTERS, ctx)

    @at(Cut.COLLECT)
    def collect(self, ctx: Dump) -> None:
        self.note(Cut.COLLECT, ctx)
        for task in ctx.tasks:
            task.call("getpid")


@pytest.fixture
def take(tmp_path):
    """``take(found, program)``: a cut of a program's pod that stands still, into a shard that goes in the end."""
    with ShardWriter(new_temporary(tmp_path, 1), 0, threads=1, memory=16 << 20) as writer:
        def take_it(found, program, of=None, memory=None, steps=None):
            return cut(found, program.pod, program.pod.context(program.stdio), writer, ALL if of is None else of,
                       {} if memory is None else memory, steps or Steps())
        yield take_it


def looks(found) -> list[object]:
    """What a cut could change of a pod that stands still."""
    tids = [tracee.tid for task in found.tasks for tracee in task.threads.values()]
    return [(bytes(ptrace.get_registers(tid)), ptrace.get_signal_mask(tid)) for tid in tids] + [
        proc.maps(task.host) for task in found.tasks]


# -- moments ------------------------------------------------------------------------------------------
def test_moments_in_their_order(pod, run, take):
    """Calls in the job's name are possible when all has been looked at, and no more after the cut."""
    program = run("say('ready')\nwait()")
    program.hear()
    watcher, steps = Watcher(), Steps()
    with frozen(pod) as found:
        ctx = take(found, program, [watcher], steps=steps)
        assert watcher.seen == [(Cut.INSPECT, False), (Cut.REGISTERS, False), (Cut.COLLECT, True), (Cut.CONTENT, True)]
        assert watcher.closed
    assert list(steps.seconds) == ["inspect", "registers", "collect", "content"]
    write_tables(ctx, [watcher])
    assert watcher.seen[4:] == [(Cut.LATER, False)]


@pytest.mark.parametrize("error", [OSError(5, "no luck"), ZeroDivisionError()], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("moment", BEFORE_THE_THAW)
def test_whatever_fails_the_tasks_are_as_they_were(pod, run, take, moment, error):
    program = run("fork(pause)\nsay('ready')\nsay(wait())")
    program.hear()
    until(lambda: [state(host) for host in proc.descendants(pod.pid)] == ["S", "S"], "they do not wait")
    watcher = Watcher({moment: error})
    with frozen(pod) as found:
        before = looks(found)
        with pytest.raises(type(error)):
            take(found, program, [watcher])
        assert watcher.seen[-1][0] is moment
        assert watcher.closed
        assert looks(found) == before
    program.tell("on")
    assert program.hear() == "on"


def test_all_kinds_leave_the_tasks_as_they_were(pod, run, take):
    """Twice: what is remembered of the first cut does not matter to the job."""
    program = run("""
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        fork(pause)
        say("ready")
        say(wait())
    """)
    program.hear()
    until(lambda: state(program.host) == "S", "it does not wait")
    gc.collect()   # what earlier tests have left must not be closed in the middle
    memory, descriptors = {}, len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        with frozen(pod) as found:
            before = looks(found)
            take(found, program, memory=memory)
            assert looks(found) == before
    memory.clear()
    gc.collect()   # files whose contents would be read after the thaw
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert untraced(pod)
    program.tell("on")
    assert program.hear() == "on"


CALLS = {
    "epoll_wait": "libc.epoll_wait(libc.epoll_create1(0), room, 1, -1)",
    "nanosleep": "libc.nanosleep((ctypes.c_long * 2)(1000, 0), None)",
    "sigwaitinfo": "libc.sigwaitinfo(ctypes.create_string_buffer(bytes([0, 2]) + bytes(126)), None)",
    "recv with a limit": "libc.recv(limited.fileno(), room, 8, 0)",
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_no_call_is_interrupted(pod, run, take, call):
    """Of some the kernel says EINTR when a process was only stopped (signal(7)): the job must not see it."""
    program = run(f"""
        libc, room = ctypes.CDLL(None, use_errno=True), ctypes.create_string_buffer(4096)
        limited, other = socket.socketpair()
        limited.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, (1000).to_bytes(8, "little") + bytes(8))
        say("ready")
        say({call}, ctypes.get_errno())
    """)
    program.hear()
    until(lambda: state(program.host) == "S", "it does not wait")
    memory = {}
    for _ in range(3):
        with frozen(pod) as found:
            take(found, program, memory=memory)
        until(lambda: state(program.host) in ("S", ""), "it does not wait again")
    assert program.silent(), program.hear()


# -- refusals -----------------------------------------------------------------------------------------
REFUSED = {"a socket": (NETLINK, "descriptor 3 (a socket of type AF_NETLINK"), "a filter": (FILTER, "a seccomp filter")}


@pytest.mark.parametrize(("set_up", "what"), REFUSED.values(), ids=REFUSED)
def test_what_can_not_be_saved_is_refused_before_anything_is_touched(pod, run, take, set_up, what):
    program = run(f"{set_up}\nsay('ready')\nsay(wait())\n")
    program.hear()
    with frozen(pod) as found:
        before = looks(found)
        with pytest.raises(Unsupported) as caught:
            take(found, program, [*ALL, watcher := Watcher()])
        assert str(caught.value).startswith(f"cannot save {what}")
        assert f" of pid {program.pid} (python3" in str(caught.value)
        assert watcher.seen == []
        assert looks(found) == before
    program.tell("on")
    assert program.hear() == "on"


def test_an_undumpable_process(pod, run, take):
    """Root can look into one; a plain user is told which it is, and what to do."""
    program = run("ctypes.CDLL(None).prctl(4, 0)\nsay('ready')\nsay(wait(), ctypes.CDLL(None).prctl(3))")
    program.hear()
    with frozen(pod) as found:
        if os.getuid() == 0:
            take(found, program)
        else:
            with pytest.raises(Unsupported, match=f"of pid {program.pid} .python3.*PR_SET_DUMPABLE"):
                take(found, program)
    program.tell("on")
    assert program.hear() == "on 0"


# -- a first look -------------------------------------------------------------------------------------
def test_a_survey_of_nothing(pod):
    assert survey(pod, pod.context((0, 1, 2)), ALL) == ([], [])


def test_a_survey_of_what_can_be_saved(pod, run):
    program = run("fork(pause)\na, b = os.pipe()\nfile = open('/etc/passwd')\nsay('ready')\nwait()")
    program.hear()
    gc.collect()   # what earlier tests have left must not be closed in the middle
    before = len(os.listdir("/proc/self/fd"))
    assert survey(pod, pod.context(program.stdio), ALL)[0] == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_survey_names_all_that_would_be_refused(pod, run):
    """A line of each kind, not only of the first; the pod runs on."""
    program = run(f"{FILTER}\n{NETLINK}\nsay('ready')\nsay(wait())")
    program.hear()
    lines, _ = survey(pod, pod.context(program.stdio), ALL)
    assert sorted(line.partition(" of ")[0] for line in lines) == [
        "cannot save a seccomp filter", "cannot save descriptor 3 (a socket"]
    assert all("Cure: " in line and "\n" not in line for line in lines)
    program.tell("on")
    assert program.hear() == "on"


def test_a_survey_passes_over_what_passes(pod, run):
    program = run("say('ready')\nwait()")
    program.hear()
    passing = Watcher({Cut.INSPECT: Unsupported(what="x", pid=2, program="x", cure=PASSING)})
    lasting = Watcher({Cut.INSPECT: Unsupported(what="y", pid=2, program="x", cure="leave it")})
    gone = Watcher({Cut.INSPECT: ProcessLookupError(3, "No such process")})
    lines, _ = survey(pod, pod.context(program.stdio), [passing, lasting, gone, last := Watcher()])
    assert lines == ["cannot save y of pid 2 (x). Cure: leave it"]
    assert passing.closed and last.closed
    assert last.seen == [(Cut.INSPECT, False)]


def test_a_survey_of_connections(pod, run):
    program = run("""
        listener = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        say(listener.getsockname()[1], client.getsockname()[1], os.getpid())
        wait()
    """)
    port, other, pid = program.numbers()
    _, ends = survey(pod, pod.context(program.stdio), ALL)
    found = sorted((end["state"], tuple(end["local"]), tuple(end["remote"]), end["pid"]) for end in ends)
    assert found == sorted([
        (10, ("127.0.0.1", port), ("0.0.0.0", 0), pid), (1, ("127.0.0.1", port), ("127.0.0.1", other), pid),
        (1, ("127.0.0.1", other), ("127.0.0.1", port), pid)])
    assert len({end["file"] for end in ends}) == 3


def test_a_survey_while_processes_come_and_go(pod, run):
    program = run("say('ready')\nwhile True: os.waitpid(fork(lambda: fork(lambda: os.pipe())), 0)")
    program.hear()
    for _ in range(15):
        assert survey(pod, pod.context(program.stdio), ALL)[0] == []


# -- what is written ----------------------------------------------------------------------------------
@pytest.fixture
def written(pod, run, tmp_path):
    """An image of a parent, a zombie, and a stopped child; and the parent's program."""
    program = run("""
        zombie = fork(lambda: os._exit(3))
        os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
        stopped = fork(lambda: os.kill(os.getpid(), 19))
        os.waitpid(stopped, os.WUNTRACED)
        shared = os.dup(0)
        name = socket.socket(socket.AF_UNIX)
        name.bind("\\0" + str(time.monotonic_ns()))
        say(zombie, stopped, shared, name.fileno())
        wait()
    """)
    numbers = program.numbers()
    temporary = new_temporary(tmp_path, 1)
    with ShardWriter(temporary, 0, threads=1, memory=16 << 20) as writer:
        with frozen(pod) as found:
            ctx = cut(found, pod, pod.context(program.stdio), writer, ALL, {}, Steps())
        write_tables(ctx, ALL)
        write_tree(ctx)
        summary = writer.close()
    path = commit(temporary, tmp_path / "ckpt-000001", number=1, job={}, shards=[summary], stats={}, connections=[])
    return path, program, numbers


def test_there_is_a_table_of_every_record(written):
    """Of those without rows, too: a reader need not guess."""
    with Image(written[0]) as image:
        shard = image.node(0)
        assert shard.tables() == sorted(table_name(record) for kind in ALL for record in kind.records)
        assert len(shard.table(StandardStream, "standard_stream")) == 3
        assert {row.file for row in shard.table(Descriptor, "descriptor")} <= {
            row.id for row in shard.table(File, "file")}


def test_the_rows_are_the_jobs(written):
    path, program, (zombie, stopped, *_) = written
    with Image(path) as image:
        rows = {row.pid: row for row in image.node(0).table(Process, "process")}
    assert {pid: (row.parent, row.zombie, row.stopped, row.exit_status) for pid, row in rows.items()} == {
        program.pid: (1, False, False, 0), zombie: (program.pid, True, False, 3 << 8),
        stopped: (program.pid, False, True, 0)}


def test_the_tree_reads_like_the_job(written):
    path, program, (zombie, stopped, copy, name) = written
    with h5py.File(path / "master.h5", "r") as master:
        tree = master["nodes/0/tree"]
        assert set(tree) == {str(program.pid), str(zombie), str(stopped)}
        assert [tree[str(pid)].attrs["state"] for pid in (program.pid, zombie, stopped)] == [
            b"running", b"zombie", b"stopped"]
        assert tree[f"{stopped}"].attrs["parent"] == program.pid
        descriptors = tree[f"{program.pid}/fds"]
        assert set(descriptors) == {"0", "1", "2", str(copy), str(name)}
        assert descriptors["0"] == descriptors[str(copy)] == tree[f"{stopped}/fds/0"]
        assert descriptors["1"].attrs["kind"] == b"stdio"
        assert descriptors[str(name)].attrs["kind"] == b"unix"


def test_names_with_a_zero_byte_are_shown(pod, run, take, tmp_path):
    """An abstract name begins with one, and a text of HDF5 ends at it."""
    address = f"\0{tmp_path.name}"
    program = run(f"s = socket.socket(socket.AF_UNIX)\ns.bind({address!r})\nsay('ready')\nwait()")
    program.hear()
    with socket.socket(socket.AF_UNIX) as other, pytest.raises(OSError, match="in use"):
        other.bind(address)
    with frozen(pod) as found:
        ctx = take(found, program)
    write_tables(ctx, ALL)
    write_tree(ctx)
