"""Latencies of a whole run: known ones come back exactly, raw beside corrected, by phase, with intervals."""

from __future__ import annotations

import numpy as np
import pytest

from nodes.errors import UsageError
from sim.results import Run, RunDirectory
from sim.results.analysis.latency.histogram import BINS, Histogram
from sim.results.analysis.time_series import time_series
from sim.results.compare import compare
from sim.results.store import schemas
from sim.results.store.manifest import Phase
from tests.exact_percentiles import exact_percentiles
from tests.synthetic import MEASURE_NS, SECOND_NS, START_NS, STOP_NS, finish, pair, record, topology

PERIOD_NS = 100_000


def open_loop(parent, *, ticks: int = 12_000, stall_ns: int = 0, delivery_ns=lambda tick: 5000) -> Run:
    """A doorbell is due every 100 us; the sender stalls once, in the middle, and then rings what it missed."""
    directory = RunDirectory.create(parent, topology({"from": (1, 1), "to": (1, 1)}), {})
    rings, drains = [], []
    free_ns = 0
    for tick in range(ticks):
        intended_ns = MEASURE_NS + tick * PERIOD_NS
        rung_ns = max(intended_ns, free_ns)
        if tick == ticks // 2:
            rung_ns += stall_ns
        free_ns = rung_ns + 10_000
        rings.append((1, 0, intended_ns, rung_ns))
        took_ns = delivery_ns(tick)
        drains.append((0, 1, rung_ns + took_ns, rung_ns + took_ns + 1000))
    record(directory, 0, vectors=[(0, 0)], edges={(1, 0): (ticks, 0)}, rings=rings)
    record(directory, 1, vectors=[(ticks, ticks)], drains=drains)
    return finish(directory)


def test_a_stall_of_200_ms_shows_in_the_corrected_percentiles_and_not_in_the_raw_ones(tmp_path):
    latency = open_loop(tmp_path, stall_ns=200_000_000).summary["latency_ns"]
    quantiles = ("p50", "p90", "p99", "p99_9", "p99_99", "max")
    assert [latency["raw"][name] for name in quantiles] == [6000] * 6
    assert [latency["delivery"][name] for name in quantiles] == [5000] * 6
    # 2222 of 12,000 doorbells were late: those due in the stall, and those due while it rang what it had missed.
    assert latency["total"]["p50"] == 6000
    assert latency["total"]["p90"] > 90_000_000
    assert latency["total"]["max"] == 200_006_000
    assert latency["lag"]["max"] == 200_000_000
    assert latency["total"]["p99"] > 0.9 * latency["total"]["max"]


def test_known_latencies_come_back_exactly(tmp_path):
    took = np.random.default_rng(11).integers(1000, 90_000, 12_000)
    run = open_loop(tmp_path, delivery_ns=lambda tick: int(took[tick]))
    expected = exact_percentiles(took)
    summary = run.summary["latency_ns"]["delivery"]
    assert {name: summary[name] for name in expected} == expected
    (row,) = run.latency(latencies=("delivery",)).to_pylist()
    assert {name: row[name] for name in expected} == expected
    (row,) = run.latency(by="edge", latencies=("total",)).to_pylist()
    assert (row["source"], row["machine"], row["p99"]) == ("from-0", "to-0", expected["p99"] + 1000)
    assert expected["p99_99"] is not None


def test_intervals_stand_in_the_summary_and_in_the_table(tmp_path):
    took = np.random.default_rng(12).integers(1000, 90_000, 12_000)
    run = open_loop(tmp_path, delivery_ns=lambda tick: int(took[tick]))
    summary = run.summary["latency_ns"]["delivery"]
    interval = low, high = summary["intervals"]["p99"]
    assert low <= summary["p99"] <= high < 1.02 * summary["p99"]
    assert summary["intervals"]["p99_99"][1] is None, "12,000 samples do not bound it from above"
    (row,) = run.latency(latencies=("delivery",), intervals=True).to_pylist()
    assert (row["p99_low"], row["p99_high"]) == (low, high)
    by_group = run.latency(by="group", latencies=("delivery",), intervals=True).to_pylist()
    assert [(row["group"], row["p99_low"]) for row in by_group] == [("to", low)]
    assert run.summary["groups"]["to"]["latency_ns"]["delivery"]["intervals"]["p99"] == interval


def test_without_intervals_there_are_no_columns_of_them(tmp_path):
    names = finish(pair(tmp_path)).latency().column_names
    assert names == ["latency", "p50", "p90", "p99", "p99_9", "p99_99", "max", "samples"]


def in_phases(parent, *phases: Phase) -> Run:
    """Two doorbells, one early and one a second later, in a run with these phases."""
    directory = RunDirectory.create(parent, topology({"from": (1, 1), "to": (1, 1)}), {})
    first, second = MEASURE_NS + 1000, MEASURE_NS + SECOND_NS
    record(
        directory,
        0,
        vectors=[(0, 0)],
        edges={(1, 0): (3, 0)},
        rings=[(1, 0, START_NS, START_NS), (1, 0, first, first), (1, 0, second, second + 500)],
    )
    drains = [(0, 1, at + took, at + took + 10) for at, took in ((START_NS, 100), (first, 2000), (second + 500, 9000))]
    record(directory, 1, vectors=[(3, 3)], drains=drains)
    return finish(directory, phases=phases)


def test_latencies_by_phase_count_what_was_due_in_it(tmp_path):
    half_ns = MEASURE_NS + SECOND_NS // 2
    run = in_phases(tmp_path, Phase("calm", START_NS, half_ns), Phase("storm", half_ns, half_ns + SECOND_NS))
    rows = run.latency(by="phase", latencies=("delivery",)).to_pylist()
    assert [(row["phase"], row["p50"], row["samples"]) for row in rows] == [("calm", 2000, 1), ("storm", 9000, 1)]
    phases = run.summary["phases"]
    assert [(name, its["delivery"]["max"]) for name, its in phases.items()] == [("calm", 2000), ("storm", 9000)]
    assert {name: len(its) for name, its in run.histogram(by="phase").items()} == {"calm": 1, "storm": 1}


def test_a_run_without_phases_has_one(tmp_path):
    run = in_phases(tmp_path)
    (row,) = run.latency(by="phase", latencies=("lag",)).to_pylist()
    assert (row["phase"], row["samples"]) == ("measured", 2)
    assert run.summary["phases"] == {}


def test_what_is_in_no_phase_is_in_no_histogram_of_one(tmp_path):
    run = in_phases(tmp_path, Phase("calm", START_NS, MEASURE_NS + 2000))
    assert {name: len(its) for name, its in run.histogram(by="phase").items()} == {"calm": 1}
    assert run.summary["latency_ns"]["delivery"]["samples"] == 2


def test_histograms_are_kept_and_are_those_of_the_samples(tmp_path):
    run = open_loop(tmp_path, delivery_ns=lambda tick: 1000 + tick)
    kept = run.histogram("delivery")
    assert kept == Histogram.of(np.arange(12_000) + 1000)
    assert run.histogram("delivery", by="machine") == {"to-0": kept}
    assert run.histogram("delivery", by="group") == {"to": kept}
    assert BINS == schemas.BINS_LIMIT


def test_histograms_of_two_runs_add_up(tmp_path):
    one, two = (open_loop(tmp_path, ticks=ticks).histogram("total") for ticks in (100, 300))
    assert len(one + two) == 400
    assert (one + two).percentiles()["p50"] == pytest.approx(6000, rel=0.004)


def test_histograms_that_there_are_not(tmp_path):
    run = finish(pair(tmp_path))
    for wrong in ({"what": "delay"}, {"by": "color"}, {"what": "drained", "by": "phase"}):
        with pytest.raises(UsageError, match="expected"):
            run.histogram(**wrong)


def bursts(parent, count: int, each: int = 60, phases: tuple[Phase, ...] = ()) -> Run:
    """``count`` bursts of doorbells over the measured time, the doorbells of a burst taken by one drain."""
    directory = RunDirectory.create(parent, topology({"from": (1, 1), "to": (1, 1)}), {})
    starts = [MEASURE_NS + place * 2 * SECOND_NS // count for place in range(count)]
    rings = [(1, 0, 0, at + tick * 1000) for at in starts for tick in range(each)]
    record(directory, 0, vectors=[(0, 0)], edges={(1, 0): (len(rings), 0)}, rings=rings)
    drains = [(0, each, at + 100_000, at + 200_000) for at in starts]
    record(directory, 1, vectors=[(len(rings), count)], drains=drains)
    return finish(directory, phases=phases)


@pytest.mark.parametrize(("count", "has"), [(1, False), (5, False), (6, True)])
def test_intervals_take_six_drains_in_slices_of_the_measured_time(tmp_path, count, has):
    run = bursts(tmp_path, count)
    known = run.summary["latency_ns"]
    assert {name for name in known if known[name]["intervals"]} == (
        {"delivery", "handling", "raw", "total"} if has else set()
    )
    (row,) = run.latency(latencies=("delivery",), intervals=True).to_pylist()
    assert (row["p50_low"] is not None) == has
    change = compare(run, run)["delivery.p50"]
    assert (change.change_interval is not None) == has
    # 60 samples a drain: p90 would be bounded by 360 samples, and is not by 6 drains.
    assert row["p90_high"] is None


def test_a_phase_has_slices_of_its_own_time(tmp_path):
    """Six drains in a twentieth of the run: too few slices of the whole, enough of the phase that they are in."""
    short_ns = MEASURE_NS + SECOND_NS // 10
    directory = RunDirectory.create(tmp_path, topology({"from": (1, 1), "to": (1, 1)}), {})
    starts = [MEASURE_NS + place * 14_000_000 for place in range(7)]
    record(directory, 0, vectors=[(0, 0)], edges={(1, 0): (7, 0)}, rings=[(1, 0, 0, at) for at in starts])
    record(directory, 1, vectors=[(7, 7)], drains=[(0, 1, at + 1000, at + 2000) for at in starts])
    run = finish(directory, phases=[Phase("brief", MEASURE_NS, short_ns), Phase("rest", short_ns, STOP_NS)])
    assert run.summary["latency_ns"]["delivery"]["intervals"] == {}
    assert run.summary["phases"]["brief"]["delivery"]["intervals"].keys() == {"p50"}
    (row,) = run.latency(by="phase", latencies=("delivery",), intervals=True).to_pylist()
    assert (row["phase"], row["p50_low"] is not None) == ("brief", True)


def test_what_has_no_schedule_has_no_lag_and_says_what_it_omits(tmp_path):
    run = bursts(tmp_path, 6)
    known = run.summary["latency_ns"]
    assert (known["lag"]["samples"], known["total"]["p50"]) == (0, known["raw"]["p50"])
    assert run.samples()["intended_ns"].null_count == run.samples().num_rows == run.summary["unscheduled"]
    assert (run.summary["groups"]["from"]["unscheduled"], run.summary["groups"]["to"]["unscheduled"]) == (360, 0)
    (said,) = [warning for warning in run.warnings if warning.startswith("closed loop or replies: from rang 360")]
    assert "a standstill is one sample" in said
    assert run.frame()["lag_ns"].isna().all()
    assert time_series(run).latencies["lag"].size == 0
