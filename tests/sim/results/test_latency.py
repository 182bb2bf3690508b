"""The pure analysis: stamps in, the right drain and exact percentiles out."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.results.analysis.latency.latencies import QUANTILES, Samples, values
from sim.results.analysis.latency.percentiles import Figures, ranked
from sim.results.analysis.matching import DrainIndex, LineNumbers
from sim.results.store.manifest import MachineRow
from tests.exact_percentiles import exact_percentiles


def numbers(*items: int) -> np.ndarray:
    return np.array(items, dtype=np.int64)


class Section:
    """A section of a recording, in one piece."""

    def __init__(self, rows: list[tuple[int, int, int]]) -> None:
        self.rows = np.array(rows, np.int64).reshape(-1, 3)

    def chunks(self):
        yield self.rows


def index_of(drains: list[tuple[int, int, int]], lines: int = 4) -> DrainIndex:
    """The index of drains (line, count, time); line n is vector 0 of machine n. ``handled_ns`` is the place, from 1."""
    machines = [MachineRow(line, f"m{line}", "g", 1) for line in range(lines)]
    by_machine: dict[int, list[tuple[int, int, int]]] = {line: [] for line in range(lines)}
    for place, (line, count, at) in enumerate(drains, start=1):
        by_machine[line].append((count << 16, at, place))
    records = [
        SimpleNamespace(machine=line, domain=0, peer=None, problems=[], drains=Section(rows))
        for line, rows in by_machine.items()
    ]
    index = DrainIndex(records, LineNumbers(machines, records), [])
    for _ in index.fill(records):
        pass
    return index


def assigned(rings: list[tuple[int, int]], drains: list[tuple[int, int]], lines: int = 4) -> list[int]:
    """``rings`` and ``drains`` are (line, time). The place of the drain of each ring, -1 for none."""
    of_rings = np.array(rings, np.int64).reshape(-1, 2)
    index = index_of([(line, 1, at) for line, at in drains], lines)
    return (index.drained(index.find(of_rings[:, 0], of_rings[:, 1]))[1] - 1).tolist()


def test_a_doorbell_belongs_to_the_first_drain_of_its_line_that_is_not_earlier():
    drains = [(0, 100), (1, 105), (0, 200)]
    assert assigned([(0, 50), (0, 100), (0, 101), (0, 200), (0, 201)], drains) == [0, 0, 2, 2, -1]
    assert assigned([(1, 50), (1, 105), (1, 106), (2, 50)], drains) == [1, 1, -1, -1]


def test_order_of_rings_and_drains_does_not_matter():
    assert assigned([(0, 150), (1, 10), (0, 50)], [(0, 200), (1, 20), (0, 100)]) == [0, 1, 2]


def test_drains_that_went_back_in_time_are_sorted():
    """Two recordings of one machine, or a clock that is none: the first drain that is not earlier still counts."""
    drains = [(1, 300), (0, 200), (2, 5), (0, 100), (1, 50)]
    assert assigned([(0, 60), (0, 150), (1, 20), (1, 60), (0, 250)], drains) == [3, 1, 4, 0, -1]


@pytest.mark.parametrize("most", [1, (1 << 31) - 1, 1 << 31, 1 << 40])
def test_a_drain_keeps_its_count_however_many_doorbells_it_has(most):
    index = index_of([(0, most, 100), (0, 2, 200)])
    _, _, count = index.drained(index.find(numbers(0, 0, 1), numbers(50, 150, 50)))
    assert (count.tolist(), count.dtype) == ([most, 2, 0], np.int64)


def test_unknown_lines_have_no_drain():
    assert assigned([(-1, 10), (-1, 30)], [(0, 20)]) == [-1, -1]


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


@pytest.mark.parametrize(
    ("rings", "overfull"), [((0, 0, 1, 2, 2, 2), 1), ((0, 1, 2, 2, 2, -1), 0), ((0, 0, 2, 2, 2, 2), 2)]
)
def test_drains_with_more_samples_than_doorbells_are_counted(rings, overfull):
    index = index_of([(0, 1, 10), (1, 1, 10), (2, 3, 10)])
    for part in (rings[:3], rings[3:]):
        index.find(numbers(*part), numbers(*range(len(part))))
    assert index.close() == overfull


@given(st.data())
def test_ranks_of_a_stream_are_the_percentiles_of_the_whole(data):
    """However it is cut, with values of every size, of equal ones and of negative ones."""
    top = data.draw(st.sampled_from([3, 200, 10**6, 1 << 61]))
    elements = st.tuples(st.integers(0, 2), st.integers(-3 if top < 10**6 else 0, top))
    pairs = data.draw(st.lists(elements, max_size=150)) * data.draw(st.integers(1, 8))
    groups, its = (np.array([pair[at] for pair in pairs], np.int64) for at in (0, 1))
    cut = data.draw(st.integers(1, 60))
    parts = [(groups[at : at + cut], its[at : at + cut]) for at in range(0, len(pairs), cut)]
    found = ranked(lambda: parts, 3).figures()
    for group in range(3):
        for name, value in exact_percentiles(its[groups == group]).items():
            # A code holds 40 bits of a value's place in its bin.
            assert found[group][name] == value or abs(found[group][name] - value) <= value >> 40


def percentiles(values: np.ndarray) -> Figures:
    (figures,) = ranked(lambda: [(np.zeros(len(values), np.int64), values)]).figures()
    return figures


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
    figures = ranked(lambda: [(numbers(1, 0, 1, 3, 1), numbers(5, 7, 1, 9, 3))], 4).figures()
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
