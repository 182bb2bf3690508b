"""What is printed of a run: every figure whole, in 80 columns, in a pipe, whatever the run went through."""

from __future__ import annotations

import io

import msgspec
import numpy as np
import pytest
from rich.console import Console

import sim.results
from sim.host.wake_up_baseline import WakeUpBaseline
from sim.recording import State
from sim.recording.header import COUNTER_AT
from sim.results import Run, RunDirectory
from sim.results.analysis.warnings import warnings
from sim.results.summary import Percentiles
from sim.views import rows
from sim.views.terminal import render
from sim.views.units import human_count, human_interval, human_ns
from tests.synthetic import MEASURE_NS, PENDING, finish, pair, record, topology, usage


def printed(run: Run, width: int = 80, *, terminal: bool = False) -> str:
    stream = io.StringIO()
    render(run, Console(file=stream, width=width, force_terminal=terminal, legacy_windows=False))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "-"),
        (0, "0 ns"),
        (999, "999 ns"),
        (1000, "1.00 us"),
        (5634, "5.63 us"),
        (15_849, "15.8 us"),
        (310_723, "311 us"),
        (999_499, "999 us"),
        (999_500, "1.00 ms"),
        (6_368_063, "6.37 ms"),
        (1_250_000_000, "1.25 s"),
        (5_000_000_000_000, "5,000 s"),
        (-2500, "-2.50 us"),
    ],
)
def test_nanoseconds_for_people(value, expected):
    assert human_ns(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "-"),
        (0, "0.00"),
        (1.5, "1.50"),
        (31.94, "31.9"),
        (999.6, "1.00 k"),
        (3_721_000, "3.72 M"),
        (2e9, "2.00 G"),
    ],
)
def test_counts_for_people(value, expected):
    assert human_count(value) == expected


def test_a_run_as_people_see_it(tmp_path):
    directory = pair(tmp_path, "Ping and echo")
    for second in (0, 3):
        directory.resources([usage(0, "ping-0", second), usage(1, "echo-0", second), usage(-1, "coordinator", second)])
    run = finish(directory, {(1, 1): 1})
    lines = printed(run).splitlines()
    assert lines[0] == "Ping and echo: finished"
    assert [line.split() for line in lines if line.startswith(("ping (1)", "echo (1)", "all "))] == [
        ["ping", "(1)", "0", "0", "0", "0", "0", "-", "0.00"],
        ["echo", "(1)", "3", "2", "1", "0", "2", "1.00", "1.00"],
        ["all", "3", "2", "1", "0", "2", "1.00", "1.00"],
    ]
    total = next(line.split() for line in lines if line.startswith("total "))
    assert total == ["total", "9.00", "us", "few", "few", "few", "few", "9.00", "us", "1"]
    (head,) = [at for at, line in enumerate(lines) if line.startswith("latency")]
    assert lines[head].split() == ["latency", "p50", "p90", "p99", "p99.9", "p99.99", "max", "samples"]
    assert [line.split()[0] for line in lines[head + 1 : head + 6]] == ["lag", "delivery", "handling", "raw", "total"]
    assert [line.split()[:4] for line in lines if line.startswith("(all 2")] == [["(all", "2", "together)", "100.0"]]
    assert [line.split()[1:] for line in lines if line.startswith("(coordinator)")] == [
        ["50.0", "%", "50.0", "%", "3.00", "MiB", "3.00", "MiB", "2.00"]
    ]
    assert "few: too few samples for that percentile" in lines
    assert "! 1 of 3 samples are without a known delivery: only lag, if any, is known of them" in lines
    assert "rung 3 = delivered 2 + pending 1 + refused 0" in lines
    assert lines[-1] == f"run: {run.path}"


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_is_cut_in_eighty_columns(tmp_path, width):
    directory = RunDirectory.create(tmp_path, topology({"storm": (2, 1), "hub": (1, 1)}), {})
    many = 123_456_789
    for machine in range(3):
        edges = {(to, 0): (many // 2, 0) for to in range(3)}
        at = MEASURE_NS
        rings = [(1, 0, at, at + 123_456)]
        drains = [(0, many // 2, at + 987_654_321, at + 987_777_777)]
        record(directory, machine, vectors=[(many // 2 * 3, 1234)], edges=edges, rings=rings, drains=drains)
        directory.resources([usage(machine, "storm", second) for second in (0, 1)])
    text = printed(finish(directory), width)
    assert all(len(line) <= width for line in text.splitlines() if not line.startswith(("run:", "!", "3 machines")))
    assert "…" not in text
    assert f"{many // 2 * 3:,}" in text
    assert f"{many // 2 * 9:,}" in text


def test_what_the_figures_are_held_against(tmp_path):
    directory = pair(tmp_path)
    for second in (0, 2):
        rows = [usage(0, "ping-0", second), usage(1, "echo-0", second)]
        rows += [usage(-2, "host", second, load_1=2.5, pressure_cpu_s=0.5 * second, sampling_s=0.01 * second)]
        directory.resources(rows)
    run = finish(
        directory, PENDING, baselines=[WakeUpBaseline(3500, 7000, 1900, "where the kernel put them, on 2 CPUs", 41.5)]
    )
    lines = printed(run, 250).splitlines()
    assert (
        "wake-up baseline: a bare wake-up takes 3.50 us here (p99 7.00 us; where the kernel put them, on 2 CPUs), "
        "reading the clock 42 ns; delivery has its p50 2.00 times that"
    ) in lines
    assert "cost: 1.00 s of CPU time for each doorbell rung, all machines together" in lines
    (host,) = [line for line in lines if line.startswith("host: ")]
    assert "load 2.5; of the time, tasks waited for CPUs 50 %; sampling took 1.0 % of a CPU" in host


def test_intervals_and_shared_wake_ups_fit_into_eighty_columns(tmp_path):
    directory = RunDirectory.create(tmp_path, topology({"storm": (1, 1)}), {})
    took = np.random.default_rng(1).lognormal(13, 2.5, 40_000).astype(np.int64).tolist()
    times = [MEASURE_NS + 40_000 * tick for tick in range(len(took))]
    rings = [(0, 0, at, at + 100) for at in times]
    ends = [at + 100 + its for at, its in zip(times, took, strict=True)]
    drains = [(0, 1 + tick % 1234, at, at + 100) for tick, at in enumerate(ends)]
    delivered = sum(count for _, count, *_ in drains)
    record(
        directory,
        0,
        vectors=[(delivered, len(drains))],
        edges={(0, 0): (delivered, 0)},
        rings=rings,
        drains=drains,
    )
    lines = printed(finish(directory)).splitlines()
    (head,) = [at for at, line in enumerate(lines) if line.startswith("95 % CI")]
    assert lines[head].split() == ["95", "%", "CI", "p50", "p99", "p99.9", "p99.99"]
    assert lines[head + 1].startswith("delivery ")
    assert all(len(line) <= 80 for line in lines if not line.startswith(("run:", "!", "1 machines")))
    (shared,) = [line.split() for line in lines if line.startswith("storm ") and line.endswith("40,000")]
    assert shared == ["storm", "609", "1,109", "1,222", "1,233", "1,234", "1,234", "40,000"]


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (None, "-"),
        ((1200, 3400), "1.20 - 3.40 us"),
        ((900, 3400), "900 ns - 3.40 us"),
        ((5_000_000, None), "5.00 ms - open"),
    ],
)
def test_intervals_for_people(interval, expected):
    assert human_interval(interval) == expected


def test_colours_are_for_terminals_only(tmp_path):
    run = finish(pair(tmp_path), {(1, 1): 1})
    assert "\x1b" not in printed(run)
    assert "\x1b[1;32mfinished" in printed(run, terminal=True)
    assert printed(run).isascii()


def test_every_warning_of_a_run_is_said(tmp_path):
    groups = {"from": (1, 1), "to": (1, 1)}
    directory = RunDirectory.create(tmp_path, topology(groups), {})
    at = MEASURE_NS
    full = {COUNTER_AT["samples_refused"]: 5, COUNTER_AT["rung_nowhere"]: 2}
    record(directory, 0, vectors=[(0, 0)], edges={(1, 0): (9, 0)}, rings=[(1, 0, at, at)] * 2, further=full)
    held = {COUNTER_AT["pba_pending"]: 3, COUNTER_AT["dropped"]: 4}
    record(directory, 1, vectors=[(6, 6)], drains=[(0, 1, at + 5, at + 6)], further=held)
    text = printed(finish(directory, exits={1: "SIGKILL"}, status="degraded"), width=200)
    for said in (
        "Made up: degraded",
        "! to-0 died: SIGKILL",
        "! 3 doorbells are settled",
        "! recordings were full: 5 samples and 0 drains",
        "! 1 of 1 drains got more samples than doorbells",
        "! of the delivered doorbells, 3 came while their vector was masked: however many, a vector keeps one bit",
        "! of the delivered doorbells, the device lost 4",
        "nowhere",
        "rung 11 = delivered 9 + pending 0 + refused 2",
    ):
        assert said in text


def test_an_unbalanced_run_says_so(tmp_path):
    directory = RunDirectory.create(tmp_path, topology({"from": (1, 1), "to": (1, 1)}), {})
    record(directory, 0, vectors=[(0, 0)], edges={(1, 0): (9, 0)})
    record(directory, 1, vectors=[(6, 6)])
    text = printed(finish(directory))
    assert "Made up: failed" in text
    assert "rung 9 is NOT delivered 6 + pending 0 + refused 0" in text


def test_a_derived_pending_and_many_deaths_are_said(tmp_path):
    directory = RunDirectory.create(tmp_path, topology({"many": (11, 1)}), {})
    for machine in range(11):
        record(directory, machine, vectors=[(0, 0)], state=State.RUNNING)
    directory.close()
    manifest = directory.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"start_ticks": ', '"start_ticks": 1'))
    text = printed(sim.results.open(directory.path))
    assert "Made up: died" in text
    assert "! pending is what was left over" in text
    assert "! many-0 died: last seen running" in text
    assert "! 3 more machines died" in text


def test_oversubscription_is_said(tmp_path):
    directory = RunDirectory.create(tmp_path, topology({"many": (4, 1)}), {})
    for machine in range(4):
        record(directory, machine, vectors=[(0, 0)])
        directory.resources([usage(machine, "many", second, cpu_user_s=0.9 * second) for second in (0, 2)])
    figures = finish(directory).figures
    for cpus, said in ((2, True), (4, False), (64, False)):
        found = warnings(msgspec.structs.replace(figures, cpus=cpus))
        assert any("oversubscribed: 4 machines kept 4.0 of 2 CPUs busy" in each for each in found) == said


def test_titles_cannot_drive_the_terminal(tmp_path):
    run = finish(pair(tmp_path, "[red]\x1b[2J[/red]\x07"), {(1, 1): 1})
    first = printed(run, terminal=True).splitlines()[0]
    assert first.startswith("[red]\ufffd[2J[/red]\ufffd: ")


def test_without_a_summary_it_says_what_is_missing(tmp_path):
    run = finish(pair(tmp_path), {(1, 1): 1})
    (run.path / "summary.json").unlink()
    lines = printed(Run(run.path)).splitlines()
    assert lines[0] == f"{run.path.name}: finished"
    assert "! summary.json is missing" in lines
    assert lines[-1] == f"run: {run.path}"


def test_latencies_that_programs_have_measured_are_rows_of_their_own():
    values = {"rounds": 7, "round_trip_p50_us": 12.5, "round_trip_max_us": 3000.0, "round_trip_samples": 7, "x_us": 1}
    (found,) = rows.own_latencies(values).items()
    assert found == ("round trip", Percentiles(p50=12_500, p90=None, p99=None, p99_9=None, max=3_000_000, samples=7))
    assert rows.own_latencies({"rounds": 7}) == {}
