"""Two runs side by side: differences, their intervals, thresholds, and the command that fails when one is missed."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import sim
from nodes.errors import UsageError
from sim.commands.compare import compare as command
from sim.results import Run, RunDirectory
from sim.results.compare import Change, Threshold
from sim.results.store.manifest import HOST_NAME_VARIABLE
from sim.views import rows
from tests.synthetic import MEASURE_NS, START_NS, finish, pair, record, topology

TICKS = 5000


def made(
    parent: Path,
    seed: int,
    slower: float = 1.0,
    title: str = "Made up",
    ticks: int = TICKS,
    period_ns: int = 400_000,
    warmup: bool = False,
) -> Run:
    """A closed loop whose deliveries are drawn from one distribution, times ``slower``; with a doorbell at the start
    of the warm-up, or none in it."""
    took = (slower * np.random.default_rng(seed).lognormal(9, 0.3, ticks)).astype(np.int64).tolist()
    directory = RunDirectory.create(parent, topology({"from": (1, 1), "to": (1, 1)}, title), {})
    times = [MEASURE_NS + tick * period_ns for tick in range(ticks)]
    if warmup:
        times, took, ticks = [START_NS, *times], [5000, *took], ticks + 1
    record(directory, 0, vectors=[(0, 0)], edges={(1, 0): (ticks, 0)}, rings=[(1, 0, at, at) for at in times])
    drains = [(0, 1, at + its, at + its + 500) for at, its in zip(times, took, strict=True)]
    record(directory, 1, vectors=[(ticks, ticks)], drains=drains)
    return finish(directory)


@pytest.fixture(scope="module", autouse=True)
def fonts() -> None:
    """matplotlib opens its fonts, which it keeps until the process ends."""
    figure = pytest.importorskip("matplotlib.figure").Figure()
    figure.subplots().set_title(r"upright $oblique \times 10^{0}$")
    figure.savefig(io.BytesIO())


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    parent = tmp_path_factory.mktemp("runs")
    return {"a": made(parent, 1), "same": made(parent, 2), "slower": made(parent, 3, 1.2)}


def test_a_fifth_slower_is_seen(runs):
    its = sim.compare(runs["a"], runs["slower"])["delivery.p50"]
    exact = runs["slower"].summary["latency_ns"]["delivery"]["p50"], runs["a"].summary["latency_ns"]["delivery"]["p50"]
    assert (its.b, its.a, its.difference) == (*exact, exact[0] - exact[1])
    assert its.change == pytest.approx(0.2, abs=0.03)
    low, high = its.change_interval
    assert 0.1 < low < 0.2 < high < 0.3
    assert its.verdict() == "higher"
    assert sim.compare(runs["slower"], runs["a"])["delivery.p50"].verdict() == "lower"


def test_the_same_again_is_unclear(runs):
    comparison = sim.compare(runs["a"].path, str(runs["same"].path))
    its = comparison["delivery.p50"]
    low, high = its.change_interval
    assert low < 0 < high
    assert its.verdict() == "unclear"
    assert comparison.notes == []


def test_a_run_is_what_it_is(runs):
    comparison = sim.compare(runs["a"], runs["a"])
    assert {its.change for its in comparison.metrics.values() if its.a} == {0.0}
    assert {its.verdict() for its in comparison.metrics.values() if its.change_interval} == {"unclear"}


def test_open_ends_and_what_is_not_there(runs):
    comparison = sim.compare(runs["a"], runs["slower"])
    # 5000 samples: p99.9 is bounded from above, p99.99 is not even given.
    assert None not in comparison["total.p99.9"].change_interval
    assert comparison["p99.99"].a is comparison["p99.99"].change is comparison["p99.99"].change_interval is None
    assert comparison["max"].change_interval is None
    assert comparison["lag.p50"].change is None, "0 in both runs"
    assert comparison["p50"] is comparison["total.p50"]
    with pytest.raises(UsageError, match="expected p50, p90"):
        _ = comparison["p98"]


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        (None, ""),
        ((-0.97, 5.41), "unclear"),
        ((None, None), "unclear"),
        ((None, 0.2), "unclear"),
        ((0.0, 0.0), "unclear"),
        ((0.01, None), "higher"),
        ((None, -0.01), "lower"),
    ],
)
def test_the_interval_of_the_change_decides(interval, verdict):
    """Whether the intervals of A and B touch does not."""
    its = Change("delivery.p99", "ns", 100, 110, 10, 0.1, interval, (90, 120), (95, 130))
    assert its.verdict() == its.row()["verdict"] == verdict


def test_as_a_table_a_frame_and_a_page(runs):
    comparison = sim.compare(runs["a"], runs["slower"])
    assert comparison.table().num_rows == len(comparison.metrics)
    frame = comparison.frame()
    assert frame.loc["delivery.p50", "change_interval_low"] < frame.loc["delivery.p50", "change"]
    shown = comparison._repr_html_()
    assert "<th>delivery.p99.9</th>" in shown
    names = [row[0] for row in rows.comparison(comparison).rows]
    # In a closed loop raw is what total is, and no sender is late.
    assert "total.p50" in names
    assert not [name for name in names if name.startswith(("raw", "lag"))]


def test_other_differences_are_notes(runs, tmp_path):
    other = made(tmp_path, 4, title="Another <b>", ticks=1000)
    comparison = sim.compare(runs["a"], other)
    assert "title: Made up in A, Another <b> in B" in comparison.notes
    assert "&lt;b&gt;" in comparison._repr_html_()
    (other.path / "samples.parquet").unlink()
    without = sim.compare(runs["a"], other.path)
    assert any(note.startswith("B without intervals") for note in without.notes)
    assert without["p50"].change is not None
    assert without["p50"].change_interval is None
    (other.path / "summary.json").unlink()
    with pytest.raises(UsageError, match=r"summary.json is missing"):
        sim.compare(runs["a"], other.path)


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("p50:+25%", True),
        ("p50:+10%", False),
        ("delivery.p50:+10%", False),
        ("delivery.p50:+5us", True),
        ("delivery.p50:+1us", False),
        ("delivery.p99.9:+90%", True),
        ("p50:-1%", True),
        ("doorbells_per_s:-5%", True),
        ("p99.99:+50%", False),
    ],
)
def test_thresholds(runs, text, met):
    assert Threshold.parse(text).judge(sim.compare(runs["a"], runs["slower"])).met == met


def test_a_verdict_says_where_the_change_may_be_none(runs):
    doubt = "(the interval of the change holds 0)"
    same, slower = (sim.compare(runs["a"], runs[name]) for name in ("same", "slower"))
    assert rows.threshold(Threshold.parse("delivery.p50:+50%").judge(same)).endswith(f"allowed {doubt}")
    assert doubt not in rows.threshold(Threshold.parse("delivery.p50:+50%").judge(slower))
    assert doubt not in rows.threshold(Threshold.parse("doorbells_per_s:-5%").judge(same)), "it has no interval"


def test_too_few_samples_in_one_run_or_in_both(runs, tmp_path):
    few, limit = made(tmp_path, 5, ticks=50), Threshold.parse("p99:+10%")
    assert "total.p99: B has too few samples" in rows.threshold(limit.judge(sim.compare(runs["a"], few)))
    assert "total.p99: A and B have too few samples" in rows.threshold(limit.judge(sim.compare(few, few)))


def test_runs_of_one_burst_have_no_intervals_and_it_is_said(runs, tmp_path):
    comparison = sim.compare(made(tmp_path, 6, period_ns=0), runs["a"])
    assert comparison["delivery.p50"].a_interval is comparison["delivery.p50"].change_interval is None
    assert (
        "A without intervals: its drains lie in 1 of 32 slices of the measured time, an interval needs 6"
        in comparison.notes
    )
    assert not [note for note in comparison.notes if note.startswith("B without")]


def test_slices_are_cut_without_the_warm_up(runs, tmp_path):
    """As the summary's are: a doorbell long before the measurement moves no interval."""
    early = made(tmp_path, 1, warmup=True)
    (one, other) = (sim.compare(its, runs["slower"]) for its in (runs["a"], early))
    assert early.columns.warmup.sum() == 1
    for name in ("delivery.p50", "delivery.p99"):
        assert (one[name].a_interval, one[name].change_interval) == (
            other[name].a_interval,
            other[name].change_interval,
        )


def test_a_figure_may_be_wanted_high(runs):
    verdict = Threshold.parse("p50:-10%").judge(sim.compare(runs["slower"], runs["a"]))
    assert not verdict.met
    assert "at most 10 % lower allowed" in rows.threshold(verdict)


@pytest.mark.parametrize("text", ["p99", "p99:10%", "p99:+", "p99:+10 %", "p99:+10kg", ":+1%", "p99:+10%;", "x" * 500])
def test_a_malformed_threshold_is_refused(text):
    with pytest.raises(UsageError, match=r"is no threshold: expected METRIC:\+LIMIT"):
        Threshold.parse(text)


def test_thresholds_on_what_there_is_not(runs):
    comparison = sim.compare(runs["a"], runs["same"])
    with pytest.raises(UsageError, match="no metric 'p98'"):
        Threshold.parse("p98:+1%").judge(comparison)
    with pytest.raises(UsageError, match="refused is no time"):
        Threshold.parse("refused:+1ms").judge(comparison)


# The command


def ivsim_compare(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(command, [str(argument) for argument in arguments])
    return done.exit_code, done.stdout, done.stderr


def test_the_command_shows_both(runs):
    code, text, errors = ivsim_compare(runs["a"].path, runs["slower"].path)
    assert (code, errors) == (0, "")
    (row,) = [line.split() for line in text.splitlines() if line.startswith("delivery.p50 ")]
    assert row[-1] == "higher"
    assert str(runs["a"].path) in text.replace("\n", "")


def test_a_threshold_missed_is_99_and_the_figure_shown(runs):
    limits = ("--fail-if", "p50:+10%", "--fail-if", "p50:+50%")
    code, text, errors = ivsim_compare(runs["a"].path, runs["slower"].path, *limits)
    assert code == 99
    assert errors.startswith("ivsim: missed p50:+10%: total.p50: ")
    assert errors.count("missed") == 1
    assert "at most 10 % higher allowed: missed" in text
    assert "at most 50 % higher allowed: met" in text
    assert ivsim_compare(runs["a"].path, runs["same"].path, *limits)[0] == 0


def test_json_is_all_there_is_on_stdout(runs):
    code, text, _ = ivsim_compare(runs["a"].path, runs["slower"].path, "--json", "--fail-if", "p50:+10%")
    content = json.loads(text)
    assert code == 99
    assert {its["name"] for its in content["metrics"]} >= {"delivery.p50", "total.p99_99", "doorbells_per_s"}
    assert [its["met"] for its in content["thresholds"]] == [False]
    assert content["b"] == str(runs["slower"].path)


@pytest.mark.parametrize(("name", "magic"), [("c.png", b"\x89PNG"), ("c.svg", b"<?xml")])
def test_a_picture(runs, tmp_path, name, magic):
    assert ivsim_compare(runs["a"].path, runs["slower"].path, "--plot", tmp_path / name)[0] == 0
    assert (tmp_path / name).read_bytes().startswith(magic)


def test_wrong_use_is_said_before_anything_is_read(tmp_path):
    for arguments in (("--fail-if", "p99"), ("--plot", "c.exe")):
        done = CliRunner().invoke(command, [str(tmp_path), str(tmp_path), *arguments])
        assert isinstance(done.exception, UsageError)
        assert "expected" in str(done.exception)


def test_runs_without_samples_compare_as_far_as_they_go(tmp_path):
    empty = [finish(pair(tmp_path), {(1, 1): 1}) for _ in range(2)]
    comparison = sim.compare(*empty)
    assert comparison["delivery.p50"].change == 0
    assert comparison["p99"].a is None


def test_runs_of_different_hosts_are_compared_only_when_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = made(tmp_path, 1, ticks=50)
    monkeypatch.setenv(HOST_NAME_VARIABLE, "alpha")
    alpha, again = made(tmp_path, 1, ticks=50), made(tmp_path, 2, ticks=50)
    monkeypatch.setenv(HOST_NAME_VARIABLE, "beta")
    beta = made(tmp_path, 2, ticks=50)
    assert sim.compare(alpha, again).metrics
    for a, b, said in [(alpha, beta, "on alpha and B on beta"), (here, alpha, "outside a cluster and B on alpha")]:
        with pytest.raises(UsageError, match=f"A was run {said}: .*--across-hosts"):
            sim.compare(a, b)
    assert "host: alpha in A, beta in B" in sim.compare(alpha, beta, across_hosts=True).notes
    arguments = [str(alpha.path), str(beta.path)]
    assert CliRunner().invoke(command, [*arguments, "--across-hosts"], catch_exceptions=False).exit_code == 0
    assert isinstance(CliRunner().invoke(command, arguments).exception, UsageError)
