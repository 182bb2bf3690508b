"""Random sequences of operations that the rules of `sim.oracle.operations` allow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from nodes.device.msix import Layout
from nodes.device.pci import BAR0, COMMAND
from nodes.device.profiles import QEMU_DOORBELL
from sim.oracle import operations as ops
from sim.oracle.operations import MEMORY_BAR, MESSAGE_SLOT_BYTES, MSIX_BAR, REGISTERS_BAR, WINDOWS, Operation, Scene

SIZES = (1, 2, 4, 8)
MSIX_CONTROL = QEMU_DOORBELL.msix_capability + 2
BAR_REGISTERS = {bar: BAR0 + 4 * bar for bar in WINDOWS}
PEERS_AT_ONCE = 3
PEER_VECTORS_MAX = 300  # of a peer that joins: each is a descriptor here and in QEMU


def boot(scene: Scene) -> Iterator[Operation]:
    """The first steps of firmware and driver: assign addresses, enable decode and bus master, fill and enable MSI-X."""
    for bar in scene.bars:
        yield ops.ConfigWrite(BAR_REGISTERS[bar], 4, WINDOWS[bar][0])
    yield ops.ConfigWrite(COMMAND, 2, 6)
    for vector in scene.used_vectors:
        entry = WINDOWS[MSIX_BAR][0] + 16 * vector
        yield ops.Write(entry, 4, scene.message_address(vector))
        yield ops.Write(entry + 8, 4, 0xC0DE_0000 + vector)
        yield ops.Write(entry + 12, 4, 0)
    if scene.vectors:
        yield ops.ConfigWrite(MSIX_CONTROL, 2, 0x8000)


def inspect(scene: Scene) -> Iterator[Operation]:
    """Read all registers, at every address at which they can be mapped."""
    for offset in range(0, 256, 4):
        yield ops.ConfigRead(offset, 4)
    offsets = {
        REGISTERS_BAR: range(0, 0x20, 4),
        MSIX_BAR: [16 * vector + word for vector in scene.used_vectors for word in range(0, 16, 4)],
        MEMORY_BAR: range(0, 16, 4),
    }
    for bar in scene.bars:
        for window in WINDOWS[bar]:
            for at in offsets[bar]:
                yield ops.Read(window + at, 4)


class _Generator:
    """Draws random operations that the rules allow."""

    def __init__(self, scene: Scene, random: Random) -> None:
        self._scene = scene
        self._random = random
        self._present: dict[int, int] = {}
        self._used = {scene.peer}
        self._connected = scene.connected
        self._vectors = list(scene.used_vectors)
        self._pba = Layout.exclusive(scene.vectors, MSIX_BAR, 2048).pba_offset if scene.vectors else 0
        kinds: list[tuple[Callable[[], Operation], float]] = [
            (self._registers, 20),
            (self._memory, 6),
            (self._config, 16),
            (self._command, 6),
            (self._bar_address, 3),
            (ops.Reset, 1),
        ]
        if scene.role:
            kinds += [(self._move, 0.1)]
        if scene.vectors:
            kinds += [
                (self._doorbell, 26),
                (self._table, 16),
                (self._pending, 6),
                (self._control, 8),
                (self._ring, 14),
                (self._join, 3),
                (self._leave, 2),
                (self._arrive, 1),
            ]
        self._kinds = [kind for kind, _ in kinds]
        self._weights = [weight for _, weight in kinds]

    def draw(self) -> Operation:
        (kind,) = self._random.choices(self._kinds, self._weights)
        return kind()

    def _window(self, bar: int) -> int:
        windows = WINDOWS[bar]
        return windows[0] if self._random.random() < 0.8 else self._random.choice(windows)

    def _value(self, size_bytes: int) -> int:
        bits = 8 * size_bytes
        return self._random.choice((0, (1 << bits) - 1, self._random.getrandbits(bits), self._random.getrandbits(4)))

    def _access(self, bar: int, offset: int, *, reading: float) -> Operation:
        size = self._random.choice(SIZES)
        address = self._window(bar) + offset
        if self._random.random() < reading:
            return ops.Read(address, size)
        return ops.Write(address, size, self._value(size))

    def _registers(self) -> Operation:
        random = self._random
        if random.random() < 0.5:  # accesses to mask and status as a driver makes them
            address = self._window(REGISTERS_BAR) + random.choice((0, 4, 4, 8))
            return ops.Read(address, 4) if random.random() < 0.6 else ops.Write(address, 4, self._value(4))
        # The four registers at any offset; sometimes reserved space and the end of the window.
        offset = random.choice((random.randrange(16), random.randrange(16), random.randrange(0x100), 0xFE, 0x100))
        return self._access(REGISTERS_BAR, offset, reading=0.5)

    def _doorbell(self) -> Operation:
        random = self._random
        peers = [self._scene.peer, *sorted(self._present)] * 4 + [*sorted(self._used), random.getrandbits(16)]
        near = random.choice((random.choice(self._vectors), random.randrange(self._scene.vectors + 2)))
        vector = random.choice((near, near, near, near | random.getrandbits(8) << 8, random.getrandbits(16)))
        value = random.choice(peers) << 16 | vector
        if random.random() < 0.6:
            return ops.Write(self._window(REGISTERS_BAR) + 12, 4, value)
        # The same word in a write of another width or at another offset, so that a piece of the write is at 12.
        size, offset = random.choice(SIZES), random.randrange(8, 16)
        shifted = value << 8 * max(0, 12 - offset) if random.random() < 0.7 else value
        return ops.Write(self._window(REGISTERS_BAR) + offset, size, shifted & (1 << 8 * size) - 1)

    def _table(self) -> Operation:
        """An access to the MSI-X table: an entry sends to its own memory; reads and control bits are random."""
        random = self._random
        if random.random() < 0.25:
            return self._access(MSIX_BAR, random.randrange(16 * self._scene.vectors + 32), reading=1)
        vector = random.choice(self._vectors)
        entry = self._window(MSIX_BAR) + 16 * vector
        slot = self._scene.message_address(vector)
        narrow = ops.Write(entry + random.randrange(16), random.choice((1, 2)), random.getrandbits(8))
        control = ops.Write(entry + 12, 4, random.choice((0, 0, 0, 1, 1, 0xFFFF_FFFE, 0xFFFF_FFFF)))
        others = (
            ops.Write(entry, 4, slot + random.randrange(MESSAGE_SLOT_BYTES - 3)),
            ops.Write(entry + 4, 4, random.choice((0, 0, 0, 0x80))),
            ops.Write(entry + 8, 4, random.getrandbits(32) | 1),
            ops.Write(entry, 8, slot),
            ops.Write(entry + 8, 8, random.getrandbits(33) | 1),
            narrow,
        )
        return control if random.random() < 0.4 else random.choice(others)

    def _pending(self) -> Operation:
        near = self._random.choice((0, 4, -4, 8, 0xC, 0x10, 1))
        return self._access(MSIX_BAR, self._random.choice((self._pba + near, self._pba + near, 0xFFC)), reading=0.6)

    def _memory(self) -> Operation:
        size = self._scene.memory_bytes
        return self._access(MEMORY_BAR, self._random.choice((0, 1, 64, size // 2 + 3, size - 8)), reading=0.5)

    def _config(self) -> Operation:
        random = self._random
        size = random.choice((1, 2, 4))
        offset = random.randrange(0, 256 // size) * size
        if random.random() < 0.1:
            offset = random.randrange(256)  # across the data ports, perhaps
        if random.random() < 0.5:
            return ops.ConfigRead(offset, size)
        word = offset & ~3
        if word == COMMAND:
            return self._command()
        if BAR0 <= word < 0x28:
            return self._bar_address()
        return ops.ConfigWrite(offset, size, self._value(size))

    def _command(self) -> Operation:
        if self._random.random() < 0.3:
            return ops.ConfigRead(COMMAND, 2)
        value = self._random.choice((6, 6, 6, 7, 0x406, 2, 4, 0, self._random.getrandbits(16)))
        return (
            ops.ConfigWrite(COMMAND, 2, value)
            if value < 256 or self._random.random() < 0.5
            else ops.ConfigWrite(COMMAND, 4, 0xFFFF_0000 | value)
        )

    def _bar_address(self) -> Operation:
        random = self._random
        bar = random.choice(self._scene.bars)
        offset = BAR_REGISTERS[bar]
        window = random.choice((WINDOWS[bar][0], WINDOWS[bar][0], *WINDOWS[bar]))
        if bar == MEMORY_BAR and random.random() < 0.4:
            top = window >> 32 if self._scene.access == "kvm" else 0xFFFF_FFFF
            return ops.ConfigWrite(offset + 4, 4, random.choice((0, 0, window >> 32, top)))
        low = window & 0xFFFF_FFFF
        return ops.ConfigWrite(offset, 4, random.choice((low, low | 0xF, 0, 0xFFFF_FFFF)))

    def _control(self) -> Operation:
        value = self._random.choice((0x8000, 0x8000, 0x8000, 0xC000, 0x4000, 0, 0, 0xFFFF))
        match self._random.randrange(4):
            case 0:
                return ops.ConfigWrite(MSIX_CONTROL + 1, 1, value >> 8)
            case 1:
                return ops.ConfigWrite(MSIX_CONTROL - 2, 4, value << 16 | self._random.getrandbits(16))
            case _:
                return ops.ConfigWrite(MSIX_CONTROL, 2, value)

    def _ring(self) -> Operation:
        vector = self._random.choice(self._vectors)
        if vector >= self._connected:
            return self._arrive()
        return ops.Ring(vector, self._random.choice((1, 1, 2, 3, 256)))

    def _arrive(self) -> Operation:
        """Own vectors that come late; one more than the device has is refused, and more is no news."""
        missing = self._scene.vectors + 1 - self._connected
        if missing <= 0:
            return self._doorbell()
        vectors = self._random.randint(1, min(missing, 8))
        self._connected += vectors
        return ops.VectorsArrive(vectors)

    def _move(self) -> Operation:
        self._present.clear()
        self._used = {self._scene.peer}
        return ops.MovesToFreshServer()

    def _join(self) -> Operation:
        if len(self._present) >= PEERS_AT_ONCE:
            return self._leave()
        peer = self._random.choice((self._random.randrange(40), self._random.getrandbits(16)))
        if peer in self._used:
            return self._doorbell()
        self._used.add(peer)
        self._present[peer] = self._random.randrange(1, min(self._scene.vectors + 2, PEER_VECTORS_MAX))
        return ops.PeerJoins(peer, self._present[peer])

    def _leave(self) -> Operation:
        if not self._present:
            return self._doorbell()
        peer = self._random.choice(sorted(self._present))
        del self._present[peer]
        return ops.PeerLeaves(peer)


def generate(scene: Scene, random: Random, operations: int) -> list[Operation]:
    """A driver's start, then random operations with new starts in between; at the end, reads of all registers."""
    generator = _Generator(scene, random)
    look = list(inspect(scene))
    sequence = list(boot(scene))
    while len(sequence) < operations - len(look):
        drawn = generator.draw()
        sequence.append(drawn)
        if isinstance(drawn, ops.Reset) or random.random() < 0.01:
            sequence += boot(scene)
            sequence += [ops.Read(WINDOWS[REGISTERS_BAR][0] + at, 4) for at in (0, 4)]
    return (sequence + look)[:operations]
