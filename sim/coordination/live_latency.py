"""The latency of the last second of a run in progress, estimated from its recordings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sim.recording import Recording
from sim.recording.reader import VECTOR_MASK, domain_and_peer, latest_drains, latest_rings

Integers = npt.NDArray[np.int64]

WINDOW_NS = 1_000_000_000
RINGS_EACH, DRAINS_PER_BIN = 64, 256
# A receiver drains the doorbells of all its senders, so more entries are read when there are few recordings.
DRAINS_TOGETHER = 8192
SAMPLES_MIN = 20
# In one number: a row, a vector (of which no device has more than 2048) and a time within the window.
VECTOR_BITS, TIME_BITS = 11, 31
PERCENTILES = {"p50": 50, "p99": 99}


def recent_delivery_ns(
    recordings: Mapping[int, Recording], row_of: Mapping[tuple[int, int], int], now_ns: int
) -> dict[str, int]:
    """Percentiles of delivery over the last second; none if too few doorbells were sampled in it.

    Only the latest entries of each recording are read, so these figures are an estimate and not those of the result.

    Args:
        recordings: the recordings by row.
        row_of: the row that has an ID (domain, peer).
        now_ns: CLOCK_MONOTONIC.

    Returns:
        p50 and p99 in nanoseconds.
    """
    begin_ns = now_ns - WINDOW_NS
    rung: list[Integers] = []
    taken: list[Integers] = []
    drains_each = max(DRAINS_PER_BIN, DRAINS_TOGETHER // max(1, len(recordings)))
    known_ns: dict[int, int] = {}
    """By row: the time since which every drain of it is among those that are read."""
    for row, recording in recordings.items():
        drains = latest_drains(recording, drains_each)
        # Not by another look at how many there are: the worker goes on, and may have stored its first one by then.
        known_ns[row] = int(drains[0, 1]) if len(drains) == drains_each else begin_ns
        drains = drains[drains[:, 1] >= begin_ns]
        taken.append(_key(row, drains[:, 0] & VECTOR_MASK, drains[:, 1] - begin_ns))
    for recording in recordings.values():
        rings = latest_rings(recording, RINGS_EACH)
        for key, _, rung_ns in rings[rings[:, 2] >= begin_ns].tolist():
            target = row_of.get(domain_and_peer(key))
            # A drain that is not read may have taken an earlier doorbell.
            if target is not None and rung_ns >= known_ns.get(target, now_ns):
                rung.append(_key(target, key & VECTOR_MASK, rung_ns - begin_ns))
    found = _spans(np.array(rung, np.int64), np.sort(np.concatenate([np.zeros(0, np.int64), *taken])))
    if len(found) < SAMPLES_MIN:
        return {}
    return {name: int(np.percentile(found, level)) for name, level in PERCENTILES.items()}


def _key(row: int, vector: int | Integers, time_ns: int | Integers) -> Integers:
    """A line and a moment in one number that sorts by both."""
    return np.asarray((row << VECTOR_BITS | vector % (1 << VECTOR_BITS)) << TIME_BITS | time_ns, np.int64)


def _spans(rung: Integers, taken: Sequence[int] | Integers) -> Integers:
    """From each doorbell to the first drain of its line that is not earlier; those without one are left out."""
    taken = np.asarray(taken, np.int64)
    place = np.searchsorted(taken, rung)
    there = place < len(taken)
    spans = taken[place[there]] - rung[there]
    same_line = taken[place[there]] >> TIME_BITS == rung[there] >> TIME_BITS
    kept: Integers = spans[same_line]
    return kept
