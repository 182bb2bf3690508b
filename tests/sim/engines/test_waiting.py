"""sim.engines.process.waiting: how often a wait until a moment asks the kernel, on a clock that only waits move."""

from __future__ import annotations

import math
import select
import time

import pytest

from nodes.errors import GuestError
from sim.engines.process import waiting
from sim.engines.process.waiting import poll_until

MILLISECOND_NS = 1_000_000
BEGIN_NS = 5_000_000_000
DESCRIPTOR = 33
EVENT = (7, select.EPOLLIN)


class ScriptedEpoll:
    """An epoll descriptor on which something comes at ``event_ns``; each call takes ``call_ns`` besides its wait."""

    def __init__(self, event_ns: float = math.inf, call_ns: int = 500) -> None:
        self.now_ns = BEGIN_NS
        self._event_ns, self._call_ns = event_ns, call_ns
        self.polls: list[float] = []
        self.fine_waits_ns: list[int] = []

    def fileno(self) -> int:
        return DESCRIPTOR

    def poll(self, timeout_s: float, events_max: int) -> list[tuple[int, int]]:
        self.polls.append(timeout_s)
        self._wait(math.ceil(timeout_s * 1000) * MILLISECOND_NS)  # epoll_wait(2) knows whole milliseconds
        return [EVENT] if self._event_ns <= self.now_ns else []

    def ppoll(self, descriptor: int, timeout_ns: int) -> bool:
        assert descriptor == DESCRIPTOR
        self.fine_waits_ns.append(timeout_ns)
        self._wait(timeout_ns)
        return self._event_ns <= self.now_ns

    def _wait(self, wait_ns: int) -> None:
        self.now_ns = round(max(self.now_ns, min(self.now_ns + wait_ns, self._event_ns))) + self._call_ns


@pytest.fixture
def kernel_of(monkeypatch):
    def make(**options) -> ScriptedEpoll:
        kernel = ScriptedEpoll(**options)
        monkeypatch.setattr(waiting, "readable_within_ns", kernel.ppoll)
        monkeypatch.setattr(waiting.time, "monotonic_ns", lambda: kernel.now_ns)
        return kernel

    return make


@pytest.mark.parametrize("wait_ms", [0.01, 1.0, 2.5, 3.0, 3.000001, 3.5, 3.999, 4.0, 4.5, 7.5, 10.3, 1000.7])
def test_a_wait_is_a_few_calls_that_each_wait(kernel_of, wait_ms):
    kernel = kernel_of()
    deadline_ns = BEGIN_NS + round(wait_ms * MILLISECOND_NS)
    assert poll_until(kernel, deadline_ns, 8) == []
    *waits, last_look = kernel.polls
    assert last_look == 0
    assert all(timeout_s >= 0.001 for timeout_s in waits)
    assert len(waits) <= 2
    assert len(kernel.fine_waits_ns) == 1
    # epoll never waits past the moment; select's microseconds may.
    assert deadline_ns <= kernel.now_ns <= deadline_ns + 3_000


@pytest.mark.parametrize("event_ms", [0.0, 1.7, 3.2, 6.5])
def test_an_event_before_the_moment_ends_the_wait(kernel_of, event_ms):
    kernel = kernel_of(event_ns=BEGIN_NS + event_ms * MILLISECOND_NS)
    assert poll_until(kernel, BEGIN_NS + 7 * MILLISECOND_NS, 8) == [EVENT]
    assert kernel.now_ns < BEGIN_NS + event_ms * MILLISECOND_NS + 3_000


def test_a_moment_that_has_passed_is_one_look(kernel_of):
    kernel = kernel_of()
    assert poll_until(kernel, BEGIN_NS - 1, 8) == []
    assert (kernel.polls, kernel.fine_waits_ns) == ([0], [])


@pytest.mark.parametrize("moment", [1.5, "soon", True])
def test_a_moment_is_a_whole_number(kernel_of, moment):
    with pytest.raises(GuestError, match="whole nanoseconds"):
        poll_until(kernel_of(), moment, 8)


def test_a_moment_far_beyond_what_the_kernel_takes_is_waited_for_in_parts(kernel_of):
    kernel = kernel_of(event_ns=BEGIN_NS + 10_000_000_000_000)
    assert poll_until(kernel, 10**40, 8) == [EVENT]
    assert max(kernel.polls) * 1000 < 1 << 31  # epoll_wait(2): an int of milliseconds
    assert len(kernel.polls) > 1


def test_the_kernel_itself_waits_until_the_moment():
    with select.epoll() as epoll:
        deadline_ns = time.monotonic_ns() + 3_600_000
        assert poll_until(epoll, deadline_ns, 8) == []
        assert time.monotonic_ns() >= deadline_ns
