"""Histograms: exact counts, a known error, and merging in any order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.results.analysis.latency import histogram
from sim.results.analysis.latency import percentiles as streamed
from sim.results.analysis.latency.histogram import BINS, RELATIVE_ERROR, Histogram, bins_of, lower_edges, upper_edges
from tests.exact_percentiles import exact_percentiles

numbers = st.one_of(st.integers(0, 2**62), st.integers(0, 300), st.integers(0, 62).map(lambda power: (1 << power) - 1))
many = st.lists(numbers, max_size=200).map(lambda its: np.array(its, np.int64))


def test_the_bins_cover_everything_once():
    bins = np.arange(BINS)
    low, high = lower_edges(bins), upper_edges(bins)
    assert (low[0], high[-1]) == (0, 2**63 - 1)
    assert (low[1:] == high[:-1] + 1).all()
    assert (bins_of(low[low < 2**53]) == bins[low < 2**53]).all()
    assert (bins_of(high[high < 2**53]) == bins[high < 2**53]).all()


@given(numbers)
def test_a_value_is_near_the_middle_of_its_bin(value):
    at = bins_of(np.array([value]))
    low, high = int(lower_edges(at)[0]), int(upper_edges(at)[0])
    if value < 2**53:
        assert low <= value <= high
    middle = low + (high - low) // 2
    assert abs(middle - value) <= max(0, math.ceil(value * 2 * RELATIVE_ERROR))
    assert high - low <= value / 64


def test_negative_values_count_as_zero():
    assert bins_of(np.array([-1, -(2**62)])).tolist() == [0, 0]


@given(many, many, many)
def test_merging_is_counting_together_in_any_order(a, b, c):
    one, two, three = Histogram.of(a), Histogram.of(b), Histogram.of(c)
    together = Histogram.of(np.concatenate((a, b, c)))
    assert (one + two) + three == one + (two + three) == together
    assert two + one == one + two
    assert sum([one, two], three) == together
    assert len(together) == len(a) + len(b) + len(c) == int(together.columns()["count"].sum())


@given(many)
def test_percentiles_are_those_of_the_values_within_the_error(values):
    exact, read = exact_percentiles(values), Histogram.of(values).percentiles()
    assert exact["samples"] == read["samples"]
    for name in exact.keys() - {"samples"}:
        assert (exact[name] is None) == (read[name] is None)
        if exact[name] is not None:
            # Integer middles of bins of odd widths may be half a unit off; beyond 2^53 a double rounds.
            assert abs(read[name] - exact[name]) <= exact[name] * RELATIVE_ERROR * 1.01 + 1


def test_quantiles_of_any_share():
    its = Histogram.of(np.arange(1, 101))
    assert [its.quantile(share) for share in (0, 0.01, 0.07, 0.5, 0.99, 1)] == [1, 1, 7, 50, 99, 100]
    assert Histogram.of(np.zeros(0, np.int64)).quantile(0.5) is None
    with pytest.raises(ValueError, match="from 0 to 1"):
        its.quantile(1.5)


def test_the_maximum_is_the_middle_of_its_bin_too():
    its = Histogram.of(np.array([10_000]))
    assert its.percentiles()["max"] == its.percentiles()["p50"] == 10_015
    assert its.columns()["low"][0] <= 10_000 <= its.columns()["high"][0]


def test_counting_by_cell_is_the_same_with_a_table_and_without(monkeypatch):
    cells = np.random.default_rng(5).integers(0, 200, (20, 50))
    found = []
    for dense, pending in ((200, 0), (0, 0), (0, 1 << 20)):
        monkeypatch.setattr(streamed, "DENSE", dense)
        monkeypatch.setattr(streamed, "PENDING", pending)
        counts = streamed.SparseCounts(200)
        for part in cells:
            counts.add(part)
        found.append([its.tolist() for its in counts.occurring()])
    assert found[0] == found[1] == found[2]
    assert sum(found[0][1]) == cells.size


def test_long_columns_are_made_in_pieces(monkeypatch):
    values = np.random.default_rng(6).integers(0, 1 << 40, 1000)
    whole = bins_of(values)
    monkeypatch.setattr(histogram, "CHUNK", 7)
    assert bins_of(values).tolist() == whole.tolist()
