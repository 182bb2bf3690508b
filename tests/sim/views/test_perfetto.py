"""A run as a trace: the Trace Event Format as its readers take it, and flows that lead from a ring to its drain."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from click.testing import CliRunner

import sim.results
from nodes.errors import UsageError
from sim.commands.trace import trace as command
from sim.host.kernel_trace import KernelEvent
from sim.results import Run, RunDirectory
from sim.results.analysis.outlier.evidence import Evidence, LatencyPart
from sim.results.store import files
from sim.results.store.schemas import RESOURCES, write_kernel_events, write_table
from sim.results.summary import Cause, Outlier
from sim.views.perfetto import trace
from tests.synthetic import MEASURE_NS, START_NS, STOP_NS, finish, pair, record, topology, usage

RINGS = 200
STEP_NS = 5_000_000


@pytest.fixture
def run(tmp_path) -> Run:
    """Two hundred doorbells of one machine on two vectors of another, 30 us each; handling overlaps the next drain."""
    directory = RunDirectory.create(tmp_path, topology({"from": (1, 1), "to": (1, 2)}, 'A "title" <b>'), {})
    stamps = [MEASURE_NS + place * STEP_NS for place in range(RINGS)]
    rings = [(1, place % 2, at - 2000, at) for place, at in enumerate(stamps)]
    drains = [(place % 2, 1, at + 30_000, at + 30_000 + 3 * STEP_NS) for place, at in enumerate(stamps)]
    edges = {(1, 0): (RINGS // 2, 0), (1, 1): (RINGS // 2, 0)}
    record(directory, 0, vectors=[(0, 0)], edges=edges, rings=rings)
    record(directory, 1, vectors=[(RINGS // 2, RINGS // 2)] * 2, drains=drains)
    made = finish(directory)
    with (made.path / "events.jsonl").open("a") as file:
        file.write(
            json.dumps(
                {"time_ns": MEASURE_NS, "utc": "", "kind": "action", "do": "stall", "machine": "to-0", "line": 14}
            )
            + "\n"
        )
    return sim.results.open(made.path)


def events_of(content: bytes) -> list[dict[str, Any]]:
    return list(json.loads(content)["traceEvents"])


def check(events: list[dict[str, Any]]) -> None:
    """What the format asks of each kind of event, and what a viewer needs to draw it."""
    slices: dict[tuple[int, int], list[tuple[float, float]]] = {}
    flows: dict[int, dict[str, dict[str, Any]]] = {}
    named = {(event["pid"], event["tid"]) for event in events if event["ph"] == "M"}
    for event in events:
        assert isinstance(event["name"], str)
        assert min(len(event["name"]), event["pid"], event["tid"]) > 0
        assert (event["pid"], event["tid"]) in named
        match event["ph"]:
            case "M":
                assert event["name"] in ("process_name", "thread_name", "process_sort_index")
                assert list(event["args"]) == ["sort_index" if "sort" in event["name"] else "name"]
                continue
            case "X":
                assert event["dur"] >= 0
                slices.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["dur"]))
            case "s" | "f":
                assert flows.setdefault(event["id"], {}).setdefault(event["ph"], event) is event
                assert event.get("bp") == ("e" if event["ph"] == "f" else None)
            case "i":
                assert event["s"] in "gpt"
            case "C":
                assert all(isinstance(value, int | float) for value in event["args"].values())
            case other:
                pytest.fail(f"an event of kind {other!r}")
        assert 0 <= event["ts"] < 10e6, "microseconds since the start"
    for thread in slices.values():
        ends = 0.0
        for begin, duration in sorted(thread):
            # A microsecond has three decimals: their sum is not exact in binary.
            assert begin >= ends - 1e-6, "slices of a thread overlap"
            ends = begin + duration
    for ends_of in flows.values():
        assert set(ends_of) == {"s", "f"}, "a flow has a start and an end"
        assert ends_of["s"]["ts"] <= ends_of["f"]["ts"]
        assert (ends_of["s"]["name"], ends_of["s"]["cat"]) == (ends_of["f"]["name"], ends_of["f"]["cat"])
        for end in ends_of.values():
            there = slices[end["pid"], end["tid"]]
            assert any(begin <= end["ts"] <= begin + duration for begin, duration in there), "a flow ends in no slice"


def test_a_whole_run_follows_the_format(run):
    made = trace(run, from_s=0.0)
    events = events_of(made.content())
    check(events)
    kinds = Counter(event["ph"] for event in events)
    assert (kinds["X"], kinds["s"], kinds["f"], kinds["i"]) == (2 * RINGS, RINGS, RINGS, 1)
    assert (made.cut, made.events) == ("", 4 * RINGS)


def test_the_host_is_shown_where_it_is_known(run):
    """Who ran on each CPU, interrupts, the load of CPUs, and the parts of an outlier."""
    at = MEASURE_NS + 1_000_000
    write_kernel_events(
        run.path,
        [
            KernelEvent(START_NS - 5000, 1, "switch", 7, "early", "S", 8, "before"),
            KernelEvent(at, 1, "switch", 8, "before", "R", 9, "busy"),
            KernelEvent(at + 1000, 1, "softirq", 9, "busy", "", 0, "TIMER"),
            KernelEvent(at + 1500, 1, "irq", 9, "busy", "", 0, "disk (24)"),
            KernelEvent(at + 1800, 1, "irq_end", 9, "busy", "", 0, ""),
            KernelEvent(at + 2000, 1, "softirq_end", 9, "busy", "", 0, ""),
            KernelEvent(at + 9000, 1, "switch", 9, "busy", "R", 0, "swapper"),
            KernelEvent(at + 9900, 1, "switch", 0, "swapper", "R", 9, "busy"),
        ],
    )
    table = pa.Table.from_pylist(
        [
            dict(zip(RESOURCES.names, usage(-4, "CPU 1", second, irq_s=0.0, softirq_s=0.1 * second), strict=True))
            for second in (0.0, 1.0)
        ],
        RESOURCES,
    )
    write_table(run.path, "resources", table)
    part = LatencyPart("delivery", "to-0", at, at + 5000)
    files.write_json(run.path / files.OUTLIER, Evidence(parts=[part], machines={}))
    cause = Cause(kind="no_cpu", machine="to-0", time_ns=5000, share=1.0, text="waited")
    outlier = Outlier(
        metric="total.max", limit_ns=1, reached_ns=2, took_ns=2, is_complete=True, source="from-0", target="to-0",
        vector=0, intended_ns=0, rung_ns=at, delivered_ns=at, handled_ns=at, is_explained=True, causes=[cause],
    )  # fmt: skip
    files.write_json(run.path / files.SUMMARY, msgspec.structs.replace(run.figures, outlier=outlier))
    events = events_of(trace(sim.results.open(run.path), from_s=0.0).content())
    check(events)
    names = {(event["pid"], event["tid"]): event["args"]["name"] for event in events if event["name"] == "thread_name"}
    shown = {event["name"]: (names[event["pid"], event["tid"]], event["dur"]) for event in events if event["ph"] == "X"}
    assert shown["busy (9)"] == ("CPU 1", 9.0)
    assert (shown["softirq TIMER"], shown["irq disk (24)"]) == (("CPU 1 softirq", 1.0), ("CPU 1 irq", 0.3))
    assert shown["delivery: to-0"] == ("the outlier", 5.0)
    assert "before (8)" not in shown
    # By itself a trace begins a second before the outlier: what is cut is what came long after it began.
    late = msgspec.structs.replace(outlier, rung_ns=MEASURE_NS + 600 * STEP_NS)
    files.write_json(run.path / files.SUMMARY, msgspec.structs.replace(run.figures, outlier=late))
    with pytest.raises(UsageError, match="nothing was rung or drained from"):
        trace(sim.results.open(run.path))
    files.write_json(run.path / files.SUMMARY, msgspec.structs.replace(run.figures, outlier=outlier))
    assert trace(sim.results.open(run.path)).before == trace(run).before
    loads = {event["name"]: event["args"]["value"] for event in events if event["name"].startswith("CPU 1 ")}
    assert loads == {"CPU 1 busy %": 50.0, "CPU 1 irq %": 10.0, "CPU 1 steal %": 0.0}


def test_machines_are_processes_with_names(run):
    events = events_of(trace(run).content())
    names = {
        (event["pid"], event["tid"], event["name"]): event["args"]["name"]
        for event in events
        if event["ph"] == "M" and "name" in event["args"]
    }
    assert sorted(name for (_, _, kind), name in names.items() if kind == "process_name") == [
        "from-0 (from)",
        "the run",
        "to-0 (to)",
    ]
    assert {name for (_, _, kind), name in names.items() if kind == "thread_name"} >= {"rings", "vector 0", "vector 1"}


def test_a_ring_and_its_drain_are_where_and_when_they_were(run):
    events = events_of(trace(run, from_s=0.0).content())
    ring = min(
        (event for event in events if event.get("cat") == "doorbell" and event["ph"] == "X"), key=lambda e: e["ts"]
    )
    start_us = (MEASURE_NS - START_NS) / 1e3
    # The beginning of the run is not known: the first stamp stands for it.
    begin_us = ring["ts"] - start_us
    assert (ring["name"], ring["args"]["late_us"], ring["args"]["delivered_after_us"]) == ("ring to-0 0", 2.0, 30.0)
    drain = min((event for event in events if event.get("cat") == "interrupt"), key=lambda e: e["ts"])
    assert drain["ts"] - begin_us == pytest.approx(start_us + 30)
    # Handling takes 15 ms, the next drain of that vector comes after 10: the slice is cut there.
    assert drain["dur"] == pytest.approx(2 * STEP_NS / 1e3)
    instant = next(event for event in events if event["ph"] == "i")
    assert (instant["name"], instant["args"]["what"]) == ("stall to-0", "stall to-0 (line 14)")


def test_counters_cover_the_run(run):
    events = events_of(trace(run, 10).content())
    counted = Counter(event["name"] for event in events if event["ph"] == "C")
    # Two hundred drains are too few for 240 bins.
    assert counted == {"doorbells delivered/s": 20, "interrupts/s": 20, "pending (estimated)": 240}
    assert sum(event["args"]["value"] for event in events if event["name"] == "interrupts/s") > 0


@pytest.mark.parametrize("most", [1, 7, 40, 399, 799])
def test_a_cut_trace_is_whole_and_says_so(run, most):
    made = trace(run, most, from_s=0.0)
    events = events_of(made.content())
    check(events)
    kept = [event for event in events if event["ph"] in "Xsf"]
    assert 0 < len(kept) == made.events <= max(most, 3)
    assert f"of {2 * RINGS} doorbells and interrupts" in made.cut
    assert json.loads(made.content())["otherData"]["cut"] == made.cut


def test_times_have_three_digits(run):
    with (run.path / "events.jsonl").open("a") as file:
        for place in range(50):
            event = {"time_ns": MEASURE_NS + 1 + place * 9_999_991, "kind": "action", "do": "stall"}
            file.write(json.dumps(event) + "\n")
    times = re.findall(rb'"(?:ts|dur)":([0-9.e+-]+)', trace(sim.results.open(run.path), from_s=0.0).content())
    assert len(times) > 4 * RINGS + 50
    assert not [each for each in times if not re.fullmatch(rb"[0-9]+(\.[0-9]{1,3})?", each)]


def test_a_warm_up_that_is_left_out_is_no_cut(tmp_path):
    directory = RunDirectory.create(tmp_path, topology({"alone": (1, 1)}), {})
    stamps = [START_NS + place * 10_000_000 for place in range(RINGS)]
    rings = [(0, 0, at, at) for at in stamps]
    drains = [(0, 1, at + 30_000, at + 40_000) for at in stamps]
    # One that is dealt with when the time is up is no cut either.
    rings, drains = [*rings, (0, 0, STOP_NS - 1, STOP_NS - 1)], [*drains, (0, 1, STOP_NS + 5000, STOP_NS + 6000)]
    edges = {(0, 0): (RINGS + 1, 0)}
    record(directory, 0, vectors=[(RINGS + 1, RINGS + 1)], edges=edges, rings=rings, drains=drains)
    made = finish(directory)
    whole = trace(made)
    assert whole.cut == ""
    assert re.fullmatch(r"the warm-up, the first 1 s with 200 doorbells and interrupts", whole.before)
    assert (whole.events, trace(made, from_s=0.0).before) == (2 * 202, "")
    cut = trace(made, 40)
    assert "of 202 doorbells and interrupts, from 1 s to " in cut.cut
    assert cut.before == whole.before
    done = CliRunner().invoke(command, [str(made.path)])
    assert done.stderr == f"without {whole.before}; --from 0s has them too\n"


def test_a_trace_begins_where_it_is_told_to(run):
    every = events_of(trace(run, from_s=0.0).content())
    later = events_of(trace(run, from_s=1.5).content())
    check(later)
    assert min(event["ts"] for event in later if event["ph"] == "X") >= 1_500_000
    assert len(later) < len(every)
    with pytest.raises(UsageError, match="nothing was rung or drained from 99 s on"):
        trace(run, from_s=99.0)


def test_pending_doorbells_have_no_flow_and_foreign_peers_no_process(tmp_path):
    run = finish(pair(tmp_path), {(1, 1): 1})
    events = events_of(trace(run, from_s=0.0).content())
    check(events)
    kinds = Counter(event["ph"] for event in events)
    assert (kinds["X"], kinds["s"]) == (5, 2)


def test_an_empty_run_has_no_trace(tmp_path):
    directory = RunDirectory.create(tmp_path, topology({"alone": (1, 1)}), {})
    record(directory, 0, vectors=[(0, 0)])
    with pytest.raises(UsageError, match="nothing"):
        trace(finish(directory))


def test_the_command_writes_what_it_names(run, tmp_path):
    done = CliRunner().invoke(command, [str(run.path), "--events", "100"])
    assert (done.exit_code, done.stdout) == (0, f"{run.path / 'trace.json.gz'}\n")
    assert done.stderr.startswith("cut to ")
    packed = (run.path / "trace.json.gz").read_bytes()
    plain = tmp_path / "trace.json"
    assert CliRunner().invoke(command, [str(run.path), "--events", "100", "-o", str(plain)]).exit_code == 0
    assert gzip.decompress(packed) == plain.read_bytes()
    done = CliRunner().invoke(command, [str(run.path), "--from", "0s", "-o", "-"])
    assert (done.stderr, len(events_of(done.stdout_bytes)) > 4 * RINGS) == ("", True)
    assert CliRunner().invoke(command, [str(run.path), "--from", "soon"]).exit_code == 2
