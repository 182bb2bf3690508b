"""The same operations on a simulated device and on a real QEMU, and a comparison of every answer.

After each operation four things are equal: the value of a read, the MSI-X pending bits, the messages in memory, and the
counters of the peers' eventfds. Accesses that ring no eventfd are made in one go, and the eventfds are looked at after
the last of them. A divergence is reduced to its shortest sequence of operations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from nodes.device.profiles import PROFILES, profile_by_access
from nodes.errors import QemuError, UsageError
from nodes.qemu_versions import QemuVersion
from sim.kernel.qemu_program import find_qemu, qemu_version
from sim.oracle.generator import generate
from sim.oracle.operations import Access, MovesToFreshServer, Operation, PeerJoins, PeerLeaves, Scene
from sim.oracle.real_device import RealDevice, Step
from sim.oracle.simulated_device import Observation, SimulatedDevice, pba

CONFORMING = ("qemu-doorbell", "qemu-plain")
COMPARED = ("the value of a read", "the pending bits", "the messages in memory", "the counters of the peers' eventfds")
"""What is compared after each operation."""
SCENE_OPERATIONS = 2000
"""Operations on one device; a longer run goes on with another one."""
SHRINK_RUNS = 400
TOGETHER, LOOK_BYTES = 64, 1 << 15
"""How many accesses are made in one go, at most, and how much is looked at meanwhile."""


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
    """One run of :func:`conform` on a QEMU of ``version``; ``kinds`` counts the operations by kind.

    ``profile`` is that of the device as ``access`` finds it.
    """

    profile: str
    version: QemuVersion
    access: str
    seed: int
    scenes: int
    operations: int
    kinds: tuple[tuple[str, int], ...]
    divergence: Divergence | None

    @property
    def agrees(self) -> bool:
        return self.divergence is None

    def __str__(self) -> str:
        scenes = "1 device" if self.scenes == 1 else f"{self.scenes} devices"
        real = f"QEMU {self.version} by {self.access}"
        head = f"{self.profile} and {real}, seed {self.seed}: {self.operations} operations on {scenes}"
        if self.divergence is None:
            return f"{head}, no divergence"
        return f"{head}, then a divergence {self.divergence}"


def possible(sequence: Sequence[Operation]) -> Iterator[Operation]:
    """The operations of a sequence that the rules allow: no leave before a join, no second join at one server."""
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
            case MovesToFreshServer():
                present.clear()
                used.clear()
        yield operation


def play(
    qemu: str, scene: Scene, sequence: Sequence[Operation], make: Callable[[Scene], SimulatedDevice]
) -> Divergence | None:
    """Apply a sequence to a new device of each kind; returns the first divergence, or None."""
    simulated = make(scene)
    real = RealDevice(qemu, scene)
    played: list[Operation] = []
    try:
        for steps, expected in _together(simulated, scene, possible(sequence)):
            operations = [operation for operation, _ in steps]
            try:
                found = real.apply_all(steps)
            except QemuError as error:
                return Divergence(scene, (*played, *operations), str(error), str(expected[-1]))
            for number, (ours, theirs) in enumerate(zip(expected, found, strict=True), 1):
                if ours != theirs:
                    return Divergence(scene, (*played, *operations[:number]), str(theirs), str(ours))
            played += operations
    finally:
        real.close()
    return None


def _together(
    simulated: SimulatedDevice, scene: Scene, operations: Iterable[Operation]
) -> Iterator[tuple[list[Step], list[Observation]]]:
    """Apply operations to the simulated device, and put accesses together up to the one that rings an eventfd.

    Yields the operations that a real device can be given in one go, and what the simulated one has shown.
    """
    steps: list[Step] = []
    expected: list[Observation] = []
    at_most = max(1, min(TOGETHER, LOOK_BYTES // scene.message_bytes))
    for operation in operations:
        if steps and not isinstance(operation, Access):
            yield steps, expected
            steps, expected = [], []
        expected.append(simulated.apply(operation))
        steps.append((operation, pba(simulated.device)))
        if simulated.rang or len(steps) == at_most or not isinstance(operation, Access):
            yield steps, expected
            steps, expected = [], []
    if steps:
        yield steps, expected


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
    access: str = "tcg",
    make: Callable[[Scene], SimulatedDevice] = SimulatedDevice,
) -> Report:
    """Play ``operations`` random operations from ``seed`` on a real QEMU and on the simulated device.

    ``access`` is who makes the accesses, one of `nodes.device.profiles.ACCESSES`. ``make`` builds the simulated device;
    tests give a defective one.

    Raises:
        UsageError: a profile that today's QEMU does not have.
        UsageError: QEMU is not there.
        QemuError: QEMU does not start.
    """
    if profile not in CONFORMING:
        raise UsageError(f"profile {profile!r} has no real counterpart here: choose {' or '.join(CONFORMING)}")
    path = find_qemu(qemu)
    version = qemu_version(path)
    kinds: Counter[str] = Counter()
    scenes = 0
    divergence = None
    while divergence is None and kinds.total() < operations:
        scene, sequence = _scene(
            profile, access, version, seed, scenes, min(SCENE_OPERATIONS, operations - kinds.total())
        )
        scenes += 1
        divergence = play(path, scene, sequence, make)
        done = len(sequence) if divergence is None else len(divergence.sequence)
        kinds.update(type(operation).__name__ for operation in sequence[:done])
    if divergence is not None:
        on = divergence.scene
        divergence = shrink(divergence, lambda candidate: play(path, on, candidate, make))
    counts = tuple(sorted(kinds.items()))
    name = profile_by_access(PROFILES[profile], access, version).name
    return Report(name, version, access, seed, scenes, kinds.total(), counts, divergence)


def _scene(
    profile: str, access: str, version: QemuVersion, seed: int, number: int, operations: int
) -> tuple[Scene, list[Operation]]:
    """The device with that number of a seed, and what is done to it."""
    random = Random(f"{profile}/{seed}/{number}")
    server = PROFILES[profile].server
    scene = Scene.draw(profile, random, server=server, number=seed + number, access=access, version=version)
    return scene, generate(scene, random, operations)
