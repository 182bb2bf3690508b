"""nodes.load: a factor over time, its integral, and the inverse of that."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nodes.load import STEADY, Load

FACTORS = st.just(0.0) | st.floats(0.001, 1000)
PIECES = st.lists(st.tuples(st.integers(1, 10**9), FACTORS, FACTORS), max_size=6)
TIMES = st.floats(0, 5e9)
WORK = st.floats(0, 1e12)
RAMP = Load([(1000, 0.0, 2.0), (500, 0.0, 0.0), (1000, 1.0, 0.5)])


def near(value):
    return pytest.approx(value, rel=1e-9, abs=1e-3)


def breaks(pieces):
    return [0, *itertools.accumulate(duration for duration, _, _ in pieces)]


@given(PIECES, TIMES)
def test_work_is_the_integral_of_the_factor(pieces, time_ns):
    load = Load(pieces)
    bounds = sorted({min(at, time_ns) for at in breaks(pieces)} | {time_ns})
    # The factor is linear between these, so that its middle is its mean.
    total = sum((after - before) * load.at((before + after) / 2) for before, after in itertools.pairwise(bounds))
    assert load.work(time_ns) == near(total)


@given(PIECES, TIMES, WORK)
def test_later_is_when_that_much_work_is_done(pieces, time_ns, work_ns):
    load = Load(pieces)
    until_ns = load.later(time_ns, work_ns)
    if until_ns == math.inf:
        end_ns = max(breaks(pieces)[-1], time_ns)
        assert load.at(end_ns) == 0
        assert load.work(end_ns) - load.work(time_ns) <= work_ns * (1 + 1e-9) + 1e-3
    else:
        assert until_ns >= time_ns
        # What a nanosecond is worth is also what can be lost by rounding the time.
        lost = load.at(until_ns) * math.ulp(until_ns) * 4
        assert load.work(until_ns) == pytest.approx(load.work(time_ns) + work_ns, rel=1e-9, abs=1e-3 + lost)


@given(PIECES, TIMES, TIMES)
def test_the_work_between_two_times_takes_until_the_second(pieces, first_ns, second_ns):
    load = Load(pieces)
    begin_ns, end_ns = sorted((first_ns, second_ns))
    done = load.work(end_ns) - load.work(begin_ns)
    until_ns = load.later(begin_ns, done)
    assume(until_ns < math.inf)
    # Where nothing is done the end cannot be told; elsewhere it is the same moment.
    assert load.work(until_ns) == near(load.work(end_ns))


@given(PIECES, TIMES, WORK, WORK)
def test_more_work_is_done_later_in_one_go_or_in_two(pieces, time_ns, first, second):
    load = Load(pieces)
    step = load.later(time_ns, first)
    whole = load.later(time_ns, first + second)
    assert step <= whole * (1 + 1e-12)
    if whole < math.inf:
        twice = load.later(step, second)
        assert twice < math.inf or load.at(breaks(pieces)[-1]) == 0
        if twice < math.inf:
            assert load.work(twice) == near(load.work(whole))


@given(PIECES, TIMES)
def test_the_factor_is_never_negative_and_stays_what_it_was_at_the_end(pieces, time_ns):
    load = Load(pieces)
    assert load.at(time_ns) >= 0
    assert load.at(breaks(pieces)[-1] + time_ns) == (pieces[-1][2] if pieces else 1.0)


@given(PIECES, TIMES)
def test_a_load_rises_when_there_is_work_again(pieces, time_ns):
    load = Load(pieces)
    rises_ns = load.rises(time_ns)
    if rises_ns > time_ns:
        assert load.at(time_ns) == 0
        assert load.work(min(rises_ns, 1e10)) == near(load.work(time_ns))
    if rises_ns < math.inf:
        assert load.next_change(rises_ns) > rises_ns
        assert load.work(min(load.next_change(rises_ns), rises_ns + 1e10)) > load.work(rises_ns)


@given(TIMES, WORK)
def test_under_a_steady_load_work_is_time(time_ns, work_ns):
    same = Load([(1000, 1.0, 1.0), (77, 1.0, 1.0)])
    for load in (STEADY, same):
        assert load.is_steady
        assert (load.at(time_ns), load.work(time_ns)) == (1.0, near(time_ns))
        assert load.later(time_ns, work_ns) == time_ns + work_ns
        assert load.rises(time_ns) == time_ns


@pytest.mark.parametrize(
    ("time_ns", "factor", "done"),
    [(0, 0.0, 0), (500, 1.0, 250), (999, 1.998, 998.001), (1200, 0.0, 1000), (1500, 1.0, 1000), (3000, 0.5, 2000)],
)
def test_a_ramp_by_hand(time_ns, factor, done):
    assert not RAMP.is_steady
    assert RAMP.at(time_ns) == pytest.approx(factor)
    assert RAMP.work(time_ns) == pytest.approx(done)


def test_a_ramp_is_waited_for_by_hand():
    assert RAMP.later(0, 250) == pytest.approx(500)
    assert RAMP.later(0, 1000) == pytest.approx(1000)
    assert RAMP.later(0, 1000.001) > 1500
    assert RAMP.later(600, 640) == pytest.approx(1000)
    assert RAMP.later(1750, 1000) == pytest.approx(2500 + 2 * (1000 - 750 * (0.875 + 0.5) / 2))
    assert [RAMP.rises(at) for at in (0, 1000, 1250, 1500, 9000)] == [0, 1500, 1500, 1500, 9000]
    assert [RAMP.next_change(at) for at in (0, 1000, 1500, 2500)] == [1000, 1500, 2500, math.inf]


def test_after_the_last_work_there_is_none():
    load = Load([(1000, 1.0, 0.0)])
    assert load.later(0, 500) == pytest.approx(1000)
    assert load.later(0, 501) == math.inf
    assert load.rises(1000) == math.inf


def test_a_piece_without_duration_is_a_step():
    load = Load([(100, 1.0, 1.0), (0, 5.0, 2.0)])
    assert (load.at(50), load.at(100)) == (1.0, 2.0)
