"""The counter of one vector under virtual time: what an eventfd is to a process."""

from __future__ import annotations

from typing import Protocol

from sim.engines.base import COUNTER_MAX


class CounterOwner(Protocol):
    """A machine (`sim.engines.virtual.cpus.Task`)."""

    queue: list[VirtualCounter]
    queued: bool

    def rung(self, counter: VirtualCounter, at_ns: int) -> None:
        """A doorbell has found the counter empty, at that time."""


class VirtualCounter(list[int]):
    """The times at which its doorbells were rung; and ``held``, a count of doorbells without times.

    A machine works on its own CPU while others work on theirs, and this process runs them one after the other. So a
    doorbell can be here before the time at which its receiver looks: `drain` leaves it.

    It is a list, because appending to a list is the fastest way to ring. Two counters are equal only if they are one.

    Attributes:
        vector: the vector, counted through all devices of the machine.
        holding: all counters of the run that hold doorbells without a time: only these can be full.
        is_heard: whether the machine waits for it.
    """

    __slots__ = ("held", "holding", "is_heard", "owner", "vector")
    __hash__ = object.__hash__  # type: ignore[assignment]

    def __init__(self, owner: CounterOwner, vector: int, holding: set[VirtualCounter]) -> None:
        self.owner, self.vector, self.holding = owner, vector, holding
        self.held, self.is_heard = 0, False

    def __eq__(self, other: object) -> bool:
        return self is other

    @property
    def value(self) -> int:
        return self.held + len(self)

    def ring(self, now_ns: int) -> None:
        """Add 1 to a counter that holds something without a time.

        Raises:
            BlockingIOError: it is full (eventfd(2)).
        """
        if self.value >= COUNTER_MAX:
            raise BlockingIOError
        self.append(now_ns)

    def drain(self, now_ns: int) -> int:
        """Take what was rung until now; later doorbells stay."""
        count = self._take_held() if self.held else 0
        if self:
            if max(self) <= now_ns:
                count += len(self)
                self.clear()
            else:
                before = len(self)
                self[:] = [at_ns for at_ns in self if at_ns > now_ns]
                count += before - len(self)
        return count

    def take(self) -> int:
        count = self._take_held() + len(self)
        self.clear()
        return count

    def add(self, count: int) -> bool:
        value = self.value
        if value + count > COUNTER_MAX:
            return False
        if count:
            self.held += count
            self.holding.add(self)
            if not value:
                self.owner.rung(self, 0)
        return True

    def _take_held(self) -> int:
        held, self.held = self.held, 0
        self.holding.discard(self)
        return held
