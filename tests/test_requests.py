"""Who asked, who is answered."""
from __future__ import annotations

import io

import pytest

from crhpc import requests
from crhpc.channel import Channel
from crhpc.progress import Report
from crhpc.requests import Requests


@pytest.fixture
def asked():
    """Requests with a status of one field, and the messages that it sends to the agents."""
    return Requests(lambda: {"own": 1}, Report(verbose=False, stream=io.StringIO())), []


@pytest.fixture
def pair():
    made = []

    def one():
        made.append(Channel.pair())
        made[-1][0].socket.settimeout(5)
        return made[-1]
    yield one
    for ends in made:
        for end in ends:
            end.close()


def received(channel: Channel):
    return channel.receive()[0]


def test_what_is_asked_early_waits_for_the_job(asked, pair):
    made, sent = asked
    _, server = pair()
    made.checkpoint(None, stop=False)
    made.checkpoint(server, stop=True)
    made.connect(sent.append)
    assert sent == [{"op": "checkpoint", "id": 1, "stop": False}, {"op": "checkpoint", "id": 2, "stop": True}]
    made.status(server)
    assert sent[2:] == [{"op": "status", "id": 3}]


def test_a_status_before_the_job_runs_is_answered_at_once(asked, pair):
    made, _ = asked
    client, server = pair()
    made.status(server)
    assert received(client) == {"op": "status", "own": 1, "agents": None}


def test_each_answer_goes_to_its_asker(asked, pair):
    made, sent = asked
    made.connect(sent.append)
    (first, one), (second, two) = pair(), pair()
    made.checkpoint(one, stop=False)
    made.checkpoint(two, stop=False)
    made.progress({"op": "progress", "done": 1})
    made.answer({"op": "checkpointed", "id": None, "number": 7})       # a periodic one
    made.answer({"op": "checkpoint-failed", "id": 2})
    made.answer({"op": "checkpointed", "id": 1})
    made.answer({"op": "checkpointed", "id": 1})
    assert [received(first), received(first)] == [{"op": "progress", "done": 1}, {"op": "checkpointed", "id": 1}]
    assert [received(second), received(second)] == [{"op": "progress", "done": 1}, {"op": "checkpoint-failed", "id": 2}]


def test_status_joins_what_both_know(asked, pair):
    made, sent = asked
    made.connect(sent.append)
    client, server = pair()
    made.status(server)
    made.answer_status({"op": "status", "id": 1, "pods": []})
    assert received(client) == {"op": "status", "own": 1, "agents": {"pods": []}}
    assert made.next_expiry() is None


def test_busy_agents_do_not_hold_up_a_status(asked, pair, monkeypatch):
    monkeypatch.setattr(requests, "STATUS_SECONDS", 0.0)
    made, sent = asked
    made.connect(sent.append)
    client, server = pair()
    made.status(server)
    assert made.next_expiry() is not None
    made.expire()
    assert received(client) == {"op": "status", "own": 1, "agents": None}
    made.answer_status({"op": "status", "id": 1, "pods": []})          # too late, and to nobody
    assert made.next_expiry() is None


def test_who_went_away_is_not_answered(asked, pair):
    made, sent = asked
    made.connect(sent.append)
    client, server = pair()
    made.checkpoint(server, stop=False)
    made.status(server)
    client.close()
    made.progress({"op": "progress"})                                  # must not raise
    made.forget(server)
    made.answer({"op": "checkpointed", "id": 1})
    made.answer_status({"op": "status", "id": 2})
    assert made.next_expiry() is None


def test_the_last_checkpoint_is_everybodys(asked, pair):
    made, sent = asked
    made.connect(sent.append)
    (first, one), (second, two) = pair(), pair()
    made.checkpoint(one, stop=True)
    made.checkpoint(two, stop=False)
    made.answer({"op": "checkpointed", "id": 1, "stopped": True})
    made.close("/images")
    assert received(first) == received(second) == {"op": "checkpointed", "id": 1, "stopped": True}


def test_the_end_of_the_job_answers_all(asked, pair):
    made, _ = asked
    client, server = pair()
    made.checkpoint(server, stop=False)
    made.checkpoint(None, stop=False)
    made.close("/images")
    answer = received(client)
    assert (answer["op"], answer["code"]) == ("checkpoint-failed", 69)
    assert "the job in /images ended before" in answer["error"]
