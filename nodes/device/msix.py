"""MSI-X: the table, the pending bits, the masks, and the messages that are sent.

PCI 3.0, 6.8.2. A table entry is 16 bytes: address (8), data (4), vector control (4; bit 0 masks). The
pending bit array (PBA) has one bit for each vector. Devices in the field differ in what they do with an interrupt
that they cannot send now: :class:`Undelivered`.

The enable bit and the function mask are in configuration space; the device passes them to `Msix.set_control`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum

from msgspec import Struct

from nodes.device.pci import Capability
from nodes.device.registers import AccessRules, Window
from nodes.errors import GuestError, ModelledFault, UsageError

ENTRY_BYTES, ENTRY_WORDS = 16, 4
ADDRESS_LOW, ADDRESS_HIGH, DATA, CONTROL = range(ENTRY_WORDS)
MASKED = 1  # vector control, bit 0

CAPABILITY_ID = 0x11  # PCI 3.0, appendix H
CONTROL_ENABLE, CONTROL_FUNCTION_MASK = 1 << 15, 1 << 14


class MsixMessage(Struct, frozen=True):
    """One MSI-X message: a 32-bit write of ``data`` to ``address``, on behalf of a vector."""

    vector: int
    address: int
    data: int


class Undelivered(Enum):
    """The fate of an interrupt whose message cannot be sent now."""

    PEND = "its pending bit is set"
    LOSE = "it is lost"
    KEEP = "it stays in its eventfd until the vector is unmasked, MSI-X is enabled or the pending bits are read"


class Layout(Struct, frozen=True):
    """The places of the table and of the pending bits in their BAR (QEMU, hw/pci/msix.c, msix_init_exclusive_bar)."""

    vectors: int
    bar: int
    bar_bytes: int
    pba_offset: int

    @classmethod
    def exclusive(cls, vectors: int, bar: int, limit: int, pba_offset: int = 0) -> Layout:
        """The layout of a BAR that holds nothing else: 4 KiB with the PBA at 2 KiB, or more where that is too small.

        Args:
            vectors: how many.
            bar: the BAR.
            limit: how many there can be.
            pba_offset: another place of the PBA; 0: none.

        Raises:
            UsageError: fewer than 1 vector, or more than ``limit``; or a PBA where the table is.
        """
        if not 1 <= vectors <= limit:
            raise UsageError(f"The number of MSI-X vectors is invalid: {vectors}, expected 1..{limit}")
        table_bytes = vectors * ENTRY_BYTES
        if 0 < pba_offset < table_bytes:
            raise UsageError(f"pending bits at {pba_offset:#x}: expected after the table, {table_bytes:#x}")
        pba_offset = pba_offset or max(2048, table_bytes)
        needed = pba_offset + (vectors // 8 + 1) * 8
        return cls(vectors, bar, max(4096, 1 << (needed - 1).bit_length()), pba_offset)

    @property
    def table_bytes(self) -> int:
        return self.vectors * ENTRY_BYTES

    @property
    def pba_bytes(self) -> int:
        return (self.vectors + 63) // 64 * 8

    def capability(self, offset: int) -> Capability:
        """The capability that describes this layout; its enable bit and its function mask can be written."""
        body = (
            (self.vectors - 1).to_bytes(2, "little")
            + self.bar.to_bytes(4, "little")
            + (self.pba_offset | self.bar).to_bytes(4, "little")
        )
        mask = bytes([0, (CONTROL_ENABLE | CONTROL_FUNCTION_MASK) >> 8]) + bytes(8)
        return Capability(offset, CAPABILITY_ID, "MSI-X", body, mask)


class Msix:
    """The MSI-X state of one function.

    ``fires`` has a bool for each vector: True while an interrupt on that vector is sent at once. It is the same list
    for the lifetime of the object.

    Args:
        layout: the number of vectors and the places in the BAR.
        send: called with each message that is sent.
        masked: what happens to an interrupt of a masked vector.
        disabled: what happens to an interrupt while MSI-X is disabled.
        rules: which accesses the BAR takes.
        function_mask: False for a device that ignores the function mask.
        routed: whether a vector can be unmasked while MSI-X is enabled; with irqfd, one without an eventfd cannot.
    """

    __slots__ = (
        *("_disabled", "_function_mask", "_masked", "_routed", "_send", "bus_master", "enabled", "fires"),
        *("function_masked", "gate", "kept", "layout", "pending", "table", "used", "window"),
    )

    def __init__(
        self,
        layout: Layout,
        send: Callable[[MsixMessage], object],
        *,
        masked: Undelivered,
        disabled: Undelivered,
        rules: AccessRules,
        function_mask: bool = True,
        routed: Callable[[int], bool] = lambda vector: True,
    ) -> None:
        self.layout = layout
        self._send = send
        self._masked = masked
        self._disabled = disabled
        self._function_mask = function_mask
        self._routed = routed
        self.table = [0] * (layout.vectors * ENTRY_WORDS)
        self.pending = 0  # bit n: vector n
        self.kept = 0  # bit n: vector n's eventfd still holds doorbells (Undelivered.KEEP)
        self.used = [True] * layout.vectors
        self.enabled = False
        self.function_masked = False
        self.bus_master = False
        self.gate = True
        self.fires = [False] * layout.vectors
        self.window = Window(layout.bar_bytes, rules, self._read_piece, self._write_piece)
        self._mask_all()

    def _mask_all(self) -> None:
        for vector in range(self.layout.vectors):
            self.table[vector * ENTRY_WORDS + CONTROL] |= MASKED

    # Accesses of the guest and the bus

    def reset(self) -> None:
        """Clear the table and the pending bits, mask every vector, disable MSI-X (QEMU, msix_reset).

        Doorbells that the device keeps in their eventfds (`Undelivered.KEEP`) stay there.
        """
        self.table[:] = [0] * len(self.table)
        self.pending = 0
        self.enabled = self.function_masked = self.bus_master = False
        self._mask_all()
        self._refresh()

    def set_control(self, control: int, bus_master: bool) -> None:
        """Take the control word and the command register's bus master bit; send the messages that they release.

        Enabling MSI-X drains the eventfds of masked vectors into the pending bits at once (QEMU 7.2, hw/pci/msix.c,
        msix_set_vector_notifiers; msix_kvm_irqfd.json).
        """
        was_enabled, self.enabled = self.enabled, bool(control & CONTROL_ENABLE)
        was_masked, self.function_masked = (
            self.function_masked,
            self._function_mask and bool(control & CONTROL_FUNCTION_MASK),
        )
        self.bus_master = bus_master
        self._refresh()
        if was_enabled and was_masked:
            for vector in range(self.layout.vectors):
                self._check_route(vector)
        if self.pending | self.kept:
            for vector in range(self.layout.vectors):
                self._release(vector)
        if not was_enabled:
            self.poll()

    def _check_route(self, vector: int) -> None:
        """End the process if a vector that was masked can fire now and has no route (msix_fire_vector_notifier)."""
        if not (self.masked(vector) or self._routed(vector)):
            raise ModelledFault(None, f"vector {vector} route does not exist; Assertion ret >= 0 failed")

    def _entry_masked(self, vector: int) -> bool:
        return bool(self.table[vector * ENTRY_WORDS + CONTROL] & MASKED)

    def masked(self, vector: int) -> bool:
        """Whether its own mask, the function mask or disabled MSI-X hold the vector's messages back."""
        return not self.enabled or self.function_masked or self._entry_masked(vector)

    def _refresh(self, vectors: Iterable[int] | None = None) -> None:
        opened = self.enabled and not self.function_masked and self.bus_master and self.gate
        for vector in range(self.layout.vectors) if vectors is None else vectors:
            self.fires[vector] = opened and self.used[vector] and not self._entry_masked(vector)

    def _release(self, vector: int) -> None:
        """Send the vector's pending and kept interrupts, unless it is masked (msix_handle_mask_update)."""
        if self.masked(vector):
            return
        bit = 1 << vector
        if self.kept & bit:
            self.kept &= ~bit
            self._send_unmasked(vector)
        if self.pending & bit:
            self.pending &= ~bit
            if self.used[vector]:
                self._send_unmasked(vector)

    def _send_unmasked(self, vector: int) -> None:
        """Send the vector's message; without bus master it is lost (PCI 3.0, 6.2.2)."""
        if self.bus_master:
            self._send(self.message(vector))

    # Interrupts of the device

    def message(self, vector: int) -> MsixMessage:
        """Return the message that the vector would send now.

        Raises:
            GuestError: there is no such vector.
        """
        if not 0 <= vector < self.layout.vectors:
            raise GuestError(f"vector {vector}: the device has {self.layout.vectors}")
        at = vector * ENTRY_WORDS
        return MsixMessage(
            vector, self.table[at + ADDRESS_HIGH] << 32 | self.table[at + ADDRESS_LOW], self.table[at + DATA]
        )

    def notify(self, vector: int) -> Undelivered | None:
        """Interrupt: send the vector's message if it fires. Returns None, or the fate of one that is not sent.

        Source: QEMU, hw/pci/msix.c, msix_notify, and hw/misc/ivshmem.c, ivshmem_vector_notify.
        """
        if self.fires[vector]:
            self._send(self.message(vector))
            return None
        if not self.enabled:
            fate = self._disabled
        elif self.masked(vector):
            fate = self._masked
        else:
            fate = Undelivered.LOSE  # bus master is off, or the vector is not in use
        if not self.used[vector]:
            fate = Undelivered.LOSE
        if fate is Undelivered.PEND:
            self.pending |= 1 << vector
        elif fate is Undelivered.KEEP:
            self.kept |= 1 << vector
        return fate

    def open_gate(self, opened: bool) -> None:
        """Let vectors fire, or not: a register of the device (ivshmem v2, Interrupt Control) may hold all back."""
        if opened != self.gate:
            self.gate = opened
            self._refresh()

    def use(self, used: bool) -> None:
        """Mark all vectors as in use or not; a vector that is not in use drops its interrupts (msix_vector_use)."""
        self.used[:] = [used] * self.layout.vectors
        self._refresh()

    # The BAR

    def poll(self) -> None:
        """Turn doorbells kept in eventfds into pending bits while MSI-X is enabled (ivshmem.c, ivshmem_vector_poll)."""
        if self.enabled and self.kept:
            for vector in range(self.layout.vectors):
                if self.kept >> vector & 1 and self.masked(vector):
                    self.kept &= ~(1 << vector)
                    self.pending |= 1 << vector

    def _read_word(self, offset: int) -> int:
        if offset < self.layout.table_bytes:
            return self.table[offset // 4]
        at = offset - self.layout.pba_offset
        if 0 <= at < self.layout.pba_bytes:
            self.poll()
            return self.pending >> 8 * at & 0xFFFF_FFFF
        return 0

    def _write_word(self, offset: int, value: int) -> None:
        if offset >= self.layout.table_bytes:
            return  # the pending bits are read-only; the rest is empty
        vector = offset // ENTRY_BYTES
        was_masked = self.masked(vector)
        self.table[offset // 4] = value
        self._refresh((vector,))
        if was_masked:
            self._check_route(vector)
        self._release(vector)

    def _read_piece(self, offset: int, size_bytes: int) -> int:
        return sum(self._read_word(offset + at) << 8 * at for at in range(0, size_bytes, 4))

    def _write_piece(self, offset: int, size_bytes: int, value: int) -> None:
        for at in range(0, size_bytes, 4):
            self._write_word(offset + at, value >> 8 * at & 0xFFFF_FFFF)
