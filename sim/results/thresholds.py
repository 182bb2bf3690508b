"""Thresholds of a comparison, such as ``p99:+10%``: how much worse a run may be than the one before. Pure.

A threshold is judged by the metric, not by its interval: a run so short that its intervals are open would miss no
threshold otherwise. The verdict says if the interval of the change contains 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nodes.errors import UsageError
from sim.results.compare import UNCLEAR, Change, Comparison

UNITS_NS = {"ns": 1.0, "us": 1e3, "ms": 1e6, "s": 1e9}
EXPECTED = "expected METRIC:+LIMIT or METRIC:-LIMIT such as p99:+10%, delivery.p99:+5us or doorbells_per_s:-5%"


@dataclass(frozen=True)
class Threshold:
    """``metric`` of B may be ``limit`` above A (``sign`` +1) or below (-1); ``unit``: %, ns, us, ms, s or none."""

    text: str
    metric: str
    sign: int
    limit: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """The threshold in ``text``. Raises ``UsageError``."""
        match = re.fullmatch(r"([a-z0-9_.]{1,64}):([+-])([0-9]{1,9}(?:\.[0-9]{1,9})?)(%|ns|us|ms|s|)", text)
        if match is None:
            raise UsageError(f"{text[:80]!r} is no threshold: {EXPECTED}")
        return cls(text, match[1], 1 if match[2] == "+" else -1, float(match[3]), match[4])

    def judge(self, comparison: Comparison) -> ThresholdVerdict:
        """Hold the threshold against a comparison. A metric that a run does not have is a threshold missed.

        Raises:
            UsageError: there is no such metric, or it has another unit.
        """
        its = comparison[self.metric]
        if self.unit in UNITS_NS and its.unit != "ns":
            raise UsageError(f"{self.text}: {its.name} is no time, {EXPECTED}")
        lacking = tuple(name for name, value in (("A", its.a), ("B", its.b)) if value is None)
        if its.a is None or its.b is None:
            return ThresholdVerdict(self, its, met=False, lacking=lacking)
        limit = abs(its.a) * self.limit / 100 if self.unit == "%" else self.limit * UNITS_NS.get(self.unit, 1.0)
        met = self.sign * (its.b - its.a) <= limit
        return ThresholdVerdict(self, its, met=met, unclear=its.verdict() == UNCLEAR)


@dataclass(frozen=True)
class ThresholdVerdict:
    """Whether a threshold is met.

    Attributes:
        threshold: what was allowed.
        change: the metric in both runs.
        met: whether B is within the limit.
        lacking: the runs (A, B) that do not have the metric; then it is not met.
        unclear: whether the interval of the change holds 0.
    """

    threshold: Threshold
    change: Change
    met: bool
    lacking: tuple[str, ...] = ()
    unclear: bool = False
