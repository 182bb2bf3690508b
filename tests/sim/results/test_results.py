"""The run directory of a run that went well: what was recorded comes back as exact figures."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pyarrow as pa
import pytest

import sim.results
from nodes.errors import UsageError
from sim.results import RunDirectory
from sim.views.notebook import run_html
from tests.synthetic import (
    MEASURE_NS,
    PENDING,
    SECOND_NS,
    START_NS,
    STOP_NS,
    account,
    finish,
    pair,
    record,
    topology,
    usage,
)


def test_a_clean_run_gives_back_what_was_recorded(tmp_path):
    run = finish(pair(tmp_path), PENDING)
    figures = run.summary
    assert (run.status, run.reason, run.problems) == ("finished", "", [])
    assert account(figures) == (3, 2, 1, 0, 0)
    assert figures["balanced"]
    assert (figures["machines"], figures["interrupts"], figures["samples"], figures["unmatched"]) == (
        2,
        2,
        3,
        1,
    )
    assert (figures["schema_version"], figures["samples_refused"], figures["overfull_drains"]) == (1, 0, 0)
    assert (figures["elapsed_s"], figures["warmup_s"], figures["duration_s"]) == (3.0, 1.0, 2.0)
    assert figures["doorbells_per_s"] == 1.0  # doorbells are counted in the warm-up, too
    # Warm-up is cut: of the three samples two count for the lag, and one of them was delivered.
    latency = figures["latency_ns"]
    few = dict.fromkeys(("p90", "p99", "p99_9", "p99_99"))
    lag = latency["lag"]
    assert {name: lag[name] for name in (*few, "p50", "max", "samples")} == {**few, "p50": 0, "max": 300, "samples": 2}
    assert {name: (its["p50"], its["max"], its["samples"]) for name, its in latency.items() if name != "lag"} == {
        "delivery": (7000, 7000, 1),
        "handling": (2000, 2000, 1),
        "raw": (9000, 9000, 1),
        "total": (9000, 9000, 1),
    }


def test_groups_balance_by_what_was_rung_at_them(tmp_path):
    groups = finish(pair(tmp_path), PENDING).summary["groups"]
    assert (account(groups["ping"]), groups["ping"]["sent"]) == ((0, 0, 0, 0, 0), 3)
    assert (account(groups["echo"]), groups["echo"]["sent"]) == ((3, 2, 1, 0, 0), 0)
    assert (groups["echo"]["coalescing"], groups["ping"]["coalescing"]) == (1.0, None)
    assert groups["ping"]["latency_ns"]["lag"]["samples"] == 0
    assert groups["echo"]["latency_ns"]["delivery"]["p50"] == 7000


def test_the_tables_hold_every_sample_drain_edge_and_vector(tmp_path):
    run = finish(pair(tmp_path), PENDING)
    early, late = START_NS + 1000, MEASURE_NS + 1000
    rows = [tuple(row.values()) for row in run.samples().to_pylist()]
    assert rows == [
        (0, 1, 0, early - 100_000, early, early + 5000, early + 6000, 1, True),
        (0, 1, 0, late, late, late + 7000, late + 9000, 1, False),
        (0, 1, 1, late, late + 300, None, None, None, False),
    ]
    assert [tuple(row.values())[:3] for row in run.drains().to_pylist()] == [(1, 0, 1), (1, 0, 1)]
    assert run.edges().to_pylist()[0] == {
        "source": 0,
        "peer": 1,
        "target": 1,
        "vector": 0,
        "rung": 2,
        "refused": 0,
    }
    assert [(row["machine"], row["vector"], row["delivered"], row["pending"]) for row in run.vectors().to_pylist()] == [
        (0, 0, 0, 0),
        (0, 1, 0, 0),
        (1, 0, 2, 0),
        (1, 1, 0, 1),
    ]


def test_the_directory_is_private_and_complete(tmp_path):
    run = finish(pair(tmp_path, "Ping & <pong>, again!"), PENDING)
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700
    assert run.path.name.startswith("ping-pong-again-")
    assert run.path.name.endswith("Z-1")
    assert sorted(file.name for file in run.path.iterdir()) == [
        "drains.parquet",
        "edges.parquet",
        "events.jsonl",
        "histograms.parquet",
        "manifest.json",
        "resources.parquet",
        "samples.parquet",
        "status",
        "summary.json",
        "topology.toml",
        "vectors.parquet",
    ]
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in run.path.iterdir())
    assert run.machines[1].items() >= {"index": 1, "name": "echo-0", "group": "echo", "vectors": 2}.items()
    assert run.manifest["host"]["cpus"] >= 1
    assert (run.path / "topology.toml").read_text().startswith("title = ")


def test_runs_of_one_second_are_numbered(tmp_path):
    names = set()
    for _ in range(5):
        with RunDirectory.create(tmp_path, topology({"a": (1, 1)}), {}) as directory:
            names.add(directory.path.name)
    assert len(names) == 5


def test_a_place_that_cannot_be_is_the_users_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made"):
        RunDirectory.create(tmp_path / "file", topology({"a": (1, 1)}), {})


def test_coalesced_doorbells_share_their_drain(tmp_path):
    directory = RunDirectory.create(tmp_path, topology({"many": (3, 1)}), {})
    at = MEASURE_NS
    record(directory, 0, vectors=[(6, 2)], drains=[(0, 4, at + 1000, at + 1500), (0, 2, at + 3000, 0)])
    for sender, offset in ((1, 100), (2, 400)):
        rings = [(0, 0, at + offset, at + offset), (0, 0, at + 500, at + offset + 500), (0, 0, at, at + 1001)]
        record(directory, sender, vectors=[(0, 0)], edges={(0, 0): (3, 0)}, rings=rings)
    run = finish(directory)
    assert run.samples()["count"].to_pylist() == [4, 4, 2, 4, 4, 2]
    assert run.summary["coalescing"] == 3.0
    latency = run.summary["latency_ns"]
    assert (latency["delivery"]["samples"], latency["handling"]["samples"]) == (6, 4)
    delivery = run.frame()["delivery_ns"].tolist()
    assert delivery == [900, 400, 1999, 600, 100, 1999]


def test_a_stall_shows_in_the_corrected_figures_and_not_in_the_raw_ones(tmp_path):
    """An open loop at 1 kHz whose sender stands still for 200 ms: its doorbells are late, not slow."""
    directory = RunDirectory.create(tmp_path, topology({"from": (1, 1), "to": (1, 1)}), {})
    stalled = 200_000_000
    rings, drains = [], []
    for tick in range(1000):
        intended = MEASURE_NS + tick * 1_000_000
        rung = max(intended, MEASURE_NS + stalled + tick * 10_000) if tick < 202 else intended
        rings.append((1, 0, intended, rung))
        drains.append((0, 1, rung + 5000, rung + 6000))
    record(directory, 0, vectors=[(0, 0)], edges={(1, 0): (1000, 0)}, rings=rings)
    record(directory, 1, vectors=[(1000, 1000)], drains=drains)
    run = finish(directory)
    rows = {row["latency"]: row for row in run.latency(latencies=("raw", "total", "lag")).to_pylist()}
    assert rows["raw"]["max"] == 6000
    assert rows["lag"]["max"] == stalled
    assert rows["total"]["max"] == stalled + 6000
    assert rows["total"]["p90"] > stalled // 3


def test_warm_up_is_what_was_intended_before_the_measured_time(tmp_path):
    """A doorbell that was due in the warm-up and rung late is no sample of the measured time."""
    directory = RunDirectory.create(tmp_path, topology({"from": (1, 1), "to": (1, 1)}), {})
    rings = [(1, 0, MEASURE_NS - 1, MEASURE_NS + 10), (1, 0, MEASURE_NS, MEASURE_NS + 20)]
    record(directory, 0, vectors=[(0, 0)], edges={(1, 0): (2, 0)}, rings=rings)
    record(directory, 1, vectors=[(2, 1)], drains=[(0, 2, MEASURE_NS + 30, MEASURE_NS + 40)])
    run = finish(directory)
    assert run.samples()["warmup"].to_pylist() == [True, False]
    assert run.summary["latency_ns"]["lag"]["max"] == 20


def test_resources_are_summed_up_over_the_run_proper(tmp_path):
    directory = pair(tmp_path)
    # The time before the start is bring-up and does not count; neither does the time after the stop.
    for second in (-5, 0, 1.5, 3, 4):
        busy = {"cpu_user_s": 100.0} if second == 4 else {}
        directory.resources(
            [
                usage(-1, "coordinator", second, uss_bytes=30 << 20, instrument_bytes=None, **busy),
                usage(0, "ping-0", second, **busy),
                usage(1, "echo-0", second, uss_bytes=None, **busy),
            ]
        )
    run = finish(directory, PENDING)
    ping, echo = (run.summary["groups"][name] for name in ("ping", "echo"))
    assert (ping["cpu_percent"], ping["uss_bytes"], echo["uss_bytes"]) == (50.0, 3 << 20, None)
    its = ping["resources"]
    assert (its["private_bytes"], its["cpu_system_share"]) == (2 << 20, 0.2)
    assert (its["switches_voluntary_per_s"], its["switches_involuntary_per_s"]) == (10.0, 2.0)
    assert run.summary["coordinator"]["private_bytes"] == 30 << 20
    assert run.resources().num_rows == 15
    assert run.problems == []


def test_private_memory_is_not_known_without_the_instruments_share(tmp_path):
    """Or where, in a table of old, that share is more than the whole: it was estimated then."""
    directory = pair(tmp_path)
    for second, share in enumerate((1 << 20, None, 6 << 20, 1 << 20)):
        rows = [usage(0, "ping-0", second, uss_bytes=(3 + second % 3) << 20, instrument_bytes=share)]
        directory.resources([*rows, usage(1, "echo-0", second, instrument_bytes=4 << 20)])
    groups = finish(directory, PENDING).summary["groups"]
    ping, echo = groups["ping"]["resources"], groups["echo"]["resources"]
    assert (ping["private_bytes"], ping["private_bytes_max"]) == (2 << 20, 2 << 20)
    assert (echo["private_bytes"], echo["private_bytes_sum"], echo["uss_bytes"]) == (None, None, 3 << 20)


def test_the_looks_around_the_run_count_however_early_or_late_they_come(tmp_path):
    """Also when those in between nearly coincide with the last: that was the whole of a short run on a busy host."""
    directory = pair(tmp_path)
    for second, used_s in ((-9, 0.0), (-2, 5.0), (2.99, 6.5), (7, 6.5), (8, 9.0)):
        directory.resources([usage(0, "ping-0", second, cpu_user_s=used_s, cpu_system_s=0.0)])
    assert finish(directory, PENDING).summary["groups"]["ping"]["cpu_percent"] == 50.0


def test_what_the_timeline_did_not_do_is_a_warning(tmp_path):
    directory = pair(tmp_path)
    directory.event("action", do="kill", machine="echo-0", line=9)
    directory.event("action", do="reset", machine="ping-0", line=12, skipped="it is gone")
    said = "1 of 2 actions of the timeline were not done; the first is reset ping-0 (line 12): it is gone"
    assert finish(directory, PENDING).summary["warnings"][-1] == said


def test_equal_warnings_of_machines_are_said_once(tmp_path):
    directory = pair(tmp_path)
    for peer in (3, 4, 17):
        directory.event("warning", machine="ping-0", text=f"too many eventfds for peer {peer}")
    for letter in "abcdef":
        directory.event("warning", machine="echo-0", text=f"it says {letter}")
    *_, first, a, _, _, d, more = finish(directory, PENDING).summary["warnings"]
    assert first == "ping-0: too many eventfds for peer 3 (and 2 like it)"
    assert (a, d) == ("echo-0: it says a", "echo-0: it says d")
    assert more == "2 more kinds of warnings of machines stand in the events"


def test_without_resources_there_are_no_figures_of_them(tmp_path):
    figures = finish(pair(tmp_path), PENDING).summary
    assert (figures["coordinator"], figures["groups"]["ping"]["resources"]) == (None, None)


def test_events_come_back_in_order(tmp_path):
    directory = pair(tmp_path)
    directory.event("ready", ready_s=0.25)
    directory.event("died", machine=1, how="SIGKILL", where=Path("x"))
    first, second = finish(directory, PENDING).events()
    assert (first["kind"], first["ready_s"], second["how"], second["where"]) == (
        "ready",
        0.25,
        "SIGKILL",
        "x",
    )
    assert first["time_ns"] <= second["time_ns"]
    assert first["utc"].endswith("+00:00")


def test_statistics_come_in_the_order_of_the_machines(tmp_path):
    directory = pair(tmp_path)
    for machine in ("echo-0", "ping-0"):  # the order in which the processes ended
        directory.event("statistics", machine=machine, values={"done": 1})
    assert list(finish(directory, PENDING).summary["statistics"]) == ["ping-0", "echo-0"]


def test_events_that_the_disk_refuses_are_counted(tmp_path):
    directory = pair(tmp_path)
    kept, full = directory._events, os.open("/dev/full", os.O_WRONLY)
    directory._events = full
    directory.event("lost")
    directory._events = kept
    os.close(full)
    run = finish(directory, PENDING)
    assert "1 events could not be written" in run.problems


def test_resources_that_the_disk_refuses_are_counted(tmp_path):
    directory = pair(tmp_path)
    (directory.path / "resources.arrows").symlink_to("/dev/full")
    for _ in range(3):
        directory.resources([usage(0, "ping-0", 0.0)])
    run = finish(directory, PENDING)
    assert "3 rows of resources could not be written" in run.problems
    assert run.status == "finished"


def test_latency_by_anything(tmp_path):
    run = finish(pair(tmp_path), PENDING)
    rows = run.latency(by=("edge", "vector"), latencies=("delivery", "lag")).to_pylist()
    assert [(row["source"], row["machine"], row["vector"], row["latency"], row["p50"]) for row in rows] == [
        ("ping-0", "echo-0", 0, "delivery", 7000),
        ("ping-0", "echo-0", 1, "delivery", None),
        ("ping-0", "echo-0", 0, "lag", 0),
        ("ping-0", "echo-0", 1, "lag", 300),
    ]
    assert [row["latency"] for row in run.latency().to_pylist()] == ["lag", "delivery", "handling", "raw", "total"]
    assert run.latency(by="group")["group"].to_pylist() == ["echo"] * 5
    for wrong in ({"by": "color"}, {"by": ("edge", "source")}, {"latencies": ("delay",)}):
        with pytest.raises(UsageError, match="expected"):
            run.latency(**wrong)


def test_frames_keep_whole_numbers_whole(tmp_path):
    run = finish(pair(tmp_path), PENDING)
    frame = run.frame()
    assert str(frame["rung_ns"].dtype) == "int64"
    assert str(frame["delivered_ns"].dtype) == "Int64"
    assert frame["group"].tolist() == ["echo"] * 3
    assert frame["total_ns"].dropna().tolist() == [106_000, 9000]
    assert run.frame("vectors").shape == (4, 8)


def test_without_pandas_the_extra_is_named(tmp_path, monkeypatch):
    run = finish(pair(tmp_path), PENDING)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match=r"ivshmem-sim\[notebook\]"):
        run.frame()


def test_a_notebook_shows_it_without_running_what_it_shows(tmp_path):
    run = finish(pair(tmp_path, "<script>alert(1)</script>"), PENDING)
    shown = run_html(run)
    assert run._repr_html_() == shown
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "7.0" in shown
    assert "echo" in shown


def test_reading_leaves_no_descriptor(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    run = finish(pair(tmp_path), PENDING)
    _ = run.samples(), run.events(), run.problems, run.latency()
    again = sim.results.open(run.path)
    _ = again.summary, again.resources()
    assert len(os.listdir("/proc/self/fd")) == before


def test_large_figures_stay_exact(tmp_path):
    many = (1 << 43) + 1
    directory = RunDirectory.create(tmp_path, topology({"from": (1, 1), "to": (1, 1)}), {})
    record(directory, 0, vectors=[(0, 0)], edges={(1, 0): (many, 0)})
    record(directory, 1, vectors=[(many, 1)])
    run = finish(directory)
    assert account(run.summary) == (many, many, 0, 0, 0)
    assert run.vectors()["delivered"].type == pa.int64()
    assert STOP_NS - START_NS == 3 * SECOND_NS
