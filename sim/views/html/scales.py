"""From values to places in a picture: linear and logarithmic scales, and round ticks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scale:
    """``low`` to ``high`` onto ``start`` to ``end``, in pixels; logarithmic if asked for."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """The place of one value."""
        return float(self(np.array([value]))[0])

    def __call__(self, values: Floats) -> Floats:
        low, high, its = self.low, self.high, np.asarray(values, np.float64)
        if self.logarithmic:
            low, high, its = math.log10(low), math.log10(high), np.log10(np.maximum(its, self.low / 1e3))
        return self.start + (its - low) * ((self.end - self.start) / ((high - low) or 1.0))


def percentile_name(nines: int) -> str:
    """p90 for one nine, p99 for two, p99.9 for three."""
    return "p" + ("90" if nines == 1 else f"{100 - 100 / 10**nines:.{max(0, nines - 2)}f}")


def round_ticks(low: float, high: float, most: int, word: Callable[[float], str]) -> list[tuple[float, str]]:
    """At most ``most`` round values from ``low`` to ``high``, each with its word."""
    span = max(high - low, 1e-12)
    step = 10 ** math.floor(math.log10(span / most))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if span / (step * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    values = [place * step for place in range(first, math.floor(high / step + 1e-9) + 1)]
    return [(value, word(value)) for value in values]


def decades(low: float, high: float, most: int, word: Callable[[float], str]) -> list[tuple[float, str]]:
    """Powers of ten from ``low`` to ``high``; where there are few, what lies between them too (2 and 5)."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors, every in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 3), ((1,), 4)):
        values = [factor * 10.0**power for power in range(first, last + 1, every) for factor in factors]
        values = [value for value in values if low * 0.999 <= value <= high * 1.001]
        if len(values) < 2:
            break
        if len(values) <= most:
            return [(value, word(value)) for value in values]
    # Less than a decade, or more than there is room for.
    return round_ticks(low, high, most, word) if high < 100 * low else [(low, word(low)), (high, word(high))]
