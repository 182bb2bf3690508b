"""QEMU's ivshmem-flat: the registers and the memory without PCI, and one interrupt line (hw/misc/ivshmem-flat.c).

Its faults are reported as warnings: the handler of every eventfd reads that of vector 0, and the doorbell register does
not check the vector.
"""

from __future__ import annotations

from nodes.device.effects import DeviceWarning, IntxPulse
from nodes.device.ivshmem import Ivshmem


class IvshmemFlat(Ivshmem):
    """A device without configuration space. Its windows, numbered like BARs, are always decoded."""

    def config_read(self, offset: int, size_bytes: int) -> int:
        """Return all ones, as for a function that does not exist."""
        super().config_read(offset, size_bytes)
        return (1 << 8 * size_bytes) - 1

    def config_write(self, offset: int, size_bytes: int, value: int) -> None:
        """Do nothing, as for a function that does not exist."""
        super().config_read(offset, size_bytes)

    def interrupt(self, vector: int, count: int) -> None:
        """Pulse the line for vector 0. Another vector never interrupts (ivshmem_flat_add_vector: &peer->vector).

        Raises:
            GuestError: the device has no such vector.
        """
        self._check_vector(vector)
        if vector == 0:
            self.effects.append(IntxPulse())
            return
        self.lost_doorbells += count
        text = f"vector {vector} was rung: no interrupt, and the real device's process spins on its eventfd"
        self.effects.append(DeviceWarning(text))

    def _doorbell(self, value: int) -> None:
        super()._doorbell(value)
        vector, limit = value & 0xFFFF, self.profile.msix_limit
        if vector >= limit:
            text = f"doorbell for vector {vector}: the real device looks behind its table of {limit} vectors"
            self.effects.append(DeviceWarning(text))
