"""The parts of pictures: distributions, scales, sums over time, the matrix of doorbells."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nodes.errors import UsageError
from sim.results import Run, RunDirectory
from sim.results.analysis.latency.histogram import GrowingHistogram
from sim.results.analysis.time_series import TimeSeries, span, time_series
from sim.results.store import batches
from sim.views import units
from sim.views.event_text import brief, sentence
from sim.views.html import curves, lines
from sim.views.html.heat_map import OTHERS, between_groups, between_machines, heat_level
from sim.views.html.lines import thinned
from sim.views.html.page import page
from sim.views.html.svg import Markup, tag, words
from sim.views.html.usage import usage as usage_of
from tests.synthetic import MEASURE_NS, SECOND_NS, START_NS, STOP_NS, finish, pair, record, topology, usage

VALUES = arrays(np.int64, st.integers(1, 300), elements=st.integers(0, 1 << 60))


@given(st.lists(VALUES, min_size=1, max_size=4), st.floats(0, 1))
def test_quantiles_of_batches_are_those_of_the_whole(batches, share):
    its = GrowingHistogram()
    for batch in batches:
        its.add(batch)
    ordered = np.sort(np.concatenate(batches))
    exact = ordered[int(np.clip(np.ceil(share * len(ordered)), 1, len(ordered))) - 1]
    assert abs(its.quantiles(np.array([share]))[0] - exact) <= 0.005 * exact + 1
    assert (its.size, its.min, its.max) == (len(ordered), ordered[0], ordered[-1])
    assert its.quantiles(np.array([1.0]))[0] == ordered[-1]


@given(st.floats(0, 1e12), st.floats(1e-6, 1e12), st.integers(2, 12))
def test_round_ticks_are_few_and_inside(low, span_, most):
    ticks = [value for value, _ in lines.round_ticks(low, low + span_, most, str)]
    assert len(ticks) <= most + 1
    assert all(low - span_ * 1e-6 - low * 1e-9 <= tick <= (low + span_) * (1 + 1e-9) for tick in ticks)
    assert ticks == sorted(ticks)


@given(st.floats(1, 1e9), st.floats(1.5, 1e9), st.integers(3, 9))
def test_decades_are_few_and_inside(low, factor, most):
    ticks = [value for value, _ in lines.decades(low, low * factor, most, str)]
    assert 1 <= len(ticks) <= most + 1
    assert all(0.99 * low <= tick <= 1.01 * low * factor for tick in ticks)


@pytest.mark.parametrize(
    ("word", "value", "said"),
    [
        (units.short_ns, 0, "0 ns"),
        (units.short_ns, 999, "999 ns"),
        (units.short_ns, 999_600, "1 ms"),
        (units.short_ns, 12_345, "12.3 us"),
        (units.short_ns, 2e9, "2 s"),
        (units.short_count, 1234, "1.23 k"),
        (units.short_count, 5e6, "5 M"),
        (units.short_bytes, 3 << 20, "3 MiB"),
        (units.short_bytes, 100, "100 B"),
        (lines.percentile_name, 1, "p90"),
        (lines.percentile_name, 2, "p99"),
        (lines.percentile_name, 5, "p99.999"),
    ],
)
def test_numbers_read_as_people_say_them(word, value, said):
    assert word(value) == said


def test_a_scale_takes_its_ends_to_the_ends():
    for logarithmic in (False, True):
        scale = lines.Scale(10, 1000, 50, 250, logarithmic)
        assert (scale.at(10), scale.at(1000)) == (50, 250)
    assert lines.Scale(10, 1000, 0, 100, logarithmic=True).at(100) == 50


@given(st.lists(st.tuples(st.floats(0, 500), st.text("ab", min_size=1, max_size=9)), max_size=20))
def test_words_that_are_kept_do_not_touch(placed):
    kept = thinned(sorted(placed))
    for (at, word), (after, other) in itertools.pairwise(kept):
        assert after - at > 6 * (len(word) + len(other)) / 2


@given(st.text(), st.text())
def test_markup_says_what_it_was_given_and_nothing_more(content, value):
    data = tag("p", content, title=value)
    inner = data.removeprefix("<p title=").removesuffix("</p>")
    assert "<" not in inner
    assert words(words(content)) == words(content)
    assert tag("p", Markup("<b>x</b>")) == "<p><b>x</b></p>"


def test_a_digest_counts_what_the_tables_hold(tmp_path):
    run = finish(pair(tmp_path), {(1, 1): 1})
    data = time_series(run)
    assert data.missing == []
    # The warm-up and the one that pends have no place in delivery.
    assert {name: its.size for name, its in data.latencies.items()} == {
        "lag": 2, "delivery": 1, "handling": 1, "total": 1, "raw": 1,
    }  # fmt: skip
    assert data.latencies["delivery"].max == 7000
    assert data.latencies["total"].max == 9000
    width_s = data.duration_s / len(data.rates_s)
    assert data.delivered_per_s.sum() * width_s == pytest.approx(2)
    assert data.interrupts_per_s.sum() * width_s == pytest.approx(2)
    assert (data.drain_sizes.tolist(), data.drained.tolist()) == ([2], [2])
    assert data.pending[-1] == 1
    assert np.nanmax(data.delivery_ns["max"]) == pytest.approx(7000, rel=0.005)
    # The one of the warm-up was due before the start, and has no place in time.
    assert np.nanmax(data.total_ns["max"]) == pytest.approx(9000, rel=0.005)
    assert [(band.name, band.shaded) for band in data.bands] == [("warm-up", True)]


def test_drains_are_sorted_by_the_power_of_two_that_they_reach(tmp_path):
    directory = RunDirectory.create(tmp_path, topology({"a": (1, 1)}), {})
    counts = [1, 1, 2, 3, 4, 7, 8, 1000]
    drains = [(0, count, MEASURE_NS + at * 1000, MEASURE_NS + at * 1000) for at, count in enumerate(counts)]
    record(directory, 0, vectors=[(sum(counts), len(counts))], drains=drains)
    data = time_series(finish(directory))
    assert data.drain_sizes.tolist() == [2, 2, 2, 1, 0, 0, 0, 0, 0, 1]
    assert data.drained.tolist() == [2, 5, 11, 8, 0, 0, 0, 0, 0, 1000]


def test_the_start_is_that_of_the_summary_or_else_the_first_stamp(tmp_path):
    run = finish(pair(tmp_path), {(1, 1): 1})
    assert span(run) == (START_NS, STOP_NS)
    (run.path / "summary.json").unlink()
    assert span(Run(run.path)) == (START_NS + 1000, MEASURE_NS + 8000)


def test_each_event_is_one_line(tmp_path):
    run = finish(pair(tmp_path), {(1, 1): 1})
    at = START_NS + SECOND_NS
    (run.path / "events.jsonl").write_text(
        f'{{"time_ns": {at}, "utc": "x", "kind": "action", "do": "kill", "machine": "a", "line": 7}}\n'
        f'{{"time_ns": "soon", "kind": "action"}}\n{{"kind": 7}}\n{{"time_ns": {at * 9}, "kind": "late"}}\n'
        f'{{"time_ns": {at}, "kind": "telemetry"}}\n'
    )
    (event,) = time_series(run).events
    assert (brief(event.event), sentence(event.event)) == ("kill a", "kill a (line 7)")
    assert event.time_s == pytest.approx(1.0, abs=0.01)


def test_the_matrix_keeps_every_doorbell(tmp_path):
    directory = RunDirectory.create(tmp_path, topology({"a": (2, 1), "b": (3, 1)}), {})
    record(directory, 0, vectors=[(0, 0)], edges={(2, 0): (5, 1), (900, 0): (2, 0)})
    for machine in range(1, 5):
        record(directory, machine, vectors=[(4 * (machine == 2), 1)], edges={})
    run = finish(directory, foreign_pending={(900, 0): 2})
    machines, groups, few = between_machines(run), between_groups(run), between_machines(run, 2)
    assert (machines.sources, machines.targets[-1]) == (["a-0", "a-1", "b-0", "b-1", "b-2"], OTHERS)
    assert (int(machines.rung[0, 2]), int(machines.refused[0, 2]), int(machines.rung[0, 5])) == (5, 1, 2)
    assert groups.rung.tolist() == [[0, 5, 2], [0, 0, 0]]
    assert (few.sources, few.each) == (["a-0 .. b-0", "b-1 .. b-2"], 3)
    assert {int(each.rung.sum()) for each in (machines, groups, few)} == {7}


@pytest.mark.parametrize(("value", "level"), [(0, 0), (1, 1), (100, 8), (99, 8), (50, 5)])
def test_heat_rises_with_the_count_and_only_nothing_is_cold(value, level):
    assert heat_level(value, 100) == level


def test_usage_is_the_difference_between_looks(tmp_path):
    directory = pair(tmp_path)
    for second in range(4):
        directory.resources([usage(0, "ping-0", second), usage(-1, "coordinator", second)])
    ping, coordinator = usage_of(finish(directory, {(1, 1): 1}), START_NS, STOP_NS)
    assert (ping.name, coordinator.name) == ("ping", "(coordinator)")
    assert ping.cpu_time_s.tolist() == [0.5, 1.5, 2.5]
    assert ping.cpu_percent == pytest.approx([50, 50, 50])
    assert set(ping.memory_bytes.tolist()) == {2 << 20}


def test_memory_that_is_not_known_is_not_drawn(tmp_path):
    """Neither where the instrument's share is not known, nor where, in a table of old, it is more than the whole."""
    directory = pair(tmp_path)
    for second in range(4):
        share = {1: {"instrument_bytes": None}, 2: {"instrument_bytes": 4 << 20}}.get(second, {})
        rows = [usage(0, "ping-0", second, **share), usage(1, "echo-0", second, instrument_bytes=None)]
        directory.resources([*rows, usage(-1, "coordinator", second, instrument_bytes=None)])
    run = finish(directory, {(1, 1): 1})
    ping, echo, coordinator = usage_of(run, START_NS, STOP_NS)
    assert ping.memory_time_s.tolist() == [0, 3]
    assert set(ping.memory_bytes.tolist()) == {2 << 20}
    assert (len(echo.memory_time_s), len(echo.cpu_time_s)) == (0, 3)
    assert set(coordinator.memory_bytes.tolist()) == {3 << 20}
    assert "Too few looks at echo for its use over time." in page(run)


@pytest.mark.parametrize("looks", [1, 2])
def test_too_few_looks_for_a_curve_are_said(tmp_path, looks):
    directory = pair(tmp_path)
    for second in range(looks):
        directory.resources([usage(0, "ping-0", second)])
    said = "Too few looks at each process for its use over time."
    assert (said in page(finish(directory, {(1, 1): 1}))) == (looks == 2)


def test_one_doorbell_makes_no_curve(tmp_path):
    """And a moment alone between two gaps is a dot, a line has a length."""
    made = page(finish(pair(tmp_path), {(1, 1): 1}))
    assert "One doorbell was sampled, too few to draw." in made
    assert "Latency by percentile" not in made
    assert "Cumulative distribution" not in made
    shapes = re.findall(r'<path d="([^"]*)" class="(line|lone) ', made)
    assert {kind for _, kind in shapes} == {"line", "lone"}
    assert all(("h.1" in drawn) == (kind == "lone") for drawn, kind in shapes)


@pytest.mark.parametrize(("end", "xs", "ys"), [(2.0, [0, 1, 2], [5, 6, 7]), (1.5, [0, 1, 1.5], [5, 6, 6.5])])
def test_a_line_ends_where_the_axis_does(end, xs, ys):
    until = curves._until(end, np.array([0.0, 1.0, 2.0]), np.array([5.0, 6.0, 7.0]))
    assert [each.tolist() for each in until] == [xs, ys]


@given(st.lists(st.tuples(st.floats(1e-6, 1e6), st.floats(1, 1e6)), min_size=2, max_size=9))
def test_rates_of_any_size_are_drawn(moments):
    """However rare interrupts are, and however many doorbells share one."""
    interrupts, shared = np.array(moments).T
    data = TimeSeries(
        stop_ns=SECOND_NS,
        rates_s=np.linspace(0, 1, len(moments)),
        delivered_per_s=interrupts * shared,
        interrupts_per_s=interrupts,
    )
    chart = curves.rates(data, [])
    assert chart.y.low < chart.y.high
    assert set(re.findall(r'class="(?:line|lone) (s\d+)"', chart.draw(700, 300, "wide"))) == {"s1", "s11"}


def test_batches_are_the_table(tmp_path, monkeypatch):
    run = finish(pair(tmp_path), {(1, 1): 1})
    monkeypatch.setattr(batches, "BATCH_ROWS", 2)
    parts = list(batches.batches(run.path, "samples", ("rung_ns", "delivered_ns", "warmup")))
    assert [len(part["rung_ns"]) for part in parts] == [2, 1]
    together = np.concatenate([part["delivered_ns"] for part in parts])
    assert together.tolist() == run.samples()["delivered_ns"].fill_null(0).to_pylist()
    assert batches.extent(run.path, "samples", "rung_ns") == (START_NS + 1000, MEASURE_NS + 1300)
    assert batches.extent(run.path, "resources", "time_ns") is None
    with pytest.raises(UsageError, match="no column name of numbers"):
        next(batches.batches(run.path, "resources", ("name",)))
