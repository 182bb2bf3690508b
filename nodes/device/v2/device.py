"""The device of ivshmem v2: identity, Interrupt Control, one-shot, State, memory in sections.

What it has in common with version 1 is `nodes.device.ivshmem`: configuration space, BARs, MSI-X, doorbell, peers.
"""

from __future__ import annotations

from collections.abc import Callable

from nodes.device.effects import DeviceWarning, IntxPulse
from nodes.device.ivshmem import Ivshmem
from nodes.device.msix import Layout, Undelivered
from nodes.device.pci import COMMAND_INTX_DISABLE, REVISION, Capability
from nodes.device.profile import DOORBELL
from nodes.device.registers import RegisterFile
from nodes.device.v2.profiles import ID, INTERRUPT_CONTROL, MAXIMUM_PEERS, STATE, ForbiddenStore, ProfileV2
from nodes.device.v2.sections import ForbiddenStoreError, SectionLayout, Sections
from nodes.errors import GuestError, RemoteProtocolError
from nodes.wire.v2.protocol import DomainNumbers

VENDOR_CAPABILITY = 0x09
"""PCI 3.0, appendix H."""
ONE_SHOT = 1
PRIVILEGED_CONTROL = 3
TABLE_SIZE, SHARED_SIZE, OUTPUT_SIZE, BASE_ADDRESS = 0x04, 0x08, 0x10, 0x18
EXAMPLE_NUMBERS = DomainNumbers(max_peers=2, vectors=0, protocol=0, output_bytes=0)
MEMORY_ADDRESS = 0x1_0000_0000
"""Where a guest of Jailhouse finds the memory in this model: any address does."""


class IvshmemV2(Ivshmem):
    """One device of ivshmem v2; the arguments are those of `Ivshmem`.

    The numbers of its domain come from the server (`initialize`), before the memory.

    Attributes:
        numbers: what the server told of the domain.
        rung: ``rung()`` is how many doorbells were rung at each own vector and not drained yet; vectors without any may
            be absent.
        forbidden_stores: how many stores into sections were ignored that the guest may only read.
    """

    profile: ProfileV2

    def __init__(
        self,
        profile: ProfileV2,
        *,
        vectors: int | None = None,
        ring: Callable[[int, int], object],
        role: str | None = None,
        size_bytes: int | None = None,
        on_decode: Callable[[], object] = lambda: None,
    ) -> None:
        self.numbers = EXAMPLE_NUMBERS
        self.rung: Callable[[], dict[int, int]] = dict
        self._judged: dict[int, list[tuple[int, bool]]] = {}  # vector -> (doorbells, whether they get through)
        self.forbidden_stores = 0
        self._warned_of: set[str] = set()
        super().__init__(profile, vectors=vectors, ring=ring, role=role, on_decode=on_decode)
        self._update_gate()

    # Construction

    def _make_registers(self) -> RegisterFile:
        return RegisterFile(
            self.profile.registers,
            reads={ID: lambda: self.peer or 0, MAXIMUM_PEERS: lambda: self.numbers.max_peers},
            written={INTERRUPT_CONTROL: self._control, DOORBELL: self._doorbell, STATE: self._write_state},
        )

    def _msix_layout(self, vectors: int) -> Layout:
        profile = self.profile
        layout = Layout.exclusive(vectors, profile.msix_bar, profile.msix_limit)
        if not profile.msix_bar_bytes:
            return layout
        return Layout(vectors, profile.msix_bar, profile.msix_bar_bytes, profile.msix_pba_offset)

    def _capabilities(self) -> list[Capability]:
        profile = self.profile
        size = 0x20 if profile.base_address else 0x18
        body = bytes([size, 0]) + bytes(size - 4)
        vendor = Capability(profile.vendor_capability, VENDOR_CAPABILITY, "vendor", body, b"\0\1" + bytes(size - 4))
        return [vendor, *super()._capabilities()]

    # The server

    def initialize(self, numbers: DomainNumbers) -> None:
        """Take the numbers of the domain, which come with the ID, before the memory.

        Raises:
            RemoteProtocolError: numbers that this device cannot have.
        """
        if numbers.vectors != self.vectors:
            raise RemoteProtocolError(f"the server gives {numbers.vectors} vectors, this device has {self.vectors}")
        if numbers.max_peers > self.profile.peers_limit:
            limit = self.profile.peers_limit
            raise RemoteProtocolError(f"{numbers.max_peers} peers: a {self.profile.name} has at most {limit}")
        self.numbers = numbers
        self.config.fix(REVISION + 1, 2, numbers.protocol & 0xFFFF)

    def layout_of(self, size_bytes: int) -> SectionLayout:
        """Where the sections of memory of that size are.

        Raises:
            RemoteProtocolError: they do not fit.
        """
        return SectionLayout(size_bytes, self.numbers.max_peers, self.numbers.output_bytes)

    def set_sections(self, sections: Sections) -> None:
        """Take memory that was mapped section by section; `set_memory` with ``sections.memory`` follows."""
        self.sections = sections

    def set_memory(self, memory: memoryview) -> None:
        """Back the device with shared memory.

        Raises:
            RemoteProtocolError: a size that no BAR can have, or that is too small for the sections.
        """
        if self.sections is None or memory is not self.sections.memory:
            if memory.format != "B" or memory.ndim != 1:
                memory = memory.cast("B")
            self.sections = Sections.of(self.layout_of(memory.nbytes), self.peer or 0, memory)
        layout = self.sections.layout
        capability, memory_bar = self.profile.vendor_capability, self.profile.memory_bar
        for at, size, value in (
            (TABLE_SIZE, 4, layout.table_bytes),
            (SHARED_SIZE, 8, layout.shared_bytes),
            (OUTPUT_SIZE, 8, layout.output_bytes),
        ):
            self.config.fix(capability + at, size, value)
        if self.profile.base_address:
            self.config.fix(capability + BASE_ADDRESS, 8, MEMORY_ADDRESS)
        elif memory_bar not in self.config.bars:
            if layout.size_bytes & (layout.size_bytes - 1):
                raise RemoteProtocolError(f"shared memory of {layout.size_bytes} bytes: expected a power of two")
            self._add_memory_bar(layout.size_bytes)
        self.memory = self.sections.memory

    def disconnect(self, peer: int) -> None:
        """A peer has left: its State is 0 already, and the device interrupts its own guest by vector 0."""
        was_known = bool(self.peers.vectors(peer))
        super().disconnect(peer)
        if was_known and self.peer is not None and self._is_connected(self.peer, 0):
            self.rung_doorbells += 1
            self._ring(self.peer, 0)

    # Accesses of the guest

    def config_read(self, offset: int, size_bytes: int) -> int:
        value = super().config_read(offset, size_bytes)
        return (1 << 8 * size_bytes) - 1 if offset >= self.profile.config_limit else value

    def bar_read(self, bar: int, offset: int, size_bytes: int) -> int:
        if bar == self.profile.registers_bar and offset == self._control_offset and self.is_one_shot:
            self._judge()  # a doorbell may have cleared it
        return super().bar_read(bar, offset, size_bytes)

    def bar_write(self, bar: int, offset: int, size_bytes: int, value: int) -> None:
        if bar == self.profile.msix_bar or (bar == self.profile.registers_bar and offset == self._control_offset):
            self._judge()
        super().bar_write(bar, offset, size_bytes, value)

    def config_write(self, offset: int, size_bytes: int, value: int) -> None:
        self._judge()
        if offset >= self.profile.config_limit:
            raise GuestError(f"{self.profile.name} refuses a write to configuration space at {offset:#x}")
        super().config_write(offset, size_bytes, value)

    def config_changed(self) -> None:
        super().config_changed()
        self._update_gate()

    def _store(self, offset: int, size_bytes: int, value: int) -> None:
        if self.sections is None:
            return
        data = value.to_bytes(size_bytes, "little")[: max(0, self.sections.layout.size_bytes - offset)]
        try:
            if data:
                self.sections.store(offset, data)
        except ForbiddenStoreError as error:
            if self.profile.forbidden_store is ForbiddenStore.STOPS:
                raise
            self.forbidden_stores += 1
            place = self.sections.layout.place(offset).name
            if place not in self._warned_of:  # once for each section
                self._warned_of.add(place)
                self.effects.append(DeviceWarning(str(error)))

    def reset(self) -> None:
        """Reset the device: State 0, of which the others hear if it was not 0; interrupts and one-shot off."""
        self.registers.write_word(self.profile.registers.offset_of(STATE), 0)
        self.registers.reset(INTERRUPT_CONTROL)
        if self.profile.reset_clears_one_shot:
            self.config.data[self.profile.vendor_capability + PRIVILEGED_CONTROL] = 0
        self._judged.clear()
        super().reset()

    # Registers

    @property
    def _control_offset(self) -> int:
        return self.profile.registers.offset_of(INTERRUPT_CONTROL)

    @property
    def is_enabled(self) -> bool:
        """Whether Interrupt Control lets interrupts through."""
        return bool(self.registers.values[INTERRUPT_CONTROL])

    @property
    def is_one_shot(self) -> bool:
        """Whether each interrupt clears Interrupt Control."""
        return bool(self.config.data[self.profile.vendor_capability + PRIVILEGED_CONTROL] & ONE_SHOT)

    def _control(self, value: int) -> None:
        self.registers.values[INTERRUPT_CONTROL] = value & 1
        self._update_gate()

    def _update_gate(self) -> None:
        """Vectors fire at once only while every interrupt is let through."""
        if self.msix is not None:
            self.msix.open_gate(self.is_enabled and not self.is_one_shot and not self._judged)

    def _update_intx(self) -> None:
        """The line has no status: it is pulsed (`interrupt`)."""

    def _write_state(self, value: int) -> None:
        if self.sections is None or not self.sections.set_state(value):
            return
        for peer in list(self.peers):
            if peer != self.peer and self._is_connected(peer, 0):
                self.rung_doorbells += 1
                self._ring(peer, 0)

    # Doorbells at this device

    def _lets_through(self, vector: int) -> bool:
        """Whether a doorbell that is rung now interrupts the guest."""
        if not self.is_enabled:
            return False
        if self.msix is None:
            return not self.config.command & COMMAND_INTX_DISABLE
        return self.msix.bus_master and not self.msix.masked(vector)

    def _judge(self) -> None:
        """Judge the doorbells that have been rung until now, because what decides about them is about to change.

        Jailhouse decides when a doorbell is rung, the fork when its main loop drains the eventfd, microseconds later. A
        program that runs on meanwhile must not save a doorbell that was rung while interrupts were disabled.
        """
        for vector, count in sorted(self.rung().items()):
            judged = self._judged.get(vector, [])
            fresh = count - sum(known for known, _ in judged)
            through = self._lets_through(vector)
            if fresh <= 0 or (not through and self._pends()):  # what pends does so when it is drained, too
                continue
            self._judged[vector] = [*judged, (fresh, through)]
            if through:
                self._spend_one_shot()
        self._update_gate()

    def _pends(self) -> bool:
        """Whether a doorbell at a masked vector sets its pending bit now, and is not lost."""
        return self.is_enabled and self.msix is not None and self.profile.ring_while_masked is Undelivered.PEND

    def interrupt(self, vector: int, count: int) -> None:
        self._check_vector(vector)
        for judged, through in self._judged.pop(vector, ()):
            judged, count = min(judged, count), count - min(judged, count)
            if not through:
                self.lost_doorbells += judged
            elif judged:
                self.effects.append(IntxPulse() if self.msix is None else self.msix.message(vector))
        if count:
            self._interrupt_now(vector, count)
        self._update_gate()

    def _interrupt_now(self, vector: int, count: int) -> None:
        """What is in force now decides about these doorbells."""
        if not self.is_enabled:
            self.lost_doorbells += count
            return
        if self.msix is None:
            if self.config.command & COMMAND_INTX_DISABLE:
                self.lost_doorbells += count
                return
            self._spend_one_shot()
            self.effects.append(IntxPulse())
            return
        self.msix.open_gate(True)
        if self._notify(self.msix, vector, count):
            self._spend_one_shot()
        self._update_gate()

    def _spend_one_shot(self) -> None:
        if self.is_one_shot:
            self.registers.values[INTERRUPT_CONTROL] = 0
