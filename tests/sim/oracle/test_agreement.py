"""sim.oracle.agreement: each kind of difference between two runs is found, and explained only by what explains it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from sim.oracle.agreement import Difference, compare_facts
from sim.oracle.facts import LATER, Facts, _first_ids
from sim.results.summary import ExpectationVerdict
from topologies import Topology, loads

TEXT = """
[run]
sample_every = 1

[machines.storm]
count = 3
program = "storm"
parameters = { to = "others" }
"""
TOPOLOGY = loads(TEXT)
TO_1, TO_2 = 1 << 16, 2 << 16
BOTH = {("storm-0", "storm-1", 1, 0): 6, ("storm-0", "storm-2", 2, 0): 4}
HEARD = frozenset({"delivered", "interrupts"})
FACTS = Facts(
    status="finished",
    balanced=True,
    edges=BOTH,
    order={"storm-0": np.array([TO_1, TO_1, TO_2, TO_1, TO_2, TO_1, TO_2, TO_1, TO_2, TO_1])},
    lines={("storm-0", 0): frozenset(), ("storm-1", 0): HEARD, ("storm-2", 0): HEARD},
    pending={},
    fates={"storm": frozenset()},
    actions=[],
    ends={},
    up=dict.fromkeys(("storm-0", "storm-1", "storm-2"), (0, 10)),
    verdicts={},
    memory={"main": bytes(256)},
    duration_ns=10,
    names=("storm-0", "storm-1", "storm-2", "storm-1.2"),
)


def differences(
    real: Mapping[str, Any],
    simulated: Mapping[str, Any] | None = None,
    profiles: Mapping[str, str] | None = None,
    topology: Topology = TOPOLOGY,
) -> list[Difference]:
    """Those between `FACTS` with these changes."""
    a, b = (dataclasses.replace(FACTS, **changes) for changes in (simulated or {}, real))
    return list(compare_facts(topology, profiles or {}, a, b))


def test_equal_facts_have_no_difference() -> None:
    assert differences({}) == []


def test_a_shorter_run_is_the_beginning_of_a_longer_one() -> None:
    assert differences({"order": {"storm-0": FACTS.order["storm-0"][:4]}}) == []


def test_another_order_is_not_explained() -> None:
    (found,) = differences({"order": {"storm-0": np.array([TO_1, TO_2, TO_1])}})
    assert (found.aspect, found.where, found.explained) == ("order", "doorbell 2 of storm-0", "")
    assert (found.simulated, found.real) == ("rings storm-1, vector 0", "rings storm-2, vector 0")


def test_order_is_not_compared_where_a_timeline_changes_the_peers() -> None:
    topology = loads(TEXT + '\n[[timeline]]\nat_s = 0.1\ndo = "kill"\nmachines = "storm-2"\n')
    assert differences({"order": {"storm-0": np.array([TO_2])}}, topology=topology) == []


def test_an_edge_that_the_slower_run_did_not_reach_is_explained_by_its_pace() -> None:
    lines = {**FACTS.lines, ("storm-2", 0): frozenset()}
    short = {"edges": {("storm-0", "storm-1", 1, 0): 2}, "order": {"storm-0": np.array([TO_1, TO_1])}, "lines": lines}
    (found,) = differences(short)
    assert found.aspect == "rings"
    assert found.explained == "pace: storm-0 rang 2 doorbells there, and this is its doorbell 3"


def test_an_edge_to_a_machine_that_has_joined_again_is_explained_by_the_pace_too() -> None:
    again = {**BOTH, ("storm-0", "storm-1.2", LATER, 0): 1}
    order = {"storm-0": np.append(FACTS.order["storm-0"], 3 << 16)}
    (found,) = differences({}, {"edges": again, "order": order})
    assert found.explained == "pace: storm-0 rang 10 doorbells there, and this is its doorbell 11"


def test_an_edge_to_a_machine_that_joins_is_explained_by_a_slower_ringer_or_by_a_start_that_is_cut_short() -> None:
    edge = ("storm-0", "storm-1.2", LATER, 0)
    order = {"storm-0": np.append(3 << 16, FACTS.order["storm-0"])}
    more = {"edges": {**BOTH, edge: 1}, "order": order, "up": {**FACTS.up, "storm-1.2": (5, 10)}}
    less = {"edges": {**BOTH, ("storm-0", "storm-2", 2, 0): 3}, "up": more["up"]}
    explained = {each.where: each.explained for each in differences(less, more)}
    there = "storm-0 -> storm-1.2, vector 0"
    assert explained[there] == "pace: storm-0 rang 9 doorbells there, 11 here, and had not heard of storm-1.2"
    less["edges"] = {("storm-0", "storm-1", 1, 0): 7, ("storm-0", "storm-2", 2, 0): 4}
    assert {each.where: each.explained for each in differences(less, more)}[there] == ""
    more["up"] = FACTS.up
    explained = {each.where: each.explained for each in differences(less, more)}
    assert explained[there] == "start: storm-1.2 had joined here, and left or died before it was Ready"


def test_the_first_id_of_a_machine_that_migrates_is_the_one_that_it_had_before() -> None:
    rows = [{"target": 3, "peer": peer} for peer in (3, 2)] + [{"target": 1, "peer": peer} for peer in (4, 1)]
    assert _first_ids(rows, [(3, 3), (3, 2), (0, None)]) == {3: 3, 1: 1}


def test_an_edge_that_it_did_reach_is_not_explained() -> None:
    (found,) = differences({"edges": {("storm-0", "storm-1", 1, 0): 9}})
    assert (found.aspect, found.explained) == ("rings", "")


def test_an_edge_to_a_machine_that_was_up_for_a_shorter_time_is_explained_by_its_start() -> None:
    edge = {("storm-0", "storm-1", 1, 0): 6}
    late = {**FACTS.up, "storm-2": (8, 10)}
    lines = {**FACTS.lines, ("storm-2", 0): frozenset()}
    changes = {"edges": edge, "up": late, "lines": lines}
    (rings,) = differences(changes)
    assert rings.explained.startswith("start: storm-0 and storm-2 up for 0.000 s there")
    (interrupts,) = differences({"up": late, "lines": lines})
    assert interrupts.explained.startswith("start: storm-2 up")
    assert [each.explained for each in differences({**changes, "up": FACTS.up})] == ["", ""]
    shorter = {**FACTS.up, "storm-2": (9, 10)}  # in the run that has the edge
    assert differences(changes, {"up": shorter})[0].explained == ""


def test_a_cell_of_the_profile_explains_what_became_of_doorbells() -> None:
    lost = {**FACTS.lines, ("storm-1", 0): frozenset({"delivered"})}
    (found,) = differences({"lines": lost})
    assert (found.aspect, found.explained) == ("interrupts", "")
    (found,) = differences({"lines": lost}, profiles={"storm-1": "qemu-doorbell-kvm"})
    assert "qemu-doorbell-kvm." in found.explained
    (found,) = differences({"lines": lost}, profiles={"storm-2": "qemu-doorbell-kvm"})
    assert found.explained == ""


def test_doorbells_that_were_on_their_way_are_no_difference_of_the_device() -> None:
    changes = {"lines": {**FACTS.lines, ("storm-1", 0): frozenset()}}
    (found,) = differences({**changes, "pending": {("storm-1", 0): 6}})
    assert found.explained == "pace: 6 doorbells were still on their way there"
    (found,) = differences({**changes, "pending": {("storm-1", 0): 0}})
    assert found.explained == ""
    changes = {"lines": {**FACTS.lines, ("storm-1", 0): frozenset({"delivered"})}}
    (found,) = differences({**changes, "pending": {("storm-1", 0): 6}})
    assert found.explained == ""


def test_ends_and_actions_are_compared() -> None:
    found = differences({"status": "failed", "balanced": False, "ends": {"storm-1": "SIGSEGV"}})
    assert [(each.aspect, each.where, bool(each.explained)) for each in found] == [
        ("end", "the run", False),
        ("end", "the counts of the real run", False),
        ("end", "storm-1", False),
    ]
    (skipped,) = differences(
        {"actions": [("storm-1", "kill", "it is ending: leave")]}, {"actions": []}, topology=TOPOLOGY
    )
    assert (skipped.aspect, skipped.simulated, skipped.real) == ("actions", "not so", "kill: it is ending: leave")
    assert skipped.explained == ""


def test_a_verdict_about_time_may_differ_and_one_about_presence_may_not() -> None:
    def verdicts(metric: str, got: float, *, met: bool) -> dict[str, Any]:
        each = ExpectationVerdict(metric, "", "< 5", got, met)
        return {"verdicts": {str(each): each}}

    (late,) = differences(verdicts("p99_us", 900.0, met=False), verdicts("p99_us", 3.0, met=True))
    assert late.explained == "pace: a figure of time"
    (fewer,) = differences(verdicts("rung", 3.0, met=True), verdicts("rung", 900.0, met=False))
    assert fewer.explained == "pace: an amount"
    (none,) = differences(verdicts("refused", 0.0, met=True), verdicts("refused", 900.0, met=False))
    assert (none.aspect, none.explained) == ("verdict", "")


def test_places_in_the_memory_that_one_run_alone_has_written_are_told() -> None:
    (found,) = differences({"memory": {"main": bytes(64) + b"\1" + bytes(191)}})
    assert (found.aspect, found.where) == ("memory", "domain main, bytes 0x40 to 0x7f")
    assert (found.simulated, found.real, found.explained) == ("not written", "written", "")


def test_an_id_that_a_migration_gives_is_heard_of_later_by_a_slower_machine() -> None:
    moved = {"moved": frozenset({"storm-2"})}
    edges = {**BOTH, ("storm-0", "storm-2", LATER, 0): 3}
    (found,) = differences(moved, {"edges": edges, **moved})
    assert found.explained == "pace: storm-0 rang 10 doorbells there, 13 here, and had not heard of the new ID"
    (found,) = differences({"edges": edges}, {})
    assert (found.aspect, found.explained) == ("rings", "")


def test_machines_that_have_migrated_ring_by_ids_of_their_arrival() -> None:
    moved = {"moved": frozenset({"storm-0", "storm-2"})}
    edges = {**BOTH, ("storm-0", "storm-2", 7, 0): 3}
    (found,) = differences({"edges": edges, **moved}, {"edges": BOTH, **moved})
    assert found.explained.startswith("start: storm-0 and storm-2 have migrated, their IDs are by the order of arrival")
    (found,) = differences({"edges": edges, "moved": frozenset({"storm-0"})}, {"edges": BOTH})
    assert (found.aspect, found.explained) == ("rings", "")
