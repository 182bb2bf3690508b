"""sim.kernel.waiting: one descriptor, whatever its number."""

from __future__ import annotations

import fcntl
import os
import resource
from collections.abc import Iterator

import pytest

from sim.kernel.waiting import Patience, readable_within, readable_within_ns

BEYOND_SELECT = 1500


@pytest.fixture(params=[0, BEYOND_SELECT], ids=["small", "beyond 1023"])
def pipe(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """A reading end with a number of at least so much, and its writing end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard <= BEYOND_SELECT:
        pytest.skip(f"this host allows {hard} descriptors only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    reading, writing = os.pipe()
    moved = fcntl.fcntl(reading, fcntl.F_DUPFD_CLOEXEC, request.param)
    os.close(reading)
    try:
        yield moved, writing
    finally:
        os.close(moved)
        os.close(writing)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_wait_ends_at_its_timeout(pipe: tuple[int, int]) -> None:
    assert not readable_within(pipe[0], 0)
    assert not readable_within(pipe[0], 0.001)
    assert not readable_within_ns(pipe[0], 0)
    assert not readable_within_ns(pipe[0], 1_000)


def test_readable_data_ends_the_wait(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    assert readable_within(pipe[0], None)
    assert readable_within(pipe[0], 20)
    assert readable_within_ns(pipe[0], 20_000_000_000)


def test_a_stop_of_the_process_takes_little_of_its_patience() -> None:
    now_s = 0.0
    patience = Patience(10.0, look_s=2.0, clock=lambda: now_s)
    now_s = 3600.0
    assert not patience.is_over()
    for _ in range(8):
        assert not patience.is_over()
        now_s += 1.0
    assert patience.is_over()
