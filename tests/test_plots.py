"""Pictures: what is drawn is what was measured, and what cannot be drawn is said."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import matplotlib as mpl
import pytest
from synthetic import MEASURE_NS, finish, record, topology

from nodes.errors import UsageError
from sim.results import Run, RunDirectory, plots

RINGS = 100


@pytest.fixture
def run(tmp_path) -> Run:
    """A hundred doorbells on two vectors in turn, delivered after 1, 2, ... 100 us, handled a microsecond later."""
    directory = RunDirectory.create(tmp_path, topology({"from": (1, 2), "to": (1, 2)}), {})
    stamps = [(MEASURE_NS + place * 1_000_000, place % 2, (place + 1) * 1000) for place in range(RINGS)]
    rings = [(1, vector, at, at) for at, vector, _ in stamps]
    drains = [(vector, 1, at + delay, at + delay + 1000) for at, vector, delay in stamps]
    edges = {(1, 0): (RINGS // 2, 0), (1, 1): (RINGS // 2, 0)}
    record(directory, 0, vectors=[(0, 0)] * 2, edges=edges, rings=rings)
    record(directory, 1, vectors=[(RINGS // 2, RINGS // 2)] * 2, drains=drains)
    return finish(directory)


@pytest.fixture(scope="module", autouse=True)
def fonts() -> None:
    """No window; and matplotlib opens its fonts, which it keeps for as long as the process lives."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    axes.set_title(r"upright $oblique \times 10^{0}$")
    figure.canvas.draw()
    plt.close(figure)


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """No picture outlives its test."""
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def test_a_histogram_holds_every_doorbell(run):
    axes = plots.histogram(run, "delivery", by="vector")
    assert [sum(patch.get_data().values) for patch in axes.patches] == [RINGS // 2, RINGS // 2]
    axes.figure.canvas.draw()


def test_a_cumulative_curve_rises_to_all(run):
    (line,) = plots.cumulative(run).get_lines()
    latencies, shares = line.get_data()
    assert (latencies[0], latencies[-1], shares[-1]) == (1000, 100_000, 100)
    assert (latencies[1:] >= latencies[:-1]).all()


def test_percentiles_leave_out_what_no_logarithm_shows(run):
    axes = plots.percentiles(run)
    assert [line.get_label() for line in axes.get_lines()] == ["delivery", "handling", "total"]
    assert max(axes.get_lines()[2].get_ydata()) == 101_000
    axes.figure.canvas.draw()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["min", "50 %", "90 %", "99 %"]


def test_a_spread_has_a_column_for_each(run):
    axes = plots.spread(run, by="vector")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1"]
    assert axes.collections[-1].get_offsets().tolist() == [[0, 99_000], [1, 100_000]]


def test_pictures_go_where_they_are_asked_to(run):
    import matplotlib.pyplot as plt

    _, (left, right) = plt.subplots(1, 2)
    assert plots.histogram(run, axes=left) is left
    assert plots.cumulative(run, by="group", axes=right) is right


def test_what_cannot_be_drawn_is_said(run, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="no latency 'delay'"):
        plots.histogram(run, "delay")
    with pytest.raises(UsageError, match="expected each of"):
        plots.spread(run, by="color")
    empty = RunDirectory.create(tmp_path, topology({"alone": (1, 1)}), {})
    record(empty, 0, vectors=[(0, 0)])
    nothing = finish(empty)
    for draw in (plots.histogram, plots.cumulative, plots.percentiles, plots.spread):
        with pytest.raises(UsageError, match="no samples"):
            draw(nothing)
    monkeypatch.setattr(plots, "SERIES_LIMIT", 1)
    with pytest.raises(UsageError, match="tangle"):
        plots.histogram(run, by="vector")


def test_without_matplotlib_the_extra_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(UsageError, match=r"ivshmem-sim\[notebook\]"):
        plots.histogram(run)
