"""The driver's side of virtio over ivshmem v2 (the front end, peer 1), as a stock driver behaves."""

from __future__ import annotations

from collections.abc import Generator

from nodes.errors import GuestError
from nodes.guest import Guest, Interrupt
from nodes.virtio.header import EVENT, HEADER_BYTES, READY, VirtioHeader, VirtioRegister, VirtioStatus
from nodes.virtio.queues import DriverQueue, QueueAddresses

DEVICE = 0
"""The device's peer ID."""
FEATURES = 1 << 32 | 1 << 36
SPIN_NS = 20_000
ALIGNMENT_BYTES = 64

Steps = Generator[int | None, Interrupt | None, bool]
"""Work that waits: a program delegates to it with ``yield from``; it returns whether it has succeeded."""


class VirtioDriver:
    """A driver that sets up its queues one after the other behind the header.

    Attributes:
        queues: the queues that are set up.
    """

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._header = VirtioHeader(guest.sections.shared)
        self._next = HEADER_BYTES
        self.queues: list[DriverQueue] = []

    @property
    def is_alive(self) -> bool:
        """Whether the device is there."""
        return self._guest.sections.state(DEVICE) == READY

    @property
    def is_started(self) -> bool:
        """Whether the device is there and knows of DRIVER_OK: one that has died and come back does not."""
        return self.is_alive and bool(self._header.read(VirtioRegister.DEVICE_STATUS) & VirtioStatus.DRIVER_OK)

    def write(self, register: VirtioRegister, value: int) -> Steps:
        """Write a register, and wait until the device has taken it; False when the device has gone."""
        self._header.write(register, value)
        self._header.write(VirtioRegister.WRITE_TRANSACTION, register)
        self._guest.ring(DEVICE, 0)
        while self._header.read(VirtioRegister.WRITE_TRANSACTION):
            if not self.is_alive:
                return False
            yield self._guest.clock() + SPIN_NS
        return True

    def start(self, queues: list[tuple[int, int, bool]]) -> Steps:
        """Reset the device, agree on features, set up the queues (size, buffer bytes, whether the device writes them).

        False when the device goes away meanwhile.

        Raises:
            GuestError: the device refuses the features, or the section has no room.
        """
        self._next, self.queues = HEADER_BYTES, []
        status = VirtioStatus.ACKNOWLEDGE | VirtioStatus.DRIVER
        writes = [(VirtioRegister.DEVICE_STATUS, 0), (VirtioRegister.DEVICE_STATUS, status)]
        for half in (0, 1):
            writes.append((VirtioRegister.DRIVER_FEATURES_SEL, half))
            writes.append((VirtioRegister.DRIVER_FEATURES, FEATURES >> 32 * half & 0xFFFF_FFFF))
        for register, value in [*writes, (VirtioRegister.DEVICE_STATUS, status | VirtioStatus.FEATURES_OK)]:
            if not (yield from self.write(register, value)):
                return False
        if not self._header.read(VirtioRegister.DEVICE_STATUS) & VirtioStatus.FEATURES_OK:
            raise GuestError("the device refuses the features of the driver")
        for number, (size, buffer_bytes, writable) in enumerate(queues):
            if not (yield from self._set_up(number, size, buffer_bytes, writable)):
                return False
        return (
            yield from self.write(
                VirtioRegister.DEVICE_STATUS, status | VirtioStatus.FEATURES_OK | VirtioStatus.DRIVER_OK
            )
        )

    def _set_up(self, number: int, wanted: int, buffer_bytes: int, writable: bool) -> Steps:
        if not (yield from self.write(VirtioRegister.QUEUE_SEL, number)):
            return False
        size = min(wanted, self._header.read(VirtioRegister.QUEUE_SIZE))
        if not size:
            raise GuestError(f"the device has no queue {number}")
        addresses = QueueAddresses(size, self._take(16 * size), self._take(6 + 2 * size), self._take(6 + 8 * size))
        buffers_at = self._take(size * buffer_bytes)
        if self._next > len(self._header.shared):
            raise GuestError(f"the read/write section has no room for queue {number}")
        vector = min(1, self._guest.vectors - 1)
        self.queues.append(
            DriverQueue(
                self._header.shared, addresses, buffers_at=buffers_at, buffer_bytes=buffer_bytes, writable=writable
            )
        )
        for register, value in (
            (VirtioRegister.QUEUE_SIZE, size),
            (VirtioRegister.QUEUE_DEVICE_VECTOR, vector),
            (VirtioRegister.QUEUE_DRIVER_VECTOR, vector),
            (VirtioRegister.QUEUE_DESC, addresses.descriptors),
            (VirtioRegister.QUEUE_DRIVER, addresses.available),
            (VirtioRegister.QUEUE_DEVICE, addresses.used),
            (VirtioRegister.QUEUE_ENABLE, 1),
        ):
            if not (yield from self.write(register, value)):
                return False
        return True

    def _take(self, size_bytes: int) -> int:
        at = self._next
        self._next += -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return at

    def notify(self) -> None:
        """Tell the device of available buffers."""
        self._guest.ring(DEVICE, min(1, self._guest.vectors - 1))

    def acknowledge(self) -> None:
        """Take the event that an interrupt was for."""
        if self._header.read(VirtioRegister.QUEUE_EVENT) & EVENT:
            self._header.write(VirtioRegister.QUEUE_EVENT, 0)
