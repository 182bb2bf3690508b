"""Any value in place of any number in a run's files: what can be read is shown, the rest is refused in words.

Finished runs and runs whose coordinator died; `show`, `report`, `trace`, `compare` and the API.
"""

from __future__ import annotations

import io
import json
import math
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

import sim
from nodes.errors import UsageError
from sim.results import Run
from sim.views.html.page import page
from sim.views.junit import junit
from sim.views.notebook import run_html
from sim.views.perfetto import trace
from sim.views.terminal import render, render_comparison
from tests.samples import examples
from tests.synthetic import MEASURE_NS, SECOND_NS, START_NS, orphan, pair, usage

EXTREMES = (
    0,
    -1,
    1 << 31,
    1 << 53,
    (1 << 60) + 1,
    (1 << 63) - 1,
    1 << 63,
    1 << 64,
    10**30,
    -(10**30),
    1e-300,
    1e308,
    -1e308,
)
FILES = ("summary.json", "manifest.json", "events.jsonl")
TABLES = ("samples", "drains", "edges", "vectors", "resources", "histograms")
MOVED = {"from_peer": 0, "to_peer": 5, "from_domain": "main", "to_domain": "main", "pending_vectors": 1}
EVENTS: list[dict[str, Any]] = [
    {"kind": "ready", "start_ns": START_NS},
    {"kind": "action", "do": "migrate", "machine": "ping-0", "line": 4, "delay_us": 5.5, "vectors": [0, 1]},
    {"kind": "migrated", "machine": "ping-0", "downtime_ms": 2.5, "state_bytes": 300, "memory_bytes": 4096, **MOVED},
    {"kind": "left_behind", "machine": "ping-0", "domain": "main", "peer": 0, "doorbells": 3},
    {"kind": "machine_died", "machine": "echo-0", "how": "exit 1"},
    {"kind": "statistics", "machine": "ping-0", "values": {"pings": 3, "mean_us": 2.5}},
    {"kind": "aborted", "expected": "rung == 3", "got": 3.0},
]  # fmt: skip


def unfinished(parent: Path) -> Path:
    """A run whose coordinator died, with events and resources of every kind."""
    directory = pair(parent)
    for second in range(3):
        rows = [usage(0, "ping-0", second), usage(1, "echo-0", second), usage(-1, "coordinator", second)]
        directory.resources([*rows, usage(-2, "host", second, load_1=1.0, steal_s=0.1, sampling_s=0.1)])
    with (directory.path / "events.jsonl").open("a") as file:
        for number, event in enumerate(EVENTS):
            file.write(json.dumps({"time_ns": MEASURE_NS + number * SECOND_NS // 10, "utc": "", **event}) + "\n")
    return orphan(directory)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run, and one whose coordinator died."""
    parent = tmp_path_factory.mktemp("runs")
    died = unfinished(parent)
    done = parent / "done"
    shutil.copytree(died, done)
    _ = sim.open(done)
    return {"died": died, "done": done}


def look(path: Path) -> list[str]:
    """Show a run in every way; what cannot be, in its own words."""
    refused = []
    try:
        run = sim.open(path)
    except UsageError as error:
        return [str(error)]
    console = Console(file=io.StringIO(), width=200)
    ways: list[Callable[[], object]] = [
        lambda: render(run, console), lambda: page(run), lambda: trace(run).content(), lambda: run_html(run),
        lambda: run.problems, lambda: json.dumps(run.summary), lambda: json.dumps(run.manifest),
        lambda: junit(run.figures.expectations, run),
        lambda: render_comparison(sim.compare(run, run), [], console),
        lambda: run.latency(by=("edge", "vector"), intervals=True), lambda: run.latency(by="phase"),
        run.flows, lambda: run.matrix("machine", "delivered"), lambda: run.coalescing("group"),
        lambda: run.histogram("total", by="group"), lambda: run.histogram("drained"), run.migrations,
        lambda: run.frame("samples"), lambda: run.frame("resources"), lambda: run.aborted,
    ]  # fmt: skip
    for way in ways:
        try:
            way()
        except UsageError as error:
            refused.append(str(error))
    return refused


def numbers_in(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all numbers in JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield from numbers_in(each, (*at, key))
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield at


def changed(value: Any, at: tuple[Any, ...], to: object) -> Any:
    """``value`` with another number at a path."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = to
    return copy


def content(path: Path) -> Any:
    text = path.read_text()
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


def write(path: Path, value: Any) -> None:
    lines = [json.dumps(each) for each in value] if path.suffix == ".jsonl" else [json.dumps(value)]
    path.write_text("\n".join(lines) + "\n")


@settings(max_examples=examples(80), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_number_in_json(runs, tmp_path_factory, data):
    name, which = data.draw(st.sampled_from(FILES)), data.draw(st.sampled_from(["done", "died"]))
    if name == "summary.json":
        which = "done"
    path = tmp_path_factory.mktemp("run") / "run"
    shutil.copytree(runs[which], path)
    value = content(path / name)
    at = data.draw(st.sampled_from([*numbers_in(value)]))
    write(path / name, changed(value, at, data.draw(st.sampled_from(EXTREMES))))
    look(path)
    shutil.rmtree(path)


def sampled(request, seed, cases, count):
    """``count`` of these cases, drawn by the session's seed; all of them in `make full`."""
    full = request.config.getoption("--full")
    return cases if full else random.Random(seed).sample(cases, min(count, len(cases)))


def extremes_of(schema):
    """Each place of a number in a row of a table, with each value that is tried there."""
    for at, field in enumerate(schema):
        if pa.types.is_string(field.type) or pa.types.is_boolean(field.type):
            continue
        bits = field.type.bit_width
        most = (1 << bits) - 1 if pa.types.is_unsigned_integer(field.type) else (1 << (bits - 1)) - 1
        of_integers = (most, most >> 2, -most if bits > 16 else 0)
        for value in (1e308, math.nan, math.inf, -1e308) if pa.types.is_floating(field.type) else of_integers:
            yield at, field, value


@pytest.mark.parametrize("table", TABLES)
def test_any_number_in_any_column_of_a_table(runs, tmp_path, table, request, seed):
    path = tmp_path / "run"
    shutil.copytree(runs["done"], path)
    file = path / f"{table}.parquet"
    whole = pq.read_table(file)
    for at, field, value in sampled(request, seed, list(extremes_of(whole.schema)), 3):
        values = whole.column(at).to_pylist()
        values[0] = value
        pq.write_table(whole.set_column(at, field, pa.array(values, field.type)), file)
        refused = look(path)
        assert all(table in words or "bin" in words for words in refused), (field, value, refused)
    pq.write_table(whole, file)
    assert look(path) == []


def test_rows_of_a_damaged_stream_are_left_out_and_said(runs, tmp_path, request, seed):
    stream = runs["died"] / "resources.arrows"
    with pa.OSFile(str(stream)) as file:
        whole = pa.ipc.open_stream(file).read_all()
    numbers = [(at, field) for at, field in enumerate(whole.schema) if not pa.types.is_string(field.type)]
    for at, field in sampled(request, seed, numbers, 3):
        path = tmp_path / field.name
        shutil.copytree(runs["died"], path)
        values = whole.column(at).to_pylist()
        values[0] = float("inf") if pa.types.is_floating(field.type) else (1 << field.type.bit_width - 1) - 1
        table = whole.set_column(at, field, pa.array(values, field.type))
        with pa.OSFile(str(path / stream.name), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
        assert look(path) == []
        run = Run(path)
        assert run.resources().num_rows == whole.num_rows - 1
        (problem,) = run.problems
        assert problem.startswith(f"resources.arrows is damaged: {field.name} ")
        assert problem.endswith("; 1 rows are left out")


@settings(max_examples=examples(80), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.dictionaries(
        st.integers(0, 90), st.sampled_from([0, 1, 1 << 20, 1 << 43, 1 << 62, (1 << 64) - 1]), max_size=4
    )
)
def test_any_words_in_recordings(runs, tmp_path_factory, words):
    path = tmp_path_factory.mktemp("run") / "run"
    shutil.copytree(runs["died"], path)
    for machine in (0, 1):
        file = path / "raw" / f"{machine}.rec"
        its = np.fromfile(file, np.uint64)
        for at, word in words.items():
            if at < len(its):
                its[at] = word
        its.tofile(file)
    look(path)
    shutil.rmtree(path)
