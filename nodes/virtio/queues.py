"""Split virtqueues (virtio 1.1, 2.6) whose addresses are offsets in a section of shared memory."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from msgspec import Struct

from nodes.errors import GuestError

WRITABLE = 2
"""VIRTQ_DESC_F_WRITE: the device writes this buffer."""
NEXT = 1
_DESCRIPTOR = struct.Struct("<QIHH")
_USED = struct.Struct("<II")
_INDEX = struct.Struct("<H")


class QueueAddresses(Struct, frozen=True):
    """A queue as its driver has set it up."""

    size: int
    descriptors: int
    available: int
    used: int

    def check(self, section_bytes: int) -> None:
        """Raise `GuestError` for a queue that does not lie in the section."""
        ends = (
            self.descriptors + _DESCRIPTOR.size * self.size,
            self.available + 6 + 2 * self.size,
            self.used + 6 + _USED.size * self.size,
        )
        if not 0 < self.size <= 1 << 15 or self.size & (self.size - 1) or max(ends) > section_bytes:
            raise GuestError(f"the driver has set up a queue of {self.size} that ends at {max(ends):#x}")


class _Queue:
    def __init__(self, section: memoryview, addresses: QueueAddresses) -> None:
        addresses.check(len(section))
        self._section, self.addresses = section, addresses
        self._seen = 0

    def _index(self, at: int) -> int:
        (index,) = _INDEX.unpack_from(self._section, at)
        return int(index)


class DeviceQueue(_Queue):
    """The device's side: it takes what is available, and returns it as used."""

    def take(self) -> tuple[int, memoryview, bool] | None:
        """The next available buffer: its descriptor, its bytes, whether the device is to write it; None if none is.

        Raises:
            GuestError: a descriptor or a buffer outside the section, or a chain of descriptors.
        """
        size = self.addresses.size
        if self._seen == self._index(self.addresses.available + 2):
            return None
        descriptor = self._index(self.addresses.available + 4 + 2 * (self._seen % size))
        if descriptor >= size:
            raise GuestError(f"the driver gives descriptor {descriptor} of {size}")
        at, length, flags, _ = _DESCRIPTOR.unpack_from(
            self._section, self.addresses.descriptors + _DESCRIPTOR.size * descriptor
        )
        if flags & NEXT or at + length > len(self._section):
            raise GuestError(f"the driver gives a buffer of {length} bytes at {at:#x}: expected one within the section")
        self._seen = self._seen + 1 & 0xFFFF
        return descriptor, self._section[at : at + length], bool(flags & WRITABLE)

    def use(self, descriptor: int, length: int) -> None:
        """Return a buffer; ``length`` bytes of it were written."""
        used, size = self.addresses.used, self.addresses.size
        index = self._index(used + 2)
        _USED.pack_into(self._section, used + 4 + _USED.size * (index % size), descriptor, length)
        _INDEX.pack_into(self._section, used + 2, index + 1 & 0xFFFF)


class DriverQueue(_Queue):
    """The driver's side, with one buffer for each descriptor, in the section behind ``buffers_at``."""

    def __init__(
        self, section: memoryview, addresses: QueueAddresses, *, buffers_at: int, buffer_bytes: int, writable: bool
    ) -> None:
        super().__init__(section, addresses)
        self._buffers_at, self._buffer_bytes = buffers_at, buffer_bytes
        self._flags = WRITABLE if writable else 0
        self.free = list(range(addresses.size))
        for at in (addresses.available, addresses.used):
            section[at : at + 4] = bytes(4)

    def _buffer(self, descriptor: int) -> int:
        return self._buffers_at + self._buffer_bytes * descriptor

    def give(self, data: bytes = b"") -> bool:
        """Make a buffer available, filled with ``data``, or empty for the device to write; False if none is free."""
        if not self.free:
            return False
        descriptor = self.free.pop(0)
        at, length = self._buffer(descriptor), len(data) or self._buffer_bytes
        self._section[at : at + len(data)] = data
        _DESCRIPTOR.pack_into(
            self._section, self.addresses.descriptors + _DESCRIPTOR.size * descriptor, at, length, self._flags, 0
        )
        available = self.addresses.available
        index = self._index(available + 2)
        _INDEX.pack_into(self._section, available + 4 + 2 * (index % self.addresses.size), descriptor)
        _INDEX.pack_into(self._section, available + 2, index + 1 & 0xFFFF)
        return True

    def used(self) -> Iterator[bytes]:
        """Yield what the device has returned: the bytes that it wrote; the buffers are free again."""
        while self._seen != self._index(self.addresses.used + 2):
            at = self.addresses.used + 4 + _USED.size * (self._seen % self.addresses.size)
            descriptor, length = _USED.unpack_from(self._section, at)
            self._seen = self._seen + 1 & 0xFFFF
            begin = self._buffer(descriptor)
            self.free.append(descriptor)
            yield bytes(self._section[begin : begin + min(length, self._buffer_bytes)])
