"""The timeline on machines that are processes: each action does what it says, and the counts balance."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import sim
from sim.engines.shared.worker_actions import WorkerActions
from tests.system.slower import run_in_time
from topologies import loads
from topologies.actions import ACTIONS, WorkerAction

STORM = """
title = "Timeline"
[run]
duration_s = 1.0
warmup_s = 0.1
sample_every = 4
[machines.storm]
count = 3
vectors = 2
program = "storm"
parameters = { to = "all", rate_hz = 2000.0 }
[machines.late]
count = 2
vectors = 2
absent = true
program = "storm"
parameters = { to = "storm", rate_hz = 1000.0 }
"""


def entry(do: str, at_s: float, machines: str = "", **more: object) -> str:
    """One entry of a timeline, as a file has it."""
    given = {"do": do, "at_s": at_s, **({"machines": machines} if machines else {}), **more}
    return "[[timeline]]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in given.items())


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def run(tmp_path: Path, *entries: str, text: str = STORM, **overrides: str) -> sim.Run:
    result = run_in_time(text + "".join(entries), tmp_path, overrides)
    summary = result.summary
    assert result.balanced, result.reason
    assert summary["rung"] == summary["delivered"] + summary["pending"] + summary["refused"] > 0
    return result


def events(result: sim.Run, kind: str) -> list[dict[str, Any]]:
    return [event for event in result.events() if event["kind"] == kind]


def done(result: sim.Run) -> list[tuple[str, str | None]]:
    """What was done, and to whom; nothing that was skipped."""
    return [(each["do"], each["machine"]) for each in events(result, "action") if "skipped" not in each]


def edges(result: sim.Run, source: str, target: str) -> int:
    """What one machine rang at another, over all vectors."""
    index = {machine["name"]: machine["index"] for machine in result.manifest["machines"]}
    rows = result.edges().to_pylist()
    return sum(row["rung"] for row in rows if (row["source"], row["target"]) == (index[source], index[target]))


def test_every_action_of_the_language_can_be_done() -> None:
    from sim.coordination.actions import Actions

    for name, action in ACTIONS.items():
        assert hasattr(WorkerActions if issubclass(action, WorkerAction) else Actions, f"_{name}")
    assert hasattr(WorkerActions, "_unplug")  # `Actions` passes it on


def test_machines_join_later_and_ring_and_are_rung(tmp_path: Path) -> None:
    result = run(tmp_path, entry("join", 0.2, "late", every_s=0.1))
    assert done(result) == [("join", "late-0"), ("join", "late-1")]
    assert {tuple(each["peers"]) for each in events(result, "machine_joined")} == {(3,), (4,)}
    for late in ("late-0", "late-1"):
        assert edges(result, late, "storm-1") > 0
        assert edges(result, "storm-1", late) > 0
    assert result.summary["groups"]["late"]["machines"] == 2


def test_a_machine_that_joins_late_rings_nothing_that_was_due_before(tmp_path: Path) -> None:
    result = run(tmp_path, entry("join", 0.4, "late"), **{"run.sample_every": "1"})
    late = [row for row in result.samples().to_pylist() if row["source"] >= 3]
    joined_ns = min(each["time_ns"] for each in events(result, "machine_joined"))
    assert late
    assert all(row["intended_ns"] >= joined_ns - 1_000_000 for row in late)


def test_a_doorbell_that_is_rung_before_its_machine_has_started_is_taken_at_the_start(tmp_path: Path) -> None:
    """It is the only one on its vector, so no later doorbell announces it once more."""
    text = """
        title = "Early"
        [run]
        duration_s = 0.8
        warmup_s = 0.0
        [machines.ringer]
        program = "tests.guest_programs:ring_at_sight"
        [machines.late]
        count = 4
        vectors = 2
        absent = true
        program = "tests.guest_programs:count"
    """
    result = run(tmp_path, entry("join", 0.1, "late", every_s=0.05), text=text)
    summary = result.summary
    assert (summary["rung"], summary["delivered"], summary["pending"]) == (4, 4, 0)
    assert [each["values"]["interrupts"] for each in events(result, "statistics")] == [1] * 4


def test_a_machine_leaves_and_comes_back_under_a_new_id(tmp_path: Path) -> None:
    result = run(tmp_path, entry("leave", 0.3, "storm-1"), entry("join", 0.3, "storm-1"))
    (joined,) = events(result, "machine_joined")
    assert (joined["machine"], joined["peers"]) == ("storm-1.2", [3])
    names = [machine["name"] for machine in result.manifest["machines"]]
    assert names == ["storm-0", "storm-1", "storm-2", "late-0", "late-1", "storm-1.2"]
    assert edges(result, "storm-0", "storm-1") > 0
    assert edges(result, "storm-0", "storm-1.2") > 0
    assert edges(result, "storm-1.2", "storm-0") > 0
    assert result.summary["machines"] == 5
    assert result.status == "finished"


def test_a_killed_machine_fails_nothing_and_doorbells_at_it_are_refused(tmp_path: Path) -> None:
    result = run(tmp_path, entry("kill", 0.4, "storm-2"))
    assert result.status == "finished"
    (left,) = events(result, "machine_left")
    assert (left["machine"], left["how"], left["action"]) == ("storm-2", "SIGKILL", "kill")
    assert result.summary["refused"] > 0
    assert not events(result, "machine_died")


def test_an_impossible_action_is_skipped_with_a_reason(tmp_path: Path) -> None:
    result = run(
        tmp_path, entry("kill", 0.3, "storm-2"), entry("stall", 0.6, "storm-2"), entry("resume", 0.6, "storm-1")
    )
    skipped = {(each["do"], each["skipped"]) for each in events(result, "action") if "skipped" in each}
    assert skipped == {("stall", "it is not running"), ("resume", "it is not stalled")}


def test_a_stall_is_lag_for_what_was_due_meanwhile(tmp_path: Path) -> None:
    result = run(tmp_path, entry("stall", 0.4, "storm-0"), entry("resume", 0.7, "storm-0"), **{"run.sample_every": "1"})
    lags = {row["rung_ns"] - row["intended_ns"] for row in result.samples().to_pylist() if row["source"] == 0}
    assert max(lags) > 150_000_000


def test_a_machine_that_is_not_resumed_still_ends_with_the_others(tmp_path: Path) -> None:
    result = run(tmp_path, entry("stall", 0.4, "storm-0"))
    assert result.status == "finished"
    assert not events(result, "machine_killed")
    # What was due within its 1.1 s at 2000 a second is rung, or told; a turn of 64 may run over the end.
    storm = result.figures.groups["storm"]
    assert 3 * 2199 <= storm.sent + storm.missed <= 3 * (2200 + 64)
    assert result.figures.missed == storm.missed > 600
    assert result.figures.missed_oldest_ns > 300_000_000
    assert any("doorbells were due and never rung" in warning for warning in result.warnings)


@pytest.mark.parametrize("resumed", [True, False])
def test_a_full_counter_refuses_and_holds_again_what_it_held(resumed: bool, tmp_path: Path) -> None:
    entries = [entry("fill", 0.4, "storm-1", vectors=[1])]
    entries += [entry("resume", 0.7, "storm-1")] if resumed else []
    result = run(tmp_path, *entries)
    refused = {(row["target"], row["vector"]): row["refused"] for row in result.edges().to_pylist() if row["refused"]}
    assert set(refused) == {(1, 1)}
    assert result.summary["settled"] == 0


def test_a_slow_machine_finds_more_doorbells_in_each_counter(tmp_path: Path) -> None:
    result = run(tmp_path, entry("slow", 0.0, "storm-0", delay_us=3000.0))
    per_machine: dict[int, list[int]] = {}
    for row in result.vectors().to_pylist():
        counts = per_machine.setdefault(row["machine"], [0, 0])
        counts[0] += row["delivered"]
        counts[1] += row["interrupts"]
    coalescing = {
        machine: delivered / interrupts for machine, (delivered, interrupts) in per_machine.items() if interrupts
    }
    assert coalescing[0] > 2
    assert coalescing[0] > coalescing[1]


def test_masked_vectors_take_doorbells_and_do_not_interrupt(tmp_path: Path) -> None:
    programs = '[machines.counter]\nvectors = 2\nprogram = "tests.guest_programs:count"\n'
    # Only machines that join later ring it: the order to mask has come by then.
    ring = {"machines.storm.parameters.to": "storm", "machines.late.parameters.to": "counter"}
    masked = run(tmp_path, programs, entry("mask", 0.0, "counter"), entry("join", 0.3, "late"), **ring)
    (said,) = events(masked, "statistics")
    assert said["values"].get("interrupts", 0) == 0
    assert masked.summary["groups"]["counter"]["delivered"] > 100
    ring = {"machines.storm.parameters.to": "counter"}
    unmasked = run(
        tmp_path, programs, entry("mask", 0.0, "counter", vectors=[0]), entry("unmask", 0.5, "counter"), **ring
    )
    (said,) = events(unmasked, "statistics")
    assert said["values"]["interrupts"] > 100


def test_pending_doorbells_are_no_interrupts(tmp_path: Path) -> None:
    programs = '[machines.counter]\nvectors = 2\nprogram = "tests.guest_programs:count"\n'
    ring = {"machines.storm.parameters.to": "counter", "run.sample_every": "1"}
    result = run(tmp_path, programs, entry("mask", 0.3, "counter"), entry("unmask", 0.6, "counter"), **ring)
    (said,) = events(result, "statistics")
    counter = result.summary["groups"]["counter"]
    assert counter["interrupts"] == said["values"]["interrupts"]
    assert counter["pba_pending"] > 0
    assert counter["dropped"] == 0
    unhandled = sum(row["count"] for row in result.drains().to_pylist() if row["handled_ns"] is None)
    assert unhandled == counter["pba_pending"]


def test_256_doorbells_at_once_are_lost_by_the_device_of_2012(tmp_path: Path) -> None:
    text = """
        title = "Lost"
        [run]
        duration_s = 0.6
        warmup_s = 0.0
        [machines.receiver]
        profile = "qemu-1.1-intx"
        program = "idle"
        [machines.sender]
        profile = "qemu-1.1-intx"
        program = "storm"
        parameters = { to = "receiver", rate_hz = 12800.0, arrivals = "bursts", burst = 256 }
    """
    lost = run(tmp_path, entry("slow", 0.0, "receiver", delay_us=5000.0), text=text).summary
    assert lost["dropped"] > 0
    assert lost["dropped"] % 256 == 0
    kept = run(tmp_path, text=text, **{"machines.sender.parameters.burst": "255"}).summary
    assert kept["dropped"] == 0


def test_a_reset_begins_the_program_anew(tmp_path: Path) -> None:
    programs = '[machines.counter]\nprogram = "tests.guest_programs:count"\n'
    result = run(tmp_path, programs, entry("reset", 0.5, "counter", repeat=2, period_s=0.1))
    (said,) = events(result, "statistics")
    assert said["values"]["starts"] == 3


def test_a_machine_continues_without_its_unplugged_device(tmp_path: Path) -> None:
    result = run(tmp_path, entry("unplug", 0.4, "storm-1"))
    assert result.status == "finished"
    assert [each["peer"] for each in events(result, "peer_left")] == [1]
    assert result.summary["refused"] > 0
    assert not events(result, "machine_left")


def test_a_deaf_machine_learns_of_no_new_peer(tmp_path: Path) -> None:
    result = run(tmp_path, entry("deafen", 0.2, "storm-0"), entry("join", 0.3, "late"))
    assert edges(result, "storm-0", "late-0") == 0
    assert edges(result, "storm-1", "late-0") > 0


def test_a_malformed_message_is_what_the_machine_says_it_is(tmp_path: Path) -> None:
    result = run(tmp_path, entry("garble", 0.3, "storm-0", message="left_unknown"))
    assert [each["machine"] for each in events(result, "warning")] == ["storm-0"]
    assert "left" in events(result, "warning")[0]["text"]
    assert result.status == "finished"


def test_doorbells_go_on_without_a_server_and_a_new_one_knows_only_new_peers(tmp_path: Path) -> None:
    result = run(tmp_path, entry("stop_server", 0.2), entry("start_server", 0.4), entry("join", 0.5, "late"))
    assert done(result)[:2] == [("stop_server", None), ("start_server", None)]
    assert edges(result, "late-0", "late-1") == 0  # they ring the storm, which they do not know
    assert edges(result, "storm-0", "late-0") == 0
    stamps = [row["rung_ns"] for row in result.samples().to_pylist() if row["source"] == 0]
    stopped_ns = events(result, "action")[0]["time_ns"]
    assert max(stamps) > stopped_ns


def test_a_condition_waits_until_it_holds_and_picks_by_the_seed(tmp_path: Path) -> None:
    when = entry("kill", 0.0, "storm", when="delivered > 500", of="storm", pick=1).replace("at_s = 0.0\n", "")
    victims = {done(run(tmp_path, when))[0][1] for _ in range(2)}
    assert len(victims) == 1


def test_an_expectation_that_is_broken_ends_the_run_if_it_is_to(tmp_path: Path) -> None:
    expect = '[[expect]]\nthat = "rung < 100"\nabort = true\n'
    result = run(tmp_path, expect, **{"run.duration_s": "30.0"})
    assert result.status == "failed"
    assert "expected rung < 100, got" in result.reason
    assert result.summary["elapsed_s"] < 30


def test_nothing_happens_after_the_end(tmp_path: Path) -> None:
    result = run(
        tmp_path,
        entry("stall", 0.0, "storm-0", repeat=4, period_s=0.35),
        entry("resume", 0.1, "storm-0", repeat=4, period_s=0.35),
    )
    assert len(events(result, "action")) <= 8
    assert result.status == "finished"


def test_machines_run_where_and_how_the_topology_says(tmp_path: Path) -> None:
    cpu = max(os.sched_getaffinity(0))
    text = f"""
        title = "Placed"
        [run]
        duration_s = 0.2
        warmup_s = 0.0
        [machines.placed]
        program = "tests.guest_programs:placement"
        cpus = [{cpu}]
        policy = "batch"
        nice = 3
    """
    result = sim.run(loads(text), runs=tmp_path)
    (said,) = events(result, "statistics")
    assert said["values"] == {"cpu": cpu, "cpus": 1, "policy": os.SCHED_BATCH, "nice": 3}


SEED_TOPOLOGY = """
title = "2012"
[run]
duration_s = 1.0
warmup_s = 0.0
[machines.old]
profile = "qemu-1.1"
vectors = 2
program = "idle"
[machines.new]
vectors = 2
program = "storm"
parameters = { to = "others", rate_hz = 500.0 }
"""


@pytest.mark.parametrize(
    ("message", "row"),
    [("negative_peer", 59), ("memory_missing", 64), ("left_itself", 90), ("left_unknown", 0), ("memory_again", 0)],
)
def test_a_device_of_2012_takes_malformed_messages_as_it_did(tmp_path: Path, message: str, row: int) -> None:
    """Some end the machine, in the words of the row that describes the defect; all others change it without a word."""
    text = SEED_TOPOLOGY + "".join(entry("garble", at_s, "old", message=message) for at_s in (0.3, 0.5))
    result = sim.run(loads(text), runs=tmp_path, resources_every_s=0)
    assert (result.status, result.balanced) == ("finished", True)  # the timeline asked for it
    failures = events(result, "failure")
    assert [(each["machine"], each["at_fault"]) for each in failures] == ([("old", "modelled device")] if row else [])
    assert all(each["summary"].startswith(f"ModelledFault: row {row}: ") for each in failures)


def test_a_device_of_2012_overflows_with_the_first_vector_too_many(tmp_path: Path) -> None:
    result = sim.run(loads(SEED_TOPOLOGY, overrides={"machines.new.vectors": "3"}), runs=tmp_path, resources_every_s=0)
    assert result.status == "failed"
    assert "row 72: peer 1: more than 2 vectors" in result.reason


def test_a_run_ends_when_a_condition_holds(tmp_path: Path) -> None:
    text = """
[run]
duration_s = 100
warmup_s = 0
[machines.ring]
count = 2
program = "storm"
parameters = { to = "others", rate_hz = 1000.0 }
[[timeline]]
when = "delivered >= 100"
do = "end"
[[expect]]
that = "delivered >= 100"
[[expect]]
that = "duration_s < 90"
"""
    run = sim.run(loads(text), runs=tmp_path)
    assert (run.status, run.reason, run.balanced) == ("finished", "", True)
    assert all(each.met for each in run.figures.expectations)
    assert [event["do"] for event in run.events() if event["kind"] == "action"] == ["end"]
