"""Doorbells by sender and receiver, how many of them are known to have arrived, and how they shared wake-ups."""

from __future__ import annotations

import numpy as np
import pytest

from nodes.errors import UsageError
from sim.results import Run, RunDirectory
from sim.views.notebook import matrix_html
from tests.synthetic import MEASURE_NS, PENDING, finish, pair, record, topology


@pytest.fixture
def fan(tmp_path) -> Run:
    """Two senders and one receiver: both rang its vector 0 and two pend; one alone rang vector 1, three pend."""
    directory = RunDirectory.create(tmp_path, topology({"sender": (2, 2), "receiver": (1, 2)}), {})
    nothing = [(0, 0), (0, 0)]
    record(directory, 0, vectors=nothing, edges={(2, 0): (10, 1), (2, 1): (7, 0), (1, 0): (4, 0)})
    record(directory, 1, vectors=[(4, 4), (0, 0)], edges={(2, 0): (20, 0), (2, 1): (0, 0)})
    drains = [(0, count, MEASURE_NS + count, MEASURE_NS + 100) for count in (1, 1, 5, 20)] + [(1, 4, MEASURE_NS, 0)]
    record(directory, 2, vectors=[(27, 4), (4, 1)], drains=drains)
    return finish(directory, {(2, 0): 2, (2, 1): 3})


def test_delivered_is_known_for_a_single_sender_or_without_pending(fan):
    rows = {(row["source"], row["target"], row["vector"]): row for row in fan.flows().to_pylist()}
    counts = {at: (row["rung"], row["refused"], row["delivered"], row["pending"]) for at, row in rows.items()}
    assert counts["sender-0", "receiver-0", 1] == (7, 0, 4, 3)
    assert counts["sender-0", "sender-1", 0] == (4, 0, 4, 0)
    assert counts["sender-1", "receiver-0", 1] == (0, 0, 0, 0)
    # Whose doorbells the two pending ones are, an eventfd does not say.
    assert counts["sender-0", "receiver-0", 0] == (10, 1, None, None)
    assert counts["sender-1", "receiver-0", 0] == (20, 0, None, None)
    one = rows["sender-0", "receiver-0", 0]
    assert (one["source_group"], one["target_group"]) == ("sender", "receiver")


def test_a_group_that_rang_alone_is_told_apart_although_its_machines_are_not(fan):
    rows = fan.flows("group").to_pylist()
    assert [(row["source"], row["target"], row["rung"], row["delivered"], row["pending"]) for row in rows] == [
        ("sender", "sender", 4, 4, 0),
        ("sender", "receiver", 37, 31, 5),
    ]


def test_matrices_by_machine_and_by_group(fan):
    machines = fan.matrix("machine")
    assert machines.rows == machines.columns == ["sender-0", "sender-1", "receiver-0"]
    assert machines.values.tolist() == [[0, 4, 17], [0, 0, 20], [0, 0, 0]]
    assert machines["sender-0", "receiver-0"] == 17
    assert fan.matrix("group", "refused").values.tolist() == [[0, 1], [0, 0]]
    assert np.isnan(fan.matrix("machine", "delivered")["sender-0", "receiver-0"])
    assert machines.frame().loc["sender-1", "receiver-0"] == 20
    shown = matrix_html(fan.matrix("machine", "delivered"))
    assert "<th>sender-0</th><td>0</td><td>4</td><td></td>" in shown
    assert int(machines.values.sum()) == fan.summary["rung"]


def test_peers_outside_the_topology_have_a_column_of_their_own(tmp_path):
    directory = RunDirectory.create(tmp_path, topology({"from": (1, 1)}), {})
    record(directory, 0, vectors=[(0, 0)], edges={(9, 0): (5, 0), (0, 0): (0, 0)})
    run = finish(directory, foreign_pending={(9, 0): 1})
    assert run.matrix("group").values.tolist() == [[0, 5]]
    assert run.matrix("group").columns == ["from", "(foreign)"]
    assert run.flows("group").to_pylist()[1]["delivered"] is None


def test_how_many_doorbells_shared_a_wake_up(fan):
    (row,) = fan.coalescing().to_pylist()
    assert (row["doorbells"], row["wakes"], row["p50"], row["max"]) == (31, 5, 4, 20)
    assert row["mean"] == pytest.approx(6.2)
    by_vector = fan.coalescing("vector").to_pylist()
    assert [(row["vector"], row["doorbells"], row["wakes"]) for row in by_vector] == [(0, 27, 4), (1, 4, 1)]
    by_group = {row["group"]: row["wakes"] for row in fan.coalescing("group").to_pylist()}
    assert by_group == {"sender": 0, "receiver": 5}
    assert fan.histogram("drained").columns()["low"].tolist() == [1, 4, 5, 20]
    assert {name: len(its) for name, its in fan.histogram("drained", by="machine").items()} == {"receiver-0": 5}
    assert fan.summary["drained"]["max"] == 20
    assert fan.summary["groups"]["receiver"]["drained"]["samples"] == 5
    assert fan.summary["groups"]["sender"]["drained"]["max"] is None


def test_a_run_without_doorbells(tmp_path):
    directory = RunDirectory.create(tmp_path, topology({"idle": (2, 1)}), {})
    for machine in range(2):
        record(directory, machine, vectors=[(0, 0)])
    run = finish(directory)
    assert run.flows().num_rows == run.flows("group").num_rows == 0
    assert run.matrix("machine").values.tolist() == [[0, 0], [0, 0]]
    assert run.coalescing().to_pylist()[0]["mean"] is None
    assert len(run.histogram("drained")) == len(run.histogram()) == 0


def test_unknown_names_are_refused(tmp_path):
    run = finish(pair(tmp_path), PENDING)
    for ask in (
        lambda: run.flows("color"),
        lambda: run.matrix("edge"),
        lambda: run.matrix("group", "smell"),
        lambda: run.coalescing("edge"),
        lambda: run.matrix("group")["ping", "nobody"],
    ):
        with pytest.raises(UsageError, match="expected"):
            ask()
