"""Rank 0 drives checkpoints and restarts, phase by phase, whatever fails in between."""
from __future__ import annotations

import errno
import time

import pytest

from crhpc.coordinator.endpoints import Connection
from crhpc.errors import ENDING, PASSING, CheckpointFailed, CrhpcError, DiskFull, NotAllowed, Reported, Unsupported

PHASES = ["precopy", "freeze", "cut", "describe", "thaw", "write"]
REFUSED = Unsupported(what="a thing", pid=7, program="app", cure="leave it")
END = {"state": 1, "pid": 7, "program": "app"}


def described(rank: int) -> dict[str, object]:
    address = f"10.0.0.{rank + 1}"
    return {"of": rank, "last_pid": 100 + rank, "addresses": [[address, address]]}


def states(world) -> set[str]:
    return {node.state for node in world.nodes}


# -- a new job ----------------------------------------------------------------------------------------
def test_start(world):
    started = world.start()
    size = len(world.nodes)
    assert world.log == [(rank, "start") for rank in [*range(1, size), 0]], "the command's last"
    assert all(node.arguments["start"]["command"] is None for node in world.nodes[1:])
    assert {name: started[name] for name in ("op", "pid", "host_pid", "image", "tasks")} == {
        "op": "started", "pid": 2, "host_pid": 1000, "image": None, "tasks": 1}
    assert world.nodes[0].arguments["start"] == {
        "command": {"argv": ["app"], "env": {}, "cwd": "/here", "umask": 0o22, "ignored": [1], "cpus": [0]},
        "stdio": (0, 1, 2), "temporary": "/tmp/crhpc-abc", "files": {}}


def test_a_start_that_fails(world):
    world.nodes[0].fails["start"] = NotAllowed(what="a pod", why="no", cure="ask")
    with pytest.raises(CrhpcError, match="does not allow a pod") as caught:
        world.start()
    assert caught.value.code == 78


# -- a checkpoint -------------------------------------------------------------------------------------
def test_phases_in_their_order(world):
    """Each is over on all ranks before the next begins on any."""
    world.start()
    world.log.clear()
    world.checkpoint()
    order = [method for _, method in world.log if method != "describe"]
    size = len(world.nodes)
    phases = PHASES if size == 1 else [*PHASES[:2], "settle", *PHASES[2:]]
    assert order == [phase for phase in phases if phase != "describe" for _ in range(size)]
    assert world.calls(size - 1) == phases


def test_what_is_told_of_it(world):
    world.start()
    told = world.checkpoint(5)
    size = len(world.nodes)
    assert {name: told[name] for name in told if name != "seconds"} == {
        "op": "checkpointed", "id": 5, "image": "/images/image-1", "number": 1, "frozen": 0.25 + size - 1,
        "bytes": 1000 * size * (size + 1) // 2, "stored": 10 * size * (size + 1) // 2,
        "tasks": sum(10 + rank for rank in range(size)), "nodes": size, "stopped": False}
    image = world.store.images["/images/image-1"]
    assert image["job"]["id"] == "abc"
    assert image["job"]["pods"] == {str(rank): described(rank) for rank in range(size)}
    assert [shard["node"] for shard in image["shards"]] == list(range(size))
    assert image["stats"]["frozen"] == told["frozen"]
    assert world.store.open == []
    assert all(node.arguments["precopy"] == {"directory": "/images/.tmp-1"} for node in world.nodes)


def test_one_after_the_other(world):
    world.start()
    assert [world.checkpoint(number)["number"] for number in (1, 2, 3)] == [1, 2, 3]
    assert states(world) == {"running"}


def test_with_stop_the_job_never_runs_again(world):
    world.start()
    told = world.checkpoint(stop=True)
    assert told["stopped"] is True
    assert told["frozen"] == 0.0
    assert states(world) == {"ended"}
    assert "thaw" not in world.calls()
    assert world.calls(0)[-2:] == ["write", "end"]


def test_the_image_exists_before_the_job_ends(world):
    world.start()
    world.store.commits.clear()
    world.coordinator.request(1, stop=True)
    world.until(lambda: world.coordinator.current and world.coordinator.current.committing, "it does not commit")
    assert states(world) == {"frozen"}
    world.store.commits.set()
    world.until(world.answers)
    assert states(world) == {"ended"}


# -- one that fails -----------------------------------------------------------------------------------
@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("phase", PHASES)
def test_an_error_in_a_phase(world, phase, stop):
    """On one rank is enough: all go on, nothing is left, the reason is told, and the next one works."""
    if phase == "thaw" and stop:
        return   # there is no such phase
    world.start()
    world.nodes[-1].fails[phase] = REFUSED
    told = world.checkpoint(3, stop=stop)
    assert told == {"op": "checkpoint-failed", "id": 3, "error": str(REFUSED), "code": 78}
    assert [world.calls(rank)[-1] for rank in range(len(world.nodes))] == ["abort"] * len(world.nodes)
    assert states(world) == {"running"}
    assert [node.shard for node in world.nodes] == [""] * len(world.nodes)
    assert (world.store.open, world.store.images) == ([], {})
    assert world.coordinator.last is None
    assert world.checkpoint(4)["op"] == "checkpointed"


def test_no_later_phase_begins_after_an_error(world):
    world.start()
    world.nodes[-1].fails["freeze"] = REFUSED
    world.checkpoint()
    assert not {"cut", "thaw", "write"} & set(world.calls())


def test_an_error_that_nobody_foresaw(world):
    """A fault of ours is no reason to harm the job either."""
    world.start()
    world.nodes[-1].fails["cut"] = ZeroDivisionError("division by zero")
    told = world.checkpoint()
    assert (told["op"], told["code"]) == ("checkpoint-failed", 70)
    assert "division by zero" in told["error"]
    assert states(world) == {"running"}


def test_one_writer_fails_while_the_others_write(new_world):
    world = new_world(3)
    world.start()
    for node in world.nodes:
        node.writes.clear()
    world.nodes[1].fails["write"] = DiskFull(path="/images", why="No space left on device")
    world.coordinator.request(1, stop=False)
    world.until(lambda: "write" in world.calls(2))
    assert not world.answers()
    for node in world.nodes:
        node.writes.set()
    world.until(world.answers)
    (told,) = world.answers()
    assert (told["op"], told["code"]) == ("checkpoint-failed", 73)
    assert world.store.open == []
    assert world.checkpoint()["op"] == "checkpointed", "late answers to the last WRITE are not taken for this one's"


@pytest.mark.parametrize(("error", "code", "words"), [
    (OSError(errno.ENOSPC, "No space left on device", "/images/x"), 73, "is full"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), 73, "Disk quota exceeded"),
    (OSError(errno.EIO, "Input/output error", "/images/master.h5"), 74, "/images/master.h5: Input/output error"),
    (FileNotFoundError(errno.ENOENT, "No such file or directory"), 74, "No such file or directory"),
    (RuntimeError("from a library"), 70, "from a library"), (ValueError("a shard is not as it was"), 70, "a shard")])
def test_a_commit_that_fails(world, error, code, words):
    world.start()
    world.store.fails["commit"] = error
    told = world.checkpoint()
    assert (told["op"], told["code"]) == ("checkpoint-failed", code)
    assert words in told["error"]
    assert states(world) == {"running"}
    assert (world.store.open, world.store.images) == ([], {})
    assert world.checkpoint()["op"] == "checkpointed"


def test_a_commit_that_fails_does_not_end_a_job_that_was_to_stop(world):
    world.start()
    world.store.fails["commit"] = OSError(errno.ENOSPC, "No space left on device")
    assert world.checkpoint(stop=True)["op"] == "checkpoint-failed"
    assert states(world) == {"running"}
    assert "end" not in world.calls()


def test_a_directory_that_takes_nothing(world):
    world.start()
    world.store.fails["new"] = PermissionError(errno.EACCES, "Permission denied", "/images")
    told = world.checkpoint(9)
    assert (told["op"], told["id"], told["code"]) == ("checkpoint-failed", 9, 74)
    assert "/images: Permission denied" in told["error"]
    assert set(world.calls()) == {"start"}, "nobody was frozen for it"
    assert world.checkpoint()["op"] == "checkpointed"


# -- who asks, and when -------------------------------------------------------------------------------
def test_requests_that_come_while_one_is_under_way_wait_for_the_next(world):
    world.start()
    world.nodes[0].writes.clear()
    world.coordinator.request(1, stop=False)
    world.until(lambda: world.coordinator.current)
    world.coordinator.request(2, stop=False)
    world.coordinator.request(3, stop=False)
    world.until(lambda: "write" in world.calls(0))
    assert world.calls(0).count("freeze") == 1
    world.nodes[0].writes.set()
    world.until(lambda: len(world.answers()) == 3)
    assert [(told["id"], told["number"]) for told in world.answers()] == [(1, 1), (2, 2), (3, 2)]


def test_a_stop_among_the_requests_stops(world):
    world.start()
    world.coordinator.request(1, stop=False)
    world.coordinator.request(2, stop=True)
    world.until(lambda: len(world.answers()) == 2)
    assert [told["stopped"] for told in world.answers()] == [True, True]
    assert states(world) == {"ended"}


def test_a_failure_is_told_to_all_who_asked(world):
    world.start()
    world.nodes[0].fails["freeze"] = REFUSED
    for number in (1, 2):
        world.coordinator.request(number, stop=False)
    world.until(lambda: len(world.answers()) == 2)
    assert [(told["op"], told["id"]) for told in world.answers()] == [("checkpoint-failed", 1),
                                                                      ("checkpoint-failed", 2)]


def test_orders_are_served_while_shards_are_written(world):
    world.start()
    world.nodes[-1].writes.clear()
    world.coordinator.request(1, stop=False)
    world.until(lambda: world.coordinator.current and "write" in world.calls(len(world.nodes) - 1))
    hosts = [f"host{rank}" for rank in range(len(world.nodes))]
    status = world.coordinator.status(hosts)
    assert status["checkpointing"] is True
    assert [(pod["node"], pod["host"], len(pod["tasks"])) for pod in status["pods"]] == [
        (rank, host, 1) for rank, host in enumerate(hosts)]
    world.coordinator.signal(15, group=True)
    assert world.nodes[0].arguments["signal"] == {"number": 15, "group": True}


def test_periodic_ones_have_no_number(world):
    world.start(every=0.001)
    world.until(lambda: len(world.answers()) >= 2)
    assert all(told["op"] == "checkpointed" and told["id"] is None for told in world.answers())
    assert world.coordinator.status([""] * 8)["next"] is not None


def test_without_a_period_nothing_is_due(world):
    world.start()
    assert world.coordinator.due is None
    for _ in range(10):
        world.coordinator.tick()
    assert set(world.calls()) == {"start"}


# -- what passes --------------------------------------------------------------------------------------
@pytest.mark.parametrize(("cure", "soon"), [(PASSING, True), ("turn it off", False)])
def test_a_passing_cause_is_tried_again_soon(world, cure, soon):
    world.start(every=1000.0)
    world.nodes[-1].fails["cut"] = CheckpointFailed(why="a connection is just being made", cure=cure)
    world.checkpoint()
    assert world.coordinator.due is not None
    assert (world.coordinator.due - time.monotonic() < 500) is soon


def test_tries_come_more_and_more_slowly_and_never_later_than_the_period(world):
    world.start(every=1000.0)
    waits = []
    for _ in range(4):
        world.nodes[-1].fails["cut"] = CheckpointFailed(why="x", cure=PASSING)
        world.checkpoint()
        waits.append(round(world.coordinator.due - time.monotonic()))
    assert waits == sorted(set(waits)), "each longer than the one before"
    world.checkpoint()
    world.nodes[-1].fails["cut"] = CheckpointFailed(why="x", cure=PASSING)
    world.checkpoint()
    assert round(world.coordinator.due - time.monotonic()) == waits[0], "a success ends the series"
    world.coordinator.every = 0.5
    world.nodes[-1].fails["cut"] = CheckpointFailed(why="x", cure=PASSING)
    world.checkpoint()
    assert world.coordinator.due - time.monotonic() <= 0.5


def test_a_periodic_one_that_failed_in_passing_succeeds_later(world):
    world.start(every=0.01)
    world.nodes[-1].fails["cut"] = CheckpointFailed(why="x", cure=PASSING)
    world.until(lambda: len(world.answers()) >= 2)
    assert [told["op"] for told in world.answers()][:2] == ["checkpoint-failed", "checkpointed"]


# -- connections --------------------------------------------------------------------------------------
def test_connections_go_into_the_image(new_world):
    world = new_world(2)
    world.start()
    here, there = ("10.0.0.1", 5000), ("10.0.0.2", 6000)
    world.nodes[0].ends = [{**END, "file": 3, "local": here, "remote": there}]
    world.nodes[1].ends = [{**END, "file": 4, "local": there, "remote": here}]
    world.checkpoint()
    assert world.store.images["/images/image-1"]["connections"] == [Connection(0, 3, 1, 4)]


def test_a_connection_that_leaves_the_job(world):
    world.start()
    world.nodes[-1].ends = [{**END, "file": 3, "local": ("::1", 5000), "remote": ("fe80::2", 80)}]
    told = world.checkpoint()
    assert (told["op"], told["code"]) == ("checkpoint-failed", 78)
    assert "from [::1]:5000 to [fe80::2]:80 outside the job of pid 7 (app)" in told["error"]
    assert states(world) == {"running"}
    assert world.store.open == []


# -- a first look -------------------------------------------------------------------------------------
def test_what_could_not_be_saved_is_told_early(new_world):
    world = new_world(2)
    world.start()
    world.nodes[1].refusals = [str(REFUSED)]
    world.nodes[0].ends = [{**END, "file": 3, "local": ("10.0.0.1", 5000), "remote": ("10.9.9.9", 80)}]
    world.coordinator.survey_due = 0.0
    world.coordinator.tick()
    warnings = [message["text"] for message in world.heard if message["op"] == "warning"]
    assert warnings[0] == f"checkpoints will fail: {REFUSED}"
    assert "10.0.0.1:5000 to 10.9.9.9:80 outside the job" in warnings[1]
    world.heard.clear()
    world.coordinator.tick()
    assert world.heard == [], "once"


def test_a_job_without_such_things_hears_nothing(world):
    world.start()
    world.coordinator.survey_due = 0.0
    world.coordinator.tick()
    assert [message for message in world.heard if message["op"] == "warning"] == []
    assert world.calls().count("survey") == len(world.nodes)


def test_the_end_of_a_job_is_told_only_to_who_has_asked(world):
    """That a checkpoint was due in the job's last moment is nobody's trouble."""
    world.start(every=1000.0)
    world.nodes[0].fails["freeze"] = CheckpointFailed(why=ENDING, cure=PASSING)
    assert ENDING in world.checkpoint(5)["error"]
    world.nodes[0].fails["freeze"] = CheckpointFailed(why=ENDING, cure=PASSING)
    before, world.coordinator.due = len(world.heard), 0.0
    world.until(lambda: not world.nodes[0].fails)
    world.turn()
    assert not world.answers(before)
    assert states(world) == {"running"}


# -- restart ------------------------------------------------------------------------------------------
@pytest.fixture
def again(world, new_world):
    """A fresh job of as many ranks, with the image of another."""
    world.start()
    world.checkpoint(stop=True)
    fresh = new_world(len(world.nodes))
    fresh.store.images = world.store.images
    return fresh


def test_restart(again):
    size = len(again.nodes)
    told = again.restart("/images/image-1")
    assert [method for _, method in again.log] == [
        phase for phase in (*["left"] * (size > 1), "build", "connect", "finish", "release") for _ in range(size)]
    assert (told["op"], told["image"], told["pid"], told["host_pid"]) == ("started", "/images/image-1", 2, 2000)
    assert told["tasks"] == sum(10 + rank for rank in range(size))
    for rank, node in enumerate(again.nodes):
        places = node.arguments["build"].pop("places")
        assert not node.arguments["build"].pop("guest")
        assert node.arguments["build"] == {"image": "/images/image-1", "stdio": (0, 1, 2), "policy": {},
                                           "described": described(rank)}
        assert places["addresses"] == described(rank)["addresses"] and not places["hosts"] and not places["moves"]
        assert (len(places["own"]), len(places["others"])) == (1, size - 1)
        assert node.arguments["release"] == {"last_pid": 100 + rank}
    assert again.coordinator.survey_due is None


def test_a_dry_run_asks_every_node_and_makes_nothing(again):
    policy = {"files": "strict", "moved": [["/a", "/b"]]}
    told = again.coordinator.check({"image": "/images/image-1", "policy": policy})
    size = len(again.nodes)
    assert [method for _, method in again.log] == ["check"] * size
    assert told == {"op": "checked", "image": "/images/image-1", "tasks": again.store.job("/images/image-1")["tasks"],
                    "plans": ["the same everywhere", *(f"of rank {rank}" for rank in range(size))]}
    for rank, node in enumerate(again.nodes):
        assert node.arguments["check"] == {"image": "/images/image-1", "policy": policy,
                                           "described": described(rank)}
    assert states(again) == {"empty"}


def test_a_dry_run_that_is_refused(again):
    again.nodes[-1].fails["check"] = CheckpointFailed(why="that", cure="this")
    with pytest.raises(Reported, match="that"):
        again.coordinator.check({"image": "/images/image-1"})
    assert states(again) == {"empty"}


def test_the_policy_of_files_reaches_every_node(again):
    policy = {"files": "keep", "moved": []}
    again.coordinator.restart({"image": "/images/image-1", "directory": "/images", "every": None, "policy": policy})
    assert [node.arguments["build"]["policy"] for node in again.nodes] == [policy] * len(again.nodes)


def test_a_job_that_has_moved_knows_it(again):
    policy = {"files": "keep", "moved": [["/here", "/there"]]}
    again.coordinator.restart({"image": "/images/image-1", "directory": "/images", "every": None, "policy": policy})
    again.checkpoint()
    assert again.store.images["/images/image-2"]["job"]["cwd"] == "/there"


def test_a_restarted_job_is_the_same_job(again):
    again.restart("/images/image-1")
    again.checkpoint()
    job = again.store.images["/images/image-2"]["job"]
    assert {name: job[name] for name in ("id", "argv", "cwd", "started")} == {
        "id": "abc", "argv": ["app"], "cwd": "/here", "started": 1.5}


@pytest.mark.parametrize("phase", ["build", "connect", "finish", "release"])
def test_a_restart_that_fails_ends_everything(again, phase):
    again.nodes[-1].fails[phase] = CheckpointFailed(why="that", cure="this")
    with pytest.raises(Reported, match="that") as caught:
        again.restart("/images/image-1")
    assert caught.value.code == 74
    assert states(again) == {"ended"}
    if phase != "release":
        assert "release" not in again.calls()


def test_an_image_that_says_nothing_of_its_pods(again):
    """Whoever reads it on a node decides; the coordinator does not fall over it."""
    del again.store.images["/images/image-1"]["job"]["pods"]
    again.nodes[0].fails["build"] = CheckpointFailed(why="the image does not say", cure="x")
    with pytest.raises(Reported, match="does not say"):
        again.restart("/images/image-1")
    assert states(again) == {"ended"}


# -- the end ------------------------------------------------------------------------------------------
def test_the_end_of_a_job_while_shards_are_written(world):
    """Whatever has not been committed goes; who writes is waited for."""
    world.start()
    world.coordinator.request(1, stop=False)
    world.until(lambda: world.coordinator.current)
    world.coordinator.end()
    assert states(world) == {"ended"}
    assert (world.store.open, world.store.images) == ([], {})


def test_the_end_of_a_job_while_its_image_is_committed(world):
    """A commit that has begun is finished: the image is whole."""
    world.start()
    world.store.commits.clear()
    world.coordinator.request(1, stop=False)
    world.until(lambda: world.coordinator.current and world.coordinator.current.committing)
    world.store.commits.set()
    world.coordinator.end()
    assert list(world.store.images) == ["/images/image-1"]
    assert world.store.open == []


def test_a_failed_jobs_last_image_is_waited_for(world):
    world.start()
    world.coordinator.request(1, stop=False)
    world.until(lambda: world.coordinator.current)
    world.coordinator.wait()
    assert list(world.store.images) == ["/images/image-1"]
    world.coordinator.wait()   # nothing under way: at once
