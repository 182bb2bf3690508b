"""Races inside a program: the lost wake-up of a ring buffer is found, shrunk and told; the right one survives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from sim.commands.run import run as run_command
from sim.explore import explore, read_replay, run_seed, shrink, write_replay
from sim.explore.seed import trace_seed
from topologies import load

EXAMPLES = Path(__file__).parents[3] / "examples"
PROGRAMS = [str(EXAMPLES / "ring_buffer.py"), str(EXAMPLES / "lost_wake_up.py")]


def ring_buffer(consumer):
    return load(str(EXAMPLES / "explore.toml"), {"machines.consumer.program": consumer}, PROGRAMS)


def test_the_lost_wake_up_is_found_within_1000_seeds_and_shrunk_to_at_most_20_decisions(tmp_path):
    topology = ring_buffer("lossy_consumer")
    found = explore(topology, range(1000))
    assert found.seeds <= 1000
    first = found.broken[0]
    assert (first.broken.invariant, first.broken.kind) == ("is_drained", "liveness")
    shortest = shrink(topology, first)
    assert 1 <= len(shortest.decisions) <= 20
    assert {each.kind for each in shortest.decisions} <= {"preempt", "wake"}
    for decision in shortest.decisions:
        left = [each for each in shortest.decisions if each is not decision]
        assert run_seed(topology, first.seed, left).broken is None

    write_replay(tmp_path / "schedule.json", topology, PROGRAMS, shortest)
    replay = read_replay(tmp_path / "schedule.json")
    told = []
    again = trace_seed(replay.topology(), replay.seed, replay.decisions, told.append)
    assert again.broken.invariant == replay.broken.invariant == "is_drained"
    assert any("is preempted for" in line for line in told)
    assert any("consumer: stores [0x80] 0x0 -> 0x1" in line for line in told)
    assert any("producer: stores [0x0] 0x3 -> 0x4" in line for line in told)  # after a time that it has waited for
    assert any("rings consumer:0" in line for line in told)


def test_run_replay_steps_through_a_schedule_with_every_event(tmp_path):
    topology = ring_buffer("lossy_consumer")
    file = tmp_path / "schedule.json"
    write_replay(file, topology, PROGRAMS, explore(topology, range(1000)).broken[0])
    done = CliRunner().invoke(run_command, ["--replay", str(file)])
    assert done.exit_code == 99, done.output
    events = done.output.splitlines()
    assert any("chaos: consumer: the program is preempted" in line for line in events)
    assert events[-1].startswith("broken: is_drained (liveness)")
    for beside in (["ring"], ["--seed", "3"]):
        refused = CliRunner().invoke(run_command, ["--replay", str(file), *beside])
        assert refused.exit_code == 2
        assert "expected --replay alone" in refused.output


def test_the_right_one_survives():
    found = explore(ring_buffer("consumer"), range(100))
    assert (found.seeds, found.broken) == (100, [])
    assert found.decisions > 100


@pytest.mark.slow
@pytest.mark.full
def test_the_right_one_survives_as_many_seeds_as_asked_for():
    seeds = int(os.environ.get("IVSIM_SEEDS", "10_000"))
    found = explore(ring_buffer("consumer"), range(seeds), jobs=2)
    assert (found.seeds, found.broken) == (seeds, [])


def test_a_function_that_raises_breaks_its_invariant(tmp_path):
    program = tmp_path / "mine.py"
    program.write_text(
        "def sleeper(guest):\n    yield 10**15\n\n\n"
        "def is_quiet(state):\n    assert state.time_ns < 5_000_000, 'too late'\n    return True\n"
    )
    text = """
[run]
duration_s = 0.01
warmup_s = 0.0
[machines.m]
count = 2
program = "sleeper"
[[invariant]]
that = "mine:is_quiet"
"""
    file = tmp_path / "mine.toml"
    file.write_text(text)
    broken = run_seed(load(file, {}, [program]), 1).broken
    assert (broken.invariant, broken.kind, broken.reason) == ("is_quiet", "safety", "AssertionError: too late")
