"""What a program sees of its machine: its ID, its peers, the shared memory, a doorbell to ring.

A program is a plain generator function::

    def echo(guest: Guest) -> Program:
        while True:
            interrupt = yield FOREVER
            ...

It yields how long it is willing to wait: ``FOREVER`` for an interrupt; a time in nanoseconds of
``guest.clock()`` for an interrupt or that moment, whichever comes first; ``NOW`` for what is there already. It
is resumed with an ``Interrupt``, or with ``None`` when the time has come. Between two yields nothing else runs
on its machine: a program is its guest's only processor.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from math import inf
from typing import NamedTuple, Protocol, cast

from nodes.device import driver
from nodes.device.ivshmem import Ivshmem
from nodes.doorbells import Burst, Doorbells
from nodes.errors import GuestError
from nodes.load import STEADY

__all__ = ["FOREVER", "NOW", "OTHERS", "Guest", "Interrupt", "Peers", "Program", "Random", "Trace"]

Peers = Sequence[int]
"""The IDs a program works with. In a topology: a group, a machine, several of them, "others" or "all".

A machine that joins later comes into the sequence when it has its ID, and one that comes back under another ID takes
its old place; ``guest.generation`` tells that something has changed.
"""

OTHERS = cast(Peers, "others")
"""The default of a parameter that is Peers: the topology's loader puts everyone but the machine itself in its place."""


class Trace(NamedTuple):
    """Doorbells to be rung at given times; in a topology, the name of a file.

    Each is (due_ns since the start, place of the peer in ``peers``, vector), in the order of their times. A peer that
    is not there yet is -1.
    """

    peers: Peers
    doorbells: Sequence[tuple[int, int, int]]


FOREVER = None
NOW = 0


class Interrupt(NamedTuple):
    """The guest's processor was interrupted: by which vector, and how many doorbells that one wake-up stands for.

    ``device`` is its place in ``guest.devices``: 0 but on a machine with devices in several domains.
    """

    vector: int
    doorbells: int
    device: int = 0


Program = Generator[int | None, Interrupt | None, None]


class Random(Protocol):
    """What a program may ask of chance; seeded by the run, one for each machine."""

    def random(self) -> float: ...

    def randrange(self, stop: int, /) -> int: ...

    def expovariate(self, lambd: float, /) -> float: ...

    def sample(self, population: Sequence[tuple[int, int]], k: int) -> list[tuple[int, int]]: ...


class Guest:
    """One machine, seen by the program that runs on it.

    ``ring(peer, vector=0, intended_ns=0)`` writes ``peer << 16 | vector`` to the doorbell register.
    It never blocks; a doorbell that reaches nobody, or a counter that is full, is counted as refused.

    ``start_ns`` is when the run began on ``clock()``; ``load`` is what the rates of open-loop programs are multiplied
    by, over the time since then. ``joined_ns`` is when the own program was to begin, should that be later: an open loop
    leaves out what was due before; nothing is due from ``stop_ns`` on, the run's end. ``generation`` grows whenever
    peers or their vectors come or go. What a program puts into ``statistics`` is in the run's result, by machine.
    ``devices`` are this guest and, on a machine with devices in several domains, one for each further device: every one
    with its own ID, peers, memory and doorbells.
    """

    def __init__(
        self,
        device: Ivshmem,
        doorbells: Doorbells,
        *,
        clock: Callable[[], int],
        random: Random,
        start_ns: int = 0,
    ) -> None:
        self.device = device
        self.clock = clock
        self.random = random
        self.start_ns = start_ns
        self.joined_ns = 0
        self.stop_ns = inf
        self.unrung = 0
        self.unrung_oldest_ns = 0
        self.held: set[int] = set()
        self.ring = doorbells.ring
        self.memory = memoryview(bytearray())
        self.load = STEADY
        self.generation = 0
        self.statistics: dict[str, int | float] = {}
        self.devices: tuple[Guest, ...] = (self,)
        self._doorbells = doorbells
        self._peer: int | None = None

    def place(self, peer: int, memory: memoryview) -> None:
        """Called once by the machine, when the server has said who this guest is and what it shares."""
        self._peer, self.memory = peer, memory

    @property
    def end_ns(self) -> int:
        """For a program that is being ended: what was due before that was to be rung."""
        return round(min(self.clock(), self.stop_ns))

    def owe(self, doorbells: int, due_ns: int) -> None:
        """So many were due, the first of them at ``due_ns``, and are not rung, for the program ends.

        Added up in ``unrung``; ``unrung_oldest_ns`` is how long the oldest of all waited. What an open loop does not
        say here is missing from every figure, as if it had never been due.
        """
        self.unrung += doorbells
        self.unrung_oldest_ns = max(self.unrung_oldest_ns, self.end_ns - due_ns)

    @property
    def peer(self) -> int:
        """The own ID, as the IVPosition register tells it."""
        if self._peer is None:
            raise GuestError("this machine has no ID yet: it is not connected to a server")
        return self._peer

    @property
    def vectors(self) -> int:
        """How many vectors the own device has."""
        return len(self.device.fires)

    @property
    def peers(self) -> dict[int, int]:
        """Who can be rung now, itself included: ID -> number of vectors."""
        peers = self.device.peers
        return {peer: peers.vectors(peer) for peer in peers}

    def vectors_of(self, peer: int) -> int:
        """How many vectors of a peer can be rung now; 0 when it is not connected."""
        return self.device.peers.vectors(peer)

    def burst(self, doorbells: Sequence[tuple[int, int]]) -> Burst:
        """Prepare (peer, vector) pairs that ``burst.ring()`` rings together: the fastest way to ring many."""
        return self._doorbells.burst(doorbells)

    def release(self, burst: Burst) -> None:
        """Let go of a burst that will not be rung again; what it rang stays on the books."""
        self._doorbells.release(burst)

    def mask(self, vector: int) -> None:
        """Set the mask bit of a vector's MSI-X table entry: doorbells leave it pending (PCI 3.0, 6.8.2)."""
        driver.set_mask(self.device, vector, masked=True)

    def unmask(self, vector: int) -> None:
        """Clear the mask bit; a pending vector fires at once (PCI 3.0, 6.8.3.5).

        Not while the driver holds it masked (``held``), as a program's own masks nest in a driver's.
        """
        if vector not in self.held:
            driver.set_mask(self.device, vector, masked=False)

    def pending(self, vector: int) -> bool:
        """Whether an interrupt waits for a masked vector: its bit in the pending bit array (PCI 3.0, 6.8.2)."""
        return driver.is_pending(self.device, vector)

    def read(self, bar: int, offset: int, size_bytes: int = 4) -> int:
        """Read a register, the MSI-X table or the shared memory as a processor would."""
        return self.device.bar_read(bar, offset, size_bytes)

    def write(self, bar: int, offset: int, value: int, size_bytes: int = 4) -> None:
        """Write likewise; a write to the doorbell register is a doorbell, decoded by the device itself."""
        ignored = self.device.ignored_doorbells
        self.device.bar_write(bar, offset, size_bytes, value)
        self._doorbells.refuse_nowhere(self.device.ignored_doorbells - ignored)
