"""A machine's connection to a server that announces once for all machines: it hears a prefix of the announcements.

A server that sends N machines the vectors of all N says N * N messages. Where that is too many, the server keeps the
joins and leaves in one list, and a machine has heard those that were announced a moment ago.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

from nodes.peer_table import AnnouncedPeers, Announcements
from nodes.vm import Vm
from nodes.wire.protocol import Message
from sim.engines.base import LiveMachine
from sim.engines.virtual.counter import VirtualCounter
from sim.engines.virtual.loop import VirtualLoop
from sim.engines.virtual.ready_counters import ReadyCounters


class TimedAnnouncements(Announcements):
    """Announcements, and when each was made; ``on_announced`` is called with each."""

    def __init__(self, clock: Callable[[], int], on_announced: Callable[[], object]) -> None:
        super().__init__()
        self._clock, self._on_announced = clock, on_announced
        self._made_ns: list[int] = []

    def join(self, peer: int, lines: Sequence[int]) -> None:
        super().join(peer, lines)
        self._made_ns.append(self._clock())
        self._on_announced()

    def leave(self, peer: int) -> None:
        super().leave(peer)
        self._made_ns.append(self._clock())
        self._on_announced()

    def made_until(self, time_ns: int) -> int:
        """How many announcements had been made at that time."""
        return bisect_right(self._made_ns, time_ns)


class AnnouncedLink:
    """A `sim.engines.virtual.server.Link` and the machine's end of it; implements what `VirtualDevice` needs of both.

    Args:
        delay_ns: how long an announcement is under way.
        counters: those of the machine.
        first_vector: the number in them of the device's first vector.
        on_readable: is called when the greeting can be read.
        memory: that of the domain.
    """

    __slots__ = (
        "_counters",
        "_delay_ns",
        "_first_vector",
        "_greeted_at",
        "_lines",
        "_loop",
        "_memory",
        "_on_readable",
        "_peer",
        "_peers",
        "_vm",
        "announcements",
        "heard",
        "machine",
        "peer",
    )

    def __init__(
        self,
        machine: LiveMachine,
        vm: Vm,
        loop: VirtualLoop,
        announcements: TimedAnnouncements,
        *,
        delay_ns: int,
        counters: ReadyCounters,
        first_vector: int,
        on_readable: Callable[[], object],
        memory: memoryview,
    ) -> None:
        self.machine, self._vm, self._loop, self.announcements = machine, vm, loop, announcements
        self._delay_ns, self._counters, self._first_vector = delay_ns, counters, first_vector
        self._on_readable, self._memory = on_readable, memory
        self.peer: int | None = None
        self._peer: int | None = None  # until the machine has heard it
        self._lines: Sequence[int] = ()
        self.heard = self._greeted_at = 0
        self._peers = AnnouncedPeers(announcements, vm.guest.vectors)
        vm.use_peers(self._peers)

    @property
    def is_set_up(self) -> bool:
        """Whether the machine has its ID, its memory, and all peers that were there when it joined."""
        return self.peer is not None

    @property
    def is_read(self) -> bool:
        """Whether the connection is open, and the machine has heard all that was announced."""
        return self._peer is not None and self.heard == self.announcements.end

    def make_counters(self, count: int) -> Sequence[tuple[int, VirtualCounter]]:
        return [self._counters.make(self._first_vector + vector) for vector in range(count)]

    def greet(self, peer: int, lines: Sequence[int]) -> None:
        """The server admits the machine; it announces it next."""
        self._peers.join()
        self._peer, self._lines = peer, lines
        self._greeted_at = self.announcements.end
        self._loop.after(self._delay_ns, self._on_readable)

    def hear(self) -> None:
        """Take in what was announced so long ago that it has arrived."""
        announcements = self.announcements
        if self.heard == announcements.end or self._peer is None:
            return
        self.heard = announcements.made_until(self._loop.clock.ns - self._delay_ns)
        if self.heard <= self._greeted_at:
            return
        if self.peer is None:
            self.peer = self._peer
            self._vm.place(self.peer, self._memory)
            self._counters.wait_for(self._lines)
        self._vm.catch_up(self.heard)

    def send(self, message: Message[int]) -> None:
        """Nothing is said to one machine alone: the engine chooses another link for a run with such messages."""
        raise NotImplementedError(message)

    def end(self) -> None:
        """As `send`."""
        raise NotImplementedError

    def close(self) -> None:
        """The machine has closed it."""
        self._peer = None
