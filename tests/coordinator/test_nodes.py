"""What only several nodes need: their members, full windows between them, and connections whose ends are on two."""
from __future__ import annotations

import pytest

from crhpc.coordinator.endpoints import Connection, match
from crhpc.errors import OtherMachine, Unsupported

from .world import World

A, B = ["10.0.0.1", 5000], ["10.0.0.2", 6000]


@pytest.fixture
def world():
    made = World(3)
    yield made
    made.close()


def full(world, sender: int, receiver: int, rounds: int = 1) -> list[list]:
    names = [A, B]
    world.nodes[sender].full, world.nodes[sender].rounds = [names], rounds
    world.nodes[receiver].receives = [names]
    return names


def test_a_full_window_is_read_empty_and_filled_again(world):
    """What was read goes to who had sent it, and not by way of the coordinator."""
    world.start()
    names = full(world, sender=2, receiver=1, rounds=3)
    told = world.checkpoint()
    assert told["op"] == "checkpointed"
    assert world.calls(0).count("drain") == 3
    assert world.nodes[2].arguments["refill"] == {"returned": [[*names, "bytes"]]}
    assert world.nodes[0].arguments["refill"] == {"returned": []}
    carried = [(source, target) for source, target, message in world.mailboxes.sent if message.get("op") == "returned"]
    assert carried == [(1, 2)]
    order = [method for node, method in world.log if node == 1]
    assert order.index("settle") < order.index("expect") < order.index("drain") < order.index("taken") \
        < order.index("refill") < order.index("cut")


def test_without_one_nobody_reads(world):
    world.start()
    assert world.checkpoint()["op"] == "checkpointed"
    assert not {"expect", "drain", "taken", "refill"} & set(world.calls())


def test_bytes_for_somebody_outside(world):
    """Nothing has been read by then."""
    world.start()
    full(world, sender=2, receiver=1)
    world.nodes[1].receives = []
    told = world.checkpoint()
    assert told["op"] == "checkpoint-failed"
    assert "outside the job" in told["error"]
    assert "drain" not in world.calls()
    assert {node.state for node in world.nodes} == {"running"}


def test_bytes_that_stay_are_given_back_all_the_same(world, monkeypatch):
    monkeypatch.setattr("crhpc.coordinator.coordinator._DRAIN_SECONDS", 0.05)
    world.start()
    names = full(world, sender=2, receiver=1, rounds=1 << 30)
    told = world.checkpoint()
    assert told["op"] == "checkpoint-failed"
    assert "bytes stay under way" in told["error"]
    assert world.nodes[2].arguments["refill"] == {"returned": [[*names, "bytes"]]}


def test_a_receiver_that_can_not_be_read(world):
    world.start()
    full(world, sender=2, receiver=1)
    world.nodes[1].fails["expect"] = Unsupported(what="urgent data", pid=1, program="app", cure="try again")
    assert "urgent data" in world.checkpoint()["error"]
    assert "drain" not in world.calls()


def test_one_end_offers_and_the_other_reaches(world):
    """Then both are told what has become of it; ends on one node are that node's matter."""
    world.start()
    world.checkpoint()
    image = world.store.images["/images/image-1"]
    image["connections"] = [Connection(1, 7, 2, 9), Connection(0, 1, 0, 2), Connection(0, 3, -1, -1)]
    for node in world.nodes:
        node.state = "empty"
    world.restart("/images/image-1")
    near, far = world.nodes[1].arguments, world.nodes[2].arguments
    assert near["offer"]["links"] == [{"number": 0, "file": 7, "node": 2, "far": 9, "offers": 1}]
    assert far["reach"] == {"links": [{"number": 0, "file": 9, "node": 1, "far": 7, "offers": 0}],
                            "offers": {"0": ["offered", 1]}}
    assert near["connect"]["names"] == far["connect"]["names"] == {"0": ["reached", 2]}
    assert world.nodes[0].arguments["offer"]["links"] == []


def test_what_closed_connections_keep_is_told_to_all(world):
    world.start()
    world.checkpoint()
    for node in world.nodes:
        node.state = "empty"
    world.nodes[1].behind = [[2, B, A]]
    world.restart("/images/image-1")
    assert [node.arguments["forget"] for node in world.nodes] == [{"rows": [[2, B, A]]}] * 3
    assert world.calls(0).index("forget") < world.calls(0).index("build")


def test_several_on_one_machine(world):
    """The first has the directory for temporary files, as on a machine of its own; loopback is the same for all."""
    world.start()
    world.checkpoint()
    for node in world.nodes:
        node.state = "empty"
    world.coordinator.join(["one", "one", "other"])
    world.coordinator.restart({"image": "/images/image-1", "directory": "/images", "every": None})
    assert [node.arguments["build"]["guest"] for node in world.nodes] == [False, True, False]
    one, other = ["127.0.0.1", 5000], ["127.0.0.1", 6000]
    rows = [{"file": 3, "state": 1, "local": one, "remote": other, "pid": 1, "program": "app"},
            {"file": 4, "state": 1, "local": other, "remote": one, "pid": 1, "program": "app"}]
    world.nodes[0].ends, world.nodes[1].ends = rows[:1], rows[1:]
    assert world.checkpoint()["op"] == "checkpointed"
    world.nodes[1].ends, world.nodes[2].ends = [], rows[1:]
    assert "outside the job" in world.checkpoint()["error"]


def test_machines_that_have_changed(world):
    """Each node is told where all are; ports that had to move on one are told to all."""
    world.start()
    world.checkpoint()
    for node in world.nodes:
        node.state = "empty"
        node.addresses = lambda name, rank=node.rank: [f"10.0.0.{(rank + 1) % 3 + 1}", f"10.1.0.{rank}"]
    world.nodes[1].ports = [["10.0.0.2", 5000, "10.0.0.3", 5001]]
    world.restart("/images/image-1")
    around = {"10.0.0.1": "10.0.0.2", "10.0.0.2": "10.0.0.3", "10.0.0.3": "10.0.0.1"}
    for node in world.nodes:
        name = f"10.0.0.{node.rank + 1}"
        assert node.arguments["build"]["places"] == {
            "hosts": around, "moves": around, "addresses": [[name, around[name]]], "own": [name],
            "others": sorted({*around} - {name})}
        assert node.arguments["finish"] == {"ports": [["10.0.0.2", 5000, "10.0.0.3", 5001]]}


def test_the_near_end_is_the_one_that_was_accepted():
    def end(file, state, local, remote):
        return {"file": file, "state": state, "local": local, "remote": remote, "pid": 1, "program": "app"}
    client, server = end(3, 1, A, B), end(4, 1, B, A)
    listener = end(5, 10, ["0.0.0.0", B[1]], ["0.0.0.0", 0])
    for ends in ({0: [client], 1: [server, listener]}, {0: [server, listener], 1: [client]}):
        (made,), outside = match(ends)
        assert (made.near_file, made.far_file) == (4, 3)
        assert outside == []


def test_an_image_of_another_number_of_nodes(world):
    world.start()
    world.checkpoint()
    world.store.images["/images/image-1"]["job"]["pods"].pop("2")
    for node in world.nodes:
        node.state = "empty"
    for restart in (world.restart, lambda image: world.coordinator.check({"image": image})):
        with pytest.raises(OtherMachine, match=r"the job ran on 2 host\(s\), this is 3. Cure: name 2 with --hosts"):
            restart("/images/image-1")
    assert not {"build", "check"} & set(world.calls())
