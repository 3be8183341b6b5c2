"""What is said between the ranks is what the page at the top of protocol.py says."""
from __future__ import annotations

import inspect
import json
import re

from crhpc.coordinator import protocol
from crhpc.coordinator.protocol import NodeDoor, Op
from crhpc.engine.node import Node


def test_every_order_is_in_the_picture():
    drawn = set(re.findall(r"\b[A-Z]{3,}\b", protocol.__doc__ or "")) - {"JSON", "MPI"}
    assert drawn == {op.name for op in Op}


def test_the_engine_has_the_door_that_the_coordinator_sees():
    for name, method in inspect.getmembers(NodeDoor, inspect.isfunction):
        if not name.startswith("_"):
            assert inspect.signature(getattr(Node, name)) == inspect.signature(method), name


def test_all_messages_are_plain_json(world):
    """What survives the way there and back is data, never code."""
    world.start()
    world.checkpoint()
    world.coordinator.status(["host"] * len(world.nodes))
    sent = world.mailboxes.sent
    assert all(json.loads(json.dumps(message)) == message for _, _, message in sent)
    orders = [message for _, _, message in sent if "op" in message]
    assert {message["op"] for message in orders} <= {str(op) for op in Op}


def test_each_order_is_answered_once_by_each_rank(world):
    world.start()
    world.checkpoint(stop=True)
    sent = world.mailboxes.sent
    orders = [(to, message["seq"]) for _, to, message in sent if "op" in message]
    answers = [(source, message["re"]) for source, _, message in sent if "re" in message]
    assert sorted(orders) == sorted(answers)
    assert len(set(orders)) == len(orders)
