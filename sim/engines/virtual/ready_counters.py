"""The counters of a machine under virtual time, and those among them that are not empty: what epoll is to a process."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sim.engines.virtual.counter import VirtualCounter

__all__ = ["ReadyCounters"]


class ReadyCounters:
    """The machine's counters by line. Only those that it has heard of are waited for.

    Args:
        add_counter: makes a line for a new counter.
        on_ready: is called with the time of the first doorbell in a counter that is waited for.
        holding: as of `sim.engines.virtual.counter.CounterOwner`.
    """

    __slots__ = ("_add_counter", "_made", "_on_ready", "holding", "queue")

    def __init__(
        self,
        add_counter: Callable[[VirtualCounter], int],
        on_ready: Callable[[int], object],
        holding: set[VirtualCounter],
    ) -> None:
        self._add_counter, self._on_ready, self.holding = add_counter, on_ready, holding
        self._made: dict[int, VirtualCounter] = {}
        self.queue: list[VirtualCounter] = []
        """Counters that are not empty, in the order in which they became so."""

    def make(self, vector: int) -> tuple[int, VirtualCounter]:
        """The line and the counter of a vector, counted through all devices of the machine."""
        counter = VirtualCounter(self, vector)
        line = self._add_counter(counter)
        self._made[line] = counter
        return line, counter

    @property
    def lines(self) -> list[int]:
        """The lines that are waited for."""
        return [line for line, counter in self._made.items() if counter.is_heard]

    def wait_for(self, lines: Iterable[int]) -> None:
        """Wait for these lines from now on."""
        for line in lines:
            counter = self._made[line]
            counter.is_heard = True
            if counter.value and counter not in self.queue:
                self.queue.append(counter)

    def rung_until(self, line: int, now_ns: int) -> int:
        """How many doorbells the counter of a line holds that were rung until now."""
        counter = self._made[line]
        return counter.held + sum(at_ns <= now_ns for at_ns in counter)

    def pending(self) -> int:
        """How many doorbells the counters hold that are waited for."""
        return sum(counter.value for counter in self._made.values() if counter.is_heard)

    def forget(self, lines: Iterable[int]) -> None:
        """No longer wait for these lines; what their counters hold stays there."""
        for line in lines:
            counter = self._made.get(line)
            if counter is not None and counter.is_heard:
                counter.is_heard = False
                if counter in self.queue:
                    self.queue.remove(counter)

    def first_ns(self) -> int | None:
        """The time of the earliest doorbell in a counter that is waited for; None when all are empty.

        A counter in the queue can be empty: the action ``fill`` takes what a counter holds.
        """
        first_ns: int | None = None
        for counter in self.queue:
            if counter.held:
                return 0
            if counter and (first_ns is None or min(counter) < first_ns):
                first_ns = min(counter)
        if first_ns is None:
            self.queue.clear()
        return first_ns

    def rung(self, counter: VirtualCounter, at_ns: int) -> None:
        """A doorbell has found the counter empty."""
        if counter.is_heard:
            self.queue.append(counter)
            self._on_ready(at_ns)
