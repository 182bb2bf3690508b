"""The pure analysis: stamps in, the right drain and exact percentiles out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.results.analysis.latency import QUANTILES, Samples, assign, grouped, overfull, percentiles, values


def numbers(*items: int) -> np.ndarray:
    return np.array(items, dtype=np.int64)


def assigned(rings: list[tuple[int, int]], drains: list[tuple[int, int]], lines: int = 4) -> list[int]:
    """``rings`` and ``drains`` are (line, time)."""
    of_rings, of_drains = np.array(rings, np.int64).reshape(-1, 2), np.array(drains, np.int64).reshape(-1, 2)
    return assign(of_rings[:, 0], of_rings[:, 1], of_drains[:, 0], of_drains[:, 1], lines).tolist()


def test_a_doorbell_belongs_to_the_first_drain_of_its_line_that_is_not_earlier():
    drains = [(0, 100), (1, 105), (0, 200)]
    assert assigned([(0, 50), (0, 100), (0, 101), (0, 200), (0, 201)], drains) == [0, 0, 2, 2, -1]
    assert assigned([(1, 50), (1, 105), (1, 106), (2, 50)], drains) == [1, 1, -1, -1]


def test_order_of_rings_and_drains_does_not_matter():
    assert assigned([(0, 150), (1, 10), (0, 50)], [(0, 200), (1, 20), (0, 100)]) == [0, 1, 2]


def test_drains_that_went_back_in_time_are_sorted():
    """Two recordings of one machine, or a clock that is none: the first drain that is not earlier still counts."""
    drains = [(1, 300), (0, 200), (-1, 5), (0, 100), (1, 50)]
    assert assigned([(0, 60), (0, 150), (1, 20), (1, 60), (0, 250)], drains) == [3, 1, 4, 0, -1]


def test_lines_that_nobody_knows_have_no_drain():
    assert assigned([(-1, 10), (4, 10), (99, 10)], [(-1, 20), (0, 20)]) == [-1, -1, -1]


@pytest.mark.parametrize(("rings", "drains"), [([], []), ([], [(0, 1)]), ([(0, 1)], [])])
def test_nothing_to_match(rings, drains):
    assert assigned(rings, drains) == [-1] * len(rings)


def test_more_lines_than_sixteen_bits_hold():
    lines = 70_000
    assert assigned([(65_999, 5), (463, 5)], [(463, 9), (65_999, 8)], lines) == [1, 0]


@st.composite
def histories(draw):
    """Random histories of a few lines in which no two stamps are equal: rings, drains, and who got whom."""
    rings, drains, truth, waiting = [], [], [], {}
    now = 0
    for _ in range(draw(st.integers(0, 60))):
        now += draw(st.integers(1, 50))
        line = draw(st.integers(0, 3))
        if draw(st.booleans()):
            waiting.setdefault(line, []).append(len(rings))
            rings.append((line, now))
            truth.append(-1)
        else:
            for ring in waiting.pop(line, []):
                truth[ring] = len(drains)
            drains.append((line, now))
    order = draw(st.permutations(range(len(rings))))
    return [rings[at] for at in order], drains, [truth[at] for at in order]


@given(histories())
def test_random_histories_are_matched_exactly(history):
    rings, drains, truth = history
    assert assigned(rings, drains) == truth
    counts = np.bincount(np.array([at for at in truth if at >= 0], np.int64), minlength=len(drains))
    assert overfull(np.array(truth, np.int64), counts) == 0


def test_drains_with_more_samples_than_doorbells_are_counted():
    assert overfull(numbers(0, 0, 1, 2, 2, 2, -1), numbers(1, 1, 3)) == 1
    assert overfull(numbers(), numbers(1, 2)) == 0


@pytest.mark.parametrize("size", [1, 2, 9, 10, 11, 99, 100, 101, 999, 1000, 1001, 5000])
def test_percentiles_are_by_nearest_rank_and_exact(size):
    shuffled = np.random.default_rng(size).permutation(np.arange(1, size + 1) * 10)
    expected = {name: 10 * math.ceil(size * rank / 100_000) for name, rank in QUANTILES}
    # What would be the maximum under another name is left out; the median is always given.
    few = {name: None for name, value in expected.items() if value == 10 * size and name not in ("p50", "max")}
    assert percentiles(shuffled) == expected | few | {"samples": size}


@pytest.mark.parametrize(("name", "enough"), [("p90", 10), ("p99", 100), ("p99_9", 1000), ("p99_99", 10_000)])
def test_how_many_samples_a_percentile_takes(name, enough):
    assert percentiles(np.arange(enough))[name] == enough - 2
    assert percentiles(np.arange(enough - 1))[name] is None


def test_no_value_has_no_percentile():
    expected = dict.fromkeys(("p50", "p90", "p99", "p99_9", "p99_99", "max")) | {"samples": 0}
    assert percentiles(numbers()) == expected


def test_percentiles_by_code():
    figures = grouped(numbers(1, 0, 1, 3, 1), numbers(5, 7, 1, 9, 3), 4)
    assert [(its["p50"], its["max"], its["samples"]) for its in figures] == [
        (7, 7, 1),
        (3, 5, 3),
        (None, None, 0),
        (9, 9, 1),
    ]


def test_four_latencies_and_the_raw_one():
    one = numbers
    samples = Samples(
        source=one(0, 0, 0),
        target=one(1, 1, 1),
        vector=one(0, 0, 0),
        intended_ns=one(100, 100, 100),
        rung_ns=one(110, 110, 110),
        delivered_ns=one(130, 130, 0),
        handled_ns=one(170, 0, 0),
        count=one(1, 1, 0),
        warmup=np.zeros(3, np.bool_),
    )
    expected = {"lag": [10, 10, 10], "delivery": [20, 20], "handling": [40], "total": [70], "raw": [60]}
    for latency, its in expected.items():
        figures, there = values(samples, latency)
        assert figures[there].tolist() == its, latency
