"""Runs of real processes: what a user asks for is what comes out, and it balances."""

from __future__ import annotations

import itertools
import json
import os
import resource
import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sim
from nodes.errors import HostError, UsageError
from sim.runner import Begun
from sim.telemetry import Subscriber
from topologies import TopologyError, loads

PATIENCE_S = 60.0
SHORT = {"run.duration_s": "0.4", "run.warmup_s": "0.1"}


def run(topology: object, tmp_path: Path, **overrides: str) -> sim.Run:
    return sim.run(topology, runs=tmp_path, overrides={**SHORT, **overrides}, resources_every_s=0.1)


def test_ping_pong_is_one_interrupt_for_each_doorbell(tmp_path: Path) -> None:
    result = run("ping_pong", tmp_path, **{"run.sample_every": "1"})
    summary = result.summary
    assert (result.status, result.reason, result.balanced) == ("finished", "", True)
    assert summary["machines"] == 2
    assert summary["rung"] == summary["delivered"] + summary["pending"] + summary["refused"] > 0
    assert summary["interrupts"] == summary["delivered"]
    assert summary["settled"] == 0
    # Every doorbell is sampled; those that are not matched were pending at the end.
    assert summary["samples"] == summary["rung"]
    assert summary["unmatched"] == summary["pending"] <= 1
    assert summary["latency_ns"]["lag"]["samples"] == 0, "no program of it has a schedule"
    assert summary["unscheduled"] == summary["latency_ns"]["raw"]["samples"] + summary["unmatched"]
    for name in ("delivery", "handling", "raw", "total"):
        assert summary["latency_ns"][name]["samples"] > 0
        every = [summary["latency_ns"][name][key] for key in ("p50", "p90", "p99", "p99_9", "max")]
        figures = [each for each in every if each is not None]  # a slow run has too few samples for the high ones
        assert figures == sorted(figures)
        assert figures[0] >= 0


def test_a_storm_balances_by_group_and_in_sum(tmp_path: Path) -> None:
    summary = run("doorbell_storm", tmp_path).summary
    assert summary["machines"] == 16
    assert summary["rung"] == summary["delivered"] + summary["pending"] + summary["refused"] > 1000
    for figures in (*summary["groups"].values(),):
        assert figures["rung"] == figures["delivered"] + figures["pending"] + figures["refused"]
    assert sum(group["rung"] for group in summary["groups"].values()) == summary["rung"]
    assert summary["settled"] == 0


def test_fan_in_counts_at_the_receiver(tmp_path: Path) -> None:
    groups = run("fan_in", tmp_path).summary["groups"]
    (receiver,) = [group for group in groups.values() if group["delivered"]]
    senders = [group for group in groups.values() if group is not receiver]
    assert sum(group["sent"] for group in senders) == receiver["rung"]
    assert all(group["rung"] == 0 for group in senders)


def test_every_edge_of_a_storm_is_rung_and_sampled(tmp_path: Path) -> None:
    result = run("doorbell_storm", tmp_path, **{"machines.storm.count": "4", "run.sample_every": "4"})
    edges = result.edges().to_pylist()
    assert {(edge["source"], edge["target"], edge["vector"]) for edge in edges if edge["rung"]} == {
        (source, target, vector)
        for source in range(4)
        for target in range(4)
        for vector in range(4)
        if source != target
    }
    samples = result.samples().to_pylist()
    assert len({(each["source"], each["target"], each["vector"]) for each in samples}) == 4 * 3 * 4


def test_an_open_loop_keeps_its_rate_and_its_intended_times(tmp_path: Path) -> None:
    result = run(
        "ping_pong", tmp_path, **{"machines.ping.program": "storm", "machines.ping.parameters.rate_hz": "1000.0"}
    )
    samples = [each for each in result.samples().to_pylist() if each["source"] == 0]
    intended = [each["intended_ns"] for each in samples]
    every = result.manifest["sample_every"]
    assert {after - before for before, after in itertools.pairwise(intended)} <= {1_000_000 * every}
    assert all(each["rung_ns"] >= each["intended_ns"] for each in samples)


def test_the_same_seed_gives_the_same_order(tmp_path: Path) -> None:
    def order(seed: str) -> list[tuple[int, int]]:
        rate = {"machines.storm.parameters.rate_hz": "2000.0", "machines.storm.count": "3", "run.sample_every": "1"}
        samples = run("doorbell_storm", tmp_path, seed=seed, **rate).samples().to_pylist()
        return [(each["target"], each["vector"]) for each in samples if each["source"] == 0][:16]

    assert order("7") == order("7") != order("8")


def test_the_run_directory_is_complete_and_private(tmp_path: Path) -> None:
    result = run("ping_pong", tmp_path)
    names = {entry.name for entry in result.path.iterdir()}
    assert {"topology.toml", "manifest.json", "status", "events.jsonl", "summary.json"} <= names
    assert {"samples.parquet", "edges.parquet", "vectors.parquet", "resources.parquet"} <= names
    assert not (result.path / "raw").exists()
    assert stat.S_IMODE(result.path.stat().st_mode) == 0o700
    assert json.loads((result.path / "summary.json").read_text())["rung"] == result.summary["rung"]
    assert sim.open(result.path).summary == result.summary


def test_every_process_is_looked_at(tmp_path: Path) -> None:
    rows = [row for row in run("ping_pong", tmp_path).resources().to_pylist() if row["machine"] >= -1]
    in_depth = [row for row in rows if row["uss_bytes"] is not None]
    assert {row["name"] for row in in_depth} == {"ping", "echo", "coordinator"}
    for row in in_depth:
        assert row["rss_bytes"] >= row["uss_bytes"] > (row["instrument_bytes"] or 0)
        assert row["descriptors"] > 0
    assert all(row["threads"] >= 1 for row in rows)


def test_telemetry_tells_every_phase_and_no_snapshot_is_lost(tmp_path: Path) -> None:
    subscribers: list[Subscriber] = []
    snapshots = []

    def begin(begun: Begun) -> None:
        subscribers.append(Subscriber(begun.telemetry))

    # Long enough for a subscriber that a busy host lets connect late.
    overrides = SHORT | {"run.duration_s": "1.0"}
    topology = loads((Path("topologies/scenarios") / "ping_pong.toml").read_text(), overrides=overrides)
    run = sim.run(topology, runs=tmp_path, on_begin=begin)
    with subscribers[0] as subscriber:
        while not snapshots or snapshots[-1].phase != "done":
            snapshot = subscriber.receive(PATIENCE_S)
            assert snapshot is not None, "the last one does not come"
            snapshots.append(snapshot)
        assert subscriber.lost == 0
    # Those that were published before the subscription is complete are not lost: they were never its own.
    (told,) = [event for event in run.events() if event["kind"] == "telemetry"]
    assert [snapshot.number for snapshot in snapshots] == list(range(snapshots[0].number, told["snapshots"] + 1))
    assert 0 <= told["heartbeats_late"] <= told["heartbeats"]
    phases = [snapshot.phase for snapshot in snapshots]
    assert phases == sorted(phases, key=("starting", "running", "stopping", "done").index)
    assert phases[-1] == "done"
    assert sum(group.rung for group in snapshots[-1].groups.values()) > 0
    assert max(snapshot.up for snapshot in snapshots) == 2


@pytest.mark.parametrize("kind", ["shared_memory", "memfd"])
def test_machines_share_the_memory(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "memory_programs.py"
    programs.write_text(
        "def write(guest, *, text: str = 'x'):\n"
        "    guest.memory[4096:4096 + len(text)] = text.encode()\n"
        "    guest.ring(1)\n"
        "    yield None\n"
        "def check(guest, *, text: str = 'x'):\n"
        "    yield None\n"
        "    assert bytes(guest.memory[4096:4096 + len(text)]) == text.encode()\n"
        "    raise SystemError('seen')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    topology = f"""
        title = "memory"
        [run]
        duration_s = 5.0
        [memory]
        kind = "{kind}"
        [machines.writer]
        program = "memory_programs:write"
        parameters = {{ text = "hello" }}
        [machines.checker]
        program = "memory_programs:check"
        parameters = {{ text = "hello" }}
    """
    result = sim.run(loads(topology), runs=tmp_path / "runs")
    del sys.modules["memory_programs"]
    assert result.status == "failed"
    assert "SystemError: seen" in result.reason


def test_a_wrong_topology_starts_nothing(tmp_path: Path) -> None:
    with pytest.raises(TopologyError):
        run("ping_pong", tmp_path / "runs", **{"machines.ping.vectors": "0"})
    with pytest.raises(TopologyError):
        sim.run("no-such-topology", runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_host_that_is_too_small_says_the_sum(tmp_path: Path) -> None:
    topology = loads('title = "big"\n[machines.a]\ncount = 60000\nvectors = 2048\nprogram = "idle"\n')
    with pytest.raises(HostError, match=r"needs \d+ descriptors in the coordinator \(122880000 eventfds"):
        sim.run(topology, runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_overrides_need_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        sim.run(loads('title = "t"\n[machines.a]\nprogram = "idle"\n'), runs=tmp_path, overrides=SHORT)


def test_the_callers_environment_main_module_and_limits_are_left_alone(tmp_path: Path) -> None:
    def mine() -> tuple[object, ...]:
        return dict(os.environ), sys.modules["__main__"], resource.getrlimit(resource.RLIMIT_NOFILE)

    before = mine()
    run("ping_pong", tmp_path)
    assert mine() == before


@pytest.mark.parametrize("every_s", ["often", float("nan"), -1, None])
def test_a_time_between_samples_that_is_none_is_refused_in_words(tmp_path: Path, every_s: Any) -> None:
    with pytest.raises(UsageError, match="resources_every_s: expected a number of seconds"):
        sim.run("ping_pong", runs=tmp_path / "runs", resources_every_s=every_s)
    assert not (tmp_path / "runs").exists()


def test_a_run_from_a_notebook_takes_numbers_and_one_file_of_programs(tmp_path: Path) -> None:
    program = tmp_path / "mine.py"
    program.write_text("def quiet(guest):\n    while True:\n        yield None\n")
    file = tmp_path / "quiet.toml"
    file.write_text("[run]\nwarmup_s = 0\n[machines.a]\nprogram = 'quiet'\n")
    overrides: dict[str, object] = {"run.duration_s": np.float64(0.2), "seed": np.int64(3), "run.sample_every": 1}
    result = sim.run(file, runs=tmp_path / "runs", overrides=overrides, programs=program, resources_every_s=np.int64(1))
    assert (result.status, result.figures.seed) == ("finished", 3)
    assert 0.2 <= result.figures.elapsed_s < 5
