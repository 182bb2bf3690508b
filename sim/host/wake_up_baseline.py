"""The wake-up baseline: the least that a wake-up and a time stamp cost on this host, without the simulator.

Two bare processes ring each other through eventfds and wait with epoll, and read the clock where a run does:
just before the write, just after the read. What a delivery in a run takes beyond that is caused by the machines or
their number. The measurement takes about 0.1 s.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

from nodes.errors import HostError
from sim.kernel.closeable import closing
from sim.kernel.eventfd import EventFd, drain, signal
from sim.kernel.signals import signals_held
from sim.kernel.waiting import readable_within

ROUNDS_MAX = 1000
WARM_UP = 50
ENOUGH_NS = 80_000_000
PATIENCE_S = 5.0
LOOKS = 2000
STDIN = 0


@dataclass(frozen=True)
class WakeUpBaseline:
    """Eventfd write to eventfd read, between two processes: percentiles of ``count`` wake-ups, in nanoseconds.

    ``placement`` says in words where they ran, ``clock_ns`` the time of one reading of the clock.
    """

    p50_ns: int
    p99_ns: int
    count: int
    placement: str
    clock_ns: float


def clock_cost_ns() -> float:
    """Measure one reading of CLOCK_MONOTONIC from Python, in nanoseconds: the best of five rounds of 2000."""
    clock = time.monotonic_ns
    best_ns = 1 << 62
    for _ in range(5):
        begin_ns = clock()
        for _ in repeat(None, LOOKS):
            clock()
        best_ns = min(best_ns, clock() - begin_ns)
    return round(best_ns / LOOKS, 1)


def baseline_if_any() -> list[WakeUpBaseline]:
    """Measure the baseline; return nothing where that fails: a run does not depend on it."""
    with contextlib.suppress(HostError):
        return [measure_baseline()]
    return []


def measure_baseline() -> WakeUpBaseline:
    """Measure the baseline.

    Both processes run where the kernel puts them, on the CPUs that this process may use, as machines do that are not
    pinned. Raises ``HostError`` when no partner can be started, or when it dies or does not answer.
    """
    clock_ns = clock_cost_ns()
    with contextlib.ExitStack() as stack:
        rings, answers = EventFd.create(), EventFd.create()
        stack.callback(rings.close)
        stack.callback(answers.close)
        started = stack.enter_context(_started(rings, answers))
        epoll = stack.enter_context(select.epoll())
        epoll.register(answers.descriptor, select.EPOLLIN)
        ours = _ping(started, epoll, rings.descriptor, answers.descriptor)
        theirs = array("q")
        try:
            theirs.frombytes(started.communicate(timeout=PATIENCE_S)[0])
        except (subprocess.TimeoutExpired, ValueError) as error:
            raise HostError(f"no wake-up baseline: the partner does not give its stamps: {error}") from error
    if len(theirs) != len(ours):
        raise HostError(f"no wake-up baseline: {len(theirs)} stamps of the partner, {len(ours)} here")
    there = [delivered - rung for delivered, rung in zip(theirs[::2], ours[::2], strict=True)]
    back = [delivered - rung for delivered, rung in zip(ours[1::2], theirs[1::2], strict=True)]
    latencies = sorted(there[WARM_UP:] + back[WARM_UP:])
    if not latencies:
        raise HostError(f"no wake-up baseline: {len(there)} rounds in {ENOUGH_NS / 1e9:g} s")
    return WakeUpBaseline(
        p50_ns=latencies[-(-len(latencies) // 2) - 1],
        p99_ns=latencies[-(-len(latencies) * 99 // 100) - 1],
        count=len(latencies),
        placement=f"where the kernel put them, on {len(os.sched_getaffinity(0))} CPUs",
        clock_ns=clock_ns,
    )


def _ping(started: subprocess.Popen[bytes], epoll: select.epoll, ring: int, answer: int) -> list[int]:
    """Ring the partner and wait for its answer, repeatedly. Returns the times of ring and delivery in turn."""
    poll, clock = epoll.poll, time.monotonic_ns
    stamps: list[int] = []

    def wait() -> None:
        if not poll(PATIENCE_S, 1):
            raise HostError("no wake-up baseline: the partner does not answer")

    _await_partner(started, answer, wait)
    drain(answer)
    end_ns = clock() + ENOUGH_NS
    while len(stamps) < 2 * ROUNDS_MAX:
        rung_ns = clock()
        if rung_ns > end_ns:
            break
        signal(ring, 1)
        wait()
        drain(answer)
        delivered_ns = clock()
        stamps += (rung_ns, delivered_ns)
    return stamps


def _await_partner(started: subprocess.Popen[bytes], answer: int, wait: Callable[[], None]) -> None:
    """Wait for its first answer; a partner that dies before that is noticed at once."""
    with closing(os.pidfd_open(started.pid)) as life:
        poll = select.poll()  # not select(): the caller may have more than 1023 descriptors open
        for descriptor in (answer, life):
            poll.register(descriptor, select.POLLIN)
        poll.poll(PATIENCE_S * 1000)
        if readable_within(life, 0):
            raise HostError(f"no wake-up baseline: the partner ended ({started.wait()})")
        wait()


def partner(ring: int, answer: int) -> None:
    """The other process: answer every ring until standard input ends, then write all stamps to standard output."""
    with signals_held(), select.epoll() as epoll:
        epoll.register(ring, select.EPOLLIN)
        epoll.register(STDIN, select.EPOLLIN)
        poll, clock, stamps = epoll.poll, time.monotonic_ns, array("q")
        signal(answer, 1)
        while True:
            ((descriptor, _),) = poll(-1, 1)
            if descriptor == STDIN:
                break
            drain(ring)
            delivered_ns = clock()
            stamps.append(delivered_ns)
            rung_ns = clock()
            signal(answer, 1)
            stamps.append(rung_ns)
        sys.stdout.buffer.write(stamps.tobytes())
        sys.stdout.buffer.flush()


@contextlib.contextmanager
def _started(rings: EventFd, answers: EventFd) -> Iterator[subprocess.Popen[bytes]]:
    """The partner: a bare interpreter without site packages. Ends with this, or when this process does."""
    root = str(Path(__file__).parents[2])
    descriptors = (rings.descriptor, answers.descriptor)
    call = f"from sim.host.wake_up_baseline import partner; partner(*{descriptors})"
    code = f"import sys; sys.path.append({root!r}); {call}"
    try:
        # Ctrl-C is meant for the run; what is ignored when the partner starts, it ignores for ever.
        with signals_held():
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=descriptors,
            )
    except OSError as error:
        raise HostError(f"no wake-up baseline: no partner: {error}") from error
    with process:
        try:
            yield process
        finally:
            process.kill()
