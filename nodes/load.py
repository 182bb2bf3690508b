"""How the load of a run rises and falls: what the rates of open-loop programs are multiplied by, over time."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["STEADY", "Load"]

Piece = tuple[int, float, float]


class Load:
    """A factor that is linear from piece to piece; after the last one it stays what it was at its end.

    ``pieces`` are (duration_ns, factor at the beginning, factor at the end), from time 0. A factor of 0 means that
    nothing falls due. Times are nanoseconds since the start of the run.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces: list[tuple[float, float, float, float]] = []  # begin, end, factor at begin, slope
        at, last = 0.0, 1.0
        for duration_ns, begin, end in pieces:
            self._pieces.append((at, at + duration_ns, begin, (end - begin) / duration_ns))
            at, last = at + duration_ns, end
        self._pieces.append((at, math.inf, last, 0.0))
        self.is_steady = all(factor == 1.0 and slope == 0.0 for _, _, factor, slope in self._pieces)

    def at(self, time_ns: float) -> float:
        """The factor at a time."""
        for begin, end, factor, slope in self._pieces:
            if time_ns < end:
                return factor + slope * max(0.0, time_ns - begin)
        raise AssertionError("the last piece has no end")

    def later(self, time_ns: float, work_ns: float) -> float:
        """When so much work is done that takes ``work_ns`` under a factor of 1, begun at ``time_ns``.

        ``inf`` when it never will be. A Poisson process of mean ``m`` under this load is one of unit rate whose
        clock is stretched by it: ``due = load.later(due, m * expovariate(1))``.
        """
        if self.is_steady:
            return time_ns + work_ns
        for begin, end, factor, slope in self._pieces:
            if time_ns >= end:
                continue
            now = factor + slope * (max(time_ns, begin) - begin)
            left_ns = end - max(time_ns, begin)
            possible_ns = left_ns * (now + slope * left_ns / 2) if end < math.inf else math.inf * now if now else 0.0
            if work_ns <= possible_ns:
                return max(time_ns, begin) + _span(now, slope, work_ns)
            work_ns -= possible_ns
            time_ns = end
        return math.inf

    def next_change(self, time_ns: float) -> float:
        """When the piece ends that holds at a time; ``inf`` in the last one."""
        return next(end for _, end, _, _ in self._pieces if time_ns < end)


def _span(factor: float, slope: float, work_ns: float) -> float:
    """The smallest t with ``factor * t + slope * t**2 / 2 = work``, in the form that loses no digits."""
    root = math.sqrt(max(0.0, factor * factor + 2 * slope * work_ns))
    return 2 * work_ns / (factor + root) if factor + root else 0.0


STEADY = Load(())
"""The same load always: a factor of 1."""
