"""The wire between an ivshmem v2 server and its clients: typed messages with a length, little-endian.

The numbers are those of the QEMU fork's server (contrib/ivshmem2-server, include/hw/misc/ivshmem2.h). Only the server
sends. Each message begins with a header of eight bytes, and carries at most one descriptor::

    type  length  after the header                                                    descriptor
    0     40      version, compatible version, id, max peers, vectors, protocol: u32; the shared memory
                  size of an output section: u64
    1     16      id, vector: u32                                                     the eventfd
    2     12      id: u32                                                             -

A header is also the number that a client of version 0 reads: type in the low half, length in the high one.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, TypeVar

from nodes.errors import RemoteProtocolError
from nodes.wire.protocol import DIALECTS, Decoder, Dialect, Message, Step

D = TypeVar("D")

VERSION = 2
HEADER_BYTES = 8
FRAME_BYTES_MAX = 4096
VECTORS_MAX = 1024
"""ivshmem2.c, "server sent invalid number of vectors message"."""
PROTOCOL_VIRTIO, BACK_END = 0x8000, 0x4000
"""From 0x8000 on a protocol is a virtio device; bit 0x4000 tells the back end from the front end."""


class FrameKind(IntEnum):
    """The type of a message."""

    INIT = 0
    EVENT_FD = 1
    PEER_GONE = 2


LAYOUTS = {kind: struct.Struct(layout) for kind, layout in zip(FrameKind, ("<6IQ", "<2I", "<I"), strict=True)}
"""The numbers in the body of each type."""


V2 = Dialect(
    "v2",
    (Step.INIT, Step.ANNOUNCE, Step.PEERS, Step.OWN),
    "the QEMU fork's contrib/ivshmem2-server/ivshmem2-server.c, version 2",
    vector_bytes=HEADER_BYTES + LAYOUTS[FrameKind.EVENT_FD].size,
    leave_bytes=HEADER_BYTES + LAYOUTS[FrameKind.PEER_GONE].size,
)
ALL_DIALECTS = {**DIALECTS, V2.name: V2}
"""The dialects of version 0, and v2."""


class DomainNumbers(NamedTuple):
    """What INIT tells every client of a domain. ``output_bytes`` is the size of each output section."""

    max_peers: int
    vectors: int
    protocol: int
    output_bytes: int


class Frame(Message[D]):
    """One message. ``number`` is its header as a number, ``body`` the bytes after it."""

    body: bytes

    def __new__(cls, kind: int, body: bytes, descriptors: tuple[D, ...] = ()) -> Frame[D]:
        header = (HEADER_BYTES + len(body)) << 32 | kind
        frame = super().__new__(cls, header, descriptors)  # type: ignore[type-var]
        frame.body = body
        return frame

    @property
    def kind(self) -> int:
        return self.number & 0xFFFF_FFFF

    def encode(self) -> bytes:
        return super().encode() + self.body

    @classmethod
    def init(cls, peer: int, numbers: DomainNumbers, memory: D) -> Frame[D]:
        """The greeting, with the shared memory."""
        max_peers, vectors, protocol, output_bytes = numbers
        body = LAYOUTS[FrameKind.INIT].pack(VERSION, VERSION, peer, max_peers, vectors, protocol, output_bytes)
        return cls(FrameKind.INIT, body, (memory,))

    @classmethod
    def event_fd(cls, peer: int, vector: int, line: D) -> Frame[D]:
        """A vector of a peer."""
        return cls(FrameKind.EVENT_FD, LAYOUTS[FrameKind.EVENT_FD].pack(peer, vector), (line,))

    @classmethod
    def peer_gone(cls, peer: int) -> Frame[D]:
        """A peer has left."""
        return cls(FrameKind.PEER_GONE, LAYOUTS[FrameKind.PEER_GONE].pack(peer))

    @property
    def is_whole(self) -> bool:
        """Whether a message of a known type has all its numbers."""
        return len(self.body) >= LAYOUTS[FrameKind(self.kind)].size

    def fields(self) -> tuple[int, ...]:
        """The numbers of a message of a known type; what follows them is skipped, as ivshmem2.c skips it.

        Raises:
            RemoteProtocolError: the message is too short for its type.
        """
        kind = FrameKind(self.kind)
        if not self.is_whole:
            got, expected = HEADER_BYTES + len(self.body), HEADER_BYTES + LAYOUTS[kind].size
            raise RemoteProtocolError(f"server sent {kind.name} of {got} bytes, expected {expected}")
        return LAYOUTS[kind].unpack_from(self.body)


def decode_init(frame: Frame[D]) -> tuple[int, int, DomainNumbers]:
    """The compatible version, the own ID and the numbers of the domain.

    Raises:
        RemoteProtocolError: the message is too short.
    """
    _, compatible, peer, max_peers, vectors, protocol, output_bytes = frame.fields()
    return compatible, peer, DomainNumbers(max_peers, vectors, protocol, output_bytes)


def protocol_of(peer: int, protocol: int) -> int:
    """The protocol that a server tells a peer: of a virtio device, ID 0 is the back end and ID 1 the front end."""
    if protocol < PROTOCOL_VIRTIO:
        return protocol
    return protocol & ~BACK_END if peer else protocol | BACK_END


class FrameDecoder(Decoder[D]):
    """Turns bytes and descriptors into messages, wherever the stream was cut."""

    @property
    def missing_bytes(self) -> int:
        """How many bytes complete the header, or the message whose header has come."""
        have = len(self._pending)
        if have < HEADER_BYTES:
            return HEADER_BYTES - have
        self.check()
        return self._length() - have

    def _length(self) -> int:
        """The length in the header; 0 for one that no message has."""
        length = int.from_bytes(self._pending[4:HEADER_BYTES], "little")
        return length if HEADER_BYTES <= length <= FRAME_BYTES_MAX else 0

    def check(self) -> None:
        """Look at the header that has come.

        Raises:
            RemoteProtocolError: it has a length that no message has; nothing more can be read.
        """
        if len(self._pending) >= HEADER_BYTES and not self._length():
            length = int.from_bytes(self._pending[4:HEADER_BYTES], "little")
            hint = "" if any(self._pending[:HEADER_BYTES]) else ": it speaks version 0, not ivshmem v2"
            expected = f"expected {HEADER_BYTES} to {FRAME_BYTES_MAX}"
            raise RemoteProtocolError(f"server sent a message of {length} bytes, {expected}{hint}")

    def feed(self, data: bytes, descriptors: Sequence[D] = ()) -> Sequence[Frame[D]]:
        """Return the messages that ``data`` completes, up to a header that `check` refuses."""
        earlier, self._descriptors = tuple(self._descriptors), []
        self._pending += data
        frames: list[Frame[D]] = []
        while len(self._pending) >= HEADER_BYTES and 0 < (length := self._length()) <= len(self._pending):
            kind = int.from_bytes(self._pending[:4], "little")
            body = bytes(self._pending[HEADER_BYTES:length])
            del self._pending[:length]
            # The descriptors of one read belong to the message with its last byte.
            own = tuple(descriptors) if not self._pending else ()
            frames.append(Frame(kind, body, earlier + own))
            earlier = ()
        self._descriptors.extend(earlier)
        if self._pending:
            self._descriptors.extend(descriptors)
        return frames
