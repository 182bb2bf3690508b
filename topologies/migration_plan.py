"""The plan of migrating a topology's machines to another host: which can move, in which order, what is lost.

Verdicts and texts are those of the device (`nodes.device.migration`) with the ID that a server would give it. A device
can only migrate to a fresh server: a master must have ID 0 there, and a server does not give out an ID twice, not even
that of the source that has just left. Therefore the peers detach their devices, the master moves with the memory, and
the peers reattach to the new server under new IDs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import groupby
from typing import Literal

from msgspec import Struct

from nodes.device import devices
from nodes.device.blockers import Blocker, Blockers
from nodes.device.ivshmem import Ivshmem
from nodes.device.migration import MigrationError
from nodes.device.profiles import PROFILES
from nodes.errors import UsageError
from topologies.domain import Domain
from topologies.model import Machine, Topology
from topologies.resolve.names import several

__all__ = ["MigrationPlan", "PlannedMachine", "Step", "make_device", "plan_migration"]

Fate = Literal["moves", "moves without its peers' devices", "stays", "does not start"]

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
    """A machine with the answers of its devices."""

    machine: Machine
    devices: tuple[PlannedDevice, ...]
    blockers: tuple[str, ...]
    refusal: str
    start_error: str
    anchored: str
    """Why it cannot move even without its devices."""

    @property
    def name(self) -> str:
        return self.machine.name

    def masters(self) -> set[str]:
        return {device.domain for device in self.devices if device.master}


def plan_migration(topology: Topology) -> MigrationPlan:
    """The plan of moving all machines of a topology that can move, as far as the file tells."""
    domains = {domain.name: domain for domain in topology.domains}
    peers = _peers(topology)
    judged = [
        _judge(machine, domains, peers, only_migratable=topology.run.only_migratable) for machine in topology.machines
    ]
    movers, reasons = _movers(judged)
    steps = tuple(_steps(judged, movers, domains))
    machines = tuple(_planned(candidate, movers, reasons) for candidate in judged)
    return MigrationPlan(
        machines,
        steps,
        sum(step.memory_bytes for step in steps),
        sum(step.state_bytes for step in steps),
        tuple(_losses(judged, movers, domains)),
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
    start_error = refusal = ""
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
    try:
        blockers.check()
    except MigrationError as error:
        refusal = str(error)
    anchored = machine.blockers[-1] if machine.blockers else "" if profile.stream else refusal
    return _Judged(machine, tuple(devices), tuple(found.text for found in blockers), refusal, start_error, anchored)


def make_device(machine: Machine, size_bytes: int) -> Ivshmem:
    """A machine's device before it has an ID; of its memory only the size exists."""
    profile = PROFILES[machine.profile]
    made = devices.make_device(
        profile, vectors=machine.vectors, role=machine.role, size_bytes=size_bytes, ring=_ring_nothing
    )
    made.memory = memoryview(b"")
    if not profile.server:
        made.peer = 0  # so that the role "auto" makes it a master
    return made


def _ring_nothing(peer: int, vector: int) -> None:
    """The doorbells of a device that is only queried go nowhere."""


def _movers(judged: Collection[_Judged]) -> tuple[set[str], dict[str, str]]:
    """The machines that move, and for each other one the reason: its own, or a master that stays."""
    reasons = {
        candidate.name: candidate.start_error or candidate.anchored
        for candidate in judged
        if candidate.start_error or candidate.anchored
    }
    while True:
        carried = {name for candidate in judged if candidate.name not in reasons for name in candidate.masters()}
        held = {
            candidate.name: next(name for name in candidate.machine.domains if name not in carried)
            for candidate in judged
            if candidate.name not in reasons and not carried.issuperset(candidate.machine.domains)
        }
        if not held:
            return {candidate.name for candidate in judged if candidate.name not in reasons}, reasons
        reasons |= {name: f"no master moves the memory of domain {domain}" for name, domain in held.items()}


def _planned(each: _Judged, movers: Collection[str], reasons: Mapping[str, str]) -> PlannedMachine:
    fate: Fate = "stays"
    if each.start_error:
        fate = "does not start"
    elif each.name in movers:
        fate = "moves" if all(device.master for device in each.devices) else "moves without its peers' devices"
    reason = reasons.get(each.name, "")
    who = each.machine
    return PlannedMachine(who.name, who.group, who.present, each.devices, each.blockers, each.refusal, fate, reason)


def _steps(judged: Collection[_Judged], movers: Collection[str], domains: Mapping[str, Domain]) -> Iterator[Step]:
    """Peers detach, masters move with the memory, the others follow, and the peers reattach in order."""
    landings = {name: _landing(judged, movers, name) for name in domains}
    carried = [name for name, landing in landings.items() if landing]
    for name in carried:
        leaving = tuple(candidate.name for candidate in judged if _is_peer(candidate, name))
        if leaving:
            yield Step("detach", leaving, name)
    following = []
    for candidate in _in_order(judged):
        if candidate.name not in movers:
            continue
        if not candidate.masters():
            following.append(candidate.name)
            continue
        memory_bytes = sum(domains[name].memory.size_bytes for name in candidate.masters())
        state_bytes = sum(device.state_bytes for device in candidate.devices if device.master)
        yield Step("move", (candidate.name,), memory_bytes=memory_bytes, state_bytes=state_bytes)
    if following:
        yield Step("move", tuple(following))
    for name in carried:
        back = [candidate for candidate in judged if candidate.name in movers and _is_peer(candidate, name)]
        for served, group in groupby(back, key=lambda candidate: PROFILES[candidate.machine.profile].server):
            names = tuple(candidate.name for candidate in group)
            yield Step(
                "reattach", names, name, tuple(landings[name][candidate] for candidate in names) if served else ()
            )


def _in_order(judged: Collection[_Judged]) -> list[_Judged]:
    """In the order of connection: a master has to be the first again."""
    return sorted(judged, key=lambda candidate: not candidate.machine.present)


def _landing(judged: Collection[_Judged], movers: Collection[str], domain: str) -> dict[str, int]:
    """The IDs on a domain's fresh server by machine: masters, then peers. Empty when no master moves."""
    masters = [
        candidate.name for candidate in _in_order(judged) if candidate.name in movers and domain in candidate.masters()
    ]
    back = (
        [candidate.name for candidate in judged if candidate.name in movers and _is_peer(candidate, domain)]
        if masters
        else []
    )
    return {name: place for place, name in enumerate([*masters, *back])}


def _is_peer(each: _Judged, domain: str) -> bool:
    """Whether the machine runs and has a device there that cannot migrate."""
    return not each.start_error and domain in each.machine.domains and domain not in each.masters()


def _losses(judged: Collection[_Judged], movers: Collection[str], domains: Mapping[str, Domain]) -> Iterator[str]:
    for name in domains:
        landing = _landing(judged, movers, name)
        if not landing:
            continue
        here = [candidate for candidate in judged if name in candidate.machine.domains and not candidate.start_error]
        eventfds = sum(candidate.machine.vectors for candidate in here if PROFILES[candidate.machine.profile].server)
        if eventfds:
            these = "its only eventfd" if eventfds == 1 else f"its {eventfds} eventfds"
            yield f"domain {name}: doorbells pending in {these}: a fresh server makes new ones"
        peers = {
            candidate.name: device.peer for candidate in here for device in candidate.devices if device.domain == name
        }
        others = [
            candidate for candidate, peer in peers.items() if peer is not None and landing.get(candidate, peer) != peer
        ]
        if others:
            yield (
                f"domain {name}: the IDs of {several(others)}: the fresh server gives out others, and a peer that uses "
                "an old one rings another machine, or none"
            )
        masters = [
            candidate.name for candidate in _in_order(here) if candidate.name in landing and name in candidate.masters()
        ]
        if len(masters) > 1:
            yield (
                f"domain {name}: what is written there before {masters[-1]} arrives: each of its {len(masters)} "
                "masters copies the whole memory, and the last copy stays"
            )
        left = [candidate.name for candidate in here if candidate.name not in movers]
        if left:
            yield f"domain {name}: memory shared with the machines that stay: {several(left)}"
        yield from _lost_devices(
            name, [candidate for candidate in here if candidate.name in movers and _is_peer(candidate, name)]
        )
    for profile in PROFILES.values():
        lost = [REGISTERS[part] for part in REGISTERS if part not in profile.stream]
        carried = [
            candidate for candidate in judged if candidate.machine.profile == profile.name and candidate.masters()
        ]
        moved = [candidate.name for candidate in carried if candidate.name in movers]
        if lost and moved and profile.stream:
            yield f"{' and '.join(lost)} of {several(moved)}: not in the stream of {profile.name}"


def _lost_devices(domain: str, back: Collection[_Judged]) -> Iterator[str]:
    """The state that machines lose which reattach with a new device."""
    for msix, candidate in groupby(
        sorted(back, key=lambda candidate: not PROFILES[candidate.machine.profile].msix),
        key=lambda candidate: PROFILES[candidate.machine.profile].msix,
    ):
        state = "MSI-X table, pending bits and registers" if msix else "registers"
        names = several([candidate.name for candidate in candidate])
        yield f"domain {domain}: {state} of the devices that are detached and plugged again: {names}"
