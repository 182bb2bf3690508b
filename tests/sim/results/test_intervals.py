"""Confidence intervals: seeded, as wide as slices differ, open where the samples say nothing."""

from __future__ import annotations

import numpy as np
import pytest

from sim.results.analysis.latency.histogram import BINS, bins_of
from sim.results.analysis.latency.intervals import (
    FEWEST,
    SLICES,
    MeasuredTime,
    Slices,
    bounded_above,
    independent,
    intervals,
    replicates,
    sliced,
)
from sim.results.analysis.latency.latencies import Samples
from tests.exact_percentiles import exact_percentiles

SECOND_NS = 1_000_000_000


def slices_of(values: np.ndarray, times: np.ndarray, drains: float | None = None) -> Slices:
    """The slices of the time from the first moment to the last; every value is a drain of its own."""
    parts = [(int(times.min()), int(times.max()) + 1)] if len(times) else []
    cells, counts = np.unique(MeasuredTime.of(parts).slice_of(times) * BINS + bins_of(values), return_counts=True)
    (its,) = sliced(cells, counts, np.array([float(len(values)) if drains is None else drains]))
    return its


def interval_of(values: np.ndarray, times: np.ndarray, **options: int) -> dict:
    return intervals(slices_of(values, times), exact_percentiles(values), **options)


def test_an_interval_holds_its_percentile_and_comes_out_the_same_again():
    rng = np.random.default_rng(3)
    values, times = rng.lognormal(9, 1, 50_000).astype(np.int64), np.sort(rng.integers(0, SECOND_NS, 50_000))
    found, exact = interval_of(values, times), exact_percentiles(values)
    assert found == interval_of(values, times)
    assert found != interval_of(values, times, seed=7)
    assert set(found) == {"p50", "p90", "p99", "p99_9", "p99_99"}
    for name, (low, high) in found.items():
        assert low <= exact[name] <= high
    assert all(high - low < 0.1 * exact[name] for name, (low, high) in found.items() if name in ("p50", "p90"))


def test_the_true_percentile_is_in_about_nineteen_of_twenty_intervals():
    """The median of an exponential distribution is its mean times ln 2."""
    held = 0
    for run in range(60):
        rng = np.random.default_rng(run)
        values = (rng.exponential(1e6, 4000)).astype(np.int64)
        low, high = interval_of(values, np.arange(4000))["p50"]
        held += low <= 1e6 * np.log(2) <= high
    assert held >= 50  # 57 are expected; fewer than 50 come with a chance of 1 in 1000


def test_samples_that_wait_for_one_another_are_no_many_samples():
    """The same values: scattered over time they tell more than where one stretch of the run was slow."""
    slow = np.repeat([1000, 100_000], [19_000, 1000])
    together = np.arange(len(slow))
    scattered = np.random.default_rng(4).permutation(together)
    one, other = interval_of(slow, scattered)["p90"], interval_of(slow, together)["p90"]
    assert one[1] < 1100
    assert other[1] >= 100_000


@pytest.mark.parametrize(("rank", "enough"), [(99_000, 368), (99_900, 3688), (99_990, 36_887)])
def test_how_many_samples_bound_a_percentile_from_above(rank, enough):
    assert bounded_above(enough, rank)
    assert not bounded_above(enough - 1, rank)


def test_too_few_samples_leave_the_upper_end_open():
    # Scattered: in order of size, the highest tenth would lie in the last few slices.
    times = np.random.default_rng(2).permutation(200)
    found = interval_of(np.arange(200), times)
    assert found["p99"][1] is None
    assert found["p90"][1] is not None
    assert "p99_9" not in found
    assert interval_of(np.zeros(0, np.int64), np.zeros(0, np.int64)) == {}


@pytest.mark.parametrize("bursts", [1, 2, FEWEST - 1, FEWEST])
def test_samples_in_few_slices_have_no_interval_rather_than_one_without_width(bursts):
    values = np.random.default_rng(9).lognormal(10, 1, 100 * bursts).astype(np.int64)
    times = np.repeat(np.arange(bursts) * (SECOND_NS // SLICES) * 3, 100)
    its = slices_of(values, times)
    assert its.filled == bursts
    assert bool(intervals(its, exact_percentiles(values))) == bool(replicates(its)) == (bursts >= FEWEST)


@pytest.mark.parametrize("stalls", [1, FEWEST - 1, FEWEST])
def test_one_stall_is_one_however_many_samples_it_holds_up(stalls):
    """4,000 samples, 2 % of them slow: enough for p99 if they were independent, not in so few stretches of time."""
    values, times = np.random.default_rng(6).integers(1000, 2000, 4000), np.arange(4000)
    for stall in range(stalls):
        first = (2 + 4 * stall) * 125  # a slice has 125 samples
        values[first : first + 80 // stalls] = 10**6 + stall
    p99 = interval_of(values, times)["p99"]
    assert (p99[1] is not None) == (stalls >= FEWEST)


def test_an_end_is_open_with_few_samples_though_all_are_alike():
    assert interval_of(np.full(200, 5000), np.arange(200))["p99"][1] is None
    assert interval_of(np.full(400, 5000), np.arange(400))["p99"][1] is not None


def test_a_drain_of_many_samples_is_one_thing():
    values = np.random.default_rng(5).integers(1000, 2000, 4000)
    figures = exact_percentiles(values)
    assert intervals(slices_of(values, np.arange(4000)), figures)["p99"][1] is not None
    assert intervals(slices_of(values, np.arange(4000), drains=300), figures)["p99"][1] is None
    counts = np.array([0, 1, 2, 1000])
    zeros = np.zeros(4, np.int64)
    samples = Samples(zeros, zeros, zeros, zeros, zeros > 0, zeros, zeros, zeros, counts)
    assert independent(samples, "delivery", 1).tolist() == [1, 1, 0.5, 0.001]
    assert independent(samples, "delivery", 8).tolist() == [1, 1, 1, 0.008]
    assert independent(samples, "lag", 1).tolist() == [1] * 4


def test_slices_are_of_equal_time_and_hold_everything():
    time = MeasuredTime.of([(0, 64)])
    assert time.slice_of(np.array([0, 1, 31, 32, 63, 5])).tolist() == [0, 0, 15, 16, 31, 2]
    assert time.slice_of(np.array([-9, 64, 2**62])).tolist() == [0, SLICES - 1, SLICES - 1]
    assert MeasuredTime.of([(0, 2**62)]).slice_of(np.array([0, 2**62])).tolist() == [0, SLICES - 1]


def test_the_time_between_measured_parts_has_no_slices():
    time = MeasuredTime.of([(200, 232), (100, 132), (110, 120)])
    assert (time.starts_ns.tolist(), time.ends_ns.tolist()) == ([100, 200], [132, 232])
    moments = np.array([100, 131, 150, 200, 231, 900])
    assert time.slice_of(moments).tolist() == [0, 15, 16, 16, 31, 31]
    assert MeasuredTime.of([]).slice_of(np.array([5])).tolist() == [31]


def test_groups_are_cut_apart():
    rng = np.random.default_rng(8)
    bins, slices, codes = rng.integers(0, 99, 500), rng.integers(0, SLICES, 500), rng.integers(0, 3, 500)
    cells, counts = np.unique((codes * SLICES + slices) * BINS + bins, return_counts=True)
    parts = sliced(cells, counts, np.ones(3))
    assert [its.samples for its in parts] == np.bincount(codes).tolist()
    for code, its in enumerate(parts):
        own = slices[codes == code]
        assert its.counts.sum(axis=1).tolist() == np.bincount(own, minlength=SLICES).tolist()
