"""Accounts that deaths, foreign clients and full logs left open: settled and reported, or the run has failed."""

from __future__ import annotations

import pytest

from sim.recording.header import COUNTER_AT
from sim.results import Run, RunDirectory
from tests.synthetic import (
    MEASURE_NS,
    account,
    finish,
    record,
    topology,
)


def storm(tmp_path, words: int, *, delivered: int = 10, pending: int = 0, exits=None, status="degraded") -> Run:
    """Machine 0 rang machine 1 as often as its ``words`` say; 10 arrived unless said otherwise."""
    directory = RunDirectory.create(tmp_path, topology({"from": (1, 1), "to": (1, 1)}), {})
    record(directory, 0, vectors=[(0, 0)], edges={(1, 0): (words, 0)})
    record(directory, 1, vectors=[(delivered, delivered)])
    return finish(directory, {(1, 0): pending}, exits=exits, status=status)


def test_a_dead_receivers_lost_count_is_settled(tmp_path):
    run = storm(tmp_path, 25, pending=3, exits={1: "SIGKILL"})
    assert account(run.summary) == (25, 22, 3, 0, 12)
    assert run.summary["groups"]["to"]["settled"] == 12
    assert (run.status, run.balanced, run.summary["deaths"]) == ("degraded", True, {"to-0": "SIGKILL"})


def test_a_dead_senders_lost_count_is_settled(tmp_path):
    run = storm(tmp_path, 4, pending=1, exits={0: "SIGKILL"})
    assert account(run.summary) == (11, 10, 1, 0, 7)
    assert run.balanced
    # Its own edge says what its own words said.
    assert run.edges()["rung"].to_pylist() == [4]
    assert run.vectors()["rung"].to_pylist() == [0, 11]


def test_a_dead_sender_may_have_counted_what_it_never_wrote(tmp_path):
    run = storm(tmp_path, 11, exits={0: "SIGKILL"})
    assert account(run.summary) == (10, 10, 0, 0, 1)


@pytest.mark.parametrize(("words", "pending"), [(25, 3), (4, 1), (11, 0)])
def test_a_clean_run_that_does_not_balance_has_failed(tmp_path, words, pending):
    run = storm(tmp_path, words, pending=pending, status="finished")
    assert run.status == "failed"
    assert "do not balance on 1 of 2 lines" in run.reason
    assert "to-0, vector 0" in run.reason
    assert not run.balanced
    assert account(run.summary) == (words, 10, pending, 0, 0)


def test_the_death_of_a_bystander_explains_nothing(tmp_path):
    directory = RunDirectory.create(tmp_path, topology({"from": (1, 1), "to": (1, 1), "other": (1, 1)}), {})
    record(directory, 0, vectors=[(0, 0)], edges={(1, 0): (12, 0)})
    record(directory, 1, vectors=[(10, 1)])
    record(directory, 2, vectors=[(0, 0)], edges={(0, 0): (0, 0)})
    run = finish(directory, exits={2: "SIGKILL"}, status="degraded")
    assert (run.status, run.balanced, run.summary["settled"]) == ("failed", False, 0)


def test_an_interrupted_run_stays_interrupted_when_it_does_not_balance(tmp_path):
    run = storm(tmp_path, 12, status="interrupted")
    assert (run.status, run.balanced) == ("interrupted", False)


def test_refused_doorbells_balance(tmp_path):
    directory = RunDirectory.create(tmp_path, topology({"from": (1, 1), "to": (1, 1)}), {})
    record(directory, 0, vectors=[(0, 0)], edges={(1, 0): (9, 4)}, further={COUNTER_AT["rung_nowhere"]: 2})
    record(directory, 1, vectors=[(5, 1)], further={COUNTER_AT["pba_pending"]: 3, COUNTER_AT["dropped"]: 1})
    run = finish(directory)
    assert account(run.summary) == (11, 5, 0, 6, 0)
    groups = run.summary["groups"]
    assert account(groups["nowhere"]) == (2, 0, 0, 2, 0)
    assert (groups["from"]["sent"], groups["to"]["pba_pending"], groups["to"]["dropped"]) == (11, 3, 1)
    assert run.balanced


def test_foreign_peers_have_an_account_of_their_own(tmp_path):
    """Peer 7 is no machine: it was rung 6 times, 2 of them pend; and it rang machine 0 three times."""
    directory = RunDirectory.create(tmp_path, topology({"foreign": (1, 1)}), {})
    at = MEASURE_NS
    record(
        directory,
        0,
        vectors=[(3, 3)],
        edges={(7, 0): (6, 0)},
        rings=[(7, 0, at, at)],
        drains=[(0, 3, at + 5, at + 6)],
    )
    run = finish(directory, foreign_pending={(7, 0): 2})
    assert account(run.summary["groups"]["foreign_"]) == (6, 4, 2, 0, 4)
    assert account(run.summary["groups"]["foreign"]) == (3, 3, 0, 0, 3)
    assert account(run.summary) == (9, 7, 2, 0, 7)
    assert run.balanced
    assert run.edges()["target"].to_pylist() == [None]
    assert run.samples()["target"].to_pylist() == [None]
    assert run.latency(by="group").num_rows == 0


@pytest.mark.parametrize(("foreign_peers", "settled"), [(1, 3), (0, 0)])
def test_a_foreign_peer_that_no_machine_rings_may_ring(foreign_peers, settled, tmp_path):
    """And without one, what no machine has rung is an error."""
    directory = RunDirectory.create(tmp_path, topology({"rung": (1, 1)}), {})
    record(directory, 0, vectors=[(3, 3)], drains=[(0, 3, MEASURE_NS, MEASURE_NS)])
    run = finish(directory, foreign_peers=foreign_peers)
    assert (run.balanced, run.summary["settled"]) == (bool(foreign_peers), settled)


def test_peers_need_not_be_in_the_order_of_machines(tmp_path):
    directory = RunDirectory.create(tmp_path, topology({"from": (1, 1), "to": (1, 1)}), {})
    at = MEASURE_NS
    record(directory, 0, peer=9, vectors=[(0, 0)], edges={(4, 0): (1, 0)}, rings=[(4, 0, at, at)])
    record(directory, 1, peer=4, vectors=[(1, 1)], drains=[(0, 1, at + 50, at + 60)])
    run = finish(directory)
    assert (run.balanced, run.samples()["target"].to_pylist()) == (True, [1])


def test_full_logs_leave_samples_unmatched_and_never_wrong(tmp_path):
    directory = RunDirectory.create(tmp_path, topology({"from": (1, 1), "to": (1, 1)}), {})
    at = MEASURE_NS
    rings = [(1, 0, at + tick, at + tick) for tick in (0, 100, 200)]
    refused = {COUNTER_AT["samples_refused"]: 5}
    record(directory, 0, vectors=[(0, 0)], edges={(1, 0): (8, 0)}, rings=rings, further=refused)
    refused = {COUNTER_AT["drains_refused"]: 7}
    record(directory, 1, vectors=[(8, 8)], drains=[(0, 1, at + 50, at + 60)], further=refused)
    run = finish(directory)
    assert run.samples()["delivered_ns"].to_pylist() == [at + 50, None, None]
    figures = run.summary
    assert (figures["samples_refused"], figures["drains_refused"], figures["unmatched"]) == (5, 7, 2)
    assert run.balanced


def test_drains_with_more_samples_than_doorbells_are_told(tmp_path):
    directory = RunDirectory.create(tmp_path, topology({"from": (1, 1), "to": (1, 1)}), {})
    at = MEASURE_NS
    record(directory, 0, vectors=[(0, 0)], edges={(1, 0): (2, 0)}, rings=[(1, 0, at, at), (1, 0, at, at + 1)])
    record(directory, 1, vectors=[(2, 2)], drains=[(0, 1, at + 9, at + 10), (0, 1, at + 11, at + 12)])
    assert finish(directory).summary["overfull_drains"] == 1
