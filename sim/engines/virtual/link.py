"""A machine's connection to a server under virtual time: what was said and not yet read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from nodes.wire.protocol import Message
from sim.engines.base import LiveMachine
from sim.engines.virtual.counter import VirtualCounter
from sim.engines.virtual.loop import VirtualLoop


class VirtualLink:
    """A `sim.engines.virtual.server.Link`: messages arrive in order, each after what the wire costs.

    Args:
        delay: how long the next message is under way, in nanoseconds.
        make_counter: makes the counter of a vector of this machine, and its line.
        on_readable: is called when something can be read.
    """

    def __init__(
        self,
        machine: LiveMachine,
        loop: VirtualLoop,
        *,
        delay: Callable[[], int],
        make_counter: Callable[[int], tuple[int, VirtualCounter]],
        on_readable: Callable[[], object],
    ) -> None:
        self.machine = machine
        self._loop, self._delay, self._make_counter, self._on_readable = loop, delay, make_counter, on_readable
        self._arriving: deque[tuple[int, Message[int] | None]] = deque()
        self._last_ns = 0
        self.is_open = True

    def make_counters(self, count: int) -> Sequence[tuple[int, VirtualCounter]]:
        return [self._make_counter(vector) for vector in range(count)]

    def send(self, message: Message[int] | None) -> None:
        """Let a message arrive, or the end of the connection (None)."""
        if not self.is_open:
            return
        self._last_ns = max(self._last_ns, self._loop.clock.ns + self._delay())
        self._arriving.append((self._last_ns, message))
        if len(self._arriving) == 1:
            self._announce()

    def end(self) -> None:
        self.send(None)

    def greet(self, peer: int, lines: Sequence[int]) -> None:
        """The greeting consists of messages."""

    def read(self) -> list[Message[int] | None]:
        """What has arrived until now."""
        arrived: list[Message[int] | None] = []
        arriving, now_ns = self._arriving, self._loop.clock.ns
        while arriving and arriving[0][0] <= now_ns:
            arrived.append(arriving.popleft()[1])
        if arriving and self.is_open:
            self._announce()
        return arrived

    @property
    def is_read(self) -> bool:
        """Whether the connection is open, and nothing is under way in it."""
        return self.is_open and not self._arriving

    def put_back(self, messages: Sequence[Message[int] | None]) -> None:
        """A read has ended before these; the next one begins with them."""
        if messages:
            self._arriving.extendleft((self._loop.clock.ns, message) for message in reversed(messages))
            self._announce()

    def close(self) -> None:
        self.is_open = False
        self._arriving.clear()

    def _announce(self) -> None:
        self._loop.after(max(0, self._arriving[0][0] - self._loop.clock.ns), self._on_readable)
