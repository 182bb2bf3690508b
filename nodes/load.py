"""The load of a run over time: the factor by which the rates of open-loop programs are multiplied."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import lru_cache

Piece = tuple[int, float, float]


class Load:
    """A piecewise linear factor. After the last piece it keeps the value that it has at the end of that piece.

    Times are nanoseconds since the start of the run. Work is measured in nanoseconds under a factor of 1. Under a
    factor of 0 nothing is due.

    Args:
        pieces: (duration_ns, factor at the beginning, factor at the end) of each piece, from time 0.
    """

    __slots__ = ("_ends", "_pieces", "_works", "is_steady")

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces: list[tuple[float, float, float, float, float]] = []  # begin, end, work then, factor, slope
        at = work = 0.0
        last = 1.0
        for duration_ns, begin, end in pieces:
            if duration_ns > 0:
                self._pieces.append((at, at + duration_ns, work, begin, (end - begin) / duration_ns))
                work += duration_ns * (begin + end) / 2
            at, last = at + duration_ns, end
        self._pieces.append((at, math.inf, work, last, 0.0))
        self._ends = [end for _, end, *_ in self._pieces]
        self._works = [work for _, _, work, _, _ in self._pieces[1:]]  # at those ends
        self._works.append(math.inf if last else work)
        self.is_steady = all(factor == 1.0 and slope == 0.0 for *_, factor, slope in self._pieces)

    def at(self, time_ns: float) -> float:
        """The factor at a time."""
        begin, _, _, factor, slope = self._pieces[bisect_right(self._ends, time_ns)]
        return max(0.0, factor + slope * (time_ns - begin))

    def work(self, time_ns: float) -> float:
        """The work done from the start to a time: the integral of the factor."""
        begin, _, work, factor, slope = self._pieces[bisect_right(self._ends, time_ns)]
        span = time_ns - begin
        return work + span * (factor + slope * span / 2)

    def due(self, work_ns: float) -> float:
        """The time at which so much work is done since the start, the inverse of `work`; ``inf`` if it never is."""
        place = bisect_left(self._works, work_ns)
        if place == len(self._works):
            return math.inf
        begin, end, done, factor, slope = self._pieces[place]
        left = work_ns - done
        # The smaller root of factor * t + slope * t**2 / 2 = left, in the form that loses no digits.
        square = factor * factor + 2 * slope * left
        twice = factor + math.sqrt(square) if square > 0 else factor
        due_ns = begin + 2 * left / twice if twice else begin
        return due_ns if due_ns < end else end

    def later(self, time_ns: float, work_ns: float) -> float:
        """The time at which so much work is done when it begins at ``time_ns``; ``inf`` if it never is.

        A Poisson process of mean distance ``m`` under this load: ``due = load.later(due, m * expovariate(1))``.
        """
        return time_ns + work_ns if self.is_steady else max(time_ns, self.due(self.work(time_ns) + work_ns))

    def rises(self, time_ns: float) -> float:
        """The first time from ``time_ns`` on at which the load is above 0; ``inf`` if there is none."""
        for _, end, _, factor, slope in self._pieces[bisect_right(self._ends, time_ns) :]:
            if factor or slope:
                return time_ns
            time_ns = end
        return math.inf

    def next_change(self, time_ns: float) -> float:
        """The end of the piece that holds at a time; ``inf`` in the last one."""
        return self._ends[bisect_right(self._ends, time_ns)]


@lru_cache(maxsize=64)
def shared_load(pieces: tuple[Piece, ...]) -> Load:
    """The load of these pieces, one for all machines of a process."""
    return Load(pieces)


STEADY = Load(())
"""A constant factor of 1."""
