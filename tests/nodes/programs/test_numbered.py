"""nodes.programs.numbered: round trips, and doorbells with numbers in the shared memory."""

from __future__ import annotations

import pytest

from nodes import programs
from nodes.errors import GuestError
from nodes.guest import FOREVER
from nodes.programs.numbered import SLOT_BYTES, SLOT_VECTORS
from tests.nodes.programs.test_programs import fabric_of, rings, with_


def reader(guest, *, to):
    """What a guest of `examples/linux_guest` does: note the numbers of ``to``; on vector 0, answer each."""
    while True:
        interrupt = yield FOREVER
        for peer in to:
            at = (peer * SLOT_VECTORS + interrupt.vector) * SLOT_BYTES
            slot = guest.memory[at : at + SLOT_BYTES].cast("I")
            while slot[1] != slot[0]:
                slot[1] += 1
                if interrupt.vector == 0:
                    slot[2] += 1
                    guest.ring(peer, 0)


def test_a_round_trip_ends_after_its_rounds_and_tells_the_next():
    trip = with_(programs.round_trip, 0, rounds=50, then=(2,))
    fabric, (echo, trip, next_) = fabric_of(1, with_(programs.echo, 1), trip, programs.idle)
    fabric.run_for(0.01)
    fabric.stop()
    fabric.check_balance()
    assert rings(trip) == [(0, 0)] * 50 + [(2, 0)]
    assert rings(echo) == [(1, 0)] * 50
    assert next_.delivered == [1]
    figures = trip.vm.guest.statistics
    assert (figures["rounds"], figures["timeouts"]) == (50, 0)
    assert 0 < figures["round_trip_p50_us"] <= figures["round_trip_p99_us"] <= figures["round_trip_max_us"]


def test_a_round_trip_without_an_answer_is_a_timeout():
    fabric, (_, trip) = fabric_of(1, programs.idle, with_(programs.round_trip, 0, timeout_s=0.001))
    fabric.run_for(0.0105)
    fabric.stop()
    assert rings(trip) == [(0, 0)] * 11
    assert trip.vm.guest.statistics == {"rounds": 0, "timeouts": 10}


def test_an_interrupt_on_another_vector_is_no_answer():
    storm = with_(programs.storm, 1, vectors=[1], rate_hz=100_000.0)
    trip = with_(programs.round_trip, 0, vector=0, timeout_s=0.001)
    fabric, (_, trip) = fabric_of(1, storm, trip, vectors=2)
    fabric.run_for(0.0055)
    fabric.stop()
    assert trip.vm.guest.statistics == {"rounds": 0, "timeouts": 5}


def test_each_doorbell_has_a_number_that_the_peer_can_answer():
    fabric, (_, trip) = fabric_of(1, with_(reader, 1), with_(programs.round_trip, 0, rounds=20, offset=0))
    fabric.run_for(0.01)
    fabric.stop()
    assert trip.vm.guest.memory[SLOT_VECTORS * SLOT_BYTES :].cast("I")[:3].tolist() == [20, 20, 20]


@pytest.mark.parametrize("told", [True, False])
def test_a_numbered_storm_waits_until_it_is_rung_and_nothing_of_it_is_unseen(told):
    storm = with_(programs.numbered_storm, 0, count=100, wait=True)
    trip = with_(programs.round_trip, 0, rounds=5, offset=0, then=(1,) if told else ())
    fabric, (_, storm, trip) = fabric_of(1, with_(reader, 1, 2), storm, trip, vectors=2)
    fabric.run_for(0.1)
    fabric.stop()
    fabric.check_balance()
    assert trip.vm.guest.statistics["rounds"] == 5
    assert rings(storm) == [(0, 1)] * (100 if told else 0)
    assert storm.vm.guest.statistics == {"unseen": 0, "returned": 0}


def test_a_storm_that_is_not_read_says_what_is_unseen():
    fabric, (_, storm) = fabric_of(1, programs.idle, with_(programs.numbered_storm, 0, count=100), vectors=2)
    fabric.run_for(0.01)
    fabric.stop()
    assert storm.vm.guest.statistics == {"unseen": 100, "returned": 0}


@pytest.mark.parametrize(("offset", "vector"), [(0, 4), (1 << 20, 0)])
def test_a_slot_that_does_not_exist_is_an_error_of_the_program(offset, vector):
    with pytest.raises(GuestError, match="slot"):
        fabric_of(1, programs.idle, with_(programs.round_trip, 0, vector=vector, offset=offset), vectors=5)


def stamping(guest, ahead_ns=7_000_000):
    """As `reader`, with a clock that is ahead, which stamps."""
    while True:
        yield FOREVER
        at = (SLOT_VECTORS + 0) * SLOT_BYTES
        words, stamps = (guest.memory[at : at + SLOT_BYTES].cast(code) for code in ("I", "Q"))
        stamps[2] = stamps[3] = guest.clock() + ahead_ns
        words[1] = words[0]
        words[2] += 1
        guest.ring(1, 0)


def test_a_peer_that_stamps_is_calibrated_and_gives_one_way_times():
    fabric, (_, trip) = fabric_of(1, stamping, with_(programs.round_trip, 0, rounds=50, offset=0))
    fabric.run_for(0.05)
    fabric.stop()
    figures = trip.vm.guest.statistics
    assert figures["rounds"] == figures["to_peer_samples"] == figures["from_peer_samples"] == 50
    assert figures["clock_offset_us"] == pytest.approx(7000, abs=figures["clock_error_us"] + 0.001)
    assert abs(figures["clock_drift_ppm"]) <= figures["clock_drift_error_ppm"]
    both_us = figures["to_peer_p50_us"] + figures["from_peer_p50_us"]
    assert both_us == pytest.approx(figures["round_trip_p50_us"], rel=0.1)
