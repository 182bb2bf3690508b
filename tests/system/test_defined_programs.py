"""Programs that are functions of the caller: in a script, in a cell, with what they refer to."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

import sim
from nodes.errors import UsageError
from nodes.guest import NOW, Guest, Peers, Program
from sim.defined_programs import program_files
from topologies import load

TOPOLOGY = """
[run]
duration_s = 0.3
warmup_s = 0.0
[machines.sender]
program = "announce"
parameters = { to = "receiver", vector = 1 }
[machines.receiver]
vectors = 2
program = "idle"
"""
ROUNDS = 7


def test_a_function_with_what_it_refers_to_is_a_program(tmp_path: Path) -> None:
    rounds = ROUNDS

    def announce(guest: Guest, *, to: Peers, vector: int = 0) -> Program:
        for _ in range(rounds):
            for peer in to:
                guest.ring(peer, vector)
            yield NOW

    (tmp_path / "t.toml").write_text(TOPOLOGY)
    run = sim.run(tmp_path / "t.toml", runs=tmp_path / "runs", programs=announce)
    assert (run.status, run.balanced, run.figures.rung) == ("finished", True, ROUNDS)


WITHOUT_FUTURE = """
from nodes.guest import NOW, Guest, Peers, Program
def announce(guest: Guest, *, to: Peers, vector: int = 0) -> Program:
    yield NOW
"""


def test_annotations_that_are_types_and_not_text_survive_the_way(tmp_path: Path) -> None:
    """Those of a cell, or of a script without ``from __future__ import annotations``."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(WITHOUT_FUTURE, "cell", "exec", dont_inherit=True), names)
    (tmp_path / "t.toml").write_text(TOPOLOGY)
    with program_files(names["announce"]) as files:
        topology = load(tmp_path / "t.toml", {}, files)
    assert topology.machines[0].parameters["to"] == (1,)


def test_a_function_that_cannot_be_sent_is_refused_before_the_run(tmp_path: Path) -> None:
    lock = threading.Lock()

    def announce(guest: Guest) -> Program:
        with lock:
            yield NOW

    (tmp_path / "t.toml").write_text(TOPOLOGY)
    with pytest.raises(UsageError, match=r"announce: cannot be sent to other processes: .*lock"):
        sim.run(tmp_path / "t.toml", runs=tmp_path / "runs", programs=[announce])
    with pytest.raises(UsageError, match="expected a program with a name"):
        sim.run(tmp_path / "t.toml", runs=tmp_path / "runs", programs=lambda guest: iter(()))
    assert not (tmp_path / "runs").exists()
