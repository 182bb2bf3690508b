"""How much worse a run may be than the one before: ``p99:+10%``, read and held against a comparison. Pure.

What is judged is the figure itself, not its interval: were a threshold missed only beyond doubt, a run so short that
all its intervals are open would miss none. Where the interval of the change holds 0, the verdict says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nodes.errors import UsageError
from sim.results.compare import UNCLEAR, Comparison

__all__ = ["Threshold", "Verdict"]

UNITS_NS = {"ns": 1.0, "us": 1e3, "ms": 1e6, "s": 1e9}
EXPECTED = "expected FIGURE:+LIMIT or FIGURE:-LIMIT such as p99:+10%, delivery.p99:+5us or doorbells_per_s:-5%"


@dataclass(frozen=True)
class Verdict:
    """Whether a threshold is met, and the figures in words."""

    threshold: str
    met: bool
    told: str


@dataclass(frozen=True)
class Threshold:
    """``figure`` of B may be ``limit`` above A (``sign`` +1) or below (-1); ``unit``: %, ns, us, ms, s or none."""

    text: str
    figure: str
    sign: int
    limit: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """Raises ``UsageError`` for what is none."""
        match = re.fullmatch(r"([a-z0-9_.]{1,64}):([+-])([0-9]{1,9}(?:\.[0-9]{1,9})?)(%|ns|us|ms|s|)", text)
        if match is None:
            raise UsageError(f"{text[:80]!r} is no threshold: {EXPECTED}")
        return cls(text, match[1], 1 if match[2] == "+" else -1, float(match[3]), match[4])

    def judge(self, comparison: Comparison) -> Verdict:
        """What a run does not have cannot be held: that is a threshold missed. Raises ``UsageError`` for a figure
        that there is not, or that has another unit."""
        its = comparison[self.figure]
        if self.unit in UNITS_NS and its.unit != "ns":
            raise UsageError(f"{self.text}: {its.name} is no time, {EXPECTED}")
        if its.a is None or its.b is None:
            lacking = [name for name, value in (("A", its.a), ("B", its.b)) if value is None]
            which = f"{' and '.join(lacking)} {'has' if len(lacking) == 1 else 'have'}"
            return Verdict(self.text, False, f"{its.title}: {which} too few samples, or did not look at it")
        limit = abs(its.a) * self.limit / 100 if self.unit == "%" else self.limit * UNITS_NS.get(self.unit, 1.0)
        beyond = self.sign * (its.b - its.a)
        change = "" if its.change is None else f" ({100 * its.change:+,.1f} %)"
        doubt = " (the interval of the change holds 0)" if its.verdict() == UNCLEAR else ""
        allowed = f"{self.limit:g}{' ' if self.unit else ''}{self.unit} {'higher' if self.sign > 0 else 'lower'}"
        return Verdict(
            self.text,
            beyond <= limit,
            f"{its.title}: {its.shown(its.a)} to {its.shown(its.b)}{change}, at most {allowed} allowed{doubt}",
        )
