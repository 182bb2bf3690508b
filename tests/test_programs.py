"""nodes.programs: each shipped guest program, on the fabric."""

from __future__ import annotations

import functools
import inspect
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes import programs
from nodes.guest import FOREVER
from tests.fabric import Fabric

SECOND_NS = 1_000_000_000
SEEDS = st.integers(0, (1 << 32) - 1)


def fabric_of(seed, *each, vectors=1, **options):
    """A fabric on which everybody is connected before anybody starts."""
    fabric = Fabric(seed)
    machines = [fabric.join(program, vectors=vectors, start=False, **options) for program in each]
    fabric.settle()
    for machine in machines:
        machine.start()
    return fabric, machines


def with_(program, *to, **parameters):
    return functools.partial(program, to=to, **parameters)


def rings(machine):
    """(peer, vector) in the order they were rung."""
    return [(peer, vector) for peer, vector, _, _ in machine.books.samples]


def test_every_shipped_program_is_a_generator_function_of_its_guest():
    for name in programs.__all__:
        program = getattr(programs, name)
        assert inspect.isgeneratorfunction(program)
        first, *rest = inspect.signature(program).parameters.values()
        assert first.name == "guest"
        assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in rest)
        assert program.__doc__


# idle


def test_idle_takes_everything_and_rings_nobody():
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


@pytest.mark.parametrize("parameters", [{"to": ()}, {"to": (0,), "vector": 9}])
def test_ping_with_nobody_to_ring_ends(parameters):
    fabric, (ping,) = fabric_of(0, functools.partial(programs.ping, **parameters))
    fabric.run_for(1)
    assert rings(ping) == []
    assert ping.vm._program is None


def test_a_ping_without_an_answer_is_given_up_in_time():
    fabric, (_, ping) = fabric_of(5, programs.idle, with_(programs.ping, 0, timeout_s=0.01))
    began_ns = fabric.now_ns
    fabric.run_for(0.1)
    moments = [rung_ns - began_ns for *_, rung_ns in ping.books.samples]
    assert moments == [round(at * 0.01 * SECOND_NS) for at in range(11)]


def test_ping_at_a_rate_is_due_regularly_however_late_the_answers():
    """Nobody answers for 10 ms, a ping is due every ms: each keeps the time it was meant for."""
    ping = with_(programs.ping, 0, rate_hz=1000.0, timeout_s=0.010)
    fabric, (_, machine) = fabric_of(5, programs.idle, ping)
    began_ns = fabric.now_ns
    fabric.run_for(0.1)
    intended = [at - began_ns for _, _, at, _ in machine.books.samples]
    assert intended == [1_000_000 * at for at in range(1, len(intended) + 1)]
    lags = [rung_ns - at for _, _, at, rung_ns in machine.books.samples]
    assert lags == [9_000_000 * at for at in range(len(lags))]


def test_ping_at_a_rate_that_is_answered_in_time_is_never_late():
    ping = with_(programs.ping, 0, rate_hz=1000.0)
    fabric, (_, machine) = fabric_of(5, with_(programs.echo, 1), ping)
    fabric.run_for(0.05)
    assert len(machine.books.samples) == 50
    assert all(intended == rung for _, _, intended, rung in machine.books.samples)


def test_echo_answers_everybody_on_the_vector_that_was_rung():
    def ring_once(guest):
        guest.ring(0, 1)
        yield FOREVER

    fabric, (echo, *_) = fabric_of(1, with_(programs.echo, 1, 2), ring_once, programs.idle, vectors=2)
    fabric.run_for(0.001)
    assert rings(echo) == [(1, 1), (2, 1)]


# storm


@given(SEEDS, st.integers(1, 80))
def test_a_storm_rings_every_edge_equally_often_whatever_the_burst(seed, burst):
    peers, vectors = 3, 2
    everyone = with_(programs.storm, *range(peers), burst=burst)
    fabric, machines = fabric_of(seed, everyone, *[programs.idle] * (peers - 1), vectors=vectors)
    fabric.run_for(0.0005)
    fabric.check_balance()
    storm = machines[0]
    counts = [rung for rung, _ in storm.books.stored.values()]
    assert len(counts) == peers * vectors
    rounds_in_one_go = max(1, burst // len(counts))
    assert max(counts) - min(counts) <= rounds_in_one_go
    assert min(counts) > 0


def order(seed, delays):
    """The order in which one storm rings, with neighbours that differ."""
    storm = with_(programs.storm, 0, 1, 2, 3, rate_hz=1_000_000.0)
    fabric, machines = fabric_of(seed, storm, *[programs.idle] * 3, vectors=4)
    fabric._random.seed(delays)
    fabric.run_for(0.0001)
    return rings(machines[0])


@given(SEEDS)
def test_the_order_of_a_storm_is_a_function_of_the_seed_only(seed):
    assert order(seed, delays=1) == order(seed, delays=2)
    first_round = order(seed, delays=1)[:16]
    assert sorted(first_round) == [(peer, vector) for peer in range(4) for vector in range(4)]
    assert order(seed, delays=1)[16:32] == first_round


def test_other_seeds_give_other_orders():
    assert len({tuple(order(seed, 1)[:16]) for seed in range(8)}) == 8


@pytest.mark.parametrize("arrivals", ["regular", "poisson"])
@given(seed=SEEDS)
def test_an_open_loop_means_its_times_whatever_holds_it_up(arrivals, seed):
    """The same intended times with and without neighbours that keep interrupting it."""

    def intended(noise):
        storm = with_(programs.storm, 1, rate_hz=100_000.0, arrivals=arrivals)
        neighbour = with_(programs.storm, 0, rate_hz=noise) if noise else programs.idle
        fabric, machines = fabric_of(seed, storm, neighbour)
        began_ns = fabric.now_ns
        fabric.run_for(0.001)
        # The stamps begin at the moment of the start, which the seed decides too.
        return [at - began_ns for _, _, at, _ in machines[0].books.samples]

    quiet, noisy = intended(0), intended(400_000.0)
    shared = min(len(quiet), len(noisy))
    assert shared > 20
    assert quiet[:shared] == noisy[:shared]
    if arrivals == "regular":
        assert quiet == [10_000 * at for at in range(1, len(quiet) + 1)]


def test_a_stalled_open_loop_catches_up_and_keeps_its_times():
    fabric, (storm, _) = fabric_of(9, with_(programs.storm, 1, rate_hz=10_000.0), programs.idle)
    fabric.run_for(0.001)
    turn, storm._turn = storm._turn, -1  # its processor is taken away ...
    fabric.run_for(0.010)
    storm._turn = turn  # ... and given back
    storm._expire(turn)
    fabric.run_for(0.001)
    intended = [at for _, _, at, _ in storm.books.samples]
    assert {later - earlier for earlier, later in itertools.pairwise(intended)} == {100_000}
    assert max(rung - at for _, _, at, rung in storm.books.samples) > 9_000_000


def test_a_storm_at_nobody_waits_for_ever():
    fabric, (storm,) = fabric_of(0, functools.partial(programs.storm, to=()))
    fabric.run_for(1)
    assert rings(storm) == []
    assert storm.vm._program is not None


def test_a_storm_goes_on_when_a_peer_leaves_and_its_doorbells_are_refused():
    fabric, machines = fabric_of(4, with_(programs.storm, 1, 2), programs.idle, programs.idle)
    fabric.run_for(0.0002)
    fabric.leave(machines[1])
    fabric.run_for(0.0005)
    fabric.check_balance()
    assert fabric.refused()[1, 0] > 0
    assert fabric.refused()[2, 0] == 0


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


def test_poll_without_a_change_rings_nobody():
    fabric, (poll,) = fabric_of(0, with_(programs.poll, 0, interval_s=1e-4))
    fabric.run_for(0.01)
    assert rings(poll) == []
