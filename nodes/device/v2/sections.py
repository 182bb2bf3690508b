"""The shared memory of ivshmem v2: a State Table, a read/write section, one output section for each peer.

Offsets and rights are those of Jailhouse's ivshmem-v2-specification.md, "Shared Memory Regions"; the sizes follow from
the size of the memory as in the QEMU fork's ivshmem2.c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from msgspec import Struct

from nodes.errors import GuestError, RemoteProtocolError

PAGE_BYTES = 4096
ENTRY_BYTES = 4


class ForbiddenStoreError(GuestError):
    """A store into a section that this peer may not write."""


class Place(NamedTuple):
    """A section: its name in words, its first byte, the byte after its last one."""

    name: str
    start: int
    stop: int


class SectionLayout(Struct, frozen=True):
    """The offsets and sizes of the sections.

    Raises:
        RemoteProtocolError: the memory is too small for them, or an output section is not whole pages.
    """

    size_bytes: int
    max_peers: int
    output_bytes: int

    def __post_init__(self) -> None:
        if self.output_bytes % PAGE_BYTES:
            raise RemoteProtocolError(f"output sections of {self.output_bytes} bytes: expected whole pages")
        if self.shared_bytes < 0:
            needed = self.table_bytes + self.max_peers * self.output_bytes
            raise RemoteProtocolError(
                "Invalid output section size, shared memory too small: "
                f"{self.max_peers} peers need {needed} bytes, it has {self.size_bytes}"
            )

    @property
    def table_bytes(self) -> int:
        """The State Table: one page, or more where there are more than 1024 peers."""
        return -(-self.max_peers * ENTRY_BYTES // PAGE_BYTES) * PAGE_BYTES

    @property
    def shared_bytes(self) -> int:
        """The read/write section: what the other sections leave."""
        return self.size_bytes - self.table_bytes - self.max_peers * self.output_bytes

    @property
    def shared(self) -> Place:
        return Place("the read/write section", self.table_bytes, self.table_bytes + self.shared_bytes)

    def output(self, peer: int) -> Place:
        """The output section of a peer.

        Raises:
            GuestError: there is no such peer.
        """
        if not 0 <= peer < self.max_peers:
            raise GuestError(f"peer {peer} has no output section: expected 0..{self.max_peers - 1}")
        start = self.table_bytes + self.shared_bytes + peer * self.output_bytes
        return Place(f"the output section of peer {peer}", start, start + self.output_bytes)

    def place(self, offset: int) -> Place:
        """The section that has this offset."""
        if offset < self.table_bytes:
            return Place("the State Table", 0, self.table_bytes)
        if offset < self.shared.stop:
            return self.shared
        if self.output_bytes and offset < self.size_bytes:
            return self.output((offset - self.shared.stop) // self.output_bytes)
        return Place("nothing", self.size_bytes, self.size_bytes)

    def may_store(self, peer: int, offset: int, size_bytes: int) -> bool:
        """Whether a peer may store so many bytes: into the read/write section, or into its own output section."""
        return any(
            place.start <= offset and offset + size_bytes <= place.stop for place in (self.shared, self.output(peer))
        )

    def check_store(self, peer: int, offset: int, size_bytes: int) -> None:
        """Refuse a store that this peer may not do.

        Raises:
            ForbiddenStoreError: it names the offset and the owner.
        """
        if not self.may_store(peer, offset, size_bytes):
            place = self.place(offset)
            raise ForbiddenStoreError(
                f"peer {peer} stores {size_bytes} bytes at offset {offset:#x}: {place.name} is read-only for it"
            )


class Sections:
    """The memory of one peer, with the rights that it has.

    Args:
        layout: where the sections are.
        peer: whose rights these are.
        memory: all of the memory, read-only.
        writable: makes a writable view of the bytes from one offset to another: of the State Table, in which the device
            stores its own entry and the guest nothing, of the read/write section and of the own output section.
    """

    def __init__(
        self, layout: SectionLayout, peer: int, memory: memoryview, writable: Callable[[int, int], memoryview]
    ) -> None:
        shared, own = layout.shared, layout.output(peer)
        self.layout, self.peer = layout, peer
        self.memory = memory
        self._table = writable(0, layout.table_bytes)
        self.shared, self.own = writable(shared.start, shared.stop), writable(own.start, own.stop)
        self._states = self._table[: layout.max_peers * ENTRY_BYTES].cast("I")

    @classmethod
    def of(cls, layout: SectionLayout, peer: int, memory: memoryview) -> Sections:
        """The sections of memory that this process has mapped as a whole."""
        return cls(layout, peer, memory.toreadonly(), lambda start, stop: memory[start:stop])

    def state(self, peer: int) -> int:
        """The State of a peer: its entry in the State Table."""
        return self._states[peer]

    def states(self) -> list[int]:
        """The States of all peers, by their IDs."""
        return self._states.tolist()

    def set_state(self, value: int) -> bool:
        """Store the own entry, as the device does; returns whether it differs from what was there."""
        differs = self._states[self.peer] != value
        self._states[self.peer] = value
        return differs

    def release(self) -> tuple[memoryview, ...]:
        """Give up the memory; returns the views, which the caller releases with what is behind them."""
        self._states.release()
        return self.memory, self._table, self.shared, self.own

    def output(self, peer: int) -> memoryview:
        """The output section of a peer: writable if it is the own one.

        Raises:
            GuestError: there is no such peer.
        """
        place = self.layout.output(peer)
        return self.own if peer == self.peer else self.memory[place.start : place.stop]

    def store(self, offset: int, data: bytes) -> None:
        """Store bytes at an offset of the whole memory.

        Raises:
            ForbiddenStoreError: this peer may not store there.
        """
        self.writable(offset, len(data))[:] = data

    def writable(self, offset: int, size_bytes: int) -> memoryview:
        """A part of the whole memory that this peer may write.

        Raises:
            ForbiddenStoreError: it may not write all of it.
        """
        self.layout.check_store(self.peer, offset, size_bytes)
        shared = self.layout.shared
        section, start = self.shared, shared.start
        if not shared.start <= offset < shared.stop:
            section, start = self.own, self.layout.output(self.peer).start
        return section[offset - start : offset - start + size_bytes]
