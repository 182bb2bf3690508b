"""Pictures: what is drawn is what was measured, and what cannot be drawn is said."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pytest

from nodes.errors import UsageError
from sim.results import Run, RunDirectory
from sim.views import plots
from tests.synthetic import MEASURE_NS, START_NS, STOP_NS, finish, record, topology, usage

RINGS = 100


@pytest.fixture
def run(tmp_path) -> Run:
    """A hundred doorbells on two vectors in turn, delivered after 1 to 100 us, mixed; handled a microsecond later."""
    directory = RunDirectory.create(tmp_path, topology({"from": (1, 2), "to": (1, 2)}), {})
    stamps = [(MEASURE_NS + place * 19_000_000, place % 2, (37 * place % RINGS + 1) * 1000) for place in range(RINGS)]
    rings = [(1, vector, at, at) for at, vector, _ in stamps]
    drains = [(vector, 1, at + delay, at + delay + 1000) for at, vector, delay in stamps]
    edges = {(1, 0): (RINGS // 2, 0), (1, 1): (RINGS // 2, 0)}
    record(directory, 0, vectors=[(0, 0)] * 2, edges=edges, rings=rings)
    record(directory, 1, vectors=[(RINGS // 2, RINGS // 2)] * 2, drains=drains)
    for second in range(4):
        directory.resources([usage(0, "from-0", second), usage(1, "to-0", second)])
    made = finish(directory)
    with (made.path / "events.jsonl").open("a") as file:
        file.write(f'{{"time_ns": {START_NS}, "utc": "", "kind": "ready", "start_ns": {START_NS}}}\n')
        file.write(f'{{"time_ns": {MEASURE_NS}, "utc": "", "kind": "action", "do": "kill", "machine": "to-0"}}\n')
    return made


@pytest.fixture(scope="module", autouse=True)
def fonts() -> None:
    """No window; and matplotlib opens its fonts, which it keeps until the process ends."""
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


def test_confidence_shows_every_percentile_and_open_ends(run):
    (row,) = run.latency(latencies=("delivery",), intervals=True).to_pylist()
    assert row["p90_high"] is not None
    assert row["p99_high"] is None
    axes = plots.confidence({"one": run, "the other": run})
    both = [bars for bars in axes.containers if bars.get_label() in ("one", "the other")]
    for bars in both:
        points, _, (lines,) = bars
        assert points.get_ydata().tolist() == [row[name] for name in ("p50", "p90", "p99")]
        ends = [segment[:, 1].tolist() for segment in lines.get_segments()]
        assert ends[:2] == [[row[f"{name}_low"], row[f"{name}_high"]] for name in ("p50", "p90")]
        assert ends[2] == [row["p99_low"], row["p99"]]
    assert len(axes.containers) == 4, "an arrow for p99 of each"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "the other"]
    axes.figure.canvas.draw()
    assert len(plots.confidence(run).containers) == 2


def test_a_timeline_has_every_level_that_its_samples_allow_and_what_happened(run):
    """p90 of a moment needs ten samples in it, and p99 a hundred, as in tables."""
    axes = plots.timeline(run)
    labels = [line.get_label() for line in axes.get_lines()]
    assert labels[:2] == ["max", "p50"]
    assert not {"p90", "p99"} & {*labels}
    assert max(np.nanmax(line.get_ydata()) for line in axes.get_lines()[:2]) == pytest.approx(100_000, rel=0.005)
    assert [text.get_text() for text in axes.texts] == ["warm-up", "1"]
    assert axes.get_xlabel().splitlines() == [
        "time since the start [s]",
        "1\N{NO-BREAK SPACE}kill\N{NO-BREAK SPACE}to-0",
    ]
    assert axes.get_xlim() == (0, (STOP_NS - START_NS) / 1e9)
    axes.figure.canvas.draw()


def test_a_run_in_which_nothing_happened_has_no_marks(tmp_path):
    directory = RunDirectory.create(tmp_path, topology({"from": (1, 1), "to": (1, 1)}), {})
    record(directory, 0, vectors=[(0, 0)], edges={(1, 0): (1, 0)}, rings=[(1, 0, MEASURE_NS, MEASURE_NS)])
    record(directory, 1, vectors=[(1, 1)], drains=[(0, 1, MEASURE_NS + 5, MEASURE_NS + 6)])
    axes = plots.timeline(finish(directory))
    assert axes.get_xlabel() == "time since the start [s]"
    assert [each.get_text() for each in axes.texts] in ([], ["warm-up"])


def test_marks_and_names_stay_readable_however_close_they_are(run):
    with (run.path / "events.jsonl").open("a") as file:
        for place in range(40):
            at = MEASURE_NS + place // 2 * 80_000_000 + place % 2 * 1_000_000
            file.write(
                f'{{"time_ns": {at}, "kind": "machine_joined", "machine": "late-{place}", "peers": [{place}]}}\n'
            )
    manifest = run.path / "manifest.json"
    phases = [{"name": "a phase of many words", "start_ns": STOP_NS - 10_000_000, "end_ns": STOP_NS}]
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"phases": phases}))
    axes = plots.rates(Run(run.path))
    axes.figure.canvas.draw()
    frame = axes.get_window_extent()
    names, badges = axes.texts[:1], axes.texts[1:]
    assert [text.get_text() for text in names] == ["warm-up"], "what does not fit into its band is left out"
    boxes = [text.get_window_extent() for text in badges]
    assert len(boxes) > 4
    assert not [one for one, other in itertools.pairwise(boxes) if one.x1 > other.x0], "badges touch"
    assert frame.x0 < names[0].get_window_extent().x0 < names[0].get_window_extent().x1 < frame.x1
    below = axes.get_xlabel().replace("\N{NO-BREAK SPACE}", " ").replace("\n", " ")
    assert "2 late-0 joined" in below
    assert below.endswith("and 25 more events")


def test_rates_hold_every_doorbell(run):
    doorbells, interrupts, _ = plots.rates(run).get_lines()
    width_s = (STOP_NS - START_NS) / 1e9 / len(doorbells.get_ydata())
    for line in (doorbells, interrupts):
        assert sum(line.get_ydata()) * width_s == pytest.approx(RINGS)


def test_each_sender_and_receiver_is_in_its_cell(run):
    (image,) = plots.matrix(run).get_images()
    assert image.get_array().filled(0).tolist() == [[0, RINGS], [0, 0]]
    axes = plots.matrix(run, by="group")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["from", "to"]
    axes.figure.canvas.draw()


def test_drain_sizes_are_shares(run):
    axes = plots.drain_sizes(run)
    assert [bar.get_height() for bar in axes.patches] == [100, 100]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1"]


def test_resources_are_a_line_for_each_group(run):
    for what, value in (("cpu", 50), ("memory", 2)):
        lines = plots.resources(run, what).get_lines()[:2]
        assert [line.get_label() for line in lines] == ["from", "to"]
        assert all(line.get_ydata() == pytest.approx(value) for line in lines)


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
    for draw in (plots.histogram, plots.cumulative, plots.percentiles, plots.spread, plots.timeline, plots.confidence):
        with pytest.raises(UsageError, match="no samples"):
            draw(nothing)
    for draw, said in (
        (plots.rates, "no drains"),
        (plots.drain_sizes, "no drains"),
        (plots.matrix, "no doorbells"),
        (plots.resources, "the processes were not sampled"),
    ):
        with pytest.raises(UsageError, match=said):
            draw(nothing)
    with pytest.raises(UsageError, match="expected machine or group"):
        plots.matrix(run, by="color")
    with pytest.raises(UsageError, match="0 runs to draw"):
        plots.confidence({})
    with pytest.raises(UsageError, match="expected cpu or memory"):
        plots.resources(run, "mood")
    monkeypatch.setattr(plots, "SERIES_LIMIT", 1)
    with pytest.raises(UsageError, match="tangle"):
        plots.histogram(run, by="vector")


def test_without_matplotlib_the_extra_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(UsageError, match=r"ivshmem-sim\[notebook\]"):
        plots.histogram(run)
