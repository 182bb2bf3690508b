"""The orders of the coordinator that are on their way to a machine under virtual time."""

from __future__ import annotations

from collections.abc import Callable

from sim.engines.messages import Order
from sim.engines.virtual.loop import VirtualLoop


class OrderQueue:
    """Orders arrive in order, each after ``delay()`` nanoseconds; ``on_arrival`` is called then."""

    __slots__ = (
        "_clock",
        "_delay",
        "_last_ns",
        "_loop",
        "_on_arrival",
        "orders",
    )

    def __init__(self, loop: VirtualLoop, delay: Callable[[], int], on_arrival: Callable[[], object]) -> None:
        self._loop, self._clock, self._delay, self._on_arrival = loop, loop.clock, delay, on_arrival
        self._last_ns = 0
        self.orders: list[tuple[int, Order]] = []
        """The time at which each arrives, and the order."""

    def send(self, order: Order) -> None:
        now_ns = self._clock.ns
        self._last_ns = max(now_ns + self._delay(), self._last_ns)
        self.orders.append((self._last_ns, order))
        self._loop.after(self._last_ns - now_ns, self._on_arrival)

    def take(self) -> Order | None:
        """The next order that has arrived."""
        orders = self.orders
        return orders.pop(0)[1] if orders and orders[0][0] <= self._clock.ns else None
