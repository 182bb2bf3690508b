"""The device's side of virtio over ivshmem v2 (the back end, peer 0): it carries out the driver's transactions."""

from __future__ import annotations

from nodes.guest import Guest
from nodes.virtio.header import (
    CONFIG_AT,
    EVENT,
    QUEUE_REGISTERS,
    READY,
    SIZES,
    VirtioHeader,
    VirtioRegister,
    VirtioStatus,
)
from nodes.virtio.queues import DeviceQueue, QueueAddresses

FEATURES = 1 << 32 | 1 << 33 | 1 << 36
"""VIRTIO_F_VERSION_1, _ACCESS_PLATFORM, _ORDER_PLATFORM."""
DRIVER = 1
"""The driver's peer ID."""


class _QueueState:
    """What the driver has said of one queue."""

    def __init__(self, size: int) -> None:
        self.values = {**dict.fromkeys(QUEUE_REGISTERS, 0), VirtioRegister.QUEUE_SIZE: size}
        self.queue: DeviceQueue | None = None


class VirtioDevice:
    """A device with some queues.

    Args:
        guest: a guest with a device of ivshmem v2, peer 0 of two.
        queues: how many queues it has.
        queue_size: how many descriptors each of them has at most.

    Attributes:
        driver_features: what the driver has accepted.
    """

    def __init__(self, guest: Guest, *, queues: int, queue_size: int) -> None:
        self._guest = guest
        self._header = VirtioHeader(guest.sections.shared)
        self._queue_size, self._count = queue_size, queues
        self._states = [_QueueState(queue_size) for _ in range(queues)]
        self.driver_features = 0
        header = self._header
        header.shared[:CONFIG_AT] = bytes(CONFIG_AT)
        header.write(VirtioRegister.REVISION, 1)
        header.write(VirtioRegister.SIZE, CONFIG_AT)
        header.write(VirtioRegister.DEVICE_FEATURES, FEATURES & 0xFFFF_FFFF)
        self._show_queue()
        guest.set_state(READY)

    @property
    def is_running(self) -> bool:
        """Whether the driver has said DRIVER_OK."""
        return bool(self._header.read(VirtioRegister.DEVICE_STATUS) & VirtioStatus.DRIVER_OK)

    def queue(self, number: int) -> DeviceQueue | None:
        """A queue that the driver has enabled; None while it has not."""
        return self._states[number].queue

    def carry_out(self) -> bool:
        """Carry out the transaction that waits; returns whether there was one."""
        header = self._header
        offset = header.read(VirtioRegister.WRITE_TRANSACTION)
        if not offset:
            return False
        if offset in SIZES:
            self._written(VirtioRegister(offset))
        header.write(VirtioRegister.WRITE_TRANSACTION, 0)
        return True

    def _written(self, register: VirtioRegister) -> None:
        header = self._header
        value = header.read(register)
        match register:
            case VirtioRegister.DEVICE_FEATURES_SEL:
                header.write(VirtioRegister.DEVICE_FEATURES, FEATURES >> 32 * value & 0xFFFF_FFFF if value < 2 else 0)
            case VirtioRegister.DRIVER_FEATURES:
                shift = 32 * header.read(VirtioRegister.DRIVER_FEATURES_SEL)
                if shift < 64:
                    self.driver_features = self.driver_features & ~(0xFFFF_FFFF << shift) | value << shift
            case VirtioRegister.QUEUE_SEL:
                self._show_queue()
            case VirtioRegister.DEVICE_STATUS if not value:
                self._states = [_QueueState(self._queue_size) for _ in range(self._count)]
                self.driver_features = 0
                self._show_queue()
            case VirtioRegister.DEVICE_STATUS if value & VirtioStatus.FEATURES_OK and self.driver_features & ~FEATURES:
                header.write(VirtioRegister.DEVICE_STATUS, value & ~VirtioStatus.FEATURES_OK)
            case _ if (state := self._selected()) is not None and register in state.values:
                state.values[register] = value
                if register is VirtioRegister.QUEUE_ENABLE:
                    state.queue = self._make_queue(state) if value else None

    def _selected(self) -> _QueueState | None:
        number = self._header.read(VirtioRegister.QUEUE_SEL)
        return self._states[number] if number < len(self._states) else None

    def _show_queue(self) -> None:
        """Show the selected queue in the header; one that does not exist has the size 0."""
        state = self._selected() or _QueueState(0)
        for register, value in state.values.items():
            self._header.write(register, value)

    def _make_queue(self, state: _QueueState) -> DeviceQueue:
        size, _, _, _, descriptors, available, used = state.values.values()
        return DeviceQueue(self._header.shared, QueueAddresses(size, descriptors, available, used))

    def notify(self, number: int) -> None:
        """Tell the driver of used buffers of a queue."""
        self._header.write(VirtioRegister.QUEUE_EVENT, EVENT)
        self._guest.ring(DRIVER, self._states[number].values[VirtioRegister.QUEUE_DRIVER_VECTOR])
