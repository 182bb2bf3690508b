"""From stamps to latencies: which drain delivered a doorbell, and the percentiles. Pure; numpy only.

Four latencies of one doorbell, in nanoseconds of CLOCK_MONOTONIC:

    lag       rung - intended        how late the sender was against its own schedule
    delivery  delivered - rung       eventfd write to eventfd read: the interrupt itself
    handling  handled - delivered    what the receiving program took
    total     handled - intended     what an open-loop sender waits for

A sender without a schedule (a closed loop, which waits for answers) has no intended time and no lag; its ``total`` is
``raw``. While its receiver stands still it rings nothing, so a standstill counts as one sample, whatever its length.

``total`` counts from the intended time, so that a sender that was held up does not hide the stall: it is
corrected for coordinated omission. ``raw`` is the same from the ring on, handled - rung, and stands beside it
everywhere: where the two differ, the senders were late, and the raw one flatters.

A doorbell belongs to the first drain of its (target, vector) that was stamped at or after its own stamp. The
stamps are taken just before the eventfd write and just after the eventfd read, which leaves two windows:

* a sender that is preempted between its stamp and its write, while the target drains others, is given to that
  earlier drain: its delivery reads too short, by that preemption;
* a doorbell rung between a target's read and its stamp is given to that drain although it waits for the next.

Both are under a microsecond wide unless a task is descheduled in them, so they matter where a target drains all
the time: two machines that storm each other ring one doorbell in ten into such a window. Two counts show it. Neither
proves a match, for a sample more or less in a drain of many goes unseen. ``overfull_drains``: drains with more
samples than the doorbells they drained. ``short_deliveries``: deliveries quicker than any wake-up.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sim.results.arrays import Integers, Mask

LATENCIES = ("lag", "delivery", "handling", "total")
EVERY_LATENCY = ("lag", "delivery", "handling", "raw", "total")
# Name and rank in hundred-thousandths: ranks stay exact integers, whatever the number of samples.
QUANTILES = (("p50", 50_000), ("p90", 90_000), ("p99", 99_000), ("p99_9", 99_900), ("p99_99", 99_990), ("max", 100_000))
WHOLE = 100_000
SHORT = 4  # a delivery in less than this fraction of a bare wake-up involved no wake-up


@dataclass(frozen=True)
class Stamps:
    """The time stamps of sampled doorbells, as columns of one length.

    Attributes:
        intended_ns: when the sender's schedule meant to ring; 0 without a schedule (a closed loop).
        rung_ns: when the sender rang.
        delivered_ns: when the receiver drained the eventfd; 0 if it never did.
        handled_ns: when the receiver's program had handled it; 0 if it never did.
        warmup: what the summaries leave out.
    """

    intended_ns: Integers
    rung_ns: Integers
    delivered_ns: Integers
    handled_ns: Integers
    warmup: Mask

    def __len__(self) -> int:
        return len(self.rung_ns)

    @cached_property
    def due_ns(self) -> Integers:
        """When each doorbell was to be rung: as intended, or when it was rung where there is no schedule."""
        return np.where(self.intended_ns > 0, self.intended_ns, self.rung_ns)


@dataclass(frozen=True)
class Samples(Stamps):
    """Sampled doorbells as columns of one length.

    Attributes:
        source: the row of the sender.
        target: the row of the receiver; -1 for a peer outside the topology.
        vector: the vector that was rung.
        count: doorbells that shared the drain; 0 without one.
    """

    source: Integers
    target: Integers
    vector: Integers
    count: Integers


def values(samples: Stamps, latency: str) -> tuple[Integers, Mask]:
    """One latency of each sample in nanoseconds, and where it exists.

    Without a schedule there is no lag, and ``total`` counts from the ring as ``raw`` does.

    Args:
        samples: columns of length n.
        latency: one of ``EVERY_LATENCY``.

    Returns:
        Two arrays of length n.

    Raises:
        KeyError: another word.
    """
    if latency == "lag":
        return samples.rung_ns - samples.intended_ns, samples.intended_ns > 0
    start, end = {
        "delivery": (samples.rung_ns, samples.delivered_ns),
        "handling": (samples.delivered_ns, samples.handled_ns),
        "total": (samples.due_ns, samples.handled_ns),
        "raw": (samples.rung_ns, samples.handled_ns),
    }[latency]
    return end - start, end > 0


def place_of(size: int, name: str, rank: int) -> int | None:
    """Where in ``size`` ordered values the quantile stands, by nearest rank; None for too few values."""
    place = -(-size * rank // WHOLE) - 1
    if size == 0 or (place == size - 1 and name not in {"p50", "max"}):
        return None
    return place
