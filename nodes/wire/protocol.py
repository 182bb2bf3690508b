"""The wire between an ivshmem server and its clients: numbers, descriptors, and their order.

Only the server sends. Each message is one signed 64-bit little-endian number, alone or with one descriptor
(SCM_RIGHTS). Both together give the meaning (QEMU docs/specs/ivshmem-spec.rst, "The Client-Server protocol"):

    number          without a descriptor         with a descriptor
    first           protocol version (0)         -
    second          the client's own ID          -
    -1              -                            the shared memory
    0 .. 65535      that peer has left           the next vector of that peer: its eventfd

This module uses no socket: bytes and descriptors go in, messages come out. A descriptor is what the caller uses for
one: a number, an owning object, a name in a test.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

from msgspec import Struct

D = TypeVar("D")

MESSAGE_BYTES = 8
VERSION = 0
MEMORY = -1
PEERS_MAX = 65536

_NUMBER = struct.Struct("<q")


class Message(NamedTuple, Generic[D]):
    """One number and the descriptors that came with it: at most one, unless the sender is faulty."""

    number: int
    descriptors: tuple[D, ...] = ()

    def encode(self) -> bytes:
        return _NUMBER.pack(self.number)


class RawMessage(Message[D]):
    """Bytes that are sent as they are: a part of a message, or bytes that are no message."""

    data: bytes

    @classmethod
    def of(cls, data: bytes, descriptors: Sequence[D] = ()) -> RawMessage[D]:
        """These bytes with these descriptors."""
        piece = cls(0, tuple(descriptors))
        piece.data = data
        return piece

    def encode(self) -> bytes:
        return self.data


class Step(enum.Enum):
    """One part of what a server sends when a client joins."""

    VERSION = "the protocol version, to the newcomer"
    ID = "its own ID, to the newcomer"
    MEMORY = "-1 with the shared memory, to the newcomer"
    ANNOUNCE = "the newcomer's vectors, to all others"
    PEERS = "the vectors of all others in the order they joined, to the newcomer"
    OWN = "its own vectors, to the newcomer"
    PEERS_AND_OWN = "the vectors of all by ascending ID, its own among them, to the newcomer"
    INIT = "version, ID and the numbers of the domain, with the shared memory, to the newcomer (ivshmem v2)"


class Dialect(Struct, frozen=True):
    """A variant of the wire: the order of the messages when a client joins.

    ``vector_bytes`` and ``leave_bytes`` are the lengths of the two messages that go to many clients.
    """

    name: str
    steps: tuple[Step, ...]
    source: str
    vector_bytes: int = MESSAGE_BYTES
    leave_bytes: int = MESSAGE_BYTES


V0 = Dialect(
    "v0",
    (Step.VERSION, Step.ID, Step.MEMORY, Step.ANNOUNCE, Step.PEERS, Step.OWN),
    "QEMU 2.5 and later: contrib/ivshmem-server/ivshmem-server.c, ivshmem_server_handle_new_conn",
)
LEGACY = Dialect(
    "legacy",
    (Step.ID, Step.MEMORY, Step.PEERS_AND_OWN, Step.ANNOUNCE),
    "the nahanni guest-code server of 2012, before there was a version message",
)
V0_SHM_LAST = Dialect(
    "v0-shm-last",
    (Step.VERSION, Step.ID, Step.ANNOUNCE, Step.PEERS, Step.OWN, Step.MEMORY),
    "Android Cuttlefish's ivshmem server",
)
DIALECTS = {dialect.name: dialect for dialect in (V0, LEGACY, V0_SHM_LAST)}


class Decoder(Generic[D]):
    """Turns bytes and descriptors into messages, wherever the stream was cut.

    The descriptors of one read belong to the message that has the last byte of that read: the kernel ends a read behind
    bytes that carry descriptors (unix(7), "Ancillary messages").
    """

    def __init__(self) -> None:
        self._pending = bytearray()
        self._descriptors: list[D] = []

    @property
    def missing_bytes(self) -> int:
        """How many bytes complete the current message. QEMU reads no more than that, which keeps messages apart."""
        return MESSAGE_BYTES - len(self._pending) % MESSAGE_BYTES

    def feed(self, data: bytes, descriptors: Sequence[D] = ()) -> Sequence[Message[D]]:
        """Return the messages that ``data`` completes. ``descriptors`` come only together with bytes."""
        self._pending += data
        whole = len(self._pending) // MESSAGE_BYTES
        on_boundary = len(self._pending) % MESSAGE_BYTES == 0
        numbers = [_NUMBER.unpack_from(self._pending, at * MESSAGE_BYTES)[0] for at in range(whole)]
        del self._pending[: whole * MESSAGE_BYTES]
        if not whole:
            self._descriptors.extend(descriptors)
            return []
        carried: list[tuple[D, ...]] = [()] * whole
        carried[0], self._descriptors = tuple(self._descriptors), []
        if on_boundary:
            carried[-1] += tuple(descriptors)
        else:
            self._descriptors.extend(descriptors)
        return list(map(Message, numbers, carried))

    def unclaimed(self) -> Iterable[D]:
        """Descriptors of a message that is not complete; the caller closes them."""
        left, self._descriptors = self._descriptors, []
        return left
