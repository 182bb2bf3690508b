"""Migrations from events to tables: their order, whose they were, and the same in `ivsim show` and the report."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sim.results import Run, RunDirectory
from sim.views.html.page import page
from sim.views.terminal import render
from tests.synthetic import MEASURE_NS, SECOND_NS, START_NS, finish, record, topology

BEGUN_NS = MEASURE_NS


def run_of(parent: Path, events: list[dict[str, Any]], **said: Any) -> Run:
    """Three machines a-0 to a-2 with the IDs 10 to 12; ``events`` with ``at`` in seconds after the start."""
    directory = RunDirectory.create(parent, topology({"a": (3, 1)}), {})
    for machine in range(3):
        record(directory, machine, vectors=[(0, 0)])
    with (directory.path / "events.jsonl").open("a") as file:
        for event in events:
            at_ns = START_NS + round(event["at"] * SECOND_NS)
            file.write(json.dumps({"time_ns": at_ns, "utc": "", **event}) + "\n")
    identities = [(machine, 0, 10 + machine) for machine in range(3)] + [(2, 0, 15)]
    return finish(directory, identities=identities, **said)


def begin(at: float, machine: str, **fields: object) -> dict[str, Any]:
    return {"at": at, "kind": "action", "do": "migrate", "machine": machine, "line": 1, **fields}


def moved(at: float, machine: str, before: int, after: int, **fields: object) -> dict[str, Any]:
    where = {"from_peer": before, "to_peer": after, "from_domain": "main", "to_domain": "main", "downtime_ms": 2.5}
    return {"at": at, "kind": "migrated", "machine": machine, **where, "state_bytes": 300, **fields}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    events = [
        begin(1.0, "a-0"),
        begin(1.1, "a-1", refused="a disk"),
        begin(1.2, "a-2"),
        moved(1.3, "a-2", 12, 15, pending_vectors=3),
        begin(1.4, "a-2"),
        {"at": 1.5, "kind": "migration_failed", "machine": "a-2", "reason": "it was cancelled", "downtime_ms": 1.5},
        begin(1.6, "a-1", hand_over=True),
        moved(1.7, "a-1", 11, 11),
        {"at": 1.8, "kind": "migration_failed", "machine": "a-0", "reason": "too late", "downtime_ms": 0.0},
    ]
    since_ns = START_NS + round(1.25 * SECOND_NS)
    return run_of(tmp_path, events, moves=[(2, 0, 15, since_ns)])


def test_migrations_stand_in_the_order_in_which_they_began(run):
    found = [(each.at_s, each.machine, each.verdict) for each in run.figures.migrations]
    assert found == [
        (1.0, "a-0", "failed"),
        (1.1, "a-1", "refused"),
        (1.2, "a-2", "moved"),
        (1.4, "a-2", "failed"),
        (1.6, "a-1", "moved"),
    ]


def test_those_that_stayed_were_somewhere_too(run):
    found = [(each.machine, each.from_domain, each.from_peer) for each in run.figures.migrations]
    assert found == [
        ("a-0", "main", 10),
        ("a-1", "main", 11),
        ("a-2", "main", 12),
        ("a-2", "main", 15),  # what it had become by then
        ("a-1", "main", 11),
    ]


def test_unknown_ids_are_not_reported(tmp_path):
    directory = RunDirectory.create(tmp_path, topology({"a": (1, 1)}), {})
    record(directory, 0, vectors=[(0, 0)])
    with (directory.path / "events.jsonl").open("a") as file:
        file.write(json.dumps({"time_ns": BEGUN_NS, **begin(1.0, "a-0", refused="a disk")}) + "\n")
    run = finish(directory)
    (its,) = run.figures.migrations
    assert (its.from_domain, its.from_peer) == ("", None)


def shown(run: Run, width: int = 120) -> list[str]:
    stream = io.StringIO()
    render(run, Console(file=stream, width=width, legacy_windows=False))
    return stream.getvalue().splitlines()


def test_show_has_the_verdict_of_the_figures_and_the_bits_that_went_along(run):
    lines = shown(run)
    (head,) = [at for at, line in enumerate(lines) if line.startswith("migration ")]
    assert re.split(r" {2,}", lines[head]) == [
        "migration", "verdict", "times", "from", "to", "downtime", "copied", "PBA bits", "left behind",
    ]  # fmt: skip
    rows = [re.split(r" {2,}", line) for line in lines[head + 1 : head + 6]]
    assert [row[:5] + row[7:8] for row in rows] == [
        ["a-0", "failed", "1", "main 10", "-", "-"],
        ["a-1", "refused", "1", "main 11", "-", "-"],
        ["a-2", "moved", "1", "main 12", "main 15", "3"],
        ["a-2", "failed", "1", "main 15", "-", "-"],
        ["a-1", "moved", "1", "main 11", "main 11", "0"],
    ]
    assert "handed over, connection and ID: a-1" in lines
    assert "refused: a-1: a disk" in lines
    assert max(map(len, shown(run, 80)[head : head + 6])) <= 80


def test_the_report_has_the_same_rows(run):
    content = page(run)
    table = content.partition('id="migrations"')[2].partition("</section>")[0]
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in re.findall(r"<tr>.*?</tr>", table)]
    lines = shown(run)
    (head,) = [at for at, line in enumerate(lines) if line.startswith("migration ")]
    assert rows == [re.split(r" {2,}", line) for line in lines[head : head + 6]]
    assert "refused: a-1: a disk" in table


def test_without_migrations_there_is_no_section(tmp_path):
    assert 'id="migrations"' not in page(run_of(tmp_path, []))


def test_more_outcomes_than_there_is_room_for_are_counted(tmp_path):
    run = run_of(tmp_path, [begin(1 + place / 100, "a-0", refused=f"reason {place}") for place in range(20)])
    assert "4 more outcomes of migrations stand in summary.json" in shown(run)
    assert "more outcomes" not in page(run)
