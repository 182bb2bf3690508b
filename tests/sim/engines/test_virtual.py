"""sim.engines.virtual: every included topology under virtual time, and the same run again from the same seed."""

from __future__ import annotations

from pathlib import Path

import pytest

import sim
from topologies import shipped

SMALL = {
    "bursty": {},
    "doorbell_storm": {"machines.storm.count": "8", "run.duration_s": "0.2"},
    "kill_storm": {
        "run.duration_s": "2.5",
        "machines.storm.vectors": "1",
        "machines.storm.parameters.rate_hz": "20000.0",
    },
    "storm_64": {"run.duration_s": "0.1"},
    "storm_256": {"machines.storm.count": "32", "run.duration_s": "0.1"},
    "thousand_peers": {"machines.crowd.count": "60", "run.duration_s": "0.5"},
    "ping_pong": {"run.duration_s": "0.3"},
}
"""What makes them quick: one thread does the work of all machines."""


def run(name: str, runs: Path, **overrides: str) -> sim.Run:
    settings = {"run.engine": "virtual", **SMALL.get(name, {}), **overrides}
    return sim.run(name, runs=runs, overrides=settings, resources_every_s=0)


@pytest.mark.parametrize("name", [name for name, _ in shipped() if name != "linux_guest"])  # a real QEMU
def test_every_topology_balances_and_meets_its_expectations(name: str, tmp_path: Path) -> None:
    result = run(name, tmp_path)
    summary = result.summary
    assert result.status in ("finished", "degraded"), result.reason
    assert summary["rung"] == summary["delivered"] + summary["pending"] + summary["refused"] > 0
    assert summary["balanced"]
    assert not [each for each in summary["expectations"] or () if not each["met"]]


TABLES = ("samples", "drains", "edges", "vectors", "histograms")


def told(event: dict[str, object]) -> dict[str, object]:
    """An event without the host's own time."""
    return {key: value for key, value in event.items() if key != "utc"}


@pytest.mark.parametrize("name", ["ping_pong", "peer_churn", "migration_abort", "two_domains"])
def test_the_same_seed_gives_the_same_run(name: str, tmp_path: Path) -> None:
    first, second = run(name, tmp_path / "1"), run(name, tmp_path / "2")
    for table in TABLES:
        assert (first.path / f"{table}.parquet").read_bytes() == (second.path / f"{table}.parquet").read_bytes(), table
    assert [told(event) for event in first.events()] == [told(event) for event in second.events()]


def test_another_seed_gives_another_run(tmp_path: Path) -> None:
    first, second = run("ping_pong", tmp_path / "1"), run("ping_pong", tmp_path / "2", seed="7")
    assert first.summary["latency_ns"] != second.summary["latency_ns"]
