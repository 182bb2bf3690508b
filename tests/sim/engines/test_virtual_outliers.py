"""A run under virtual time ends at an outlier too: the same seed gives the same one, and the timeline is named."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

import sim
from sim.results.summary import Outlier
from sim.views.html.page import page
from sim.views.terminal import render

TOPOLOGY = """
seed = 3
[run]
engine = "virtual"
duration_s = 0.6
warmup_s = 0.1
sample_every = 1
[machines.rx]
program = "idle"
[machines.tx]
count = 2
program = "storm"
parameters = { to = "rx", rate_hz = 500.0 }
"""
ACTIONS = {
    "stall": ("", "resume", ""),
    "fill": ("", "resume", ""),
    "mask": ("", "unmask", ""),
    "slow": ("delay_us = 20000", "slow", "delay_us = 0"),
}


def run(folder: Path, do: str = "", limit: str = "15ms") -> sim.Run:
    text = TOPOLOGY
    if do:
        begin, undo, end = ACTIONS[do]
        text += f'[[timeline]]\nat_s = 0.3\ndo = "{do}"\nmachines = "rx"\n{begin}\n'
        text += f'[[timeline]]\nat_s = 0.4\ndo = "{undo}"\nmachines = "rx"\n{end}\n'
    file = folder / "outlier.toml"
    file.write_text(text)
    return sim.run(file, runs=folder / "runs", stop_above=limit, resources_every_s=0)


def ended_at(result: sim.Run) -> Outlier:
    its = result.figures.outlier
    assert its is not None, result.reason
    assert result.status == "failed"
    assert result.reason.startswith(f"{its.metric} reached ")
    assert (its.source[:2], its.target, its.vector) == ("tx", "rx", 0)
    return its


@pytest.mark.parametrize("do", ACTIONS)
def test_an_action_of_the_timeline_is_named(do: str, tmp_path: Path) -> None:
    its = ended_at(run(tmp_path, do))
    cause, *_ = its.causes
    assert (cause.kind, cause.machine) == ("masked" if do == "mask" else "timeline", "rx")
    assert f"{do} of rx by the timeline (line 14)" in cause.text
    assert cause.share > 0.9
    assert its.took_ns > its.limit_ns == 15_000_000
    if do == "fill":
        assert "its counter was full" in cause.text


def test_the_same_seed_ends_at_the_same_doorbell(tmp_path: Path) -> None:
    first, second = (ended_at(run(tmp_path, "stall")) for _ in range(2))
    assert first == second
    assert first.kernel_trace == ""


def test_a_percentile_ends_it_with_the_worst_of_the_last_second(tmp_path: Path) -> None:
    its = ended_at(run(tmp_path, "stall", "p90=1ms"))
    assert (its.metric, its.is_complete) == ("total.p90", True)
    assert its.limit_ns < its.reached_ns <= its.took_ns


@pytest.mark.parametrize("limit", ["lag.max=1s", "delivery.max=1s", "p99=1s", "1s"])
def test_a_limit_that_is_not_reached_ends_nothing(limit: str, tmp_path: Path) -> None:
    result = run(tmp_path, "stall", limit)
    assert (result.status, result.figures.outlier) == ("finished", None)


def test_a_doorbell_that_is_delivered_late_is_no_late_ring(tmp_path: Path) -> None:
    assert ended_at(run(tmp_path, "stall", "delivery.max=15ms")).metric == "delivery.max"


def test_each_page_of_the_run_tells_it(tmp_path: Path) -> None:
    result = run(tmp_path, "stall")
    output = io.StringIO()
    render(result, Console(width=200, file=output))
    told = output.getvalue()
    for text in (told, page(result)):
        assert "stall of rx by the timeline (line 14)" in text
        assert "not delivered yet" in text
    assert "outlier: tx-" in told
    assert 'id="outlier"' in page(result)
