"""Finds the timeline entries that end a real QEMU, as far as the file tells.

They are not mistakes of the file, because the run may be meant to show them: they are noted and not refused.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from topologies.actions import Garble, Leave, StopServer, Unplug
from topologies.model import Machine, Topology
from topologies.resolve.names import several
from topologies.schedule import TimelineEntry

ENDED = "its QEMU is ended: device_del aborts one that has heard that a peer has left (ivshmem.c, close_peer_eventfds)"
NOT_DONE = "it is not done, as device_del would abort its QEMU: that has heard that a peer has left"
TWICE = "its QEMU aborts: a peer that leaves twice is freed twice (ivshmem.c, close_peer_eventfds)"
HALF = "its QEMU reads every later message from its middle, and may end of what it takes them for"


class Endangered(Struct, frozen=True):
    """Machines whose QEMU an entry of the timeline ends; ``line`` is 0 for an entry that is in no file."""

    line: int
    do: str
    machines: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{where}{self.do} {several(self.machines)}: {self.reason}"


def endangered(topology: Topology) -> tuple[Endangered, ...]:
    """The entries that end a QEMU otherwise than they would end a simulated machine, in the order of the file."""
    found = []
    for entry in topology.timeline:
        machines = [topology.machines[index] for index in entry.machines]
        for reason, those in _reasons(topology, entry, machines):
            if those:
                found.append(Endangered(entry.line, entry.action.do, tuple(machine.name for machine in those), reason))
    return tuple(found)


def _reasons(topology: Topology, entry: TimelineEntry, machines: list[Machine]) -> Iterator[tuple[str, list[Machine]]]:
    """The machines that an entry ends, by reason."""
    action = entry.action
    if isinstance(action, Unplug | Leave):
        late = [machine for machine in machines if machine.kind == "qemu" and _hears_a_leave(topology, entry, machine)]
        with_guest, without = ([machine for machine in late if bool(machine.guest) == has] for has in (True, False))
        if isinstance(action, Unplug):
            yield ENDED, without
            yield NOT_DONE, with_guest
        else:  # without a guest, QEMU ends when its machine leaves
            yield ENDED, with_guest
    elif isinstance(action, Garble):
        # Between the server and a QEMU without a guest stands the machine's process.
        direct = [machine for machine in machines if machine.guest is not None]
        if action.message == "half_message":
            yield HALF, direct
        elif action.message == "left_unknown":
            yield TWICE, [machine for machine in direct if entry.repeat > 1 or _unknown_leaves(topology, machine) > 1]


def _hears_a_leave(topology: Topology, entry: TimelineEntry, machine: Machine) -> bool:
    """Whether another machine of its domains may have left when the entry's time comes."""
    for other in topology.timeline:
        if not other.waits and not entry.waits and other.at_s > entry.at_s:
            continue
        if isinstance(other.action, StopServer) or not (other.action.removes or other.action.do == "migrate"):
            continue
        for index in other.machines:
            its = topology.machines[index]
            earlier = other is not entry or entry.machines.index(index) < entry.machines.index(machine.index)
            if its is not machine and earlier and set(its.domains) & set(machine.domains):
                return True
    return False


def _unknown_leaves(topology: Topology, machine: Machine) -> int:
    return sum(
        isinstance(other.action, Garble) and other.action.message == "left_unknown" and machine.index in other.machines
        for other in topology.timeline
    )
