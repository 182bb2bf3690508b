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
    """

    def __init__(self, add_counter: Callable[[VirtualCounter], int], on_ready: Callable[[int], object]) -> None:
        self._add_counter, self._on_ready = add_counter, on_ready
        self._made: dict[int, tuple[VirtualCounter, int]] = {}
        self._own: dict[int, tuple[VirtualCounter, int]] = {}
        self.queue: list[tuple[VirtualCounter, int]] = []
        """Counters that are not empty, in the order in which they became so, and the vector of each."""

    def make(self, vector: int) -> tuple[int, VirtualCounter]:
        """The line and the counter of a vector, counted through all devices of the machine."""
        counter = VirtualCounter(lambda at_ns: self._rung(line, at_ns))
        line = self._add_counter(counter)
        self._made[line] = counter, vector
        return line, counter

    @property
    def lines(self) -> list[int]:
        """The lines that are waited for."""
        return list(self._own)

    def wait_for(self, lines: Iterable[int]) -> None:
        """Wait for these lines from now on."""
        for line in lines:
            self._own[line] = own = self._made[line]
            if own[0].value:
                self.queue.append(own)

    def pending(self) -> int:
        """How many doorbells the counters hold that are waited for."""
        return sum(counter.value for counter, _ in self._own.values())

    def forget(self, lines: Iterable[int]) -> None:
        """No longer wait for these lines; what their counters hold stays there."""
        for line in lines:
            own = self._own.pop(line, None)
            if own is not None and own in self.queue:
                self.queue.remove(own)

    def first_ns(self) -> int | None:
        """The time of the earliest doorbell in a counter that is waited for; None when all are empty.

        A counter in the queue can be empty: the action ``fill`` takes what a counter holds.
        """
        first_ns: int | None = None
        for counter, _ in self.queue:
            if counter.held:
                return 0
            if counter.times and (first_ns is None or min(counter.times) < first_ns):
                first_ns = min(counter.times)
        if first_ns is None:
            self.queue.clear()
        return first_ns

    def _rung(self, line: int, at_ns: int) -> None:
        own = self._own.get(line)
        if own is not None:
            self.queue.append(own)
            self._on_ready(at_ns)
