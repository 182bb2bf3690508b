"""Every table of the API has one schema, whatever the run holds."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

import sim
from sim.results import Run, RunDirectory
from sim.results.store.schemas import MIGRATIONS
from sim.results.summary import MigrationOutcome
from tests.synthetic import MEASURE_NS, PENDING, finish, long_run, pair, record, topology, usage

PARTS = ("group", "machine", "vector", "source", "edge", "phase")


def tables(run: Run) -> dict[str, pa.Schema]:
    """The schema of every table that a run gives."""
    found = {name: run.table(name) for name in ("samples", "drains", "edges", "vectors", "resources", "histograms")}
    for intervals in (False, True):
        found |= {f"latency {by} {intervals}": run.latency(by=by, intervals=intervals) for by in ((), *PARTS)}
    found |= {f"coalescing {by}": run.coalescing(by) for by in (None, "group", "machine", "vector")}
    found |= {f"flows {by}": run.flows(by) for by in ("edge", "machine", "group")}
    found |= {"migrations": run.migrations(), "compare": sim.compare(run, run).table()}
    return {name: table.schema.remove_metadata() for name, table in found.items()}


def migrating(parent: Path) -> Run:
    directory = pair(parent)
    moved = {"kind": "migrated", "machine": "ping-0", "from_peer": 0, "to_peer": 5, "downtime_ms": 2.5}
    begun = {"kind": "action", "do": "migrate", "machine": "ping-0", "line": 4}
    with (directory.path / "events.jsonl").open("a") as file:
        for number, event in enumerate((begun, moved)):
            file.write(json.dumps({"time_ns": MEASURE_NS + number * 10_000_000, "utc": "", **event}) + "\n")
    for second in range(3):
        directory.resources([usage(0, "ping-0", second), usage(1, "echo-0", second)])
    return finish(directory, PENDING)


def silent(parent: Path) -> Run:
    directory = RunDirectory.create(parent, topology({"ping": (1, 2), "echo": (1, 2)}), {})
    for machine in range(2):
        record(directory, machine, vectors=[(0, 0), (0, 0)])
    return finish(directory)


@pytest.mark.parametrize("make", [migrating, silent, lambda parent: sim.open(long_run(parent, 5000))])
def test_the_schema_does_not_depend_on_the_data(tmp_path, make):
    wanted = tables(finish(pair(tmp_path), PENDING))
    found = tables(make(tmp_path))
    assert {name: schema for name, schema in found.items() if not schema.equals(wanted[name])} == {}
    assert not any(pa.types.is_null(field.type) for schema in found.values() for field in schema)


def test_the_table_of_migrations_has_every_field():
    assert tuple(MIGRATIONS.names) == MigrationOutcome.__struct_fields__
