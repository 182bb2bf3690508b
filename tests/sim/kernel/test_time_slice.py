"""sim.kernel.time_slice: a wish that is taken back at the end of a turn of the loop."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from sim.kernel.loop import Loop
from sim.kernel.time_slice import SHORT_NS, ShortTimeSlice, time_slice_ns


@pytest.fixture
def loop() -> Iterator[Loop]:
    with contextlib.closing(Loop()) as loop:
        yield loop


def test_the_time_slice_is_short_until_the_end_of_the_turn(loop: Loop) -> None:
    before, niceness = time_slice_ns(), os.nice(0)
    granted = before > 0  # Linux tells and grants it since 6.12
    short_slice = ShortTimeSlice(loop)
    for _ in range(2):
        for _ in range(3):
            short_slice.begin()
            assert not granted or SHORT_NS <= time_slice_ns() <= SHORT_NS + 1
        loop.step()
        assert (time_slice_ns(), os.sched_getscheduler(0), os.nice(0)) == (before, os.SCHED_OTHER, niceness)
    short_slice.begin()
    short_slice.end()
    assert time_slice_ns() == before
    loop.step()  # the end of the turn comes after that: nothing changes
    assert time_slice_ns() == before


def test_a_real_time_policy_is_left_alone(loop: Loop) -> None:
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        pytest.skip("this user may not use SCHED_FIFO")
    try:
        before = time_slice_ns()
        ShortTimeSlice(loop).begin()
        assert (os.sched_getscheduler(0), time_slice_ns()) == (os.SCHED_FIFO, before)
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
