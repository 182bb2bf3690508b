"""Programs that are functions of the caller: in a script, in a cell, with what they refer to."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import sim
from nodes.errors import UsageError
from nodes.guest import NOW, Guest, Peers, Program

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
