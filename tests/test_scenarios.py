"""Every scenario that ships runs, balances, and shows what its comment claims (its own expectations say what)."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from topologies import load, shipped

NAMES = [name for name, _ in shipped()]
AT_ONCE = 4
SMALL = {
    "storm_256": {"machines.storm.count": "24", "run.duration_s": "1.0"},
    "storm_64": {"machines.storm.count": "16", "run.duration_s": "1.0"},
    "thousand_peers": {"machines.crowd.count": "60", "run.duration_s": "1.0"},
    "doorbell_storm": {"machines.storm.count": "8", "run.duration_s": "1.0"},
    "ping_pong": {"run.duration_s": "1.0"},
    "fan_in": {"run.duration_s": "1.0"},
    "hotspot": {"run.duration_s": "1.5"},
    "ring": {"run.duration_s": "1.5"},
    "legacy_2012": {"run.duration_s": "1.0"},
    "two_domains": {"run.duration_s": "1.0"},
    "unequal_vectors": {"run.duration_s": "1.0"},
    "lost_intx": {"run.duration_s": "1.5"},
}
"""What makes them quick; where the timeline says when what happens, they run as they are."""


def ivsim(name: str, runs: Path) -> subprocess.CompletedProcess[str]:
    settings = [part for key, value in SMALL.get(name, {}).items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "sim", "run", name, "--json", "--runs", str(runs), *settings]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.CompletedProcess[str]]:
    """What became of all of them, run a few at a time."""
    runs = tmp_path_factory.mktemp("runs")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(NAMES, pool.map(lambda name: ivsim(name, runs / name), NAMES), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_balances_and_meets_its_expectations(
    name: str, results: dict[str, subprocess.CompletedProcess[str]]
) -> None:
    done = results[name]
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    summary: dict[str, Any] = json.loads(done.stdout)
    assert summary["status"] in ("finished", "degraded")
    assert summary["balanced"]
    assert summary["rung"] == summary["delivered"] + summary["pending"] + summary["refused"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_it_fits_on_a_page_and_says_what_to_look_at(name: str) -> None:
    topology = load(name)
    lines = topology.source_text.splitlines()
    assert len(lines) <= 66
    assert topology.title
    comment = "\n".join(line for line in lines if line.startswith("#"))
    assert "What to look at:" in comment
