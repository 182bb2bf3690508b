"""nodes.programs.clock_calibration: the stated error contains the true one, whatever the latencies and the clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.programs.clock_calibration import Calibration, Exchange, calibrate

GAP_NS = 1_000_000
LATENCIES_NS = st.integers(1_000, 200_000)


def exchange(rung_ns: int, to_ns: int, in_ns: int, from_ns: int, clock: Calibration) -> Exchange:
    """One, by the own clock's times and the other clock's true offset and drift."""
    taken, answered = rung_ns + to_ns, rung_ns + to_ns + in_ns
    other = [at + round(clock.ahead_ns(at)) for at in (taken, answered)]
    return Exchange(rung_ns, other[0], other[1], answered + from_ns)


@given(
    st.lists(st.tuples(LATENCIES_NS, LATENCIES_NS, LATENCIES_NS), min_size=1, max_size=60),
    st.integers(-(10**12), 10**12),
    st.floats(-1e-4, 1e-4),
)
def test_each_one_way_time_is_within_the_error(
    latencies: list[tuple[int, int, int]], offset_ns: int, drift: float
) -> None:
    if len(latencies) < 8:
        drift = 0.0  # is not looked for in so few
    clock = Calibration(offset_ns, drift, 0.0, 0.0)
    exchanges = [exchange(number * GAP_NS, *each, clock) for number, each in enumerate(latencies)]
    found = calibrate(exchanges)
    slack_ns = 20 + found.error_ns  # numbers are rounded, and the clock drifts during an exchange
    for each, (to_ns, _, from_ns) in zip(exchanges, latencies, strict=True):
        assert abs(found.to_other_ns(each) - to_ns) <= slack_ns + abs(drift) * 400_000
        assert abs(found.from_other_ns(each) - from_ns) <= slack_ns + abs(drift) * 400_000
    if found.drift_error is not None:
        span_ns = GAP_NS * len(latencies) / 2  # of the two exchanges that it was read off
        assert abs(found.drift - drift) <= found.drift_error + (20 + abs(drift) * 400_000) / span_ns


def test_one_tight_exchange_makes_the_error_small() -> None:
    clock = Calibration(5e9, 0.0, 0.0, 0.0)
    slow = [exchange(number * GAP_NS, 100_000, 5_000, 400_000, clock) for number in range(20)]
    assert calibrate(slow).error_ns == pytest.approx(250_000, rel=0.5)
    quick = [*slow[:2], exchange(2 * GAP_NS, 1_000, 5_000, 1_000, clock), *slow[3:17]]
    quick += [exchange(18 * GAP_NS, 1_000, 5_000, 1_000, clock), *slow[19:]]
    assert calibrate(quick).error_ns < 2_000
    assert calibrate(quick).offset_ns == pytest.approx(5e9, abs=2_000)


def test_the_error_of_the_drift_is_what_both_exchanges_leave_open_over_the_time_between_them() -> None:
    clock = Calibration(5e9, 1e-6, 0.0, 0.0)
    exchanges = [exchange(number * GAP_NS, 3_000, 0, 1_000, clock) for number in range(101)]
    found = calibrate(exchanges)
    assert found.drift_error == pytest.approx(4_000 / (100 * GAP_NS), rel=0.01)
    assert calibrate(exchanges[:7]).drift_error is None


def test_a_clock_that_jumps_is_in_the_error() -> None:
    before, after = Calibration(0.0, 0.0, 0.0, 0.0), Calibration(1e7, 0.0, 0.0, 0.0)
    exchanges = [exchange(n * GAP_NS, 1_000, 1_000, 1_000, before if n < 50 else after) for n in range(100)]
    assert calibrate(exchanges).error_ns > 1e6
