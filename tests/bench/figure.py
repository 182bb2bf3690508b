"""One figure of the benchmarks: what was measured in each round, and the bar for it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Bar", "Figure", "alternate"]

Rounds = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Bar:
    """The bar of a figure: the value that it must have, and the value to aim for."""

    must: float
    reach: float
    more_is_better: bool = False

    def verdict(self, value: float) -> str:
        """ "reached", "met" or "missed"."""
        sign = -1 if self.more_is_better else 1
        if sign * value <= sign * self.reach:
            return "reached"
        return "met" if sign * value <= sign * self.must else "missed"


@dataclass(frozen=True)
class Figure:
    """``rounds`` are pairs (ours, the other's) in ``unit``; an absolute figure has no other.

    Its ``value`` is the median over the rounds: of the ratios ours / other's, or of ours alone.
    """

    benchmark: str
    name: str
    unit: str
    rounds: Rounds
    bar: Bar | None = None
    absolute: bool = False

    @property
    def ours(self) -> float:
        return statistics.median(ours for ours, _ in self.rounds)

    @property
    def other(self) -> float | None:
        return None if self.absolute else statistics.median(other for _, other in self.rounds)

    @property
    def value(self) -> float:
        return self.ours if self.absolute else statistics.median(ours / other for ours, other in self.rounds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Between these are half of the rounds: the spread of the value."""
        values = [ours if self.absolute else ours / other for ours, other in self.rounds]
        if len(values) == 1:
            return values[0], values[0]
        first, _, third = statistics.quantiles(values, n=4, method="inclusive")
        return first, third

    @property
    def verdict(self) -> str:
        return self.bar.verdict(self.value) if self.bar else ""

    def plain(self) -> dict[str, object]:
        """The figure as it is in the JSON."""
        return {
            "benchmark": self.benchmark,
            "name": self.name,
            "value": self.value,
            "quartiles": list(self.quartiles),
            "value_is": self.unit if self.absolute else "ratio",
            "unit": self.unit,
            "ours_median": self.ours,
            "reference_median": self.other,
            "must": self.bar and self.bar.must,
            "reach": self.bar and self.bar.reach,
            "more_is_better": bool(self.bar and self.bar.more_is_better),
            "verdict": self.verdict or None,
            "rounds": [list(pair) if not self.absolute else pair[0] for pair in self.rounds],
        }


def alternate(rounds: int, *measures: Callable[[], float]) -> list[tuple[float, ...]]:
    """Measure all in turn, ``rounds`` times, each second round in reverse order; returns one tuple for each round."""
    order = list(range(len(measures)))
    results = []
    for _ in range(rounds):
        found = {at: measures[at]() for at in order}
        results.append(tuple(found[at] for at in range(len(measures))))
        order.reverse()
    return results
