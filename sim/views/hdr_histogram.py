"""Latencies in HdrHistogram's formats, for its plotters and for other tools: ``.hgrm`` and ``.hlog``. Pure.

A `Histogram` of this package has the bins of an HdrHistogram with two significant digits whose lowest value is 1: both
count 0..255 one by one, then 128 bins for each power of two. So every count is passed on as it is
(HdrHistogram, AbstractHistogram.java: fillCountsArrayFromSourceBuffer, PercentileIterator.java).
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from sim.results.analysis.latency.histogram import BINS, Histogram, upper_edges

V2_COOKIE = 0x1C84_9303 | 0x10
V2_COMPRESSED_COOKIE = 0x1C84_9304 | 0x10
SIGNIFICANT_DIGITS, SUB_BUCKETS = 2, 256
TICKS = 5
"""Lines for each halving of the distance to 100 %, the default of HdrHistogram."""
HEADER = struct.Struct(">IIIIqqd")
NANOSECONDS = 1e9


def encode(histogram: Histogram) -> str:
    """One histogram, compressed and in base64, as a line of an ``.hlog`` file has it (format V2)."""
    payload = b"".join(_zigzag(number) for number in _counts(histogram))
    highest = max(2, _highest(histogram))
    header = HEADER.pack(V2_COOKIE, len(payload), 0, SIGNIFICANT_DIGITS, 1, highest, 1.0)
    compressed = zlib.compress(header + payload)
    return base64.b64encode(struct.pack(">II", V2_COMPRESSED_COOKIE, len(compressed)) + compressed).decode()


def hlog(histograms: Mapping[str, Histogram], start_s: float, length_s: float) -> str:
    """A histogram log: one interval, one line for each latency, which is the tag of its line. Values in nanoseconds.

    Args:
        histograms: by name.
        start_s: when the measurement began, in seconds since 1970.
        length_s: how long it was.
    """
    lines = [
        "#[Histogram log format version 1.3]",
        f"#[StartTime: {start_s:.3f} (seconds since epoch)]",
        '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"',
    ]
    for name, histogram in histograms.items():
        longest = _highest(histogram)
        lines.append(f"Tag={name},0.000,{length_s:.3f},{longest / 1e6:.3f},{encode(histogram)}")
    return "\n".join(lines) + "\n"


def hgrm(histogram: Histogram) -> str:
    """The percentiles of one latency in nanoseconds, as HdrHistogram's outputPercentileDistribution prints them."""
    lines = [f"{'Value':>12} {'Percentile':>14} {'TotalCount':>10} {'1/(1-Percentile)':>14}", ""]
    for value, level, count in _percentiles(histogram):
        line = f"{value:12.{SIGNIFICANT_DIGITS}f} {level / 100:2.12f} {count:10d}"
        lines.append(f"{line} {1 / (1 - level / 100):14.2f}" if level < 100 else line)
    mean, deviation = _moments(histogram)
    buckets = 1 + max(0, _highest(histogram).bit_length() - (SUB_BUCKETS - 1).bit_length())
    digits = SIGNIFICANT_DIGITS
    lines += [
        f"#[Mean    = {mean:12.{digits}f}, StdDeviation   = {deviation:12.{digits}f}]",
        f"#[Max     = {_highest(histogram):12.{digits}f}, TotalCount     = {len(histogram):12.{digits}f}]",
        f"#[Buckets = {buckets:12d}, SubBuckets     = {SUB_BUCKETS:12d}]",
    ]
    return "\n".join(lines) + "\n"


def _counts(histogram: Histogram) -> Iterator[int]:
    """The counts up to the last that is not 0; a run of zeros as one negative number."""
    there = np.flatnonzero(histogram.counts)
    at = 0
    for place in map(int, there):
        if place > at:
            yield at - place
        yield int(histogram.counts[place])
        at = place + 1


def _zigzag(number: int) -> bytes:
    """ZigZag and LEB128, the ninth byte with all its eight bits (ZigZagEncoding.java)."""
    rest = (number << 1) ^ (number >> 63)
    encoded = bytearray()
    while rest >= 0x80 and len(encoded) < 8:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest & 0xFF)
    return bytes(encoded)


def _highest(histogram: Histogram) -> int:
    """The largest value of the last bin that is not empty; 0 of an empty histogram."""
    there = np.flatnonzero(histogram.counts)
    return int(upper_edges(there[-1:])[0]) if len(there) else 0


def _percentiles(histogram: Histogram) -> Iterator[tuple[int, float, int]]:
    """Value, percentile and count up to it, at levels that come closer to 100 by ``TICKS`` for each half."""
    total = len(histogram)
    if not total:
        return
    cumulated = np.cumsum(histogram.counts)
    values = upper_edges(np.arange(BINS))
    there = np.flatnonzero(histogram.counts)
    level, place, last = 0.0, int(there[0]), int(there[-1])
    while True:
        yield int(values[place]), level, int(cumulated[place])
        if place == last:
            break
        halves = int(math.log2(100 / (100 - level))) + 1
        level += 100 / (TICKS * 2**halves)
        place = int(np.searchsorted(100 * cumulated / total, level, "left"))
    yield int(values[last]), 100.0, total


def _moments(histogram: Histogram) -> tuple[float, float]:
    """Mean and standard deviation of the middles of the bins."""
    total = len(histogram)
    if not total:
        return 0.0, 0.0
    columns = histogram.columns()
    middles = (columns["low"] + (columns["high"] - columns["low"] + 1) // 2).astype(np.float64)
    mean = float((middles * columns["count"]).sum() / total)
    return mean, math.sqrt(float((((middles - mean) ** 2) * columns["count"]).sum() / total))
