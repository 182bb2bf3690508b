"""Ethernet over ivshmem v2 (protocol 1), as its drivers speak it: a link of four States, and two queues of frames.

The rules of the link are those of the drivers (Linux, drivers/net/ivshmem-net.c; Zephyr,
drivers/ethernet/eth_ivshmem.c):

    RESET  to INIT when the other is in RESET or INIT: one that is in READY or RUN has not heard of the reset yet
    INIT   to READY, with empty queues, when the other is not in RESET
    READY  to RUN when the other is in READY or RUN
    any    to RESET when the other is in RESET, except from RESET and INIT

The queues are split virtqueues whose used rings are swapped: each side writes to its own output section only. Its
section has the descriptors and the available ring of what it sends, and the used ring of what it receives; then come
the frames that it sends (Linux (Siemens), drivers/net/ivshmem-net.c; Zephyr, drivers/ethernet/eth_ivshmem_queue.c).
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from enum import IntEnum

from msgspec import Struct

from nodes.device.v2.sections import Sections
from nodes.errors import GuestError
from nodes.guest import Guest

PEERS = 2


class LinkState(IntEnum):
    """The State that a network device writes."""

    RESET = 0
    INIT = 1
    READY = 2
    RUN = 3


def next_state(own: LinkState, other: int) -> LinkState:
    """The State that follows the own one while the other side has ``other``; the same when nothing is to be done."""
    match own:
        case LinkState.RESET if other < LinkState.READY:
            return LinkState.INIT
        case LinkState.INIT if other > LinkState.RESET:
            return LinkState.READY
        case LinkState.READY | LinkState.RUN if other == LinkState.RESET:
            return LinkState.RESET
        case LinkState.READY if other >= LinkState.READY:
            return LinkState.RUN
        case _:
            return own


class Link:
    """One side of the link.

    Args:
        guest: a guest with a device of ivshmem v2 in a domain of two peers with output sections.

    Attributes:
        state: the own State.
        resets: how often the link went down since it was up.
        ups: how often the link came up.

    Raises:
        GuestError: the domain has other peers, or no output sections that are large enough.
    """

    def __init__(self, guest: Guest) -> None:
        sections: Sections = guest.sections
        if sections.layout.max_peers != PEERS:
            raise GuestError(f"Ethernet needs a domain of {PEERS} peers, this one has {sections.layout.max_peers}")
        self._guest, self._sections = guest, sections
        self.peer = PEERS - 1 - guest.peer
        self._vector = min(1, guest.vectors - 1)
        layout = QueueLayout.of(sections.layout.output_bytes)
        self._sending = TransmitQueue(layout, sections.own, sections.output(self.peer))
        self._receiving = ReceiveQueue(layout, sections.own, sections.output(self.peer))
        self.state = LinkState.RESET
        self.ups = self.resets = 0
        guest.set_state(self.state)

    @property
    def is_up(self) -> bool:
        return self.state is LinkState.RUN

    def advance(self) -> bool:
        """Follow the other side's State as far as that goes; returns whether the link is up."""
        while (state := next_state(self.state, self._sections.state(self.peer))) is not self.state:
            if state is LinkState.READY and self.state is LinkState.INIT:
                self._sending.reset()
                self._receiving.reset()
            self.ups += state is LinkState.RUN
            self.resets += state is LinkState.RESET
            self.state = state
            self._guest.set_state(state)
        return self.is_up

    def send(self, frame: bytes) -> bool:
        """Send a frame; False when the link is down or the queue has no room."""
        if not self.is_up or not self._sending.send(frame):
            return False
        self._guest.ring(self.peer, self._vector)
        return True

    def receive(self) -> Iterator[bytes]:
        """Yield what has been received; nothing while the link is down."""
        if not self.is_up:
            return
        self._sending.reclaim()
        for frame in self._receiving.receive():
            self._guest.ring(self.peer, self._vector)  # a used entry is told, too
            yield frame


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
