"""The header of virtio over ivshmem v2: registers in the read/write section, which the driver writes by transactions.

The driver stores a register, stores its offset in write_transaction, and rings vector 0 of the device. The device takes
the value and stores 0 in write_transaction. Layout and behaviour: Siemens' Linux, drivers/virtio/virtio_ivshmem.c.
"""

from __future__ import annotations

from enum import IntEnum

from nodes.errors import GuestError

READY = 1
"""The State of a peer that is there; a driver gives up when the device's is another."""
REVISION = 1
CONFIG_AT = 0x4C
HEADER_BYTES = 4096
"""The page of the header; queues and buffers come after it."""
SECTION_BYTES_MIN = 2 * 4096
EVENT = 1
"""Bit 0 of config_event and queue_event: which kind of event an interrupt was."""


class VirtioRegister(IntEnum):
    """The offset of each register."""

    REVISION = 0x00
    SIZE = 0x04
    WRITE_TRANSACTION = 0x08
    DEVICE_FEATURES = 0x0C
    DEVICE_FEATURES_SEL = 0x10
    DRIVER_FEATURES = 0x14
    DRIVER_FEATURES_SEL = 0x18
    QUEUE_SEL = 0x1C
    QUEUE_SIZE = 0x20
    QUEUE_DEVICE_VECTOR = 0x22
    QUEUE_DRIVER_VECTOR = 0x24
    QUEUE_ENABLE = 0x26
    QUEUE_DESC = 0x28
    QUEUE_DRIVER = 0x30
    QUEUE_DEVICE = 0x38
    CONFIG_EVENT = 0x40
    QUEUE_EVENT = 0x41
    DEVICE_STATUS = 0x44
    CONFIG_GENERATION = 0x48


QUEUE_REGISTERS = [each for each in VirtioRegister if VirtioRegister.QUEUE_SIZE <= each <= VirtioRegister.QUEUE_DEVICE]
"""What is known of the selected queue."""

SIZES = {
    **dict.fromkeys(VirtioRegister, 4),
    **{each: 2 if each <= VirtioRegister.QUEUE_ENABLE else 8 for each in QUEUE_REGISTERS},
    **dict.fromkeys((VirtioRegister.CONFIG_EVENT, VirtioRegister.QUEUE_EVENT), 1),
}
"""The size of each register in bytes."""


class VirtioStatus(IntEnum):
    """Bits of device_status (virtio 1.1, 2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8


class VirtioHeader:
    """The registers of one device, in the read/write section that both sides write.

    Args:
        shared: the read/write section.

    Raises:
        GuestError: it is too small.
    """

    def __init__(self, shared: memoryview) -> None:
        if len(shared) < SECTION_BYTES_MIN:
            has = len(shared)
            raise GuestError(f"virtio needs a read/write section of {SECTION_BYTES_MIN} bytes, this one has {has}")
        self.shared = shared

    def read(self, register: VirtioRegister) -> int:
        """The value of a register."""
        return int.from_bytes(self.shared[register : register + SIZES[register]], "little")

    def write(self, register: VirtioRegister, value: int) -> None:
        """Store a register."""
        size_bytes = SIZES[register]
        self.shared[register : register + size_bytes] = value.to_bytes(size_bytes, "little")
