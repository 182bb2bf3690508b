"""The counters of a machine under virtual time, and those among them that are not empty: what epoll is to a process."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sim.engines.virtual.counter import CounterOwner, VirtualCounter


class ReadyCounters:
    """The machine's counters by line. Only those that it has heard of are waited for.

    Args:
        owner: the machine.
        add_counter: makes a line for a new counter.
        holding: as of `sim.engines.virtual.counter.VirtualCounter`.
    """

    __slots__ = ("_add_counter", "_holding", "_made", "_owner", "_queue")

    def __init__(
        self, owner: CounterOwner, add_counter: Callable[[VirtualCounter], int], holding: set[VirtualCounter]
    ) -> None:
        self._owner, self._queue = owner, owner.queue
        self._add_counter, self._holding = add_counter, holding
        self._made: dict[int, VirtualCounter] = {}

    def make(self, vector: int) -> tuple[int, VirtualCounter]:
        """The line and the counter of a vector, counted through all devices of the machine."""
        counter = VirtualCounter(self._owner, vector, self._holding)
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
            if counter.value and counter not in self._queue:
                self._queue.append(counter)

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
                if counter in self._queue:
                    self._queue.remove(counter)
