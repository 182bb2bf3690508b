"""The clock that jumps, and the order in which things happen under it."""

from __future__ import annotations

import heapq
import itertools
import select
from array import array
from collections.abc import Callable
from typing import Any, TypeVar

from nodes.errors import HostError
from sim.engines.base import HasDescriptor

T = TypeVar("T")

BEGIN_NS = 1_000_000_000
"""The first time of the clock: 0 means "never" in recordings and messages."""
SLICES_BETWEEN_POLLS = 2048
NEVER = (1 << 63) - 1
SPAN_BITS = 20
"""Events are sorted a span of time (2**20 ns) at a time: a heap of them all would not fit a CPU's cache."""

Event = tuple[int, int, Callable[[Any], object], Any]
"""(time, order, what happens, to what)"""


class VirtualClock:
    """``ns`` is the time. It jumps to the next event, and a machine moves it by what its work costs.

    Machines of several CPUs work at the same time, and one after the other in this process: the clock goes back to the
    time of the next event when that is earlier than the end of the work before it.

    ``latest_ns`` is the latest time at which the work of an event has ended.
    """

    __slots__ = ("latest_ns", "ns")

    def __init__(self) -> None:
        self.ns = self.latest_ns = BEGIN_NS

    def now_ns(self) -> int:
        return self.ns

    def cpu_ns(self) -> int:
        """No time: work that paces itself by its cost must not depend on this host."""
        return 0


class VirtualLoop:
    """Two queues in the order of time: moments of the coordinator, and events of machines.

    A moment comes before an event of the same time. Of equal times, what was asked for first comes first. Descriptors
    are those of this process, signals above all: they are looked at now and then.

    Attributes:
        push: ``push(at_ns, happen, what)`` lets an event of the machines happen at that time: ``happen(what)``.
        news: set by a machine that has reported something: the coordinator has its turn after that event.
    """

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.news = False
        self._events: list[Event] = []
        self._later: dict[int, tuple[array[int], list[Any]]] = {}
        self._spans: list[int] = []
        self._span = 0
        self._moments: list[tuple[int, int, Callable[[], None]]] = []
        self._orders = itertools.count()
        self._next_order = self._orders.__next__
        self._watched: dict[int, Callable[[], None]] = {}
        self._poll = select.poll()
        self._slices = 0
        self.push = self._make_push()

    def _make_push(self) -> Callable[[int, Callable[[T], object], T], None]:
        # `_events` is a heap of the events up to the end of the span `_span`; `_later` has those of each later span, in
        # the order of the calls, and `_spans` is a heap of these. A later event is no object of its own: with very many
        # machines each would be fetched from memory again when its time has come.
        events, later, spans, order, push = self._events, self._later, self._spans, self._next_order, heapq.heappush
        get = later.get

        def push_event(at_ns: int, happen: Callable[[T], object], what: T) -> None:
            span = at_ns >> SPAN_BITS
            if span <= self._span:
                push(events, (at_ns, order(), happen, what))
            elif (then := get(span)) is not None:
                times_ns, events_then = then
                times_ns.append(at_ns)
                events_then += (happen, what)
            else:
                later[span] = array("q", (at_ns,)), [happen, what]
                push(spans, span)

        return push_event

    def _enter_span(self, until_ns: int) -> bool:
        """Sort the events of the next span that has any; False when it begins after ``until_ns``."""
        spans = self._spans
        if not spans or spans[0] << SPAN_BITS > until_ns:
            return False
        self._span = heapq.heappop(spans)
        times_ns, flat = self._later.pop(self._span)
        self._events.extend(zip(times_ns, self._orders, flat[0::2], flat[1::2], strict=False))
        heapq.heapify(self._events)
        return True

    def add(
        self,
        file: HasDescriptor | int,
        readable: Callable[[], None],
        *,
        writable: Callable[[], None] | None = None,
    ) -> None:
        descriptor = file if isinstance(file, int) else file.fileno()
        self._watched[descriptor] = readable
        self._poll.register(descriptor, select.POLLIN)

    def remove(self, file: HasDescriptor | int) -> None:
        descriptor = file if isinstance(file, int) else file.fileno()
        if self._watched.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def at(self, moment_ns: int, callback: Callable[[], None]) -> None:
        heapq.heappush(self._moments, (max(moment_ns, self.clock.ns), self._next_order(), callback))

    def after(self, delay_ns: int, callback: Callable[[], object]) -> None:
        """Let an event of the machines happen ``delay_ns`` from now."""
        self.push(self.clock.ns + delay_ns, _call, callback)

    def step(self, deadline_ns: int | None = None) -> None:
        """Let events happen until a moment of the coordinator has come, or a machine has news for it, or the deadline.

        Raises:
            HostError: nothing is left that could ever happen.
        """
        events, moments, clock, pop = self._events, self._moments, self.clock, heapq.heappop
        limit_ns = NEVER if deadline_ns is None else deadline_ns
        while True:
            moment_ns = moments[0][0] if moments else NEVER
            until_ns = min(moment_ns - 1, limit_ns)
            while events or self._enter_span(until_ns):
                if events[0][0] > until_ns:
                    break
                clock.ns, _, happen, what = pop(events)
                happen(what)
                self._slices += 1
                if self.news:
                    self.news = False
                    return
                if self._slices >= SLICES_BETWEEN_POLLS:
                    self._look_at_descriptors()
                    moment_ns = moments[0][0] if moments else NEVER
                    until_ns = min(moment_ns - 1, limit_ns)
            if moment_ns <= limit_ns and moments:
                clock.ns, _, callback = pop(moments)
                callback()
                self._look_at_descriptors()
                return
            if deadline_ns is not None:
                clock.ns = max(clock.ns, deadline_ns)
                return
            if not moments and not events and not self._spans:
                raise HostError("nothing is left that could happen under virtual time")

    def _look_at_descriptors(self) -> None:
        self._slices = 0
        if self._watched:
            for descriptor, _ in self._poll.poll(0):
                if descriptor in self._watched:
                    self._watched[descriptor]()


def _call(callback: Callable[[], object]) -> None:
    callback()
