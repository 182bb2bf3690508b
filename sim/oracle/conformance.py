"""The same operations on a simulated device and on a real QEMU, and a comparison of every answer.

After each operation four things are equal: the value of a read, the MSI-X pending bits, the messages in memory, and the
counters of the peers' eventfds. A divergence is reduced to its shortest sequence: operations that it does not need are
left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from random import Random

from nodes.device.effects import MsixMessage
from nodes.device.ivshmem import Ivshmem
from nodes.device.profiles import DOORBELL, PROFILES, Profile
from nodes.doorbells import NoLedger
from nodes.errors import UsageError
from nodes.vm import Vm
from sim.engines.qemu.qtest import Qemu, QemuError
from sim.kernel.qemu_program import find_qemu
from sim.oracle.operations import (
    MESSAGE_BASE,
    ConfigRead,
    ConfigWrite,
    Operation,
    PeerJoins,
    PeerLeaves,
    Read,
    Reset,
    Ring,
    Scene,
    Write,
    generate,
)
from sim.oracle.scripted_server import ScriptedServer

__all__ = ["CONFORMING", "Divergence", "RealDevice", "Report", "SimulatedDevice", "conform"]

CONFORMING = ("qemu-doorbell", "qemu-plain")
SLOT = 4
SHRINK_RUNS = 400


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
        profile = profile or PROFILES[scene.profile]
        self._vm = Vm(
            profile,
            vectors=scene.vectors,
            role=profile.default_role,
            signal=self._signal,
            ledger=NoLedger(),
            clock=lambda: 0,
            random=Random(0),
            sample_every=0,
        )
        self.device = self._vm.device
        self._scene = scene
        self._rung: Counter[tuple[int, int]] = Counter()
        if scene.vectors:
            self.device.set_peer(scene.peer)
        self.device.set_memory(memoryview(bytearray(scene.memory_bytes)))
        for vector in range(scene.connected):
            self._connect(scene.peer, vector)
        self._peers: set[int] = set()
        self._messages = bytearray(scene.message_bytes)

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
        own = self._scene.peer
        for vector in range(self._scene.own_vectors):
            count = self._rung.pop((own, vector), 0)
            if count:
                self.device.interrupt(vector, count)
        pending_at = pba(self.device)
        pending = self._pending(*pending_at) if pending_at else None
        self._land()
        messages = bytes(self._messages)
        self._messages[:] = bytes(len(messages))
        rung = tuple((*line, count) for line, count in sorted(self._rung.items()) if line[0] in self._peers)
        self._rung.clear()
        return Observation(value, pending, messages, rung)

    def _apply(self, operation: Operation) -> int | None:
        device = self.device
        match operation:
            case ConfigRead(offset, size):
                return device.config_read(offset, size)
            case ConfigWrite(offset, size, value):
                device.config_write(offset, size, value)
            case Read(address, size):
                return self._access(address, size)
            case Write(address, size, value):
                self._access(address, size, value)
            case Ring(vector, count):
                device.interrupt(vector, count)
            case PeerJoins(peer, vectors):
                self._peers.add(peer)
                for vector in range(vectors):
                    self._connect(peer, vector)
            case PeerLeaves(peer):
                self._peers.discard(peer)
                self._vm.disconnect(peer)
            case Reset():
                device.reset()
        return None

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

    def _land(self) -> None:
        while self.device.effects:
            effect = self.device.effects.popleft()
            if isinstance(effect, MsixMessage):
                at = effect.address - MESSAGE_BASE
                if 0 <= at <= len(self._messages) - 4:
                    self._messages[at : at + 4] = effect.data.to_bytes(4, "little")


def pba(device: Ivshmem) -> tuple[int, int] | None:
    """The (address, size) of the pending bits; None while their BAR is not mapped."""
    base = device.config.bar_address(device.profile.msix_bar)
    if base is None or device.msix is None:
        return None
    return base + device.msix.layout.pba_offset, device.msix.layout.pba_bytes


class RealDevice:
    """A QEMU with one ivshmem device and its scripted server; owns both."""

    def __init__(self, qemu: str, scene: Scene) -> None:
        self._scene = scene
        with ExitStack() as stack:
            self._server = stack.enter_context(ScriptedServer(scene.memory_bytes))
            if scene.vectors:
                self._server.greet(scene.peer)
                self._server.join(scene.peer, scene.connected)
                inherit = self._server.client
                arguments = [
                    *("-chardev", f"socket,id=iv,fd={inherit}"),
                    *("-device", f"ivshmem-doorbell,chardev=iv,vectors={scene.vectors},addr={SLOT:#x}.0"),
                ]
            else:
                inherit = self._server.region.descriptor
                path = f"/proc/self/fd/{inherit}"
                backend = f"memory-backend-file,id=mem,share=on,size={scene.memory_bytes},mem-path={path}"
                arguments = ["-object", backend, "-device", f"ivshmem-plain,memdev=mem,addr={SLOT:#x}.0"]
            self.qemu = stack.enter_context(Qemu(qemu, arguments, [inherit]))
            self._server.hand_over()
            self.qemu.settle(scene.connected + 2)
            self._stack = stack.pop_all()

    @property
    def memory(self) -> memoryview:
        """The shared memory, as its other users access it."""
        return self._server.memory

    def close(self) -> None:
        self._stack.close()

    def apply(self, operation: Operation, pending_at: tuple[int, int] | None = None) -> Observation:
        value = self._apply(operation)
        # In its first turn, the main loop handles the eventfds that the operation rang; in the second, nothing is left.
        self.qemu.settle()
        places = [(MESSAGE_BASE, self._scene.message_bytes)] + ([pending_at] if pending_at else [])
        answers = self.qemu.ask([f"read {at:#x} {size:#x}" for at, size in places])
        messages, *rest = (bytes.fromhex(answer.removeprefix("0x")) for answer in answers)
        if any(messages):
            self.qemu.fill(MESSAGE_BASE, len(messages), 0)
        pending = int.from_bytes(rest[0], "little") if rest else None
        rung = tuple(
            (peer, vector, count)
            for peer in sorted(self._server.peers)
            if peer != self._scene.peer
            for vector, count in enumerate(self._server.take(peer))
            if count
        )
        return Observation(value, pending, messages, rung)

    def _apply(self, operation: Operation) -> int | None:
        qemu, server = self.qemu, self._server
        match operation:
            case ConfigRead(offset, size):
                return qemu.config_read(SLOT, offset, size)
            case ConfigWrite(offset, size, value):
                qemu.config_write(SLOT, offset, size, value)
            case Read(address, size):
                return qemu.read(address, size)
            case Write(address, size, value):
                qemu.write(address, size, value)
            case Ring(vector, count):
                server.ring(self._scene.peer, vector, count)
                qemu.settle()
            case PeerJoins(peer, vectors):
                server.join(peer, vectors)
                qemu.settle(vectors + 2)
            case PeerLeaves(peer):
                server.leave(peer)
                qemu.settle(2)
            case Reset():
                qemu.reset()
        return None


@dataclass(frozen=True, slots=True)
class Divergence:
    """The shortest ``sequence`` of operations after which the two devices differ, and what each of them shows."""

    scene: Scene
    sequence: tuple[Operation, ...]
    real: str
    simulated: str

    def __str__(self) -> str:
        steps = [f"  {at}. {operation}" for at, operation in enumerate(self.sequence, 1)]
        return "\n".join([f"on {self.scene}:", *steps, f"  real:      {self.real}", f"  simulated: {self.simulated}"])


@dataclass(frozen=True, slots=True)
class Report:
    """One run of :func:`conform`; ``kinds`` counts the operations by kind."""

    profile: str
    seed: int
    operations: int
    kinds: tuple[tuple[str, int], ...]
    divergence: Divergence | None

    @property
    def agrees(self) -> bool:
        return self.divergence is None

    def __str__(self) -> str:
        head = f"{self.profile}, seed {self.seed}: {self.operations} operations"
        if self.divergence is None:
            return f"{head}, no divergence"
        return f"{head}, then a divergence {self.divergence}"


def possible(sequence: Sequence[Operation]) -> Iterator[Operation]:
    """The operations of a sequence that the rules allow: no leave before a join, no second join."""
    present: set[int] = set()
    used: set[int] = set()
    for operation in sequence:
        match operation:
            case PeerJoins(peer, _):
                if peer in used:
                    continue
                used.add(peer)
                present.add(peer)
            case PeerLeaves(peer):
                if peer not in present:
                    continue
                present.remove(peer)
        yield operation


def play(
    qemu: str, scene: Scene, sequence: Sequence[Operation], make: Callable[[Scene], SimulatedDevice]
) -> Divergence | None:
    """Apply a sequence to a new device of each kind; returns the first divergence, or None."""
    simulated = make(scene)
    real = RealDevice(qemu, scene)
    played: list[Operation] = []
    try:
        for operation in possible(sequence):
            played.append(operation)
            ours = simulated.apply(operation)
            try:
                theirs = real.apply(operation, pba(simulated.device))
            except QemuError as error:
                return Divergence(scene, tuple(played), str(error), str(ours))
            if ours != theirs:
                return Divergence(scene, tuple(played), str(theirs), str(ours))
    finally:
        real.close()
    return None


def shrink(divergence: Divergence, again: Callable[[Sequence[Operation]], Divergence | None]) -> Divergence:
    """Leave out parts of the sequence, smaller and smaller ones, as long as a divergence remains (delta debugging)."""
    best, runs = divergence, 0
    part = max(1, len(best.sequence) // 2)
    while runs < SHRINK_RUNS:
        at, smaller = 0, False
        while at < len(best.sequence) and runs < SHRINK_RUNS:
            candidate = best.sequence[:at] + best.sequence[at + part :]
            runs += 1
            found = again(candidate) if candidate else None
            if found is not None:
                best, smaller = found, True
            else:
                at += part
        if part == 1 and not smaller:
            break
        part = max(1, part // 2)
    return best


def conform(
    qemu: str | None,
    profile: str,
    seed: int,
    operations: int,
    *,
    make: Callable[[Scene], SimulatedDevice] = SimulatedDevice,
) -> Report:
    """Play ``operations`` random operations from ``seed`` on a real QEMU and on the simulated device.

    ``make`` builds the simulated device; tests give a defective one.

    Raises:
        UsageError: a profile that today's QEMU does not have.
        UsageError: QEMU is not there.
        QemuError: QEMU does not start.
    """
    if profile not in CONFORMING:
        raise UsageError(f"profile {profile!r} has no real counterpart here: choose {' or '.join(CONFORMING)}")
    path = find_qemu(qemu)
    random = Random(f"{profile}/{seed}")
    scene = Scene.draw(profile, random, server=PROFILES[profile].server)
    sequence = generate(scene, random, operations)
    divergence = play(path, scene, sequence, make)
    done = len(sequence) if divergence is None else len(divergence.sequence)
    if divergence is not None:
        divergence = shrink(divergence, lambda candidate: play(path, scene, candidate, make))
    kinds = Counter(type(operation).__name__ for operation in sequence[:done])
    return Report(profile, seed, done, tuple(sorted(kinds.items())), divergence)
