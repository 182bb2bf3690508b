"""Machines of ivshmem v2 in runs: rights, losses, Ethernet, both versions at once."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest

import sim
from sim.explore import run_seed
from topologies import loads
from topologies.actions import MalformedMessage

DOMAIN = """
[run]
duration_s = {duration_s}
warmup_s = 0.0
sample_every = 1
on_death = "degrade"
[domains.cell]
version = 2
max_peers = {peers}
size = "{size}"
output_size = "64K"
protocol = 1
[defaults]
vectors = 2
"""

PROGRAMS = """
import time

from nodes.guest import FOREVER


def listen(guest):
    while True:
        yield FOREVER


def store(guest, *, offset: int = 0):
    guest.write(2, offset, 0xFFFF_FFFF)
    guest.write(2, guest.sections.layout.shared.start, 7)
    while True:
        yield FOREVER


def store_in_view(guest, *, offset: int = 0):
    guest.sections.store(offset, b"x")
    yield FOREVER


def deaf(guest, *, until_ms: float = 0.0):
    guest.enable_interrupts(enabled=False)
    yield guest.clock() + round(until_ms * 1e6)
    guest.enable_interrupts()
    guest.statistics["interrupts"] = 0
    while True:
        yield FOREVER
        guest.statistics["interrupts"] += 1


def one_shot(guest):
    device = guest.device
    device.config_write(device.profile.vendor_capability + 3, 1, 1)
    guest.statistics["interrupts"] = 0
    while True:
        interrupt = yield FOREVER
        guest.statistics["interrupts"] += 1
        guest.statistics["enabled"] = guest.read(0, 8)


def late(guest, *, rings: int = 3):
    guest.statistics["interrupts"] = 0
    guest.enable_interrupts(enabled=False)
    guest.set_state(1)
    while guest.device.rung().get(1, 0) < rings and guest.clock() < guest.stop_ns:
        time.sleep(0.001)  # nothing is drained meanwhile
    if guest.clock() >= guest.stop_ns:
        return  # the host is too slow for this
    guest.enable_interrupts()
    while True:
        interrupt = yield FOREVER
        guest.statistics["interrupts"] += interrupt.vector == 1


def ring_late(guest, *, rings: int = 3):
    while guest.sections.state(0) != 1:
        yield guest.clock() + 1_000_000
    for _ in range(rings):
        guest.ring(0, 1)
    while True:
        yield FOREVER


def ring_all(guest, *, times: int = 5, wait_ms: float = 10.0):
    for _ in range(times):
        yield guest.clock() + round(wait_ms * 1e6)
        for peer in list(guest.peers):
            if peer != guest.peer:
                guest.ring(peer, 1)
    while True:
        yield FOREVER
"""


@pytest.fixture
def run(tmp_path):
    programs = tmp_path / "programs.py"
    programs.write_text(PROGRAMS)

    def start(text, engine="virtual", *, duration_s=0.2, peers=3, size="256K"):
        file = tmp_path / "v2.toml"
        file.write_text(DOMAIN.format(duration_s=duration_s, peers=peers, size=size) + text)
        overrides = {"run.engine": engine}
        return sim.run(file, runs=tmp_path / "runs", overrides=overrides, programs=programs, resources_every_s=0)

    return start


def events(result, kind):
    return [event for event in result.events() if event["kind"] == kind]


def statistics(result):
    return {event["machine"]: event["values"] for event in events(result, "statistics")}


@pytest.mark.parametrize("engine", ["virtual", "process"])
def test_a_forbidden_store_names_machine_offset_and_owner(run, engine):
    result = run('[machines.bad]\nprogram = "store"\nparameters.offset = 8\n', engine)
    assert result.status == "finished", result.reason
    (warning,) = events(result, "warning")
    assert warning["machine"] == "bad"
    assert warning["text"] == "peer 0 stores 4 bytes at offset 0x8: the State Table is read-only for it"


def test_in_jailhouse_it_ends_the_machine(run):
    result = run('[machines.bad]\nprogram = "store_in_view"\nprofile = "jailhouse-v2"\nparameters.offset = 0x30000\n')
    assert result.status == "degraded"
    assert "bad died (exit 1): its program failed" in result.reason
    assert "offset 0x30000: the output section of peer 2 is read-only for it" in result.reason


def test_a_ring_while_interrupts_are_disabled_is_lost(run):
    result = run(
        '[machines.deaf]\nprogram = "deaf"\nparameters.until_ms = 35.0\n'
        '[machines.sender]\nprogram = "ring_all"\nparameters = { times = 5, wait_ms = 10.0 }\n'
    )
    assert statistics(result)["deaf"] == {"interrupts": 2}  # at 40 and 50 ms
    assert result.summary["balanced"]
    assert result.summary["delivered"] >= 5  # its counter was drained each time


@pytest.mark.parametrize("profile", ["qemu-v2", "jailhouse-v2"])
def test_enabling_interrupts_saves_no_doorbell_that_was_rung_before(run, profile):
    result = run(
        f'[machines.late]\nprogram = "late"\nprofile = "{profile}"\n[machines.sender]\nprogram = "ring_late"\n',
        "process",
        duration_s=0.5,
    )
    assert result.status == "finished", result.reason
    assert statistics(result)["late"] == {"interrupts": 0}
    assert result.summary["balanced"]


def test_one_shot_gives_one_interrupt_until_the_control_is_written(run):
    result = run('[machines.once]\nprogram = "one_shot"\n[machines.sender]\nprogram = "ring_all"\n')
    assert statistics(result)["once"] == {"interrupts": 1, "enabled": 0}


def ethernet(timeline, present=("left", "right")):
    machines = "".join(
        f'[machines.{name}]\nprogram = "ethernet"\n' + ("" if name in present else "absent = true\n")
        for name in ("left", "right")
    )
    return machines + "".join(
        f'[[timeline]]\nat_s = {at_s}\ndo = "{do}"\nmachines = "{name}"\n' for at_s, do, name in timeline
    )


STARTS = [
    (present, order, gap_s)
    for present in (("left", "right"), ("left",), ("right",), ())
    for order in itertools.permutations([name for name in ("left", "right") if name not in present])
    for gap_s in (0.0, 0.05)
]


@pytest.mark.parametrize(("present", "order", "gap_s"), STARTS)
def test_the_link_reaches_run_from_every_order_of_start(run, present, order, gap_s):
    timeline = [(0.02 + place * gap_s, "join", name) for place, name in enumerate(order)]
    result = run(ethernet(timeline, present), peers=2)
    assert result.status == "finished", result.reason
    for values in statistics(result).values():
        assert values["state"] == 3
        assert values["ups"] == 1
        assert values["answered"] > 0


@pytest.mark.parametrize("dies", ["left", "right"])
@pytest.mark.parametrize("do", ["kill", "leave", "reset"])
def test_the_link_reaches_run_again_after_either_side_is_gone(run, dies, do):
    back = [] if do == "reset" else [(0.1, "join", dies)]
    result = run(ethernet([(0.06, do, dies), *back]), peers=2)
    stays = "right" if dies == "left" else "left"
    values = statistics(result)
    assert [values[name]["state"] for name in values][-2:] == [3, 3]
    assert values[stays]["ups"] == 2
    assert values[stays]["resets"] == 1
    assert result.summary["balanced"]


@pytest.mark.parametrize(
    ("present", "timeline"),
    [
        (("back", "front"), []),
        (("back", "front"), [(0.06, "kill", "back"), (0.1, "join", "back")]),
        (("back", "front"), [(0.06, "kill", "front"), (0.1, "join", "front")]),
        (("back",), [(0.05, "join", "front")]),
    ],
)
def test_a_console_gives_back_each_line(run, present, timeline):
    programs = {"back": "virtio_console", "front": "virtio_console_driver"}
    text = "".join(
        f'[machines.{name}]\nprogram = "{program}"\n' + ("" if name in present else "absent = true\n")
        for name, program in programs.items()
    )
    text += "".join(f'[[timeline]]\nat_s = {at_s}\ndo = "{do}"\nmachines = "{name}"\n' for at_s, do, name in timeline)
    result = run(text, peers=2)
    values = next(values for name, values in statistics(result).items() if name.startswith("front"))
    assert values["starts"] == 1 + (("kill", "back") in [each[1:] for each in timeline])
    assert values["read"] >= 5
    assert values["wrong"] == 0
    assert result.summary["balanced"]


CHAOS = """
[chaos]
wake_delays = 0.3
message_delays = 0.3
cuts = 0.5
reorders = 0.3
delay_max_us = 3000.0
kills_per_s = 20.0
stalls_per_s = 20.0
outage_max_us = 20000.0
"""


def test_no_invariant_is_broken_while_both_sides_are_killed_and_stalled():
    text = DOMAIN.format(duration_s=0.2, peers=2, size="256K") + ethernet([]) + CHAOS
    topology = loads(text, overrides={"run.engine": "virtual"})
    for seed in range(4):
        outcome = run_seed(topology, seed)
        assert outcome.broken is None, outcome.broken


def test_both_versions_at_once(run):
    text = """
[domains.old]
size = "64K"
[machines.sender]
domains = ["old"]
program = "storm"
parameters = { to = "relay", rate_hz = 1000.0 }
[machines.relay]
domains = ["old", "cell"]
program = "relay"
[machines.listener]
domains = ["cell"]
program = "idle"
"""
    result = run(text)
    groups = result.summary["groups"]
    assert groups["listener"]["delivered"] > 50
    assert result.summary["balanced"]


def test_the_leaves_at_the_end_of_a_run_are_in_no_count(run):
    """A device interrupts itself when a peer leaves, but not when both leave because the run is over."""
    result = run('[machines.a]\nprogram = "states"\n[machines.b]\nprogram = "states"\n')
    assert result.status == "finished", result.reason
    assert (result.summary["rung"], result.summary["delivered"], result.summary["pending"]) == (2, 2, 0)


def test_a_migration_is_refused_in_the_words_of_the_fork(run):
    result = run(
        '[machines.qemu]\nprogram = "states"\n'
        '[machines.jailhouse]\nprogram = "states"\nprofile = "jailhouse-v2"\n'
        '[[timeline]]\nat_s = 0.1\ndo = "migrate"\nmachines = ["qemu", "jailhouse"]\n'
    )
    assert result.status == "finished", result.reason
    assert {event["machine"]: event["refused"] for event in events(result, "action")} == {
        "qemu": "Migration is disabled when using feature 'peer mode' in device 'ivshmem'",
        "jailhouse": "State blocked by non-migratable device 'jailhouse-v2'",
    }


GARBLED = {
    "bad_peer": "invalid peer 65536",
    "negative_peer": "invalid peer 4294967294",
    "left_itself": "invalid peer 2",
    "left_unknown": "invalid peer 65535",
    "memory_again": "server sent a message of 40 bytes, type 0: the device has room for 32",
    "memory_missing": "server sent a message of 40 bytes, type 0: the device has room for 32",
    "half_message": "server sent a message of 131084 bytes",  # with the leave of those that have died
}


def test_a_malformed_message_is_one_of_version_2(run):
    """Each at a machine of its own: what it warns of, or dies of, is what the message says."""
    assert set(GARBLED) == set(get_args(MalformedMessage))
    machines = "".join(f'[machines.{kind}]\nprogram = "listen"\n' for kind in GARBLED)
    for kind in GARBLED:
        at_s = 0.02 if kind == "half_message" else 0.05
        machines += f'[[timeline]]\nat_s = {at_s}\ndo = "garble"\nmachines = "{kind}"\nmessage = "{kind}"\n'
    result = run(machines, peers=len(GARBLED), size="512K")
    assert result.status == "finished", result.reason
    words = {event["machine"]: event["text"] for event in events(result, "warning")}
    words |= {event["machine"]: event["failure"] for event in events(result, "machine_left") if event["failure"]}
    assert {kind: text in words.get(kind, "") for kind, text in GARBLED.items()} == dict.fromkeys(GARBLED, True), words
