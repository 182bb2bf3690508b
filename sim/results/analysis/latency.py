"""From stamps to latencies: which drain delivered a doorbell, and the percentiles. Pure; numpy only.

Four latencies of one doorbell, in nanoseconds of CLOCK_MONOTONIC:

    lag       rung - intended        how late the sender was against its own schedule
    delivery  delivered - rung       eventfd write to eventfd read: the interrupt itself
    handling  handled - delivered    what the receiving program took
    total     handled - intended     what an open-loop sender waits for

``total`` counts from the intended time, so that a sender that was held up does not hide the stall: it is
corrected for coordinated omission. ``raw`` is the same from the ring on, handled - rung, and stands beside it
everywhere: where the two differ, the senders were late, and the raw one flatters.

A doorbell belongs to the first drain of its (target, vector) that was stamped at or after its own stamp. The
stamps are taken just before the eventfd write and just after the eventfd read, which leaves two windows:

* a sender that is preempted between its stamp and its write, while the target drains others, is given to that
  earlier drain: its delivery reads too short, by that preemption;
* a doorbell rung between a target's read and its stamp is given to that drain although it waits for the next.

Both are under a microsecond wide unless somebody is descheduled in them, so they matter where a target drains all
the time: two machines that storm each other ring one doorbell in ten into such a window. Two counts show it. Neither
proves a match, for a sample more or less in a drain of many goes unseen. ``overfull``: drains with more samples than
the doorbells they drained. ``short``: deliveries quicker than any wake-up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "EVERY_LATENCY",
    "LATENCIES",
    "QUANTILES",
    "Samples",
    "assign",
    "grouped",
    "overfull",
    "percentiles",
    "place_of",
    "short",
    "values",
]

Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

LATENCIES = ("lag", "delivery", "handling", "total")
EVERY_LATENCY = ("lag", "delivery", "handling", "raw", "total")
# Name and rank in hundred-thousandths: ranks stay exact integers, whatever the number of samples.
QUANTILES = (
    ("p50", 50_000),
    ("p90", 90_000),
    ("p99", 99_000),
    ("p99_9", 99_900),
    ("p99_99", 99_990),
    ("max", 100_000),
)
WHOLE = 100_000
SHORT = 4  # a delivery that takes less than one part in so many of a bare wake-up was none


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
    order, edges = _by_line(drain_lines, lines)
    at_ns = delivered_ns[order]
    # Who drains stamps in order, so the drains of a line mostly are; where they are not, sort them.
    back = np.flatnonzero(at_ns[1:] < at_ns[:-1]) + 1
    if len(np.setdiff1d(back, edges)):
        order = np.lexsort((delivered_ns, _known(drain_lines, lines)))
        at_ns = delivered_ns[order]
    by_line, starts = _by_line(ring_lines, lines)
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


def _by_line(numbers: Integers, lines: int) -> tuple[Integers, Integers]:
    """The order by line, otherwise as before, and where each line begins and the last one ends.

    What is on no line comes last.
    """
    known = _known(numbers, lines)
    # A stable sort of 16-bit numbers is a radix sort: ten times faster than one of the lines as they are.
    short = known.astype(np.uint16) if lines < 1 << 16 else known
    starts = np.concatenate(([0], np.cumsum(np.bincount(known, minlength=lines + 1))))
    return np.argsort(short, kind="stable"), starts


def _known(numbers: Integers, lines: int) -> Integers:
    """The numbers of lines; what is none becomes ``lines``."""
    return np.where((numbers >= 0) & (numbers < lines), numbers, lines)


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


def short(samples: Samples, floor_ns: int) -> int:
    """How many deliveries, without the warm-up, take less than a quarter of a bare wake-up, ``floor_ns``."""
    its, measured = values(samples, "delivery")
    return int(np.count_nonzero(its[measured & ~samples.warmup] * SHORT < floor_ns))


def percentiles(values_ns: Integers) -> dict[str, int | None]:
    """p50 to p99_99 and the maximum by nearest rank (values that were measured), and their number.

    A figure is None when there are too few values for it: when none of them lies above it, so that it would be
    the maximum under another name. p99 takes 100 values, p99_99 takes 10,000; the median is always given.
    """
    size = len(values_ns)
    places = {name: place for name, rank in QUANTILES if (place := place_of(size, name, rank)) is not None}
    ordered = np.partition(values_ns, sorted(set(places.values()))) if places else values_ns
    figures: dict[str, int | None] = {
        name: int(ordered[places[name]]) if name in places else None for name, _ in QUANTILES
    }
    return figures | {"samples": size}


def place_of(size: int, name: str, rank: int) -> int | None:
    """Where in ``size`` ordered values the quantile stands, by nearest rank; None for too few values."""
    place = -(-size * rank // WHOLE) - 1
    if size == 0 or (place == size - 1 and name not in {"p50", "max"}):
        return None
    return place


def grouped(codes: Integers, values_ns: Integers, groups: int) -> list[dict[str, int | None]]:
    """:func:`percentiles` of the values of each code 0 .. ``groups`` - 1, in that order."""
    sizes = np.bincount(codes, minlength=groups)
    short = codes.astype(np.uint16) if groups <= 1 << 16 else codes
    # With all in one group there is nothing to sort.
    ordered = values_ns[np.argsort(short, kind="stable")] if np.count_nonzero(sizes) > 1 else values_ns
    starts = np.concatenate(([0], np.cumsum(sizes)))
    return [percentiles(ordered[starts[code] : starts[code + 1]]) for code in range(groups)]
