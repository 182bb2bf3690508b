"""The plan of migrating a topology's machines to another host: which can move, in which order, what is lost.

Verdicts and texts are those of the device (`nodes.device.migration`) with the ID that a server would give it. A device
can only migrate to a fresh server: a master must have ID 0 there, and a server does not give out an ID twice, not even
that of the source that has just left. Therefore the peers detach their devices, the master moves with the memory, and
the peers reattach to the new server under new IDs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import groupby
from typing import Literal

from msgspec import Struct

from nodes.device import devices
from nodes.device.blockers import Blocker, Blockers
from nodes.device.ivshmem import Ivshmem
from nodes.device.migration_texts import MigrationError
from nodes.device.profile import Profile
from nodes.device.profiles import PROFILES
from nodes.errors import UsageError
from topologies.domain import Domain
from topologies.model import Machine, Topology
from topologies.resolve.names import several

Fate = Literal["moves", "moves without its peers' devices", "stays", "does not start"]

PAGE_BYTES = 4096
REGISTERS = {"status": "IntrStatus", "mask": "IntrMask"}


class PlannedDevice(Struct, frozen=True):
    """One device of a machine: its ID (None: it joins later, or has no server) and the size of its saved state."""

    domain: str
    profile: str
    role: str
    peer: int | None
    master: bool
    state_bytes: int


class PlannedMachine(Struct, frozen=True):
    """One machine.

    Attributes:
        present: it is present from the start of the run.
        blockers: QEMU's reasons against migrating it as it is, the newest first.
        refusal: QEMU's answer to such a migration.
        reason: why it stays, or does not start.
    """

    name: str
    group: str
    present: bool
    devices: tuple[PlannedDevice, ...]
    blockers: tuple[str, ...]
    refusal: str
    fate: Fate
    reason: str


class Step(Struct, frozen=True):
    """One step: machines in order; ``peers`` are their IDs on the domain's fresh server, if any."""

    do: Literal["detach", "move", "reattach"]
    machines: tuple[str, ...]
    domain: str = ""
    peers: tuple[int, ...] = ()
    memory_bytes: int = 0
    state_bytes: int = 0


class MigrationPlan(Struct, frozen=True):
    """The whole plan; ``memory_bytes`` is the sum over all masters, each of which copies the whole memory."""

    machines: tuple[PlannedMachine, ...]
    steps: tuple[Step, ...]
    memory_bytes: int
    state_bytes: int
    losses: tuple[str, ...]


class _Judged(Struct):
    """A machine with the answers of its devices; ``reason``: why it does not move, not even without its devices."""

    machine: Machine
    devices: tuple[PlannedDevice, ...]
    blockers: tuple[str, ...]
    refusal: str
    start_error: str
    reason: str

    @property
    def name(self) -> str:
        return self.machine.name

    @property
    def profile(self) -> Profile:
        return PROFILES[self.machine.profile]

    def masters(self) -> set[str]:
        return {device.domain for device in self.devices if device.master}

    def planned(self) -> PlannedMachine:
        fate: Fate = "does not start" if self.start_error else "stays"
        if not self.reason:
            fate = "moves" if all(device.master for device in self.devices) else "moves without its peers' devices"
        its = self.machine
        return PlannedMachine(
            its.name, its.group, its.present, self.devices, self.blockers, self.refusal, fate, self.reason
        )


class _Landing:
    """A domain on the host that its masters move its memory to; without masters that move, there is nothing of it.

    ``here`` are its machines, ``peers`` those whose device cannot migrate, ``back`` those of them that come back;
    ``ids`` are the IDs on the fresh server by machine: masters, then peers.
    """

    def __init__(self, domain: Domain, judged: Collection[_Judged]) -> None:
        self.name = domain.name
        self.here = [each for each in judged if self.name in each.machine.domains and not each.start_error]
        self.masters = [each for each in _in_order(self.here) if not each.reason and self.name in each.masters()]
        self.peers = [each for each in self.here if self.name not in each.masters()]
        self.back = [each for each in self.peers if not each.reason]
        self.ids = {each.name: place for place, each in enumerate([*self.masters, *self.back])}


def plan_migration(topology: Topology) -> MigrationPlan:
    """The plan of moving all machines of a topology that can move, as far as the file tells."""
    domains = {domain.name: domain for domain in topology.domains}
    peers, only_migratable = _peers(topology), topology.run.only_migratable
    judged = [_judge(machine, domains, peers, only_migratable=only_migratable) for machine in topology.machines]
    _hold(judged)
    landings = [landing for domain in topology.domains if (landing := _Landing(domain, judged)).masters]
    steps = tuple(_steps(judged, landings, domains))
    losses = (loss for landing in landings for loss in _losses(landing))
    return MigrationPlan(
        tuple(each.planned() for each in judged),
        steps,
        sum(step.memory_bytes for step in steps),
        sum(step.state_bytes for step in steps),
        (*losses, *_lost_registers(judged)),
    )


def _peers(topology: Topology) -> dict[str, dict[int, int]]:
    """The IDs that each domain's server gives out (domain, machine, ID): to present machines first, then to others.

    As in a run, a device without a server takes an ID too, which it does not show: its memory comes over a connection.
    """
    peers: dict[str, dict[int, int]] = {domain.name: {} for domain in topology.domains}
    for machine in sorted(topology.machines, key=lambda machine: not machine.present):
        for name in machine.domains:
            peers[name][machine.index] = len(peers[name])
    return peers


def _judge(
    machine: Machine, domains: Mapping[str, Domain], peers: Mapping[str, Mapping[int, int]], *, only_migratable: bool
) -> _Judged:
    """Make the machine's devices, as its process would, and query them."""
    profile = PROFILES[machine.profile]
    blockers = Blockers(only_migratable=only_migratable, locked=profile.migration_locks_devices)
    devices: list[PlannedDevice] = []
    start_error = ""
    try:
        for reason in machine.blockers:
            blockers.add(Blocker(reason))
        for name in machine.domains:
            peer = peers[name][machine.index]
            made = make_device(machine, domains[name].memory.size_bytes)
            made.set_peer(peer)
            state_bytes = len(made.save()) if profile.stream else 0
            shown = peer if machine.present and profile.server else None
            devices.append(PlannedDevice(name, profile.name, made.role, shown, made.master, state_bytes))
            blockers.plug(made)
    except UsageError as error:
        start_error = str(error)
    refusal = refusal_of(blockers)
    anchored = machine.blockers[-1] if machine.blockers else "" if profile.stream else refusal
    texts = tuple(found.text for found in blockers)
    return _Judged(machine, tuple(devices), texts, refusal, start_error, start_error or anchored)


def blockers_of(machine: Machine, peer: int | None) -> Blockers:
    """The reasons of a machine with one device not to migrate, as QEMU collects them; ``peer`` is that device's ID."""
    made = make_device(machine, PAGE_BYTES)  # any size: what forbids a migration does not depend on it
    if made.profile.server:
        made.peer = peer
    blockers = Blockers(locked=made.profile.migration_locks_devices)
    for reason in machine.blockers:  # older than the device's
        blockers.add(Blocker(reason))
    blockers.plug(made)
    return blockers


def refusal_of(blockers: Blockers) -> str:
    """The newest reason not to migrate, as QEMU words it; "" when there is none."""
    try:
        blockers.check()
    except MigrationError as error:
        return str(error)
    return ""


def make_device(machine: Machine, size_bytes: int) -> Ivshmem:
    """A machine's device before it has an ID; of its memory only the size exists."""
    profile = PROFILES[machine.profile]
    made = devices.make_device(
        profile, vectors=machine.vectors, role=machine.role, size_bytes=size_bytes, ring=lambda peer, vector: None
    )
    made.memory = memoryview(b"")
    if not profile.server:
        made.peer = 0  # so that the role "auto" makes it a master
    return made


def _hold(judged: Collection[_Judged]) -> None:
    """Give a reason to each machine that stays because of a master that stays."""
    held = True
    while held:
        held = False
        carried = {name for each in judged if not each.reason for name in each.masters()}
        for each in judged:
            left = [name for name in each.machine.domains if name not in carried]
            if left and not each.reason:
                each.reason, held = f"no master moves the memory of domain {left[0]}", True


def _in_order(judged: Collection[_Judged]) -> list[_Judged]:
    """In the order of connection: a master has to be the first again."""
    return sorted(judged, key=lambda each: not each.machine.present)


def _names(judged: Iterable[_Judged]) -> tuple[str, ...]:
    return tuple(each.name for each in judged)


def _steps(
    judged: Collection[_Judged], landings: Collection[_Landing], domains: Mapping[str, Domain]
) -> Iterator[Step]:
    """Peers detach, masters move with the memory, the others follow, and the peers reattach in order."""
    for landing in landings:
        if landing.peers:
            yield Step("detach", _names(landing.peers), landing.name)
    moving = [each for each in _in_order(judged) if not each.reason]
    for each in moving:
        if each.masters():
            memory_bytes = sum(domains[name].memory.size_bytes for name in each.masters())
            state_bytes = sum(device.state_bytes for device in each.devices if device.master)
            yield Step("move", (each.name,), memory_bytes=memory_bytes, state_bytes=state_bytes)
    if following := _names(each for each in moving if not each.masters()):
        yield Step("move", following)
    for landing in landings:
        for served, group in groupby(landing.back, key=lambda each: each.profile.server):
            names = _names(group)
            peers = tuple(landing.ids[name] for name in names) if served else ()
            yield Step("reattach", names, landing.name, peers)


def _losses(landing: _Landing) -> Iterator[str]:
    domain = f"domain {landing.name}"
    if eventfds := sum(each.machine.vectors for each in landing.here if each.profile.server):
        these = "its only eventfd" if eventfds == 1 else f"its {eventfds} eventfds"
        yield f"{domain}: doorbells pending in {these}: a fresh server makes new ones"
    peers = {
        each.name: device.peer for each in landing.here for device in each.devices if device.domain == landing.name
    }
    others = [name for name, peer in peers.items() if peer is not None and landing.ids.get(name, peer) != peer]
    if others:
        yield (
            f"{domain}: the IDs of {several(others)}: the fresh server gives out others, and a peer that uses "
            "an old one rings another machine, or none"
        )
    if len(landing.masters) > 1:
        yield (
            f"{domain}: what is written there before {landing.masters[-1].name} arrives: each of its "
            f"{len(landing.masters)} masters copies the whole memory, and the last copy stays"
        )
    if left := _names(each for each in landing.here if each.reason):
        yield f"{domain}: memory shared with the machines that stay: {several(left)}"
    for msix in (True, False):
        if names := _names(each for each in landing.back if each.profile.msix is msix):
            state = "MSI-X table, pending bits and registers" if msix else "registers"
            yield f"{domain}: {state} of the devices that are detached and plugged again: {several(names)}"


def _lost_registers(judged: Collection[_Judged]) -> Iterator[str]:
    """The registers of masters that move which their stream does not have."""
    for profile in PROFILES.values():
        lost = [REGISTERS[part] for part in REGISTERS if part not in profile.stream]
        moved = [each for each in judged if each.profile is profile and each.masters() and not each.reason]
        if lost and moved and profile.stream:
            yield f"{' and '.join(lost)} of {several(_names(moved))}: not in the stream of {profile.name}"
