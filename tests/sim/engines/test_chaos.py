"""Delays and faults under virtual time, drawn from the seed."""

from __future__ import annotations

import pytest

import sim
from sim.engines.virtual.chaos import Decision, draw_decisions, with_faults
from topologies import loads

STORM = """
[run]
duration_s = 0.01
warmup_s = 0.0
sample_every = 0
engine = "virtual"
[machines.storm]
count = 4
program = "storm"
parameters = { to = "storm", rate_hz = 20000.0 }
"""
CHAOS = """
[chaos]
wake_delays = 0.2
message_delays = 0.2
cuts = 0.3
reorders = 0.3
delay_max_us = 200.0
kills_per_s = 200
stalls_per_s = 200
fills_per_s = 200
"""


def counts(run):
    return [(each.rung, each.delivered, each.pending, each.refused) for each in run.figures.groups.values()]


def test_the_same_seed_gives_the_same_faults_and_the_counts_balance(tmp_path):
    topology = loads(STORM + CHAOS)
    first, second = (sim.run(topology, runs=tmp_path) for _ in range(2))
    assert first.status == "finished"
    assert first.balanced
    assert counts(first) == counts(second)
    assert counts(first) != counts(sim.run(loads(STORM), runs=tmp_path))


def test_faults_are_in_the_timeline():
    topology = loads(STORM + CHAOS)
    decisions = draw_decisions(topology)
    entries = with_faults(topology, decisions).timeline
    assert {each.kind for each in decisions.taken} <= {"kill", "stall", "fill"}
    assert len(entries) == 2 * len(decisions.taken) > 0


def test_given_decisions_are_taken_and_no_others():
    topology = loads(STORM + CHAOS)
    given = [Decision("wake", "storm-1", 2, 5000), Decision("stall", "storm-0", 0, 1000, 2000)]
    decisions = draw_decisions(topology, given)
    assert len(with_faults(topology, decisions).timeline) == 2
    assert decisions.delays("message", "storm-1") is None
    wake = decisions.delays("wake", "storm-1")
    assert [wake(), wake(), wake(), wake()] == [0, 0, 5000, 0]
    assert decisions.taken == [given[1], given[0]]


def test_a_rate_of_nothing_draws_nothing():
    decisions = draw_decisions(loads(STORM))
    assert decisions.delays("wake", "storm-1") is decisions.cuts("storm-1") is decisions.reorders("storm-1") is None


@pytest.mark.parametrize("kind", ["wake", "message", "preempt"])
def test_delays_are_within_the_longest(kind):
    always = "[chaos]\nwake_delays = 1\nmessage_delays = 1\npreemptions = 1\ndelay_max_us = 50\n"
    decisions = draw_decisions(loads(STORM + always))
    draw = decisions.delays(kind, "storm-1")
    drawn = [draw() for _ in range(500)]
    assert 1000 <= min(drawn) < 2000
    assert 25_000 < max(drawn) <= 50_000
