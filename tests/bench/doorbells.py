"""One doorbell through guest, device and table, alone and in a batch, against ``write(2)`` in C."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from tests.bench.figure import Bar, Figure, alternate
from tests.bench.machine import Wired, wired_machine
from tests.bench.placement import pinned
from tests.bench.setting import Setting

__all__ = ["measure_batch", "measure_single"]

SINGLE = Bar(1.8, 1.65)
BELL = Bar(1.6, 1.5)
SAMPLED = Bar(1.9, 1.7)
BATCH = Bar(1.15, 1.05)
PEERS, VECTORS = 16, 4
BATCH_SIZE = 64


def measure_single(setting: Setting) -> Iterator[Figure]:
    """``guest.ring(peer, vector)``: one vector again and again, every vector of 16 peers in turn; the same by bells."""
    yield _measure(setting, "single", "ring(), one line", 0, _ring_one_line, lines=1, bar=SINGLE)
    yield _measure(setting, "single", "ring(), 64 lines in turn", 0, _ring_in_turn, bar=SINGLE)
    yield _measure(setting, "single", "bell(), 64 lines in turn", 0, _ring_bells, bar=BELL)
    for sample_every in (16, 64):
        bar = SAMPLED if sample_every == 16 else None
        name = f"ring(), 1 in {sample_every} sampled"
        yield _measure(setting, "single", name, sample_every, _ring_in_turn, bar=bar)


def measure_batch(setting: Setting) -> Iterator[Figure]:
    """``burst.ring()`` of 64 doorbells, and of a number that is no power of two."""
    yield _measure(setting, "batch", f"burst of {BATCH_SIZE}", 0, _ring_in_bursts, bar=BATCH)
    yield _measure(setting, "batch", "the same, 1 in 64 sampled", 64, _ring_in_bursts)
    yield _measure(setting, "batch", "burst of 60", 0, _ring_in_bursts, lines=60)


def _measure(
    setting: Setting,
    benchmark: str,
    name: str,
    sample_every: int,
    make: Callable[[Wired, int, int], Callable[[], float]],
    lines: int = PEERS * VECTORS,
    bar: Bar | None = None,
) -> Figure:
    rounds, doorbells = setting.size(201, 2), setting.size(80, 20) * BATCH_SIZE
    rings = rounds * doorbells // sample_every + 1024 if sample_every else 0
    with (
        pinned(setting.cpu),
        wired_machine(setting.folder, peers=PEERS, vectors=VECTORS, sample_every=sample_every, rings=rings) as wired,
    ):
        descriptors = [wired.lines[pair] for pair in wired.others()[:lines]]
        pairs = alternate(
            rounds,
            make(wired, doorbells, lines),
            lambda: setting.reference.write_doorbells(descriptors, doorbells),
        )
    return Figure(benchmark, name, "ns", pairs, bar)


def _ring_one_line(wired: Wired, doorbells: int, _: int) -> Callable[[], float]:
    ring, (peer, vector) = wired.vm.guest.ring, wired.others()[0]

    def measure() -> float:
        begin_ns = time.thread_time_ns()
        for _ in range(doorbells):
            ring(peer, vector)
        return (time.thread_time_ns() - begin_ns) / doorbells

    return measure


def _ring_in_turn(wired: Wired, doorbells: int, _: int) -> Callable[[], float]:
    ring, pairs = wired.vm.guest.ring, wired.others()
    turns = doorbells // len(pairs)

    def measure() -> float:
        begin_ns = time.thread_time_ns()
        for _ in range(turns):
            for peer, vector in pairs:
                ring(peer, vector)
        return (time.thread_time_ns() - begin_ns) / (turns * len(pairs))

    return measure


def _ring_bells(wired: Wired, doorbells: int, _: int) -> Callable[[], float]:
    bells = [wired.vm.guest.bell(*pair) for pair in wired.others()]
    turns = doorbells // len(bells)

    def measure() -> float:
        begin_ns = time.thread_time_ns()
        for _ in range(turns):
            for bell in bells:
                bell()
        return (time.thread_time_ns() - begin_ns) / (turns * len(bells))

    return measure


def _ring_in_bursts(wired: Wired, doorbells: int, size: int) -> Callable[[], float]:
    burst = wired.vm.guest.burst(wired.others()[:size])
    turns = doorbells // size

    def measure() -> float:
        begin_ns = time.thread_time_ns()
        for _ in range(turns):
            burst.ring()
        return (time.thread_time_ns() - begin_ns) / (turns * size)

    return measure
