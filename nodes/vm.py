"""One machine: the device, its driver, and the program that runs on it.

Pure, like everything in ``nodes``: an engine passes in the server's announcements and the counts of the eventfds, and
supplies the functions that it calls. The same class runs in a worker process and on a virtual clock in a test.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from nodes.bursts import Batch
from nodes.device import driver
from nodes.device.devices import make_device
from nodes.device.effects import DeviceWarning, IntxLevel, IntxPulse
from nodes.device.ivshmem import Ivshmem
from nodes.device.msix import MsixMessage
from nodes.device.profile import Profile
from nodes.doorbells import Doorbells
from nodes.guest import FOREVER, STEP, Guest, Interrupt, Program, Random
from nodes.ledger import Ledger
from nodes.peer_table import Line, PeerTable


class Vm:
    """A machine with one ivshmem device and one program.

    Args:
        profile: which device it has.
        vectors: how many vectors the device has.
        role: "peer", "master" or "auto", as for `Ivshmem`.
        size_bytes: the size of the shared memory, for a device that is told it (that of 2012).
        signal: ``signal(line, 1)`` rings a line. It raises `BlockingIOError` when the counter of the line is full.
        ledger: where doorbells are counted and time-stamped.
        clock: returns the time in nanoseconds.
        random: the random numbers of the program.
        sample_every: of so many doorbells to one vector, one gets its time stamps; 0: none.
        first: the first device of the same machine, for each further one; its program takes all interrupts.
        make_batch: as of `Doorbells`.

    Attributes:
        guest: what the program sees.
        doorbells: rings the peers.
        warnings: lines that a real machine prints on stderr; the engine empties the list.
        on_warned: is called when the device has added one.
        fires: for each own vector, whether a doorbell interrupts the guest at once.
        singles: for each own vector, the interrupt of one doorbell.
        on_left: ``on_left(vector, pended, lost)`` is called when drained doorbells do not interrupt the guest: they
            were left pending, or lost. Otherwise an engine counts one interrupt for each drain.
        on_fired: ``on_fired(vector)`` is called for an interrupt without a drain: a pending vector has fired.
        preempts: ``preempts()`` is called when the program yields `STEP`. If it returns True, `wait` is `STEP`: the
            engine calls `expire` later, and delivers nothing before.
    """

    __slots__ = (
        *("_carrying_out", "_effects", "_first", "_program", "_wait", "device", "doorbells", "fires", "guest"),
        *("number", "on_fired", "on_left", "on_warned", "preempts", "singles", "warnings"),
    )

    def __init__(
        self,
        profile: Profile,
        *,
        vectors: int,
        role: str,
        size_bytes: int | None = None,
        signal: Callable[[Line, int], object],
        ledger: Ledger,
        clock: Callable[[], int],
        random: Random,
        sample_every: int,
        first: Vm | None = None,
        make_batch: Callable[[Sequence[Line]], Batch] | None = None,
    ) -> None:
        self._first = first
        self.number: int = 0 if first is None else first.number_of_devices
        self.doorbells = Doorbells(
            signal, self._write_doorbell, ledger, clock, sample_every=sample_every, make_batch=make_batch
        )
        self.device = self.make_device(profile, vectors=vectors, role=role, size_bytes=size_bytes)
        self.doorbells.replace(self.device.peers)
        self.guest = Guest(self.device, self.doorbells, clock=clock, random=random)
        if first is not None:
            first.guest.devices = (*first.guest.devices, self.guest)
        self.warnings: list[str] = [] if first is None else first.warnings
        self.on_left: Callable[[int, int, int], object] = _nothing
        self.on_fired: Callable[[int], object] = _nothing
        self.on_warned: Callable[[], object] = _nothing
        self.preempts: Callable[[], bool] = _never
        self._program: Program | None = None
        self._wait: int | None = FOREVER  # what the program yielded last
        self._carrying_out = False
        self.fires, self._effects = self.device.fires, self.device.effects
        self.singles = _singles(self.device.vectors, self.number)

    # The server

    def use_peers(self, peers: PeerTable) -> None:
        """The machine connects to a server, whose announcements fill this table."""
        self.device.peers = peers
        self.doorbells.replace(peers)

    def place(self, peer: int, memory: memoryview) -> None:
        """The server has given this machine its ID and its memory; the first time, the guest's driver starts.

        Raises:
            RemoteProtocolError: an ID or a size that the device cannot have.
            UsageError: a role that does not go with that ID, or memory that cannot be written.
        """
        is_first = self.device.memory is None
        self.device.set_peer(peer)
        self.device.set_memory(memory)
        self.guest.place(peer, memory)
        if is_first:
            self.probe()

    def probe(self) -> None:
        """Let the guest's driver start the device."""
        driver.probe(self.device)

    def connect(self, peer: int, vector: int, line: Line) -> bool:
        """A vector of a peer can be rung on ``line``; returns False when the device has no use for it."""
        if not (self.device.profile.server and self.device.connect(peer, vector, line)):
            return False
        self.doorbells.connect(peer, vector)
        self.guest.generation += 1
        return True

    def connect_next(self, peers: Sequence[int], lines: Sequence[Line]) -> None:
        """The next vector of each of these peers can be rung. The device has a server, and a use for all of them."""
        if self.doorbells.has_edges:
            for peer, line in zip(peers, lines, strict=True):
                self.connect(peer, self.device.peers.vectors(peer), line)
            return
        self.device.connect_next(peers, lines)
        self.guest.generation += 1

    def disconnect(self, peer: int) -> None:
        """A peer has left: its lines are no longer rung, then released."""
        self.doorbells.disconnect(peer)
        self.device.disconnect(peer)
        self.guest.generation += 1

    def catch_up(self, end: int | None = None) -> None:
        """The machine hears what its server has announced, where it shares that with others (`AnnouncedPeers`)."""
        if self.device.peers.catch_up(end):
            self.doorbells.refresh()
            self.guest.generation += 1

    # The program

    def start(self, program: Callable[[Guest], Program]) -> int | None:
        """Start the program; returns what it yields: how long it waits."""
        self._program = program(self.guest)
        return self.resume(None)

    def stop(self) -> None:
        """End the program at its current yield (``GeneratorExit``)."""
        if self._program is not None:
            self._program.close()
            self._program, self._wait = None, FOREVER

    def deliver(self, vector: int, count: int) -> int | None:
        """Deliver ``count`` doorbells from an own eventfd; returns how long the program waits next."""
        if self.fires[vector]:
            return self.resume(self.singles[vector] if count == 1 else Interrupt(vector, count, self.number))
        device = self.device
        pended, lost = device.pended_doorbells, device.lost_doorbells
        device.interrupt(vector, count)
        pended, lost = device.pended_doorbells - pended, device.lost_doorbells - lost
        if pended or lost:
            self.on_left(vector, pended, lost)
        if self._carry_out(count, drained=not (pended or lost)) and device.intx_level:
            # The line was up before. Level-triggered, it interrupts until the program reads IntrStatus.
            self._interrupt(0, count, drained=True)
        return self._wait

    def mask(self, vector: int, *, masked: bool) -> int | None:
        """The driver sets a vector's mask bit and holds it, whatever the program does; or clears it again."""
        if masked:
            self.guest.mask(vector)
            self.guest.held.add(vector)
        else:
            self.guest.held.discard(vector)
            self.guest.unmask(vector)
        self._carry_out(1)
        return self.wait

    def reset(self, program: Callable[[Guest], Program]) -> int | None:
        """A bus reset: the driver probes the device again. The reset of the first device starts the program again."""
        self.stop()
        self.device.reset()
        self.probe()
        self.guest.held.clear()
        self.guest.joined_ns = self.guest.clock()  # what was due before is not due again
        return self.start(program) if self._first is None else self.wait

    def unplug(self) -> None:
        """The device is removed, and the program ends."""
        self.stop()
        for peer in list(self.device.peers):
            self.doorbells.disconnect(peer)
        self.guest.generation += 1
        self.device.unplug()

    def make_device(self, profile: Profile, *, vectors: int, role: str, size_bytes: int | None) -> Ivshmem:
        """A device whose doorbells ring through this machine's `doorbells`."""
        return make_device(
            profile,
            vectors=vectors,
            role=role,
            size_bytes=size_bytes,
            ring=self.doorbells.decoded,
            on_decode=self.doorbells.invalidate,
        )

    def replace(self, device: Ivshmem) -> None:
        """The machine has migrated: it has this device from now on, one of `make_device`."""
        self.doorbells.replace(device.peers)
        self.device = self.guest.device = device
        self.fires, self._effects = device.fires, device.effects
        self.guest.generation += 1

    def arrive(self, peer: int, memory: memoryview, state: bytes) -> None:
        """As `place`, after a migration: no driver starts, because the saved state has what the driver did.

        Raises:
            MigrationError: the device cannot have that state or that ID.
        """
        self.device.set_peer(peer)
        self.device.set_memory(memory)
        self.device.load(state)
        self.guest.place(peer, memory)

    def _write_doorbell(self, peer: int, vector: int) -> None:
        driver.ring(self.device, peer, vector)

    @property
    def number_of_devices(self) -> int:
        return len(self.guest.devices)

    @property
    def wait(self) -> int | None:
        """How long the program waits: what it yielded last."""
        return self._wait if self._first is None else self._first.wait

    def expire(self) -> int | None:
        """Resume the program at the time that it waited for; returns how long it waits next."""
        return self.resume(None)

    def settle(self) -> None:
        """Process the effects of what the program did to this device while it handled another device's interrupt."""
        if self._effects and not self._carrying_out:
            self._carry_out(1)

    def resume(self, interrupt: Interrupt | None) -> int | None:
        """Resume the program with an interrupt, or with None when its time has come; returns how long it waits next."""
        program = self._program
        if program is None:
            return FOREVER if self._first is None else self._resume_first(self._first, interrupt)
        try:
            wait = program.send(interrupt)
            if wait is not None:  # comparing None with a number costs as much as all else here
                while wait == STEP and not self.preempts():
                    wait = program.send(None)
            self._wait = wait
        except StopIteration:
            self._program, self._wait = None, FOREVER
        if self._effects and not self._carrying_out:
            self._carry_out(1)
        return self._wait

    def _resume_first(self, first: Vm, interrupt: Interrupt | None) -> int | None:
        wait = first.resume(interrupt)
        self.settle()
        return wait

    def _carry_out(self, count: int, *, drained: bool = False) -> bool:
        """Turn the device's effects into interrupts of the guest, whose program may cause further effects.

        Only the first interrupt stands for the ``count`` doorbells just ``drained``. Returns whether these have
        interrupted nothing. Effects wait while the program is preempted.
        """
        effects, program_vm = self._effects, self._first or self
        self._carrying_out = True
        try:
            while effects and program_vm._wait != STEP:
                match effects.pop(0):
                    case MsixMessage(vector=vector):
                        self._interrupt(vector, count, drained=drained)
                        count, drained = 1, False
                    case IntxPulse():
                        self._interrupt(0, count, drained=drained)
                        count, drained = 1, False
                    case IntxLevel(asserted=True) if self.device.intx_level:
                        self._interrupt(0, count, drained=drained)
                        count, drained = 1, False
                    case DeviceWarning(text=text):
                        self.warnings.append(text)
                        self.on_warned()
        finally:
            self._carrying_out = False
        return drained

    def _interrupt(self, vector: int, count: int, *, drained: bool) -> None:
        # A device without a server has no vectors: its program raised the line itself.
        if not drained and vector < self.device.vectors:
            self.on_fired(vector)
        self.resume(Interrupt(vector, count, self.number))


def _nothing(*_: int) -> None:
    """Called where no engine has put a function of its own."""


def _never() -> bool:
    return False


@functools.cache
def _singles(vectors: int, device: int) -> tuple[Interrupt, ...]:
    """The interrupt of one doorbell on each vector of a device: the same for all machines of a process."""
    return tuple(Interrupt(vector, 1, device) for vector in range(vectors))
