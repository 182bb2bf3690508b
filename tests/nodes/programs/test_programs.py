"""nodes.programs: each shipped guest program, on the fabric."""

from __future__ import annotations

import functools
import inspect
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes import programs
from nodes.errors import GuestError
from nodes.guest import FOREVER
from nodes.load import Load
from tests.fabric import Fabric

SECOND_NS = 1_000_000_000
SEEDS = st.integers(0, (1 << 32) - 1)


def fabric_of(seed, *each, vectors=1, **options):
    """A fabric on which all machines are connected before the first one starts."""
    fabric = Fabric(seed, **options)
    machines = [fabric.join(program, vectors=vectors, start=False) for program in each]
    fabric.settle()
    for machine in machines:
        machine.start()
    return fabric, machines


def with_(program, *to, **parameters):
    return functools.partial(program, to=to, **parameters)


def rings(machine):
    """(peer, vector) in the order they were rung."""
    return [(peer, vector) for peer, vector, _, _ in machine.ledger.samples]


def test_every_shipped_program_is_a_generator_function_of_its_guest():
    for name in programs.__all__:
        program = getattr(programs, name)
        assert inspect.isgeneratorfunction(program)
        first, *rest = inspect.signature(program).parameters.values()
        assert first.name == "guest"
        assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in rest)
        assert program.__doc__


# idle


def test_idle_takes_every_interrupt_and_rings_no_peer():
    fabric, (idle, storm) = fabric_of(1, programs.idle, with_(programs.storm, 0, rate_hz=100_000.0))
    fabric.run_for(0.001)
    fabric.check_balance()
    assert rings(idle) == []
    assert idle.delivered[0] + fabric.counters[next(iter(idle.own))] == len(rings(storm)) == 100


# ping and echo


@given(SEEDS, st.integers(1, 3))
def test_ping_rings_each_vector_in_turn_and_each_is_answered_once(seed, vectors):
    fabric, (echo, ping) = fabric_of(seed, with_(programs.echo, 1), with_(programs.ping, 0), vectors=vectors)
    fabric.run_for(0.001)
    fabric.check_balance()
    asked, answered = rings(ping), rings(echo)
    turns = itertools.cycle([(0, vector) for vector in range(vectors)])
    assert asked == list(itertools.islice(turns, len(asked)))
    assert answered == [(1, vector) for _, vector in asked[: len(answered)]]
    # Never a second ping before the first was answered.
    assert 0 <= len(asked) - len(answered) <= 1
    assert len(asked) > 10


def test_ping_with_one_vector_leaves_the_others_alone():
    fabric, (_, ping) = fabric_of(3, with_(programs.echo, 1), with_(programs.ping, 0, vector=2), vectors=3)
    fabric.run_for(0.001)
    assert set(rings(ping)) == {(0, 2)}


def test_ping_takes_its_peers_in_turn():
    ping = with_(programs.ping, 1, 2)
    fabric, (first, *_) = fabric_of(3, ping, with_(programs.echo, 0), with_(programs.echo, 0))
    fabric.run_for(0.001)
    assert rings(first)[:4] == [(1, 0), (2, 0), (1, 0), (2, 0)]


def test_ping_waits_until_a_peer_joins():
    to = []
    fabric, (ping,) = fabric_of(0, functools.partial(programs.ping, to=to))
    fabric.run_for(0.1)
    assert rings(ping) == []
    to.append(1)  # the engine's part: who joins is in the sequence
    fabric.join(with_(programs.echo, 0))
    fabric.run_for(0.05)
    fabric.check_balance()
    assert len(rings(ping)) > 100
    assert set(rings(ping)) == {(1, 0)}


@pytest.mark.parametrize("rate_hz", [None, 1000.0])
def test_ping_goes_on_with_the_others_when_a_peer_leaves(rate_hz):
    ping = with_(programs.ping, 1, 2, timeout_s=0.001, rate_hz=rate_hz)
    fabric, machines = fabric_of(3, ping, with_(programs.echo, 0), with_(programs.echo, 0))
    fabric.run_for(0.01)
    fabric.leave(machines[1])
    delivered = machines[2].delivered[0]
    fabric.run_for(0.02)
    fabric.check_balance()
    assert machines[2].delivered[0] > delivered
    assert fabric.refused()[1, 0] > 0  # it is asked as before, and does not answer


def test_ping_asks_a_peer_that_came_back_under_its_new_id():
    to = [1]
    fabric, machines = fabric_of(3, functools.partial(programs.ping, to=to, timeout_s=0.001), with_(programs.echo, 0))
    fabric.run_for(0.001)
    fabric.leave(machines[1])
    to[0] = fabric.server.next_peer
    back = fabric.join(with_(programs.echo, 0))
    fabric.run_for(0.01)  # the ping that the old one did not answer is given up
    fabric.check_balance()
    assert back.peer == to[0] != 1
    assert back.delivered[0] > 100


@pytest.mark.parametrize("vector", [1, 9, -1])
def test_ping_cannot_ask_for_a_vector_that_it_does_not_have(vector):
    with pytest.raises(GuestError, match=f"expected a vector below 1, got {vector}"):
        fabric_of(0, with_(programs.ping, 0, vector=vector))


def test_ping_at_a_rate_follows_the_load():
    load = Load([(10_000_000, 0.0, 2.0), (10_000_000, 0.0, 0.0), (10_000_000, 2.0, 2.0)])
    fabric, (_, ping) = fabric_of(5, with_(programs.echo, 1), with_(programs.ping, 0, rate_hz=10_000.0), load=load)
    assert fabric.start_ns is not None
    counts = []
    for _ in range(6):
        before = len(rings(ping))
        fabric.run_for(0.005)
        counts.append(len(rings(ping)) - before)
    assert counts == [25, 75, 0, 0, 100, 100]


@pytest.mark.parametrize("rate_hz", [None, 10_000.0])
def test_ping_rests_while_the_load_is_zero(rate_hz):
    load = Load([(5_000_000, 0.0, 0.0), (5_000_000, 1.0, 1.0), (5_000_000, 0.0, 0.0)])
    ping = with_(programs.ping, 0, rate_hz=rate_hz)
    fabric, (_, machine) = fabric_of(5, with_(programs.echo, 1), ping, load=load)
    began_ns = fabric.now_ns
    fabric.run_for(1.0)
    rung = [rung_ns - began_ns for *_, rung_ns in machine.ledger.samples]
    assert len(rung) >= 49
    assert min(rung) >= 5_000_000
    assert max(rung) <= 10_000_000


def test_a_ping_that_comes_late_keeps_to_the_grid_of_the_run():
    fabric, _ = fabric_of(5, with_(programs.echo, 1))
    began_ns = fabric.now_ns
    fabric.run_for(0.0123456)
    late = fabric.join(with_(programs.ping, 0, rate_hz=1000.0))
    joined_ns = late.vm.guest.joined_ns
    fabric.run_for(0.01)
    intended = [at - began_ns for _, _, at, _ in late.ledger.samples]
    first = (joined_ns - began_ns) // 1_000_000 + 1
    assert intended == [1_000_000 * (first + at) for at in range(len(intended))]
    assert len(intended) >= 9


def test_a_ping_without_an_answer_is_given_up_in_time():
    fabric, (_, ping) = fabric_of(5, programs.idle, with_(programs.ping, 0, timeout_s=0.01))
    began_ns = fabric.now_ns
    fabric.run_for(0.1)
    moments = [rung_ns - began_ns for *_, rung_ns in ping.ledger.samples]
    assert moments == [round(at * 0.01 * SECOND_NS) for at in range(11)]


def test_ping_at_a_rate_is_due_regularly_however_late_the_answers():
    """No answer comes for 10 ms, a ping is due every ms: each keeps its intended time."""
    ping = with_(programs.ping, 0, rate_hz=1000.0, timeout_s=0.010)
    fabric, (_, machine) = fabric_of(5, programs.idle, ping)
    began_ns = fabric.now_ns
    fabric.run_for(0.1)
    intended = [at - began_ns for _, _, at, _ in machine.ledger.samples]
    assert intended == [1_000_000 * at for at in range(1, len(intended) + 1)]
    lags = [rung_ns - at for _, _, at, rung_ns in machine.ledger.samples]
    assert lags == [9_000_000 * at for at in range(len(lags))]


def test_ping_at_a_rate_that_is_answered_in_time_is_never_late():
    ping = with_(programs.ping, 0, rate_hz=1000.0)
    fabric, (_, machine) = fabric_of(5, with_(programs.echo, 1), ping)
    fabric.run_for(0.05)
    assert len(machine.ledger.samples) == 50
    assert all(intended == rung for _, _, intended, rung in machine.ledger.samples)


def test_a_ping_at_a_rate_that_waits_for_an_answer_misses_what_was_due_meanwhile():
    ping = with_(programs.ping, 0, rate_hz=1000.0, timeout_s=0.010)
    fabric, (_, machine) = fabric_of(5, programs.idle, ping)
    fabric.run_for(0.0055)
    machine.vm.stop()
    guest = machine.vm.guest
    assert len(rings(machine)) == 1
    assert (guest.missed, guest.missed_oldest_ns) == (4, 3_500_000)  # the second one was due after 2 ms


@pytest.mark.parametrize("parameters", [{"rate_hz": 1000.0}, {}])
def test_a_ping_that_is_answered_in_time_or_has_no_schedule_misses_nothing(parameters):
    fabric, (_, machine) = fabric_of(5, with_(programs.echo, 1), with_(programs.ping, 0, **parameters))
    fabric.run_for(0.0055)
    machine.vm.stop()
    assert len(rings(machine)) >= 5
    assert (machine.vm.guest.missed, machine.vm.guest.missed_oldest_ns) == (0, 0)


def test_echo_answers_all_its_peers_on_the_vector_that_was_rung():
    def ring_once(guest):
        guest.ring(0, 1)
        yield FOREVER

    fabric, (echo, *_) = fabric_of(1, with_(programs.echo, 1, 2), ring_once, programs.idle, vectors=2)
    fabric.run_for(0.001)
    assert rings(echo) == [(1, 1), (2, 1)]


# poll


@given(SEEDS, st.sampled_from([0.0, 1e-5]))
def test_poll_answers_each_change_of_the_word_with_one_doorbell(seed, interval_s):
    def write(guest):
        for value in range(1, 6):
            guest.write(2, 128, value, 8)
            yield guest.clock() + 100_000

    fabric, (poll, *_) = fabric_of(
        seed, with_(programs.poll, 1, offset=128, interval_s=interval_s), write, programs.idle
    )
    fabric.run_for(0.01)
    fabric.check_balance()
    # The first change may come before its first look.
    assert 4 <= len(rings(poll)) <= 5
    assert set(rings(poll)) == {(1, 0)}


def test_poll_without_a_change_rings_no_peer():
    fabric, (poll,) = fabric_of(0, with_(programs.poll, 0, interval_s=1e-4))
    fabric.run_for(0.01)
    assert rings(poll) == []


# moderate


@given(SEEDS, st.sampled_from([20.0, 100.0, 1000.0]))
def test_moderate_takes_one_interrupt_in_a_window_and_loses_none(seed, window_us):
    moderate = functools.partial(programs.moderate, window_us=window_us)
    storm = with_(programs.storm, 0, rate_hz=100_000.0)
    fabric, (machine, _) = fabric_of(seed, moderate, storm, vectors=2)
    fabric.run_for(0.01)
    fabric.check_balance()
    statistics = machine.vm.guest.statistics
    for interrupts in machine.interrupts:
        assert 1 <= interrupts <= 10_000 / window_us + 1
    # Each interrupt begins a window, and each window with something pending ends in an interrupt.
    assert 0 <= sum(machine.interrupts) - statistics["windows"] <= 2
    assert statistics["pending"] <= statistics["windows"]
    if window_us >= 100.0:  # twenty doorbells a window: there is always one
        assert statistics["pending"] == statistics["windows"] > 0


def test_moderate_unmasks_again_what_is_rung_no_more():
    def ring_twice(guest):
        guest.ring(0)
        yield guest.clock() + 50_000
        guest.ring(0)
        yield FOREVER

    fabric, (machine, _) = fabric_of(7, functools.partial(programs.moderate, window_us=200.0), ring_twice)
    fabric.run_for(0.01)
    assert machine.interrupts == [2]
    assert machine.vm.guest.statistics == {"windows": 2, "pending": 1}
    assert not machine.vm.device.msix.masked(0)


def test_moderate_needs_msix():
    fabric = Fabric(1, memory_bytes=4 << 20)
    fabric.join(programs.moderate, profile="qemu-1.1-intx")
    fabric.join(with_(programs.ping, 0), profile="qemu-1.1-intx", start=False)
    fabric.settle()
    fabric.machines[1].start()
    with pytest.raises(GuestError, match="no MSI-X"):
        fabric.run_for(0.001)


@pytest.mark.parametrize("profile", ["qemu-doorbell", "qemu-doorbell-kvm"])
def test_pending_bits_are_read_by_vector(profile):
    def look(guest):
        for vector in (3, 31, 32, 39):
            guest.mask(vector)
        at_ns = guest.clock() + 1_000_000
        while guest.clock() < at_ns:
            yield at_ns
        seen.append([vector for vector in range(40) if guest.pending(vector)])
        with pytest.raises(GuestError, match=r"vector 40 does not exist.*0\.\.39"):
            guest.pending(40)

    def ring_some(guest):
        for vector in (2, 31, 32):
            guest.ring(0, vector)
        yield FOREVER

    seen = []
    fabric = Fabric(3)
    for program in (look, ring_some):
        fabric.join(program, vectors=40, profile=profile, start=False)
    fabric.settle()
    for machine in fabric.machines.values():
        machine.start()
    fabric.run_for(0.01)
    assert seen == [[31, 32]]


def test_without_msix_nothing_is_pending():
    def look(guest):
        guest.pending(0)
        yield FOREVER

    fabric = Fabric(1, memory_bytes=4 << 20)
    with pytest.raises(GuestError, match="no MSI-X"):
        fabric.join(look, profile="qemu-1.1-intx")
