"""From stamps to latencies: which drain delivered a doorbell, and the percentiles. Pure; numpy only.

Four latencies of one doorbell, in nanoseconds of CLOCK_MONOTONIC:

    lag       rung - intended        how late the sender was against its own schedule
    delivery  delivered - rung       eventfd write to eventfd read: the interrupt itself
    handling  handled - delivered    what the receiving program took
    total     handled - intended     what an open-loop sender waits for

``total`` counts from the intended time, so that a sender that was held up does not hide the stall
(coordinated omission); ``raw`` is the same from the ring on: handled - rung.

A doorbell belongs to the first drain of its (target, vector) that was stamped at or after its own stamp. The
stamps are taken just before the eventfd write and just after the eventfd read, which leaves two windows:

* a sender that is preempted between its stamp and its write, while the target drains others, is given to that
  earlier drain: its delivery reads too short, by that preemption;
* a doorbell rung between a target's read and its stamp is given to that drain although it waits for the next.

Both are a few instructions wide unless somebody is descheduled in them. ``overfull`` counts the drains that
would then hold more samples than the doorbells they drained: where it is 0, nothing speaks against the match.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "LATENCIES",
    "QUANTILES",
    "Samples",
    "assign",
    "grouped",
    "overfull",
    "percentiles",
    "values",
]

Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

LATENCIES = ("lag", "delivery", "handling", "total")
# Name and rank in hundred-thousandths: ranks stay exact integers, whatever the number of samples.
QUANTILES = (("p50", 50_000), ("p90", 90_000), ("p99", 99_000), ("p99_9", 99_900), ("max", 100_000))
WHOLE = 100_000


@dataclass(frozen=True)
class Samples:
    """Sampled doorbells as columns of one length.

    ``source`` and ``target`` are machine indices (target -1: no machine of the topology), times are
    nanoseconds; ``delivered_ns`` and ``handled_ns`` are 0 where it never came to that, ``count`` is how many
    doorbells shared the drain (0 where there is none), ``warmup`` marks what the summaries leave out.
    """

    source: Integers
    target: Integers
    vector: Integers
    intended_ns: Integers
    rung_ns: Integers
    delivered_ns: Integers
    handled_ns: Integers
    count: Integers
    warmup: Mask

    def __len__(self) -> int:
        return len(self.rung_ns)


def assign(
    ring_lines: Integers, rung_ns: Integers, drain_lines: Integers, delivered_ns: Integers, lines: int
) -> Integers:
    """For each ring the index of the drain that delivered it, -1 for none.

    A line is one (machine, vector), numbered 0 .. ``lines`` - 1; a ring with another number has no drain.
    Neither rings nor drains need to be in order. 10^7 rings take some seconds.
    """
    order = np.lexsort((delivered_ns, drain_lines))
    at_ns = delivered_ns[order]
    edges = np.searchsorted(drain_lines[order], np.arange(lines + 1))
    # A stable sort of 16-bit numbers is a radix sort: ten times faster than one of the lines as they are.
    known = np.where((ring_lines >= 0) & (ring_lines < lines), ring_lines, lines)
    short = known.astype(np.uint16) if lines < 1 << 16 else known
    by_line = np.argsort(short, kind="stable")
    starts = np.concatenate(([0], np.cumsum(np.bincount(known, minlength=lines + 1))))
    assigned = np.full(len(rung_ns), -1, dtype=np.int64)
    for line in range(lines):
        rings = by_line[starts[line] : starts[line + 1]]
        first, end = int(edges[line]), int(edges[line + 1])
        if len(rings) == 0 or first == end:
            continue
        place = first + np.searchsorted(at_ns[first:end], rung_ns[rings], side="left")
        found = place < end
        assigned[rings[found]] = order[place[found]]
    return assigned


def overfull(assigned: Integers, counts: Integers) -> int:
    """How many drains are given more samples than the doorbells they drained: 0 where the match is sound."""
    held = np.bincount(assigned[assigned >= 0], minlength=len(counts))
    return int(np.count_nonzero(held > counts))


def values(samples: Samples, latency: str) -> tuple[Integers, Mask]:
    """One latency of each sample in nanoseconds, and where it exists.

    ``latency`` is one of ``LATENCIES``, or ``raw``: handled - rung. Raises ``KeyError`` for another word.
    """
    start, end = {
        "lag": (samples.intended_ns, samples.rung_ns),
        "delivery": (samples.rung_ns, samples.delivered_ns),
        "handling": (samples.delivered_ns, samples.handled_ns),
        "total": (samples.intended_ns, samples.handled_ns),
        "raw": (samples.rung_ns, samples.handled_ns),
    }[latency]
    return end - start, end > 0


def percentiles(values_ns: Integers) -> dict[str, int | None]:
    """p50 to p99_9 and the maximum by nearest rank (values that were measured), and their number.

    The figures are None when there is no value.
    """
    size = len(values_ns)
    if size == 0:
        return {name: None for name, _ in QUANTILES} | {"samples": 0}
    ranks = [-(-size * rank // WHOLE) - 1 for _, rank in QUANTILES]
    ordered = np.partition(values_ns, sorted(set(ranks)))
    figures: dict[str, int | None] = {
        name: int(ordered[rank]) for (name, _), rank in zip(QUANTILES, ranks, strict=True)
    }
    return figures | {"samples": size}


def grouped(codes: Integers, values_ns: Integers, groups: int) -> list[dict[str, int | None]]:
    """:func:`percentiles` of the values of each code 0 .. ``groups`` - 1, in that order."""
    short = codes.astype(np.uint16) if groups <= 1 << 16 else codes
    ordered = values_ns[np.argsort(short, kind="stable")]
    starts = np.concatenate(([0], np.cumsum(np.bincount(codes, minlength=groups))))
    return [percentiles(ordered[starts[code] : starts[code + 1]]) for code in range(groups)]
