"""Where pods are, and what became of the addresses that the job knows."""
from __future__ import annotations

from crhpc.coordinator.placement import place

A, B, C, SIX, SIX_B, BRIDGE = "10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2", "172.17.0.1"


def names(*addresses: str) -> list[list[str]]:
    return [[address, address] for address in addresses]


def test_nothing_has_changed():
    found = place({"0": names(A, SIX), "1": names(B)}, {"0": [SIX, A], "1": [C, B]})
    assert found["0"] == {"addresses": names(A, SIX), "hosts": {}, "moves": {}, "own": [A, SIX], "others": [B]}


def test_another_machine():
    found = place({"0": names(A, SIX), "1": names(B)}, {"0": [A, SIX], "1": ["10.9.9.9", C]})
    assert found["1"] == {"addresses": [[B, "10.9.9.9"]], "hosts": {B: "10.9.9.9"}, "moves": {B: "10.9.9.9"},
                          "own": [B], "others": [A, SIX]}
    assert (found["0"]["hosts"], found["0"]["moves"]) == ({B: "10.9.9.9"}, {B: "10.9.9.9"})


def test_the_family_stays():
    found = place({"0": names(A, SIX)}, {"0": [SIX_B, B]})
    assert found["0"]["hosts"] == {A: B, SIX: SIX_B}
    assert place({"0": names(A, SIX)}, {"0": [B]})["0"]["addresses"] == [[A, B], [SIX, SIX]], "no such address here"


def test_machines_change_places_and_back():
    """The job goes on calling them as it did."""
    pods = {"0": names(A), "1": names(B)}
    there = place(pods, {"0": [B], "1": [A]})
    assert there["0"]["hosts"] == there["0"]["moves"] == {A: B, B: A}
    pods = {pod: found["addresses"] for pod, found in there.items()}
    assert pods == {"0": [[A, B]], "1": [[B, A]]}
    stay = place(pods, {"0": [B], "1": [A]})
    assert (stay["0"]["hosts"], stay["0"]["moves"]) == ({A: B, B: A}, {})
    back = place(pods, {"0": [A], "1": [B]})
    assert (back["0"]["hosts"], back["0"]["moves"]) == ({}, {A: B, B: A})
    on = place(pods, {"0": [B], "1": [C]})
    assert (on["0"]["hosts"], on["0"]["moves"]) == ({A: B, B: C}, {A: C})


def test_two_pods_on_one_machine_and_apart_again():
    pods = {"0": names(A), "1": names(B)}
    together = place(pods, {"0": [A], "1": [A]})
    assert (together["1"]["hosts"], together["1"]["moves"], together["1"]["own"]) == ({B: A}, {B: A}, [B])
    pods = {pod: found["addresses"] for pod, found in together.items()}
    apart = place(pods, {"0": [A], "1": [C]})
    assert apart["0"]["moves"] == {} and apart["1"]["moves"] == {A: C}
    assert apart["0"]["hosts"] == apart["1"]["hosts"] == {B: C}


def test_what_every_machine_has_for_itself():
    found = place({"0": names(A, BRIDGE), "1": names(B, BRIDGE)}, {"0": [A], "1": [C, BRIDGE]})
    assert found["0"]["addresses"] == names(A, BRIDGE)
    assert BRIDGE not in {*found["0"]["hosts"], *found["0"]["own"], *found["0"]["others"]}
