"""The operations on one ivshmem device, simulated or real, of which `sim.oracle.generator` makes random sequences.

A sequence is complete: it contains physical addresses, so that any part of it can be applied again. :data:`RULES` says
which operations it does not contain, and why.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import ClassVar

import msgspec

from nodes.device.profile import Profile
from nodes.device.profiles import PROFILES, QEMU_DOORBELL, profile_by_access
from nodes.qemu_versions import NEWEST, QemuVersion

RULES = {
    "a peer leaves once and never returns": "a second leave, or a return, is a double free: SIGABRT",
    "the device's own ID never leaves": "nothing happens but a line on stderr, and the eventfds stay",
    "no hot-unplug": "after any leave it aborts or crashes",
    "memory of a power of two and whole pages": "pci_register_bar asserts: SIGABRT; smaller ones exit 1",
    "setup in order, own vectors after the memory": "own vectors first is SIGSEGV, silence hangs realize",
    "counters are never full": "a ring is then dropped, and both sides would only show the maximum",
    "BAR addresses from fixed windows": "elsewhere RAM, ROM and the interrupt controllers answer instead",
    "each MSI-X entry sends to memory of its own": "the order of two eventfds in one wake-up is not defined",
    "message data is never 0": "a message is seen by what it writes into cleared memory",
    "no eventfd that is none": "any file is accepted and written to (TCG), or QEMU aborts (KVM)",
    "with KVM, all own vectors are connected": "SIGABRT when another one is unmasked",
    "with KVM, messages go to no processor": "the kernel takes them and writes no memory; the guest has no handler",
    "with KVM, no BAR at the end of the 64 bits": "KVM_SET_USER_MEMORY_REGION fails: SIGABRT",
    "with KVM, no migration": "the destination aborts, as it loads unmasked vectors before their eventfds come",
}

REGISTERS_BAR, MSIX_BAR, MEMORY_BAR = QEMU_DOORBELL.registers_bar, QEMU_DOORBELL.msix_bar, QEMU_DOORBELL.memory_bar
# The addresses of each BAR: two or three, outside everything else that a PC has in its memory space.
WINDOWS = {
    REGISTERS_BAR: (0xE000_0000, 0xE100_0000),
    MSIX_BAR: (0xE200_0000, 0xE300_0000),
    MEMORY_BAR: (0xE400_0000, 0x9_0000_0000, 0xE800_0000),
}
MESSAGE_BASE, MESSAGE_SLOT_BYTES = 0x20_0000, 16
NO_PROCESSOR = 0xFEE7_F000
"""Messages to processor 0x7f, which no machine here has."""

MANY_VECTORS = 300


class _Operation(msgspec.Struct, frozen=True):
    """An operation, and the ``form`` in which it is shown."""

    form: ClassVar[str]

    def __str__(self) -> str:
        return self.form.format(self)


class ConfigRead(_Operation, frozen=True):
    offset: int
    size_bytes: int

    form: ClassVar[str] = "config_read({0.offset:#04x}, {0.size_bytes})"


class ConfigWrite(_Operation, frozen=True):
    offset: int
    size_bytes: int
    value: int

    form: ClassVar[str] = "config_write({0.offset:#04x}, {0.size_bytes}, {0.value:#x})"


class Read(_Operation, frozen=True):
    address: int
    size_bytes: int

    form: ClassVar[str] = "read({0.address:#x}, {0.size_bytes})"


class Write(_Operation, frozen=True):
    address: int
    size_bytes: int
    value: int

    form: ClassVar[str] = "write({0.address:#x}, {0.size_bytes}, {0.value:#x})"


class Ring(_Operation, frozen=True):
    """Another peer rings one of the device's own vectors ``count`` times before the device reads its eventfd."""

    vector: int
    count: int

    form: ClassVar[str] = "ring(vector {0.vector}, {0.count} times)"


class PeerJoins(_Operation, frozen=True):
    peer: int
    vectors: int

    form: ClassVar[str] = "join(peer {0.peer}, {0.vectors} vectors)"


class PeerLeaves(_Operation, frozen=True):
    peer: int

    form: ClassVar[str] = "leave(peer {0.peer})"


class Reset(_Operation, frozen=True):
    form: ClassVar[str] = "reset()"


class VectorsArrive(_Operation, frozen=True):
    """The server sends further own vectors, later than the others."""

    vectors: int

    form: ClassVar[str] = "vectors_arrive({0.vectors})"


class MovesToFreshServer(_Operation, frozen=True):
    """The machine is migrated to a host with a fresh server: own vectors as before, and no peer."""

    form: ClassVar[str] = "moves_to_fresh_server()"


Access = ConfigRead | ConfigWrite | Read | Write
Operation = Access | Ring | PeerJoins | PeerLeaves | VectorsArrive | MovesToFreshServer | Reset


@dataclass(frozen=True, slots=True)
class Scene:
    """The device to which a sequence is applied, and how many own vectors its server connects.

    ``access`` says who makes the accesses, one of `nodes.device.profiles.ACCESSES`; ``version`` is that of the QEMU.
    """

    profile: str
    vectors: int
    connected: int
    peer: int
    memory_bytes: int
    machine: str = "pc"
    role: str = ""
    access: str = "qtest"
    version: QemuVersion = NEWEST

    @classmethod
    def draw(
        cls,
        profile: str,
        random: Random,
        *,
        server: bool,
        number: int = 0,
        access: str = "qtest",
        version: QemuVersion = NEWEST,
    ) -> Scene:
        """A random device. Its server sometimes connects fewer vectors than it has, or more, or some of them later.

        From 258 vectors on there are two that the register, with its 8 bits, takes for others. Many vectors take long:
        the scenes with that many are every tenth ``number``, the largest possible device every fortieth.
        """
        memory_bytes = random.choice((4096, 1 << 16, 1 << 20))
        machine = random.choice(("pc", "q35"))
        role = random.choice(("", "", "master"))
        if access == "kvm":
            role = ""
        if not server:
            return cls(profile, 0, 0, 0, memory_bytes, machine, role, access, version)
        vectors = random.choice((1, 2, 2, 3, 4, 4, 8, 8, 33, 70))
        if number % 10 == 1:
            vectors = {1: 2048, 21: 280}.get(number % 40, 258)
        connected = random.choice((vectors, vectors, vectors, max(1, vectors - 1), vectors + 1, vectors // 2))
        if access == "kvm":
            connected = max(vectors, connected)
        peer = 0 if role else random.choice((0, 0, 1, 5, 16, 255, 65535))
        return cls(profile, vectors, connected, peer, memory_bytes, machine, role, access, version)

    @property
    def device(self) -> Profile:
        """The profile of the device, as these accesses find it."""
        return profile_by_access(PROFILES[self.profile], self.access, self.version)

    @property
    def bars(self) -> tuple[int, ...]:
        return (REGISTERS_BAR, MSIX_BAR, MEMORY_BAR) if self.vectors else (REGISTERS_BAR, MEMORY_BAR)

    @property
    def message_bytes(self) -> int:
        """The size of the memory to which the device's messages are written."""
        return MESSAGE_SLOT_BYTES * max(1, len(self.used_vectors))

    def message_address(self, vector: int) -> int:
        """Where a used vector sends its messages."""
        base = NO_PROCESSOR if self.access == "kvm" else MESSAGE_BASE
        return base + MESSAGE_SLOT_BYTES * self.used_vectors.index(vector)

    @property
    def used_vectors(self) -> range | list[int]:
        """The vectors that a driver uses: all, or of very many the first, the last, and those around 256."""
        if self.vectors <= MANY_VECTORS:
            return range(self.vectors)
        return [*range(16), *range(250, 266), *range(self.vectors - 16, self.vectors)]

    def __str__(self) -> str:
        role = f", {self.role}" if self.role else ""
        return (
            f"{self.machine} by {self.access}, {self.profile}{role}, {self.vectors} vectors "
            f"({self.connected} connected), peer {self.peer}, {self.memory_bytes} bytes"
        )
