"""A member carries out orders, one at a time, and answers each."""
from __future__ import annotations

import threading
from typing import Any

import pytest

from crhpc.coordinator.member import Member
from crhpc.coordinator.protocol import NodeDoor, Op
from crhpc.errors import Unsupported

from .world import FakeNode, InProcess, Mailboxes


class Side:
    """One member of rank 0, and what it answers."""

    def __init__(self) -> None:
        self.mailboxes = Mailboxes(1)
        self.transport = InProcess(self.mailboxes, 0)
        self.node = FakeNode(0, [])
        self.woken = threading.Event()
        self.member = Member(self.node, self.transport, self.woken.set)
        self.sequence = 0

    def order(self, op: str, **fields: Any) -> Any:
        """Give an order; the answer, or None where it is not there yet."""
        self.sequence += 1
        self.member.serve(0, {"op": op, "seq": self.sequence, **fields})
        return self.answer()

    def answer(self) -> Any:
        found = self.transport.receive()
        return None if found is None else found[1]


@pytest.fixture
def side():
    side = Side()
    yield side
    side.node.writes.set()
    side.member.close()


def test_the_fake_is_a_node():
    door: NodeDoor = FakeNode(0, [])
    for name in (name for name in vars(NodeDoor) if not name.startswith("_")):
        assert callable(getattr(door, name)), name


def test_every_order_is_known(side):
    """One that is not in the table would be an error of a kind that nobody sees before a user."""
    side.node.state = "running"
    fields = {"command": {}, "temporary": "/tmp/x", "directory": "/d", "image": "/i", "pods": {"0": {"last_pid": 7}},
              "signal": 1, "group": False, "policy": {}, "address": "127.0.0.1", "env": {}, "peers": [],
              "hosts": ["node"], "guests": [], "places": {}, "ports": [], "senders": [], "rows": [], "owners": [],
              "counts": {}, "offers": {}}
    before = {Op.START: "empty", Op.CHECK: "empty", Op.CUT: "frozen", Op.THAW: "frozen", Op.BUILD: "empty",
              Op.LEFT: "empty", Op.FORGET: "empty",
              Op.CONNECT: "built", Op.FINISH: "connected", Op.RELEASE: "finished",
              Op.OFFER: "built", Op.REACH: "built", Op.SETTLE: "frozen",
              Op.EXPECT: "frozen", Op.DRAIN: "frozen", Op.RETURN: "frozen", Op.REFILL: "frozen"}
    for op in Op:
        side.node.state = before.get(op, "running")
        side.node.shard = "" if op == Op.PRECOPY else "/d"
        answer = side.order(op, **fields)
        if op == Op.WRITE:
            assert side.woken.wait(20)
            side.member.poll()
            answer = side.answer()
        assert "error" not in answer, answer
        assert answer["re"] == side.sequence


def test_answers_carry_what_was_asked_for(side):
    side.node.state = "running"
    assert side.order("precopy", directory="/d") == {"re": 1}
    assert side.order("freeze") == {"re": 2, "tasks": 10}
    side.node.ends = [{"file": 1}]
    assert side.order("cut") == {"re": 3, "ends": [{"file": 1}], "pod": side.node.describe()}
    assert side.order("thaw") == {"re": 4, "frozen": 0.25}
    assert side.order("tasks")["tasks"][0]["program"] == "app"
    side.node.refusals = ["a line"]
    assert side.order("survey") == {"re": 6, "refusals": ["a line"], "ends": [{"file": 1}]}


def test_an_error_of_the_users_keeps_its_words_and_its_code(side):
    error = Unsupported(what="a thing", pid=1, program="app", cure="none")
    side.node.state = "running"
    side.node.fails["freeze"] = error
    side.node.shard = "/d"
    assert side.order("freeze") == {"re": 1, "error": str(error), "code": 78}


def test_an_error_of_ours_is_an_answer_too(side, caplog):
    side.node.fails["end"] = KeyError("x")
    assert side.order("end") == {"re": 1, "error": "internal error: KeyError('x')", "code": 70}
    assert "an order failed" in caplog.text


def test_an_order_that_does_not_exist(side):
    reply = side.order("no such order")
    assert reply["code"] == 70
    assert "no such order" in reply["error"]


def test_the_standard_streams_are_this_nodes(side):
    side.member.stdio = (7, 8, 9)
    side.order("start", command={"argv": ["app"]}, temporary="/tmp/x")
    assert side.node.arguments["start"]["stdio"] == (7, 8, 9)


def test_a_write_is_answered_when_it_is_done(side):
    """Meanwhile other orders are."""
    side.node.state, side.node.shard = "running", "/d"
    side.node.writes.clear()
    assert side.order("write") is None
    assert side.member.writing
    assert side.order("tasks")["re"] == 2
    side.member.poll()
    assert side.answer() is None
    side.node.writes.set()
    assert side.woken.wait(20), "nobody turns the loop"
    side.member.poll()
    assert side.answer() == {"re": 1, "summary": {"node": 0, "put": 1000, "size": 10}}
    assert not side.member.writing
    side.member.poll()
    assert side.answer() is None, "once"


def test_a_write_that_fails(side):
    side.node.state = "running"
    side.node.fails["write"] = OSError(5, "Input/output error")
    assert side.order("write") is None
    assert side.woken.wait(20)
    side.member.poll()
    answer = side.answer()
    assert (answer["re"], answer["code"]) == (1, 70)


@pytest.mark.parametrize("op", ["abort", "end"])
def test_the_end_of_a_checkpoint_waits_for_who_writes(side, op):
    """Its shard is taken away after that; its answer is dropped."""
    side.node.state, side.node.shard = "running", "/d"
    side.node.writes.clear()
    side.order("write")
    threading.Timer(0.02, side.node.writes.set).start()
    assert side.order(op)["re"] == 2
    assert [method for _, method in side.node.log] == ["write", op]
    side.member.poll()
    assert side.answer() is None
    assert not side.member.writing
