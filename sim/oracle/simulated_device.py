"""The simulated device in the place of a real one: addresses in, messages in memory and rung eventfds out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

from nodes.device.ivshmem import Ivshmem
from nodes.device.msix import MsixMessage
from nodes.device.profile import DOORBELL, Profile
from nodes.ledger import NoLedger
from nodes.vm import Vm
from sim.oracle import operations as ops
from sim.oracle.operations import MESSAGE_BASE, Operation, Scene


@dataclass(frozen=True, slots=True)
class Observation:
    """The observable state after an operation; ``rung`` has a (peer, vector, doorbells) for each rung eventfd."""

    value: int | None
    pending: int | None
    messages: bytes
    rung: tuple[tuple[int, int, int], ...]

    def __str__(self) -> str:
        parts = [f"value {self.value:#x}"] if self.value is not None else []
        if self.pending is not None:
            parts.append(f"pending {self.pending:#x}")
        if any(self.messages):
            parts.append(f"messages {self.messages.rstrip(bytes(1)).hex()}")
        parts += [f"peer {peer} vector {vector} rung {count} times" for peer, vector, count in self.rung]
        return ", ".join(parts) or "nothing"


class SimulatedDevice:
    """A simulated machine without a driver, in the place of a real one.

    Its BARs decode addresses, its messages land in memory, and its doorbells take the path that they take in a run.

    Args:
        profile: another device than that of the scene.
    """

    def __init__(self, scene: Scene, profile: Profile | None = None) -> None:
        self._profile = profile or scene.device
        self._scene = scene
        self.rang = False
        """Whether the last operation rang an eventfd, be it an own one."""
        self._rung: Counter[tuple[int, int]] = Counter()
        self._messages = bytearray(scene.message_bytes)
        self._start(scene.connected)
        self.device.set_memory(memoryview(bytearray(scene.memory_bytes)))
        self._connect_own(scene.connected)

    def _start(self, connected: int) -> None:
        """A machine that has its ID, and no memory yet."""
        scene = self._scene
        self._vm = Vm(
            self._profile,
            vectors=scene.vectors,
            role=scene.role or self._profile.default_role,
            signal=self._signal,
            ledger=NoLedger(),
            clock=lambda: 0,
            random=Random(0),
            sample_every=0,
        )
        self.device = self._vm.device
        self._connected = 0
        self._peers: set[int] = set()
        if scene.vectors:
            self.device.set_peer(scene.peer)

    def _connect_own(self, vectors: int) -> None:
        for vector in range(self._connected, self._connected + vectors):
            self._connect(self._scene.peer, vector)
        self._connected += vectors

    def _connect(self, peer: int, vector: int) -> None:
        self._vm.connect(peer, vector, peer << 16 | vector)

    def _signal(self, line: int, doorbells: int) -> None:
        self._rung[line >> 16, line & 0xFFFF] += doorbells

    @property
    def memory(self) -> memoryview:
        """The shared memory, as its other users access it."""
        assert self.device.memory is not None
        return self.device.memory

    def close(self) -> None:
        """A simulated device holds nothing that must be closed."""

    def apply(self, operation: Operation) -> Observation:
        value = self._apply(operation)
        self.rang = bool(self._rung)
        own = self._scene.peer
        if self._rung and self._scene.vectors:
            for peer, vector in sorted(self._rung):
                if peer == own and vector < self._scene.vectors:
                    self.device.interrupt(vector, self._rung.pop((peer, vector)))
        pending_at = pba(self.device)
        pending = self._pending(*pending_at) if pending_at else None
        messages = self._land()
        rung = tuple((*line, count) for line, count in sorted(self._rung.items()) if line[0] in self._peers)
        self._rung.clear()
        return Observation(value, pending, messages, rung)

    def _apply(self, operation: Operation) -> int | None:
        device = self.device
        match operation:
            case ops.ConfigRead(offset, size):
                return device.config_read(offset, size)
            case ops.ConfigWrite(offset, size, value):
                device.config_write(offset, size, value)
            case ops.Read(address, size):
                return self._access(address, size)
            case ops.Write(address, size, value):
                self._access(address, size, value)
            case ops.Ring(vector, count):
                if vector < min(self._connected, self._scene.vectors):
                    device.interrupt(vector, count)
            case ops.PeerJoins(peer, vectors):
                self._peers.add(peer)
                for vector in range(vectors):
                    self._connect(peer, vector)
            case ops.PeerLeaves(peer):
                self._peers.discard(peer)
                self._vm.disconnect(peer)
            case ops.VectorsArrive(vectors):
                self._connect_own(vectors)
            case ops.MovesToFreshServer():
                self._move()
            case ops.Reset():
                device.reset()
        return None

    def _move(self) -> None:
        """The state and the memory move to a new device, whose server connects as many own vectors."""
        state, memory, connected = self.device.save(), self.memory, self._connected
        self._start(connected)
        self.device.set_memory(memoryview(bytearray(memory)))
        self._connect_own(connected)
        self.device.load(state)

    def _access(self, address: int, size_bytes: int, value: int | None = None) -> int:
        for bar in self.device.config.bars.values():
            base = self.device.config.bar_address(bar.index)
            if base is not None and base <= address < base + bar.size_bytes:
                if value is None:
                    return self.device.bar_read(bar.index, address - base, size_bytes)
                self._write(bar.index, address - base, size_bytes, value)
                return 0
        return 0

    def _write(self, bar: int, offset: int, size_bytes: int, value: int) -> None:
        guest, profile = self._vm.guest, self.device.profile
        if (bar, offset, size_bytes) == (profile.registers_bar, profile.registers.offset_of(DOORBELL), 4):
            guest.ring(value >> 16 & 0xFFFF, value & 0xFFFF)
        else:
            guest.write(bar, offset, value, size_bytes)

    def _pending(self, address: int, size_bytes: int) -> int:
        return sum(self._access(address + at, 4) << 8 * at for at in range(0, size_bytes, 4))

    def _land(self) -> bytes:
        """The memory that messages are written to, with those since the last call."""
        if not self.device.effects:
            return bytes(self._scene.message_bytes)
        while self.device.effects:
            effect = self.device.effects.pop(0)
            if isinstance(effect, MsixMessage):
                at = effect.address - MESSAGE_BASE
                if 0 <= at <= len(self._messages) - 4:
                    self._messages[at : at + 4] = effect.data.to_bytes(4, "little")
        messages = bytes(self._messages)
        self._messages[:] = bytes(len(messages))
        return messages


def pba(device: Ivshmem) -> tuple[int, int] | None:
    """The (address, size) of the pending bits; None while their BAR is not mapped."""
    base = device.config.bar_address(device.profile.msix_bar)
    if base is None or device.msix is None:
        return None
    return base + device.msix.layout.pba_offset, device.msix.layout.pba_bytes
