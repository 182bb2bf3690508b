"""nodes.programs.traffic: storm and trace, on the fabric; the same seed gives the same traffic on any host."""

from __future__ import annotations

import functools
import itertools
import statistics
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodes import programs
from nodes.errors import GuestError
from nodes.guest import Trace
from nodes.load import STEADY, Load
from nodes.peer_table import PeerTable
from nodes.programs.arrivals import DUE_MAX_NS, due_times
from nodes.programs.targets import Targets
from tests.nodes.programs.test_programs import SEEDS, fabric_of, rings, with_

ARRIVALS = ["regular", "poisson", "bursts"]
MILLISECOND_NS = 1_000_000
RAMP = Load([(2 * MILLISECOND_NS, 0.0, 2.0), (MILLISECOND_NS, 0.0, 0.0), (2 * MILLISECOND_NS, 1.5, 0.5)])


def intended(machine):
    """What a machine meant to do: (nanoseconds after the start of the run, peer, vector)."""
    start_ns = machine.vm.guest.start_ns
    return [(at_ns - start_ns, peer, vector) for peer, vector, at_ns, _ in machine.ledger.samples]


def dues(machine):
    return [due for due, _, _ in intended(machine)]


@given(SEEDS, st.integers(1, 80))
def test_a_storm_rings_every_edge_equally_often_whatever_the_burst(seed, burst):
    peers, vectors = 3, 2
    everyone = with_(programs.storm, *range(peers), burst=burst)
    fabric, machines = fabric_of(seed, everyone, *[programs.idle] * (peers - 1), vectors=vectors)
    fabric.run_for(0.0005)
    fabric.check_balance()
    storm = machines[0]
    counts = [rung for rung, _ in storm.ledger.stored.values()]
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
        return [at - began_ns for _, _, at, _ in machines[0].ledger.samples]

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
    intended = [at for _, _, at, _ in storm.ledger.samples]
    assert {later - earlier for earlier, later in itertools.pairwise(intended)} == {100_000}
    assert max(rung - at for _, _, at, rung in storm.ledger.samples) > 9_000_000


def test_a_storm_without_peers_waits_for_ever():
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


# Traffic that is a function of the seed


def traffic(seed, slower, load, **parameters):
    """What two storms mean to do that hold up each other, on a host of that speed."""
    storms = [with_(programs.storm, 1, 2, rate_hz=60_000.0, **parameters)] * 2
    fabric, machines = fabric_of(seed, *storms, programs.idle, vectors=2, load=load, slower=slower)
    fabric.run_for(0.005)
    fabric.check_balance()
    return [intended(machine) for machine in machines[:2]]


@settings(max_examples=20)
@given(SEEDS, st.sampled_from(ARRIVALS), st.sampled_from([0.0, 1.2]), st.sampled_from([STEADY, RAMP]))
def test_traffic_is_a_function_of_the_seed_however_slow_the_host(seed, arrivals, skew, load):
    parameters = {"arrivals": arrivals, "skew": skew, "burst": 16}
    fast, slow = (traffic(seed, slower, load, **parameters) for slower in (1, 10))
    for ours, theirs in zip(fast, slow, strict=True):
        shared = min(len(ours), len(theirs))
        assert shared > 100
        assert ours[:shared] == theirs[:shared]


@pytest.mark.parametrize("arrivals", ARRIVALS)
def test_another_seed_is_another_traffic(arrivals):
    first, second = (traffic(seed, 1, STEADY, arrivals=arrivals)[0] for seed in (1, 2))
    assert first != second


# How many, and when


def storm_alone(arrivals, rate_hz, seconds, load=STEADY, seed=11, **parameters):
    storm = with_(programs.storm, 1, rate_hz=rate_hz, arrivals=arrivals, **parameters)
    fabric, (machine, _) = fabric_of(seed, storm, programs.idle, load=load)
    fabric.run_for(seconds)
    return dues(machine)


def test_regular_doorbells_are_due_on_a_grid():
    assert storm_alone("regular", 40_000.0, 0.01) == [25_000 * at for at in range(1, 401)]


def test_a_poisson_process_has_its_mean_and_its_spread():
    times = storm_alone("poisson", 100_000.0, 0.1)
    assert abs(len(times) - 10_000) < 4 * 100
    gaps = [after - before for before, after in itertools.pairwise(times)]
    # Exponential: the deviation is the mean.
    assert statistics.fmean(gaps) == pytest.approx(10_000, rel=0.05)
    assert statistics.pstdev(gaps) == pytest.approx(10_000, rel=0.05)


def test_bursts_are_groups_that_are_due_together_and_keep_the_rate():
    groups = Counter(storm_alone("bursts", 100_000.0, 0.1, burst=50))
    assert set(groups.values()) == {50}
    assert sorted(groups) == [500_000 * at for at in range(1, 201)]


@pytest.mark.parametrize("arrivals", ARRIVALS)
@pytest.mark.parametrize(
    "load",
    [
        Load([(100 * MILLISECOND_NS, 0.0, 2.0)]),
        Load([(100 * MILLISECOND_NS, 2.0, 0.5)]),
        Load([(30 * MILLISECOND_NS, 0.1, 3.0), (20 * MILLISECOND_NS, 0.0, 0.0), (50 * MILLISECOND_NS, 1.0, 0.0)]),
    ],
    ids=["up", "down", "pause"],
)
def test_the_doorbells_of_each_tenth_are_the_integral_of_the_load(arrivals, load):
    times = storm_alone(arrivals, 100_000.0, 0.1, load=load, burst=10)
    counts = Counter(min(due, 99_999_999) // (10 * MILLISECOND_NS) for due in times)
    for tenth in range(10):
        begin_ns, end_ns = (at * 10 * MILLISECOND_NS for at in (tenth, tenth + 1))
        expected = (load.work(end_ns) - load.work(begin_ns)) / 10_000
        slack = {"regular": 1, "bursts": 10, "poisson": 5 * expected**0.5}[arrivals]
        assert abs(counts[tenth] - expected) <= slack + 1e-6


@pytest.mark.parametrize("arrivals", ARRIVALS)
def test_when_the_load_stays_zero_a_storm_waits_and_rings_no_more(arrivals):
    load = Load([(MILLISECOND_NS, 1.0, 0.0)])
    fabric, (machine, _) = fabric_of(
        2, with_(programs.storm, 1, rate_hz=200_000.0, arrivals=arrivals, burst=4), programs.idle, load=load
    )
    fabric.run_for(0.002)
    rung = len(rings(machine))
    assert 50 < rung < 150
    fabric.run_for(1)
    assert len(rings(machine)) == rung
    assert machine.vm._program is not None


def test_a_storm_without_a_rate_rests_while_the_load_is_zero():
    load = Load([(100_000, 0.0, 0.0), (100_000, 0.0, 1.0), (100_000, 0.0, 0.0), (50_000, 0.3, 0.3)])
    fabric, (machine, _) = fabric_of(2, with_(programs.storm, 1, burst=4), programs.idle, load=load)
    start_ns = fabric.start_ns
    fabric.run_for(0.0005)
    moments = {rung_ns - start_ns for *_, rung_ns in machine.ledger.samples}
    assert {at // 100_000 for at in moments} == {1, 3, 4, 5}
    assert 100_000 in moments
    assert 300_000 in moments


def test_a_late_storm_lets_its_own_interrupts_have_their_turn():
    fabric, (storm, _) = fabric_of(9, with_(programs.storm, 1, rate_hz=100_000.0, burst=10), programs.idle)
    fabric.run_for(0.001)
    turn, storm._turn = storm._turn, -1  # its processor is taken away ...
    fabric.run_for(0.010)
    storm._turn = turn  # ... and given back
    storm._expire(turn)
    fabric.run_for(0.001)
    in_one_go = Counter(rung_ns for *_, rung_ns in storm.ledger.samples)
    assert max(in_one_go.values()) == 10
    assert sum(count == 10 for count in in_one_go.values()) >= 100


# Peers and vectors


@pytest.mark.parametrize("rate_hz", [None, 400_000.0])
@pytest.mark.parametrize("skew", [0.5, 1.0, 2.0])
def test_a_skew_makes_a_hot_spot_of_the_first_peers(rate_hz, skew):
    storm = with_(programs.storm, 3, 1, 2, rate_hz=rate_hz, skew=skew)
    fabric, (machine, *_) = fabric_of(4, storm, *[programs.idle] * 3, vectors=2)
    fabric.run_for(0.02 if rate_hz else 0.0005)
    counts = Counter(rings(machine))
    total = sum(counts.values())
    assert total > 7_000
    weights = {3: 1.0, 1: 2**-skew, 2: 3**-skew}
    for peer, weight in weights.items():
        for vector in (0, 1):
            assert counts[peer, vector] / total == pytest.approx(weight / sum(weights.values()) / 2, abs=0.02)


@pytest.mark.parametrize("rate_hz", [None, 400_000.0])
def test_a_storm_at_some_vectors_leaves_the_others_alone(rate_hz):
    storm = with_(programs.storm, 1, 2, rate_hz=rate_hz, vectors=(2, 0, 2))
    fabric, (machine, *_) = fabric_of(4, storm, *[programs.idle] * 2, vectors=3)
    fabric.run_for(0.015 if rate_hz else 0.0005)
    counts = Counter(rings(machine))
    assert counts.keys() == {(1, 0), (1, 2), (2, 0), (2, 2)}
    assert counts[1, 2] / counts[1, 0] == pytest.approx(2, rel=0.01)  # named twice, rung twice as often


@pytest.mark.parametrize("vector", [-1, 2, 2047])
def test_a_storm_cannot_ring_vectors_that_it_does_not_have(vector):
    with pytest.raises(GuestError, match=f"expected a vector below 2, got {vector}"):
        fabric_of(0, with_(programs.storm, 0, vectors=(0, vector)), vectors=2)


@pytest.mark.parametrize("skew", [-0.5, float("nan")])
def test_a_skew_is_not_negative(skew):
    with pytest.raises(GuestError, match="expected a skew of at least 0"):
        fabric_of(0, with_(programs.storm, 0, skew=skew))


# Peers that come and go


def test_targets_say_when_there_is_more_to_ring_than_before():
    _, (machine,) = fabric_of(1, programs.idle, vectors=3)
    vm, to = machine.vm, [7, 8]
    vm.use_peers(PeerTable())
    targets = Targets(vm.guest, to, (0, 2))

    def look(change):
        change()
        assert targets.generation != vm.guest.generation
        return targets.look(), targets.rows

    both = ((7, 0), (7, 2))
    assert (targets.look(), targets.rows) == (True, [(), ()])
    assert look(lambda: vm.connect(7, 0, 70)) == (True, [both, ()])
    assert look(lambda: vm.connect(7, 2, 72)) == (True, [both, ()])
    assert look(lambda: vm.connect(9, 0, 90)) == (False, [both, ()])  # not one of them
    assert look(lambda: vm.disconnect(7)) == (False, [both, ()])
    assert look(lambda: vm.connect(7, 0, 71)) == (True, [both, ()])
    assert targets.look() is False


def test_a_storm_that_comes_late_rings_what_is_due_from_then_on():
    fabric, _ = fabric_of(5, programs.idle)
    fabric.run_for(0.0123456)
    late = fabric.join(with_(programs.storm, 0, rate_hz=10_000.0))
    joined_ns = late.vm.guest.joined_ns - fabric.start_ns
    fabric.run_for(0.01)
    first = joined_ns // 100_000 + 1
    assert dues(late) == [100_000 * (first + at) for at in range(len(dues(late)))]
    assert len(dues(late)) >= 99


@pytest.mark.parametrize("arrivals", ["poisson", "bursts"])
def test_a_storm_of_any_kind_that_comes_late_catches_nothing_up(arrivals):
    fabric, _ = fabric_of(5, programs.idle)
    fabric.run_for(0.1)
    late = fabric.join(with_(programs.storm, 0, rate_hz=10_000.0, arrivals=arrivals, burst=5))
    joined_ns = late.vm.guest.joined_ns - fabric.start_ns
    fabric.run_for(0.1)
    assert min(dues(late)) > joined_ns
    assert len(dues(late)) == pytest.approx(1000, abs=130)


@pytest.mark.parametrize("rate_hz", [None, 200_000.0])
def test_a_storm_rings_peers_that_join_and_peers_that_return(rate_hz):
    to = []
    fabric, (storm,) = fabric_of(6, functools.partial(programs.storm, to=to, rate_hz=rate_hz), vectors=2)
    fabric.run_for(0.05)
    assert rings(storm) == []

    def join():
        to.append(fabric.server.next_peer)  # the engine's part
        return fabric.join(programs.idle, vectors=2)

    first = join()
    fabric.run_for(0.011)
    assert set(rings(storm)) == {(first.peer, 0), (first.peer, 1)}
    if rate_hz is not None:
        assert min(dues(storm)) >= 50 * MILLISECOND_NS  # what was due without a peer is not caught up
    second = join()
    fabric.run_for(0.001)
    fabric.leave(first)
    fabric.run_for(0.001)
    to.pop(0)
    third = join()
    begin = len(rings(storm))
    fabric.run_for(0.001)
    assert set(rings(storm)[begin:]) == {(peer, vector) for peer in (second.peer, third.peer) for vector in (0, 1)}
    fabric.check_balance()
    assert fabric.refused()[first.peer, 0] > 0
    assert fabric.refused()[second.peer, 0] == fabric.refused()[third.peer, 0] == 0
    assert storm.ledger.nowhere == 0


def test_a_peer_that_joins_later_does_not_change_the_order_of_the_others():
    def order(late):
        to = [1, 2, 3]
        storm = functools.partial(programs.storm, to=to, rate_hz=1_000_000.0)
        fabric, machines = fabric_of(8, storm, *[programs.idle] * 3, vectors=3)
        if late:
            to.insert(1, 4)
            fabric.join(programs.idle, vectors=3)
            fabric.settle()
        fabric.run_for(0.001)
        return rings(machines[0])

    def round_of(doorbells, size):
        """The last round, begun at the first peer's first vector, without what came later."""
        doorbells = doorbells[-size:]
        at = doorbells.index((1, 0))
        return [pair for pair in doorbells[at:] + doorbells[:at] if pair[0] != 4]

    assert round_of(order(False), 9) == round_of(order(True), 12)


def test_the_random_times_do_not_depend_on_the_peers():
    def times(late):
        to = [1]
        storm = functools.partial(programs.storm, to=to, rate_hz=100_000.0, arrivals="poisson", skew=1.0)
        fabric, machines = fabric_of(8, storm, programs.idle)
        fabric.run_for(0.001)
        if late:
            to.append(2)
            fabric.join(programs.idle)
        fabric.run(fabric.start_ns + 3 * MILLISECOND_NS)
        return dues(machines[0])

    assert times(False) == times(True)


@pytest.mark.parametrize("poisson", [False, True])
def test_due_times_end_before_the_clock_does(poisson):
    _, (machine,) = fabric_of(8, programs.idle)
    guest = machine.vm.guest
    due = list(due_times(guest, 1e17, guest.start_ns, poisson=poisson))
    assert due == sorted(due)
    assert 10 < len(due) < 60
    assert due[-1] <= guest.start_ns + DUE_MAX_NS
    assert list(due_times(guest, 1e300, guest.start_ns, poisson=poisson)) == []


# trace


def trace_of(*doorbells, peers):
    return functools.partial(programs.trace, file=Trace(peers=peers, doorbells=doorbells))


@settings(max_examples=30)
@given(SEEDS, st.sampled_from([1, 50]), st.lists(st.integers(0, 2 * MILLISECOND_NS), max_size=40))
def test_a_trace_is_rung_when_and_in_the_order_that_it_says(seed, slower, times):
    doorbells = [(due, place % 2, place % 3) for place, due in enumerate(sorted(times))]
    trace = trace_of(*doorbells, peers=[2, 1])
    fabric, (machine, *_) = fabric_of(seed, trace, *[programs.idle] * 2, vectors=3, slower=slower)
    fabric.run_for(0.005)
    fabric.check_balance()
    assert intended(machine) == [(due, (2, 1)[place], vector) for due, place, vector in doorbells]
    assert all(rung_ns >= at_ns for _, _, at_ns, rung_ns in machine.ledger.samples)
    assert machine.vm.guest.statistics == {"absent": 0}
    assert machine.vm._program is None  # it is at its end


def test_a_trace_takes_no_notice_of_the_load():
    trace = trace_of((1000, 0, 0), (2000, 0, 0), peers=[1])
    fabric, (machine, _) = fabric_of(1, trace, programs.idle, load=Load([(1, 0.0, 0.0)]))
    fabric.run_for(0.001)
    assert dues(machine) == [1000, 2000]


def test_a_trace_that_comes_late_begins_in_the_middle():
    fabric, _ = fabric_of(5, programs.idle)
    fabric.run_for(0.001)
    late = fabric.join(trace_of(*[(100_000 * at, 0, 0) for at in range(100)], peers=[0]))
    fabric.run_for(0.02)
    joined_ns = late.vm.guest.joined_ns - fabric.start_ns
    assert dues(late) == [100_000 * at for at in range(100) if 100_000 * at >= joined_ns]
    assert 50 < len(dues(late)) < 91


def test_a_trace_counts_doorbells_for_absent_peers():
    peers = [1, -1]  # the engine keeps the place of a machine that is not there yet
    trace = trace_of(*[(100_000 * at, at % 3, 0) for at in range(1, 31)], peers=peers)
    fabric, (machine, _) = fabric_of(1, trace, programs.idle)
    fabric.run_for(0.00155)
    peers[1] = 2
    fabric.join(programs.idle)
    fabric.run_for(0.01)
    assert Counter(peer for _, peer, _ in intended(machine)) == {1: 10, 2: 5}
    assert machine.vm.guest.statistics == {"absent": 15}


def test_a_late_trace_lets_its_own_interrupts_have_their_turn():
    fabric, (machine, _) = fabric_of(1, trace_of(*[(10, 0, 0)] * 200, peers=[1]), programs.idle)
    fabric.run_for(0.001)
    assert list(Counter(rung_ns for *_, rung_ns in machine.ledger.samples).values()) == [64, 64, 64, 8]


# What was due and is not rung


def stand_still(machine):
    """Take a machine's processor away, as a stop signal does."""
    machine._turn = -1


def owed(machine):
    return machine.vm.guest.missed, machine.vm.guest.missed_oldest_ns


@given(
    seed=SEEDS,
    arrivals=st.sampled_from(["regular", "bursts"]),
    rate_hz=st.sampled_from([10_000.0, 33_333.0, 250_000.0]),
    load=st.sampled_from([STEADY, RAMP]),
    at_ns=st.integers(1, 4 * MILLISECOND_NS),
    stop_ns=st.integers(0, 6 * MILLISECOND_NS),
)
def test_a_storm_that_is_stopped_to_the_end_reports_what_it_missed(seed, arrivals, rate_hz, load, at_ns, stop_ns):
    storm = with_(programs.storm, 1, rate_hz=rate_hz, arrivals=arrivals, burst=4)
    fabric, (machine, _) = fabric_of(seed, storm, programs.idle, load=load)
    guest = machine.vm.guest
    fabric.run_for(at_ns / 1e9)
    stand_still(machine)
    fabric.run_for(0.006)
    guest.stop_ns = guest.start_ns + stop_ns
    rung = len(rings(machine))
    machine.vm.stop()
    group = 4 if arrivals == "bursts" else 1
    due = list(
        itertools.takewhile(
            lambda due_ns: due_ns < guest.stop_ns, due_times(guest, 1e9 * group / rate_hz, guest.start_ns)
        )
    )
    missing = due[rung // group :]
    missed, oldest_ns = owed(machine)
    # Times are whole nanoseconds: one that falls due in that of the stop may be counted or not.
    assert abs(missed - group * len(missing)) <= (group if missing else 0)
    if missing:
        assert oldest_ns == guest.stop_ns - missing[0]
    else:
        assert oldest_ns == 0


@pytest.mark.parametrize("arrivals", ARRIVALS)
def test_a_storm_that_kept_its_schedule_misses_nothing(arrivals):
    storm = with_(programs.storm, 1, rate_hz=50_000.0, arrivals=arrivals, burst=4)
    fabric, (machine, _) = fabric_of(4, storm, programs.idle)
    fabric.run_for(0.003)
    machine.vm.stop()
    assert owed(machine) == (0, 0)


def test_of_a_poisson_process_it_is_what_falls_due_on_average():
    storm = with_(programs.storm, 1, rate_hz=1_000_000.0, arrivals="poisson")
    fabric, (machine, _) = fabric_of(4, storm, programs.idle)
    fabric.run_for(0.001)
    stand_still(machine)
    fabric.run_for(0.1)
    machine.vm.stop()
    assert owed(machine)[0] == pytest.approx(100_000, abs=20)
    assert owed(machine)[1] == pytest.approx(100 * MILLISECOND_NS, abs=20_000)


@pytest.mark.parametrize("rate_hz", [10_000.0, 30_000.0, 70_000.0])
def test_doorbells_due_at_the_end_are_not_missed(rate_hz):
    fabric, (machine, _) = fabric_of(4, with_(programs.storm, 1, rate_hz=rate_hz), programs.idle)
    stand_still(machine)
    guest = machine.vm.guest
    fabric.run_for(0.02)
    guest.stop_ns = guest.start_ns + 10 * MILLISECOND_NS
    machine.vm.stop()
    assert owed(machine)[0] == rate_hz / 100 - 1


def test_a_storm_without_a_rate_misses_nothing():
    fabric, (machine, _) = fabric_of(4, with_(programs.storm, 1), programs.idle)
    fabric.run_for(0.0002)
    stand_still(machine)
    fabric.run_for(0.01)
    machine.vm.stop()
    assert owed(machine) == (0, 0)


def test_doorbells_due_without_a_peer_are_not_missed():
    fabric, (machine,) = fabric_of(0, functools.partial(programs.storm, to=(), rate_hz=100_000.0))
    fabric.run_for(0.01)
    machine.vm.stop()
    assert owed(machine) == (0, 0)


def test_after_the_last_load_nothing_is_missed():
    storm = with_(programs.storm, 1, rate_hz=100_000.0)
    load = Load([(MILLISECOND_NS, 1.0, 1.0), (MILLISECOND_NS, 0.0, 0.0)])
    fabric, (machine, _) = fabric_of(0, storm, programs.idle, load=load)
    fabric.run_for(0.01)
    machine.vm.stop()
    assert owed(machine) == (0, 0)


@pytest.mark.parametrize(("stop_ns", "missed"), [(4_000_001, 2), (4_000_000, 1), (3_000_000, 0), (99_000_000, 4)])
def test_a_trace_reports_what_it_missed(stop_ns, missed):
    doorbells = tuple((each * MILLISECOND_NS, 0, 0) for each in (1, 2, 3, 4, 5, 6, 200))
    fabric, (machine, _) = fabric_of(6, functools.partial(programs.trace, file=Trace([1], doorbells)), programs.idle)
    fabric.run_for(0.0025)
    stand_still(machine)
    fabric.run_for(0.1)
    guest = machine.vm.guest
    guest.stop_ns = guest.start_ns + stop_ns
    machine.vm.stop()
    assert len(rings(machine)) == 2
    assert owed(machine) == (missed, stop_ns - 3 * MILLISECOND_NS if missed else 0)


def test_a_trace_at_its_end_misses_nothing():
    doorbells = ((1000, 0, 0), (1000, 0, 0))
    fabric, (machine, _) = fabric_of(6, functools.partial(programs.trace, file=Trace([1], doorbells)), programs.idle)
    fabric.run_for(0.01)
    machine.vm.stop()
    assert owed(machine) == (0, 0)
