"""The client of the device of 2012: no version, no fixed order, few checks (ivshmem.c, ivshmem_read).

Machines of a run with that device use this client (`nodes.device.qemu_1_1.endpoint`). Its rows are in
``tests/golden/seed_rows.toml``.

One message is a native ``long`` with at most one descriptor. A number with a descriptor is the next vector of a peer;
-1 with a descriptor is the shared memory; a number alone is the own ID, or a peer that has left. A :class:`Host` does
what needs the system; descriptors are plain numbers here. Where a profile has a defect repaired, the client warns and
closes the descriptor of the message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct, field

from nodes.device.effects import DeviceWarning
from nodes.device.ivshmem import PEER_LIMIT, Ivshmem
from nodes.device.profile import DOORBELL, Quirk
from nodes.device.qemu_1_1.properties import DeviceExitError
from nodes.device.qemu_1_1.shared_object import MappingHost, check_size, map_checked
from nodes.errors import ModelledFault

FIRST_SLOTS = 16
MEMORY = -1
INT_DOUBLING_LIMIT = 1 << 30  # doubling a 32-bit int beyond this overflows


class Host(MappingHost, Protocol):
    """The system calls that the client needs."""

    def duplicate(self, descriptor: int) -> int | None:
        """Return another descriptor for the same file, or None when no descriptor is left."""

    def close(self, descriptor: int) -> None:
        """Close a descriptor."""

    def watch(self, vector: int, descriptor: int) -> bool:
        """Watch an own eventfd for doorbells; returns False when that is not possible."""

    def bind(self, address: int, value: int, descriptor: int) -> bool:
        """Bind an eventfd to 4-byte writes of ``value`` to guest-physical ``address`` (ioeventfd)."""

    def unbind(self, address: int, value: int, descriptor: int) -> None:
        """Remove such a binding."""


class _Slot(Struct):
    """The entry of a peer: ``allocated`` after its first vector, ``freed`` after it left."""

    descriptors: list[int] = field(default_factory=list)
    allocated: bool = False
    freed: bool = False


class Lines(Protocol):
    """Receives the vectors that can be rung: the device itself, or its machine."""

    def connect(self, peer: int, vector: int, line: int) -> bool:
        """Connect a vector."""

    def disconnect(self, peer: int) -> None:
        """Disconnect all vectors of the peer."""


class Qemu11Client:
    """The client side of the 2012 device.

    Args:
        device: it gets its ID and its memory from here.
        host: the system.
        lines: told of connected vectors and of peers that leave; by default the device.
        ioeventfd: the property of that name.
        word_bytes: the size of the host's ``long``, 8 (LP64) or 4 (ILP32).
    """

    def __init__(
        self, device: Ivshmem, host: Host, *, lines: Lines | None = None, ioeventfd: bool = False, word_bytes: int = 8
    ) -> None:
        self.device = device
        self._lines: Lines = lines or device
        self.slots = FIRST_SLOTS
        self.max_peer = 0
        self.memory_descriptor = 0
        self.eventfds = 0
        """How many eventfds have come, with those that the device could not keep."""
        self._host = host
        self._profile = device.profile
        self._ioeventfd = ioeventfd
        self._word_bytes = word_bytes
        self._peers: dict[int, _Slot] = {}
        self._read_buffer = b"\0" * 8
        self._unread = b""
        self._unclaimed: int | None = None

    # From bytes to messages

    def read(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Take one read from the server's socket: up to 8 bytes, and the descriptors that came with them.

        The client keeps the last one of several descriptors and closes the others. It takes every read for a whole
        message: bytes that are missing have the values of the read before.
        """
        for descriptor in descriptors:
            if self._unclaimed is not None:
                self._host.close(self._unclaimed)
            self._unclaimed = descriptor
        if self._profile.has(Quirk.SHORT_READ):
            self._read_buffer = data[:8] + self._read_buffer[len(data[:8]) :]
            self._message(self._read_buffer)
            return
        self._unread += data
        while len(self._unread) >= self._word_bytes:
            message, self._unread = self._unread[: self._word_bytes], self._unread[self._word_bytes :]
            self._message(message)

    def _message(self, data: bytes) -> None:
        value = int.from_bytes(data[: self._word_bytes], "little", signed=True)
        descriptor, self._unclaimed = self._unclaimed, None
        self.receive(value, descriptor)

    def server_closed(self) -> None:
        """The server has closed the connection; the device ignores that (ivshmem_event)."""

    # Messages

    def receive(self, value: int, descriptor: int | None) -> None:
        """Take one message.

        Raises:
            DeviceExitError: the real device ends its process here.
            ModelledFault: the real device corrupts its memory or hangs here.
        """
        if not self._in_bounds(value, descriptor):
            return
        if descriptor is None:
            self._without_descriptor(value)
        else:
            self._with_descriptor(value, descriptor)

    def _in_bounds(self, value: int, descriptor: int | None) -> bool:
        if self._profile.has(Quirk.PEER_UNBOUNDED):
            if value < MEMORY or value >= INT_DOUBLING_LIMIT:
                raise ModelledFault(Quirk.PEER_UNBOUNDED, f"peer {value}: outside any table that can be made")
        elif not MEMORY <= value < PEER_LIMIT:
            self._refuse(f"server sent invalid message {value}", descriptor)
            return False
        while value >= self.slots:
            self.slots *= 2
        return True

    def _refuse(self, text: str, descriptor: int | None) -> None:
        self.device.effects.append(DeviceWarning(text))
        if descriptor is not None:
            self._host.close(descriptor)

    def _without_descriptor(self, value: int) -> None:
        if value == MEMORY:
            if self._profile.has(Quirk.MINUS_ONE_UNCHECKED):
                raise ModelledFault(Quirk.MINUS_ONE_UNCHECKED, "-1 without a descriptor: slot -1")
            self._refuse("server sent -1 without a descriptor", None)
            return
        slot = self._peers.get(value)
        if slot is None or not slot.allocated:
            if self.device.memory is None or self._profile.has(Quirk.LEAVE_RENAMES):
                self.device.peer = value
            return
        if self.device.peer is None and not self._profile.has(Quirk.EARLY_OWN_VECTORS):
            self.device.peer = value
            for vector, descriptor in enumerate(slot.descriptors):
                self._watch(vector, descriptor)
            return
        self._leave(value, slot)

    def _leave(self, peer: int, slot: _Slot) -> None:
        if slot.freed:
            if self._profile.has(Quirk.LEAVE_TWICE_FAULT):
                raise ModelledFault(Quirk.LEAVE_TWICE_FAULT, f"peer {peer} left twice: freed again")
            return
        self._lines.disconnect(peer)
        for vector, descriptor in enumerate(slot.descriptors):
            self._host.unbind(self._doorbell_address(), peer << 16 | vector, descriptor)
            self._host.close(descriptor)
        slot.descriptors.clear()
        slot.freed = True

    def _with_descriptor(self, value: int, received: int) -> None:
        self.eventfds += value != MEMORY
        descriptor = self._host.duplicate(received)
        if descriptor is None:
            self.device.effects.append(DeviceWarning("could not allocate file descriptor"))
            return
        if not self._profile.has(Quirk.DESCRIPTOR_LEAK):
            self._host.close(received)
        if value == MEMORY:
            self._memory(descriptor)
        else:
            self._vector(value, descriptor)

    def _memory(self, descriptor: int) -> None:
        if self.device.memory is not None and not self._profile.has(Quirk.MEMORY_REMAP):
            self._refuse("server sent shared memory twice", descriptor)
            return
        for peer in self._peers:
            if 0 < peer <= self.max_peer:
                self._lines.disconnect(peer)
        self.max_peer = 0
        size_bytes = self.memory_bytes
        check_size(size_bytes, self._host.size_bytes(descriptor))
        self.device.set_memory(map_checked(self._host, self._profile, descriptor, size_bytes))
        self.memory_descriptor = descriptor
        self.device.position_hidden = descriptor == 0 and self._profile.has(Quirk.DESCRIPTOR_ZERO_UNMAPPED)

    @property
    def memory_bytes(self) -> int:
        """How many bytes of the shared object the device maps: its ``size`` property."""
        bar = self.device.config.bars.get(self._profile.memory_bar)
        return bar.size_bytes if bar else 0

    def _vector(self, peer: int, descriptor: int) -> None:
        slot = self._peers.setdefault(peer, _Slot())
        vector = len(slot.descriptors)
        if vector >= self.device.vectors:
            if self._profile.has(Quirk.VECTOR_OVERFLOW):
                raise ModelledFault(Quirk.VECTOR_OVERFLOW, f"peer {peer}: more than {self.device.vectors} vectors")
            self._refuse(f"Too many eventfd received, device has {self.device.vectors} vectors", descriptor)
            return
        slot.allocated, slot.freed = True, False
        slot.descriptors.append(descriptor)
        if peer > self.max_peer:
            before, self.max_peer = self.max_peer, peer
            for other in [other for other in self._peers if before < other <= peer]:
                self._show(other, 0)
        else:
            self._show(peer, vector)
        if peer == self.device.peer:
            self._watch(vector, descriptor)
        if self._ioeventfd and not self._host.bind(self._doorbell_address(), peer << 16 | vector, descriptor):
            self.device.effects.append(DeviceWarning("ivshmem: ioeventfd not available"))

    def _watch(self, vector: int, descriptor: int) -> None:
        if not self._host.watch(vector, descriptor):
            raise DeviceExitError(255, f"creating eventfd for eventfd {descriptor} failed")

    def _doorbell_address(self) -> int:
        """The address to which ioeventfds are bound: the device of 2012 never sets the base that it adds."""
        offset = self._profile.registers.offset_of(DOORBELL)
        if self._profile.has(Quirk.IOEVENTFD_UNBOUND):
            return offset
        return (self.device.config.bar_address(self._profile.registers_bar) or 0) + offset

    def _show(self, peer: int, first: int) -> None:
        """Connect the vectors of this peer from ``first`` on: its ID is not above the largest one."""
        if peer < PEER_LIMIT:
            for vector, descriptor in enumerate(self._peers[peer].descriptors[first:], first):
                self._lines.connect(peer, vector, descriptor)

    # Unplug

    def held(self) -> list[int]:
        """The descriptors that the device holds: one for each vector of each peer, and the memory's."""
        held = [descriptor for slot in self._peers.values() for descriptor in slot.descriptors]
        if self.device.memory is not None:
            held.append(self.memory_descriptor)
        if self._unclaimed is not None:
            held.append(self._unclaimed)
        return held

    def unplug(self) -> tuple[int, ...]:
        """Remove the device; returns the descriptors that it does not close.

        Raises:
            ModelledFault: the memory has not arrived, and the device destroys its region.
        """
        if self.device.memory is None and self._profile.has(Quirk.UNPLUG_EARLY_FAULT):
            raise ModelledFault(Quirk.UNPLUG_EARLY_FAULT, "unplugged before the memory arrived")
        held = self.held()
        if self._profile.has(Quirk.UNPLUG_LEAK):
            return tuple(held)
        for descriptor in held:
            self._host.close(descriptor)
        return ()
