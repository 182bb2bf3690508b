"""One-way latencies between two clocks: the other clock's offset and drift from exchanges of stamps, with an error.

Each exchange has four times: rung and interrupted by the own clock, taken and answered by the other one. The doorbell
cannot arrive before it is rung, nor the answer be taken before it is rung: so each exchange bounds the offset from both
sides (RFC 5905, 8, has the middle of these bounds). The narrowest ones near both ends of the time give offset and
drift, and what is left open by them is the error.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

FEWEST = 8
"""Fewer exchanges give no drift."""
PART = 4


class Exchange(NamedTuple):
    """A doorbell and its answer; all in nanoseconds."""

    rung_ns: int
    taken_ns: int
    answered_ns: int
    interrupted_ns: int

    @property
    def least_ns(self) -> int:
        """The least that the other clock can be ahead of the own one."""
        return self.answered_ns - self.interrupted_ns

    @property
    def most_ns(self) -> int:
        """The most that it can be ahead."""
        return self.taken_ns - self.rung_ns

    @property
    def middle_ns(self) -> float:
        return (self.least_ns + self.most_ns) / 2

    @property
    def width_ns(self) -> int:
        return self.most_ns - self.least_ns

    @property
    def at_ns(self) -> float:
        """Its time by the own clock."""
        return (self.rung_ns + self.interrupted_ns) / 2


class Calibration(NamedTuple):
    """How far the other clock is ahead: ``offset_ns`` at ``at_ns`` of the own clock, and ``drift`` more for each
    nanosecond; at no time of the exchanges more than ``error_ns`` off, if it drifts evenly. The drift is at most
    ``drift_error`` off; None where it was not measured.
    """

    offset_ns: float
    drift: float
    at_ns: float
    error_ns: float
    drift_error: float | None = None

    def ahead_ns(self, at_ns: float) -> float:
        """How far the other clock is ahead at a time of the own one."""
        return self.offset_ns + self.drift * (at_ns - self.at_ns)

    def to_other_ns(self, exchange: Exchange) -> float:
        """From the ring until the other side took the interrupt."""
        return exchange.taken_ns - self.ahead_ns(exchange.rung_ns) - exchange.rung_ns

    def from_other_ns(self, exchange: Exchange) -> float:
        """From the other side's ring until the own interrupt."""
        return exchange.interrupted_ns + self.ahead_ns(exchange.interrupted_ns) - exchange.answered_ns


def calibrate(exchanges: Sequence[Exchange]) -> Calibration:
    """The other clock, from at least one exchange, in the order of time."""
    width = attrgetter("width_ns")
    first, last = exchanges[0].at_ns, exchanges[-1].at_ns
    part_ns = (last - first) / PART
    early = min((exchange for exchange in exchanges if exchange.at_ns <= first + part_ns), key=width)
    late = min((exchange for exchange in reversed(exchanges) if exchange.at_ns >= last - part_ns), key=width)
    span_ns = late.at_ns - early.at_ns
    if len(exchanges) < FEWEST or span_ns <= 0:
        best = min(exchanges, key=width)
        found = Calibration(best.middle_ns, 0.0, best.at_ns, best.width_ns / 2)
    else:
        # Beyond its ends, a line through two points that are each off by so much is off by more.
        before, after = (early.at_ns - first) / span_ns, (last - late.at_ns) / span_ns
        halves = early.width_ns / 2, late.width_ns / 2
        error_ns = max((1 + before) * halves[0] + before * halves[1], (1 + after) * halves[1] + after * halves[0])
        drift = (late.middle_ns - early.middle_ns) / span_ns
        found = Calibration(early.middle_ns, drift, early.at_ns, error_ns, sum(halves) / span_ns)
    # A clock that does not drift evenly leaves the bounds of other exchanges: the error contains by how far.
    outside_ns = max(max(0.0, -found.to_other_ns(exchange), -found.from_other_ns(exchange)) for exchange in exchanges)
    return found._replace(error_ns=max(found.error_ns, outside_ns))
