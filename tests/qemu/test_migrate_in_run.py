"""Machines that are real QEMUs migrate in a run: by QMP's migrate, to a second QEMU, while others ring them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import sim
from sim.runner import Begun
from tests.qemu.test_kinds import check
from topologies import loads

pytestmark = pytest.mark.qemu

HEAD = """
[run]
duration_s = 100
warmup_s = 0
sample_every = 0
on_death = "degrade"

[domains]
"""
DOMAIN = '{name} = {{ size = "64K" }}\n'
MACHINES = """
[machines.{name}]
kind = "qemu"
vectors = 2
role = "master"
domains = ["{name}"]
program = "idle"

[machines.{name}-rings]
vectors = 2
domains = ["{name}"]
program = "storm"
parameters = {{ to = "{name}", rate_hz = 40.0 }}

[[timeline]]
at_s = 0.3
do = "mask"
machines = "{name}"
vectors = [1]

[[timeline]]
at_s = 0.6
do = "migrate"
machines = "{name}"
{keys}
"""
MOVES = {"kept": "hand_over = true", "mover": 'to_domain = "there"'}
FAULTS = {
    "cancelled": "cancel",
    "kept": "cancel",
    "dies": "target_dies",
    "gone": "server_gone",
    "lost": "source_dies",
}


END = """
[[timeline]] # a busy host takes long to start QEMUs; a machine that migrates counts nothing meanwhile
at_s = 4
when = "delivered >= 150"
of = "{name}"
do = "end"
"""


def topology(keys: dict[str, str]) -> str:
    names = [*keys, "there"]
    return (
        HEAD
        + "".join(DOMAIN.format(name=name) for name in names)
        + "".join(MACHINES.format(name=name, keys=text) for name, text in keys.items())
        + END.format(name=next(iter(keys)))
    )


COUNTS = """
def counts(guest):
    while True:
        count = int.from_bytes(guest.memory[:8], "little") + 1
        guest.memory[:8] = count.to_bytes(8, "little")
        yield guest.clock() + 10_000_000
"""


def test_a_qemu_moves_to_another_domain_and_one_is_handed_over(tmp_path: Path) -> None:
    program = tmp_path / "counting.py"
    program.write_text(COUNTS)
    text = topology(MOVES).replace('"idle"', '"counting:counts"')
    memories: dict[str, int] = {}

    def begin(begun: Begun) -> None:
        memories.update({each.domain: os.open(f"/dev/shm/{each.memory}", os.O_RDONLY) for each in begun.access})

    try:
        run = sim.run(loads(text, programs=[program]), runs=tmp_path, on_begin=begin)
        counted = {domain: int.from_bytes(os.pread(file, 8, 0), "little") for domain, file in memories.items()}
    finally:
        for file in memories.values():
            os.close(file)
    check(run)
    assert run.status == "finished", run.reason
    moved = {each.machine: each for each in run.figures.migrations}
    assert {name: each.verdict for name, each in moved.items()} == {"mover": "moved", "kept": "moved"}, run.events()
    assert (moved["mover"].from_domain, moved["mover"].to_domain, moved["mover"].to_peer) == ("mover", "there", 0)
    assert moved["mover"].memory_bytes == 1 << 16
    # It has gone on with what it had stored, in the memory where it is now.
    assert counted["there"] >= counted["mover"] > 0
    assert moved["kept"].memory_bytes == 0
    assert moved["kept"].delivered_after
    assert all(each.state_bytes for each in moved.values())
    # The pending bit of the vector that is masked has moved along.
    assert {name: each.pending_vectors for name, each in moved.items()} == {"mover": 1, "kept": 1}
    assert run.summary["groups"]["kept"]["refused"] == 0
    assert run.summary["settled"] == 0


def test_a_qemu_whose_migration_fails_stays_and_works(tmp_path: Path) -> None:
    # One master alone can arrive in another domain: it needs the ID 0.
    there = {"cancelled", "gone"}
    keys = {
        name: f'fault = "{fault}"\n' + ('to_domain = "there"' if name in there else "hand_over = true")
        for name, fault in FAULTS.items()
    }
    run = sim.run(loads(topology(keys)), runs=tmp_path)
    check(run)
    failed = {each.machine: each.reason for each in run.figures.migrations if each.verdict == "failed"}
    assert failed.keys() >= {"cancelled", "dies", "gone", "kept"}, run.events()
    assert failed["cancelled"] == failed["kept"] == "it was cancelled"
    assert failed["dies"] == "its new QEMU died"
    assert "no server listens" in failed["gone"]
    # Machines that stayed are rung and take interrupts to the end.
    for name in ("cancelled", "dies", "gone", "kept"):
        group = run.summary["groups"][name]
        assert group["rung"] == group["delivered"] + group["pending"] > 0
        assert group["refused"] == 0
    left = [event for event in run.events() if event["kind"] == "machine_left"]
    assert [event["machine"] for event in left] == ["lost"]


def test_where_a_peer_is_there_already_qemu_says_why_it_cannot_arrive(tmp_path: Path) -> None:
    text = topology({"mover": 'to_domain = "there"'}) + (
        '[machines.first]\nvectors = 2\ndomains = ["there"]\nprogram = "idle"\n'
    )
    run = sim.run(loads(text), runs=tmp_path)
    check(run)
    (failed,) = run.figures.migrations
    assert failed.verdict == "failed"
    assert "'master' must" in failed.reason or "master must connect to the server before any peers" in failed.reason
    group = run.summary["groups"]["mover"]
    assert group["rung"] == group["delivered"] + group["pending"] > 0
