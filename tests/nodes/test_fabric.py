"""The fabric: machines, server and wire together, in virtual time; the same seed gives the same history."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes import programs
from nodes.device.profiles import PROFILES
from nodes.guest import FOREVER
from nodes.wire.protocol import V0, V0_SHM_LAST
from tests.fabric import Fabric

SEEDS = st.integers(0, (1 << 32) - 1)


def storm(peers, **parameters):
    return functools.partial(programs.storm, to=peers, **parameters)


def history(seed):
    fabric = Fabric(seed)
    machines = [fabric.join(programs.idle, vectors=2, start=False) for _ in range(4)]
    fabric.settle()
    everyone = tuple(range(4))
    for machine in machines:
        machine._program = storm(everyone, rate_hz=50_000.0, arrivals="poisson")
        machine.start()
    fabric.run_for(0.002)
    fabric.leave(machines[1])
    fabric.run_for(0.002)
    fabric.join(programs.idle, vectors=2)
    fabric.run_for(0.002)
    fabric.stop()
    return fabric


@given(SEEDS)
def test_the_same_seed_gives_the_same_history(seed):
    first, second = history(seed), history(seed)
    assert first.trace == second.trace
    assert [m.ledger.samples for m in first.machines.values()] == [m.ledger.samples for m in second.machines.values()]


def test_another_seed_gives_another_history(seed):
    assert history(seed).trace != history(seed + 1).trace


@given(SEEDS)
def test_no_doorbell_is_lost_when_a_machine_leaves_and_another_comes(seed):
    history(seed).check_balance()


@given(SEEDS, st.sampled_from([V0, V0_SHM_LAST]), st.lists(st.integers(1, 3), min_size=1, max_size=6))
def test_all_machines_know_each_other_with_as_many_vectors_as_both_have(seed, dialect, vectors):
    fabric = Fabric(seed, dialect=dialect)
    # A device keeps no more vectors of a peer than it has itself: all have the same number here, the most.
    machines = [fabric.join(programs.idle, vectors=max(vectors)) for _ in vectors]
    for machine in machines:
        assert machine.vm.guest.peers == dict.fromkeys(range(len(vectors)), max(vectors))
        assert machine.vm.guest.peer == machine.peer


@given(SEEDS, st.integers(0, 3))
def test_a_full_counter_is_refused_and_counted(seed, room):
    fabric = Fabric(seed)
    stuck = fabric.join(programs.idle, start=False)
    fabric.settle()
    (line,) = stuck.own
    fabric.limits[line] = room
    fabric.join(storm((0,), rate_hz=100_000.0))
    fabric.run_for(0.001)
    fabric.check_balance()
    assert fabric.counters[line] == room
    assert fabric.rung()[0, 0] == 100
    assert fabric.refused()[0, 0] == 100 - room


def test_an_interrupt_never_comes_out_of_nothing(seed):
    """What is delivered was rung before: checked against the stamps of the ringers."""
    fabric = history(seed)
    rung, delivered = {}, {}
    samples = [sample for m in (*fabric.machines.values(), *fabric.departed) for sample in m.ledger.samples]
    moments = sorted(
        [(rung_ns, 0, (peer, vector), 1) for peer, vector, _, rung_ns in samples]
        + [(at, 1, (int(name.split("-")[1]), what[1]), what[2]) for at, name, *what in fabric.trace if len(what) == 3]
    )
    for _, is_delivery, at, count in moments:
        counts = delivered if is_delivery else rung
        counts[at] = counts.get(at, 0) + count
        assert delivered.get(at, 0) <= rung.get(at, 0)
    assert delivered


def test_the_memory_is_the_same_for_all():
    fabric = Fabric(0)
    seen = []

    def write(guest):
        guest.write(2, 40, 0xDEADBEEF)
        guest.ring(1)
        yield FOREVER

    def read(guest):
        yield FOREVER
        seen.append(guest.read(2, 40))

    fabric.join(programs.idle, start=False)
    fabric.join(read)
    fabric.settle()
    fabric.machines[0]._program = write
    fabric.machines[0].start()
    fabric.run_for(0.001)
    assert seen == [0xDEADBEEF]


@pytest.mark.parametrize("profile", ["qemu-doorbell", "qemu-doorbell-kvm", "qemu-1.1", "qemu-1.1-intx", "acrn"])
@given(seed=SEEDS)
def test_ping_and_echo_on_every_device_with_a_server(profile, seed):
    fabric = Fabric(seed, memory_bytes=4 << 20)  # the least that the oldest devices take
    vectors = PROFILES[profile].fixed_vectors or 1
    echo = fabric.join(functools.partial(programs.echo, to=(1,)), vectors=vectors, profile=profile)
    ping = fabric.join(functools.partial(programs.ping, to=(0,)), vectors=vectors, profile=profile)
    fabric.run_for(0.002)
    fabric.check_balance()
    assert sum(ping.delivered) > 20
    assert 0 <= sum(echo.delivered) - sum(ping.delivered) <= 1
