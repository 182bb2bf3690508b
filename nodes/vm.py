"""One machine: the device, what drives it, and the program that runs on it.

Pure, like everything in ``nodes``: an engine hands it what the server said and what its eventfds counted, and
carries out what it asks for. The same machine runs in a worker process and on a virtual clock in a test.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from nodes.device.ivshmem import IntxLevel, Ivshmem, Message, Warning_
from nodes.device.pci import assign_resources
from nodes.device.profiles import Profile
from nodes.doorbells import Doorbells, Ledger, Line
from nodes.errors import GuestError
from nodes.guest import FOREVER, Guest, Interrupt, Program, Random

__all__ = ["Vm"]

STATUS, STATUS_CAPABILITIES = 0x06, 1 << 4
CAPABILITIES_POINTER, CAPABILITY_MSIX = 0x34, 0x11
MSIX_ENABLE = 1 << 15
MSI_ADDRESS = 0xFEE00000  # the local APIC's window, Intel SDM vol. 3, 10.11.1
INTR_MASK, INTR_STATUS = 0, 4


class Vm:
    """A machine with one ivshmem device and one program.

    ``size_bytes`` is the size of the memory for a device that is told it, as that of 2012.

    ``signal(line, 1)`` rings a line (``BlockingIOError``: its counter is full). ``warnings`` collects what a
    real machine would print on stderr; the engine empties it.
    """

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
    ) -> None:
        self.doorbells = Doorbells(signal, self._ring_by_register, ledger, clock, sample_every=sample_every)
        self.device = Ivshmem(profile, vectors=vectors, role=role, size_bytes=size_bytes, ring=self.doorbells.ring)
        self.guest = Guest(self.device, self.doorbells, clock=clock, random=random)
        self.warnings: deque[str] = deque()
        self.interrupts = [0] * vectors
        self._program: Program | None = None
        self._wait: int | None = FOREVER  # what the program yielded last
        self._carrying_out = False
        self._fires = self.device.fires
        self._singles = [Interrupt(vector, 1) for vector in range(vectors)]

    # What the server said

    def place(self, peer: int, memory: memoryview) -> None:
        """The server gave this machine its ID and its memory; the guest's driver can start."""
        self.device.set_peer(peer)
        self.device.set_memory(memory)
        self.guest.place(peer, memory)
        self._probe()

    def connect(self, peer: int, vector: int, line: Line) -> bool:
        """A peer's vector can be rung on ``line``; False when the device has no use for it."""
        if not (self.device.profile.server and self.device.connect(peer, vector)):
            return False
        self.doorbells.connect(peer, vector, line)
        self.guest.generation += 1
        return True

    def disconnect(self, peer: int) -> None:
        self.device.disconnect(peer)
        self.doorbells.disconnect(peer)
        self.guest.generation += 1

    # What the program does

    def start(self, program: Callable[[Guest], Program]) -> int | None:
        """Begin the program; how long it is willing to wait, as it yielded it."""
        self._program = program(self.guest)
        return self._resume(None)

    def stop(self) -> None:
        """End the program, wherever it stands (``GeneratorExit``)."""
        if self._program is not None:
            self._program.close()
            self._program, self._wait = None, FOREVER

    def deliver(self, vector: int, count: int) -> int | None:
        """An own eventfd was drained of ``count`` doorbells; how long the program will wait next."""
        if self._fires[vector]:
            self.interrupts[vector] += 1
            return self._resume(self._singles[vector] if count == 1 else Interrupt(vector, count))
        self.device.interrupt(vector, count)
        self._carry_out(count)
        return self._wait

    def expire(self) -> int | None:
        """The moment that the program waited for has come."""
        return self._resume(None)

    def _resume(self, interrupt: Interrupt | None) -> int | None:
        program = self._program
        if program is None:
            return FOREVER
        try:
            self._wait = program.send(interrupt)
        except StopIteration:
            self._program, self._wait = None, FOREVER
        if self.device.effects and not self._carrying_out:
            self._carry_out(1)
        return self._wait

    def _carry_out(self, count: int) -> None:
        """What the device did: messages and levels become interrupts of the guest, which may cause the next ones.

        Only the first of them stands for the ``count`` doorbells just drained.
        """
        effects = self.device.effects
        self._carrying_out = True
        try:
            while effects:
                match effects.popleft():
                    case Message(vector=vector):
                        self.interrupts[vector] += 1
                        self._resume(Interrupt(vector, count))
                        count = 1
                    case IntxLevel(asserted=True):
                        # A driver's first act: reading IntrStatus clears it and lets the line go.
                        self.device.bar_read(0, INTR_STATUS, 4)
                        self.interrupts[0] += 1
                        self._resume(Interrupt(0, count))
                        count = 1
                    case Warning_(text=text):
                        self.warnings.append(text)
        finally:
            self._carrying_out = False

    # The driver

    def _probe(self) -> None:
        """What a driver does first: decode memory, master the bus, point each vector at the processor."""
        device = self.device
        assign_resources(device.config.bars.values(), device.config_write)
        capability = self._find_msix()
        if capability is None:
            device.bar_write(0, INTR_MASK, 4, 0xFFFFFFFF)
            return
        for vector in range(len(self._fires)):
            for word, value in enumerate((MSI_ADDRESS, 0, vector, 0)):
                device.bar_write(1, 16 * vector + 4 * word, 4, value)
        control = device.config_read(capability + 2, 2)
        device.config_write(capability + 2, 2, control | MSIX_ENABLE)

    def _find_msix(self) -> int | None:
        """Walk the capability list (PCI 3.0, 6.7)."""
        device = self.device
        if not device.config_read(STATUS, 2) & STATUS_CAPABILITIES:
            return None
        at = device.config_read(CAPABILITIES_POINTER, 1)
        while at:
            if device.config_read(at, 1) == CAPABILITY_MSIX:
                return at
            at = device.config_read(at + 1, 1)
        return None

    def _ring_by_register(self, peer: int, vector: int) -> bool:
        """A doorbell that has no line: let the device decode it, with all its quirks; False if nobody heard."""
        if not (0 <= peer <= 0xFFFF and 0 <= vector <= 0xFFFF):
            raise GuestError(f"a doorbell names a peer and a vector of 0..65535 each, not peer {peer}, vector {vector}")
        rung = self.device.rung_doorbells
        self.device.bar_write(0, 12, 4, peer << 16 | vector)
        return self.device.rung_doorbells != rung
