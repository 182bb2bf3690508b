"""The counter of one vector under virtual time: what an eventfd is to a process."""

from __future__ import annotations

from collections.abc import Callable

from sim.engines.base import COUNTER_MAX

__all__ = ["VirtualCounter"]


class VirtualCounter:
    """Doorbells by the time at which each was rung, and ``held``, a count without times.

    A machine works on its own CPU while others work on theirs, and this process runs them one after the other. So a
    doorbell can be here before the time at which its receiver looks: `drain` leaves it.

    ``on_first`` is called with the time of a doorbell that finds the counter empty.
    """

    __slots__ = ("held", "on_first", "times")

    def __init__(self, on_first: Callable[[int], object]) -> None:
        self.times: list[int] = []
        self.held = 0
        self.on_first = on_first

    @property
    def value(self) -> int:
        return self.held + len(self.times)

    def ring(self, now_ns: int) -> None:
        """Add 1 to a counter that holds something without a time.

        Raises:
            BlockingIOError: it is full (eventfd(2)).
        """
        if self.value >= COUNTER_MAX:
            raise BlockingIOError
        self.times.append(now_ns)

    def drain(self, now_ns: int) -> int:
        """Take what was rung until now; later doorbells stay."""
        times, count = self.times, self.held
        self.held = 0
        if times:
            if max(times) <= now_ns:
                count += len(times)
                times.clear()
            else:
                before = len(times)
                times[:] = [each for each in times if each > now_ns]
                count += before - len(times)
        return count

    def take(self) -> int:
        count = self.value
        self.held = 0
        self.times.clear()
        return count

    def add(self, count: int) -> bool:
        if self.value + count > COUNTER_MAX:
            return False
        empty = not self.value
        self.held += count
        if empty and count:
            self.on_first(0)
        return True
