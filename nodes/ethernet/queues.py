"""The two queues of an ivshmem v2 network device: split virtqueues whose used rings are swapped.

Each side writes to its own output section only. Its section has the descriptors and the available ring of what it
sends, and the used ring of what it receives; then come the frames that it sends. Behaviour of the drivers: Linux
(Siemens), drivers/net/ivshmem-net.c; Zephyr, drivers/ethernet/eth_ivshmem_queue.c.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator

from msgspec import Struct

from nodes.errors import GuestError

__all__ = ["FRAME_OVERHEAD_BYTES", "QueueLayout", "ReceiveQueue", "TransmitQueue"]

ALIGNMENT_BYTES = 64
"""A cache line, to which the parts of a section and the frames are rounded up."""
FRAME_OVERHEAD_BYTES = 18
FRAME_BYTES_MIN = 68
LENGTHS = (4096, 2048, 1024, 512, 256, 128, 64, 32)

_DESCRIPTOR = struct.Struct("<QIHH")
_USED = struct.Struct("<II")


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


class QueueLayout(Struct, frozen=True):
    """Where the parts of a section are; all offsets in bytes from its begin.

    Attributes:
        length: the number of descriptors, a power of two.
        section_bytes: the size of the section.
    """

    length: int
    section_bytes: int

    @classmethod
    def of(cls, section_bytes: int) -> QueueLayout:
        """The layout of a section of that size: the longest queue that takes less than an eighth of it, or 32.

        Raises:
            GuestError: the section is too small for four frames of the least size.
        """
        fitting = (length for length in LENGTHS if cls(length, section_bytes).data_at < section_bytes // 8)
        layout = cls(next(fitting, LENGTHS[-1]), section_bytes)
        if layout.data_bytes < 4 * FRAME_BYTES_MIN:
            raise GuestError(f"an output section of {section_bytes} bytes is too small for Ethernet")
        return layout

    @property
    def available_at(self) -> int:
        return _DESCRIPTOR.size * self.length

    @property
    def used_at(self) -> int:
        return _aligned(self.available_at + 2 * (3 + self.length))

    @property
    def data_at(self) -> int:
        return _aligned(self.used_at + 2 * 3 + _USED.size * self.length)

    @property
    def data_bytes(self) -> int:
        return self.section_bytes - self.data_at


class TransmitQueue:
    """What this side sends: descriptors, available ring and frames in the own section, the used ring in the other's."""

    def __init__(self, layout: QueueLayout, own: memoryview, other: memoryview) -> None:
        self._layout, self._own = layout, own
        length = layout.length
        self._available = own[layout.available_at : layout.available_at + 2 * (2 + length)].cast("H")
        self._used = other[layout.used_at : layout.used_at + 4].cast("H")
        self._used_ring = other[layout.used_at + 4 : layout.used_at + 4 + _USED.size * length]
        self.reset()

    def reset(self) -> None:
        """Start with an empty queue; the other side has not begun to read it."""
        self._available[0] = self._available[1] = 0
        self._taken = 0
        self._free = deque(range(self._layout.length))
        self._waiting: dict[int, tuple[int, int]] = {}  # descriptor -> (begin, end) of its frame
        self._head = self._layout.data_at

    def reclaim(self) -> int:
        """Take back what the other side has read; returns how many frames that are."""
        count = 0
        while self._taken != self._used[1]:
            descriptor, _ = _USED.unpack_from(self._used_ring, _USED.size * (self._taken % self._layout.length))
            if self._waiting.pop(descriptor, None) is None:
                raise GuestError(f"the other side has used descriptor {descriptor}, which was not available")
            self._free.append(descriptor)
            self._taken = self._taken + 1 & 0xFFFF
            count += 1
        return count

    def send(self, frame: bytes) -> bool:
        """Make a frame available; False when there is no room for it."""
        self.reclaim()
        size_bytes = _aligned(FRAME_OVERHEAD_BYTES + len(frame))
        begin = self._room(size_bytes)
        if begin is None or not self._free:
            return False
        descriptor = self._free.popleft()
        self._own[begin : begin + len(frame)] = frame
        _DESCRIPTOR.pack_into(self._own, _DESCRIPTOR.size * descriptor, begin, len(frame), 0, 0)
        self._waiting[descriptor] = begin, begin + size_bytes
        self._head = begin + size_bytes
        index = self._available[1]
        self._available[2 + index % self._layout.length] = descriptor
        self._available[1] = index + 1 & 0xFFFF  # last: the other side may read from now on
        return True

    def _room(self, size_bytes: int) -> int | None:
        """Where so many bytes are free: behind the newest frame, or at the begin of the data."""
        end = self._layout.section_bytes
        if not self._waiting:
            begin = self._layout.data_at
            return begin if begin + size_bytes <= end else None
        oldest, _ = next(iter(self._waiting.values()))
        if self._head > oldest:
            if self._head + size_bytes <= end:
                return self._head
            return self._layout.data_at if self._layout.data_at + size_bytes <= oldest else None
        return self._head if self._head + size_bytes <= oldest else None


class ReceiveQueue:
    """What the other side sends: its part is in its section, and the used ring in the own one."""

    def __init__(self, layout: QueueLayout, own: memoryview, other: memoryview) -> None:
        self._layout, self._other = layout, other
        length = layout.length
        self._available = other[layout.available_at : layout.available_at + 2 * (2 + length)].cast("H")
        self._used = own[layout.used_at : layout.used_at + 4].cast("H")
        self._used_ring = own[layout.used_at + 4 : layout.used_at + 4 + _USED.size * length]
        self.reset()

    def reset(self) -> None:
        """Start with an empty queue."""
        self._used[0] = self._used[1] = 0
        self._read = 0

    def receive(self) -> Iterator[bytes]:
        """Yield the frames that are available; each is used, and the other side can take it back, when it is yielded.

        Raises:
            GuestError: a descriptor or a frame that lies outside the other side's section.
        """
        length = self._layout.length
        while self._read != self._available[1]:
            descriptor = self._available[2 + self._read % length]
            if descriptor >= length:
                raise GuestError(f"the other side sends descriptor {descriptor} of {length}")
            begin, size_bytes, _, _ = _DESCRIPTOR.unpack_from(self._other, _DESCRIPTOR.size * descriptor)
            if not self._layout.data_at <= begin <= begin + size_bytes <= self._layout.section_bytes:
                raise GuestError(f"the other side sends {size_bytes} bytes at {begin:#x}, outside its data")
            frame = bytes(self._other[begin : begin + size_bytes])
            _USED.pack_into(self._used_ring, _USED.size * (self._read % length), descriptor, 1)
            self._read = self._read + 1 & 0xFFFF
            self._used[1] = self._read
            yield frame
