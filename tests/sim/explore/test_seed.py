"""One seed: what a run in memory finds, and that it is the same each time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nodes.errors import UsageError
from sim.engines.virtual.chaos import Decision
from sim.explore import explore, run_seed
from topologies import load, loads

ROUNDED = str(Path(__file__).parents[2] / "golden" / "rounded_costs.toml")
"""The costs under which the schedules below were found: their times follow from them."""
STORM = """
[run]
duration_s = 0.002
warmup_s = 0.0
sample_every = 0
[memory]
size = "4K"
[machines.storm]
count = 8
vectors = 2
program = "storm"
parameters = { to = "storm" }
[chaos]
wake_delays = 0.05
message_delays = 0.05
cuts = 0.1
reorders = 0.1
delay_max_us = 300.0
kills_per_s = 300
stalls_per_s = 300
fills_per_s = 300
outage_max_us = 500.0
"""


def test_the_same_seed_gives_the_same_outcome_and_its_schedule_too():
    topology = loads(STORM)
    first = run_seed(topology, 5)
    assert first.broken is None
    assert first.decisions
    assert first == run_seed(topology, 5)
    again = run_seed(topology, 5, first.decisions)
    assert (again.events, again.doorbells) == (first.events, first.doorbells)
    assert run_seed(topology, 6).decisions != first.decisions


def test_a_counter_that_was_filled_and_emptied_is_no_error():
    """Found by `ivsim explore`: a machine that is resumed looked at the times of an empty counter."""
    fill = Decision("fill", "storm-3", 0, 1_461_780, 1616), Decision("fill", "storm-0", 0, 1_474_360, 81_576)
    assert run_seed(loads(STORM, overrides={"run.cost_model": ROUNDED}), 56, fill).broken is None


def test_a_machine_that_is_filled_twice_has_its_counts_back():
    """Found by `ivsim explore`: the second fill kept what the first one had put there as what had been rung."""
    fills = Decision("fill", "storm-7", 0, 1_005_530, 361_025), Decision("fill", "storm-7", 1, 1_130_280, 7385)
    assert run_seed(loads(STORM, overrides={"run.cost_model": ROUNDED}), 168, fills).broken is None


@pytest.mark.parametrize("jobs", [1, 2])
def test_no_invariant_is_broken_in_a_storm_with_faults(jobs):
    found = explore(loads(STORM), range(48), jobs=jobs)
    assert (found.seeds, found.broken) == (48, [])
    assert found.decisions > 48
    assert found.doorbells > 48 * 1000


@pytest.mark.slow
@pytest.mark.full
def test_no_invariant_is_broken_by_as_many_seeds_as_asked_for():
    seeds = int(os.environ.get("IVSIM_SEEDS", "1000"))
    found = explore(loads(STORM), range(seeds), jobs=2)
    assert (found.seeds, found.broken) == (seeds, [])


def test_a_leave_of_a_machine_without_vectors_is_not_told_twice():
    """The server announces the leave of a machine that none has heard of, as QEMU's does."""
    none = "[machines.none]\nvectors = 0\nprofile = 'qemu-plain'\nprogram = 'idle'\n"
    leave = "[[timeline]]\nat_s = 0.0005\ndo = 'leave'\nmachines = 'none'\n"
    assert run_seed(loads(STORM.partition("[chaos]")[0] + none + leave), 1).broken is None


WORKER = """
def worker(guest):
    words = guest.memory.cast("Q")
    for _ in range(4):
        yield guest.clock() + 5_000_000
        words[0] += 1


def is_working(state):
    words = state.memory.cast("Q")
    return words[0] == 4 or words[0]
"""
WORKED = """
[run]
duration_s = 0.05
warmup_s = 0.0
[memory]
size = "4K"
[machines.worker]
program = "worker"
[[invariant]]
that = "workers:is_working"
within_ms = 8.0
"""


def test_the_time_of_a_liveness_invariant_begins_with_the_programs(tmp_path):
    """And not when all are ready, 50 ms before."""
    (tmp_path / "workers.py").write_text(WORKER)
    assert run_seed(loads(WORKED, programs=[tmp_path / "workers.py"]), 1).broken is None


def test_a_real_qemu_has_no_place():
    with pytest.raises(UsageError, match="real QEMU"):
        explore(load("linux_guest"), range(1))
