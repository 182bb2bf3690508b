"""A program's view of its machine: its ID, its peers, the shared memory, the doorbells.

A program is a plain generator function::

    def echo(guest: Guest, *, to: Peers = OTHERS) -> Program:
        while True:
            interrupt = yield FOREVER
            if interrupt is not None:
                for peer in to:
                    guest.ring(peer, interrupt.vector)

It yields how long it waits: ``FOREVER`` for an interrupt; a time in nanoseconds of ``guest.clock()`` for an interrupt
or that time, whichever comes first; ``NOW`` for an interrupt that has arrived already. It is resumed with the
`Interrupt`, or with None when the time has come. Between two yields no other code runs on its machine: the program is
the guest's only processor. A ``finally:`` block runs when the machine stops.

``yield STEP`` marks a point at which the guest's processor can be preempted while other machines run; the program is
resumed with None. No interrupt is delivered there. Only ``[chaos]`` of a topology preempts programs; elsewhere the
program goes on at once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from math import inf
from typing import Annotated, NamedTuple, Protocol, cast

from nodes.bursts import Burst
from nodes.device import driver
from nodes.device.ivshmem import Ivshmem
from nodes.device.v2.sections import Sections
from nodes.doorbells import Doorbells
from nodes.errors import GuestError
from nodes.load import STEADY

Peers = Annotated[Sequence[int], "peers"]
"""The IDs of the peers that a program works with.

In a topology: a group, a machine, a list of them, "others", "all", "foreign", or a pattern.

The sequence changes in place: a machine that joins later is added when it has its ID, and one that returns under
another ID takes its old place. ``guest.generation`` tells that something has changed.

With metadata, a copy of this type (cloudpickle) is still told from a sequence of numbers.
"""

OTHERS = cast(Peers, "others")
"""The default of a parameter that is `Peers`: the loader of the topology replaces it by all machines but this one."""


class Trace(NamedTuple):
    """Doorbells to be rung at given times; in a topology, the name of a file.

    Attributes:
        peers: the IDs of the machines that the file names; -1 for a machine that has no ID yet.
        doorbells: (due_ns since the start of the run, index in ``peers``, vector), in ascending order of their times.
    """

    peers: Peers
    doorbells: Sequence[tuple[int, int, int]]


FOREVER = None
"""Yielded by a program: wait for the next interrupt."""

NOW = 0
"""Yielded by a program: take an interrupt that has arrived, and do not wait."""


STEP = -1
"""Yielded by a program: other machines may run here, between two accesses to the shared memory."""


class Interrupt(NamedTuple):
    """One interrupt of the guest's processor.

    Attributes:
        vector: the vector that was raised; 0 for the legacy interrupt (INTx).
        doorbells: how many doorbells this one wake-up stands for.
        device: the index in ``guest.devices``; above 0 only on a machine with devices in several domains.
    """

    vector: int
    doorbells: int
    device: int = 0


Program = Generator[int | None, Interrupt | None, None]
"""The generator that a program function returns. It yields a time to wait; an interrupt or None resumes it."""


class Random(Protocol):
    """The random numbers of one machine, seeded by the run; a `random.Random` has these methods."""

    def random(self) -> float: ...
    def randrange(self, stop: int, /) -> int: ...
    def expovariate(self, lambd: float, /) -> float: ...
    def sample(self, population: Sequence[tuple[int, int]], k: int) -> list[tuple[int, int]]: ...


class Guest:
    """One machine, as the program that runs on it sees it.

    Attributes:
        ring: ``ring(peer, vector=0, intended_ns=0)`` writes ``peer << 16 | vector`` to the doorbell register. It
            never blocks. A doorbell that reaches no peer, or whose counter is full, is counted as refused.
            ``intended_ns`` is when an open-loop program meant to ring; 0: it has no schedule.
        clock: returns the time in nanoseconds; in a run this is CLOCK_MONOTONIC.
        random: random numbers that follow from the seed of the run and the name of the machine.
        memory: the shared memory, bytes; empty before the server has sent it.
        start_ns: when the run started.
        joined_ns: when this program was to start, if that is later than ``start_ns``. An open loop leaves out what was
            due before.
        stop_ns: when the run ends; nothing is due from then on.
        load: the factor by which the phases of the run multiply the rates of open-loop programs.
        generation: changes whenever peers or their vectors come or go.
        statistics: numbers that the program stores here are in the result of the run, by machine.
        devices: this guest and, on a machine with devices in several domains, one guest for each further device, with
            an ID, peers, memory and doorbells of its own.
        device: the device itself, for access to its configuration space.
        missed: doorbells that were due and are not rung (`miss`).
        missed_oldest_ns: how long the oldest of these had been due, in nanoseconds.
        held: the vectors that the driver holds masked, whatever the program does (`unmask`).
    """

    __slots__ = (
        *("_doorbells", "_peer", "clock", "device", "devices", "generation", "held", "joined_ns", "load", "memory"),
        *("missed", "missed_oldest_ns", "random", "ring", "start_ns", "statistics", "stop_ns"),
    )

    def __init__(self, device: Ivshmem, doorbells: Doorbells, *, clock: Callable[[], int], random: Random) -> None:
        self.device = device
        self.clock = clock
        self.random = random
        self.start_ns = 0
        self.joined_ns = 0
        self.stop_ns = inf
        self.missed = 0
        self.missed_oldest_ns = 0
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
        """Called by the machine when the server has sent the own ID and the memory."""
        self._peer, self.memory = peer, memory

    @property
    def end_ns(self) -> int:
        """For a program that is being stopped: doorbells due before this time were to be rung."""
        return round(min(self.clock(), self.stop_ns))

    def miss(self, doorbells: int, due_ns: int) -> None:
        """Count doorbells that were due and are not rung, because the program ends.

        A doorbell that an open loop does not report here is in no figure, as if it had never been due.

        Args:
            doorbells: how many there are.
            due_ns: when the first of them was due.
        """
        self.missed += doorbells
        self.missed_oldest_ns = max(self.missed_oldest_ns, self.end_ns - due_ns)

    @property
    def peer(self) -> int:
        """The own ID, as the IVPosition register shows it.

        Raises:
            GuestError: the machine has no ID yet.
        """
        if self._peer is None:
            raise GuestError("this machine has no ID yet: it is not connected to a server")
        return self._peer

    @property
    def vectors(self) -> int:
        """How many vectors the own device has."""
        return len(self.device.fires)

    @property
    def peers(self) -> dict[int, int]:
        """The peers that can be rung now, this machine included: ID -> number of vectors. A copy."""
        peers = self.device.peers
        return {peer: peers.vectors(peer) for peer in peers}

    def vectors_of(self, peer: int) -> int:
        """How many vectors of one peer can be rung now; 0 when it is not connected."""
        return self.device.peers.vectors(peer)

    @property
    def sections(self) -> Sections:
        """The memory of an ivshmem v2 device: State Table, read/write section, output sections.

        Raises:
            GuestError: the device has none.
        """
        if self.device.sections is None:
            raise GuestError("this device has no sections: it is not of ivshmem v2, or has no memory yet")
        return self.device.sections

    def set_state(self, value: int) -> None:
        """Write the State register of an ivshmem v2 device: a change interrupts all other peers by vector 0.

        Raises:
            GuestError: the device has no such register.
        """
        driver.set_state(self.device, value)

    def enable_interrupts(self, *, enabled: bool = True) -> None:
        """Write the Interrupt Control register of an ivshmem v2 device.

        Raises:
            GuestError: the device has no such register.
        """
        driver.enable_interrupts(self.device, enabled=enabled)

    def bell(self, peer: int, vector: int = 0) -> Callable[..., None]:
        """Look up one doorbell that is rung again and again.

        Returns:
            ``bell(intended_ns=0)``: rings as ``ring(peer, vector, intended_ns)`` does, and faster. It stays valid when
            peers leave and return and when this machine migrates: a doorbell that reaches no peer is refused. The same
            peer and vector always give the same function.
        """
        return self._doorbells.bell(peer, vector)

    def burst(self, doorbells: Sequence[tuple[int, int]]) -> Burst:
        """Prepare (peer, vector) pairs that ``burst.ring()`` rings together: the fastest way to ring many."""
        return self._doorbells.burst(doorbells)

    def release(self, burst: Burst) -> None:
        """Give up a burst that is not rung again; the doorbells it rang stay counted."""
        self._doorbells.release(burst)

    def mask(self, vector: int) -> None:
        """Set the mask bit of a vector's MSI-X table entry: doorbells leave the vector pending (PCI 3.0, 6.8.2).

        Raises:
            GuestError: the device has no such vector, or no MSI-X.
        """
        driver.set_mask(self.device, vector, masked=True)

    def unmask(self, vector: int) -> None:
        """Clear the mask bit; a pending vector fires at once (PCI 3.0, 6.8.3.5).

        A vector that the driver holds masked (``held``) stays masked: a program's masks nest in those of the driver.

        Raises:
            GuestError: the device has no such vector, or no MSI-X.
        """
        if vector not in self.held:
            driver.set_mask(self.device, vector, masked=False)

    def pending(self, vector: int) -> bool:
        """Whether an interrupt waits for a masked vector: its bit in the pending bit array (PCI 3.0, 6.8.2).

        Raises:
            GuestError: the device has no such vector, or no MSI-X.
        """
        return driver.is_pending(self.device, vector)

    def read(self, bar: int, offset: int, size_bytes: int = 4) -> int:
        """Read a register (BAR0), the MSI-X table (BAR1) or the shared memory (BAR2) as a processor does.

        Args:
            bar: the number of the BAR.
            offset: in bytes.
            size_bytes: 1, 2, 4 or 8.

        Returns:
            The value, little-endian; 0 while memory decoding is off.

        Raises:
            GuestError: another size, or a BAR that the device does not have.
        """
        return self.device.bar_read(bar, offset, size_bytes)

    def write(self, bar: int, offset: int, value: int, size_bytes: int = 4) -> None:
        """Write likewise. A write that covers the doorbell register is a doorbell, which the device decodes.

        Raises:
            GuestError: as `read`.
        """
        ignored = self.device.ignored_doorbells
        self.device.bar_write(bar, offset, size_bytes, value)
        self._doorbells.refuse_nowhere(self.device.ignored_doorbells - ignored)
