"""What must be equal in two runs of one topology, of which one has real QEMUs, and why it may differ all the same.

Times and rates differ: a real QEMU is driven by qtest, and rings slower. So counts are not compared. These are: which
doorbells were rung, in which order; what became of them at their targets; the actions; the verdicts; how machines
ended; and which parts of the shared memory were written.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from nodes.device.profiles import PROFILES
from sim.oracle.facts import LATER, Edge, Facts, Line
from topologies import Topology
from topologies.actions import Mask, Slow, Stall, Unmask

SLOT_BYTES = 64
ORDERED = ("storm", "trace")
"""Programs whose doorbells do not depend on interrupts: the seed and the topology decide their order."""
HARMLESS = (Mask, Unmask, Slow, Stall)
"""Actions that do not change the peers or the programs of machines."""
TIMES = ("s", "ns", "1/s", "%", "bytes", "MiB")

ASPECTS: Mapping[str, Sequence[str]] = {
    "rings": ("server", "client", "fixed_vectors", "vector_bits", "doorbell_match", "driver_start", "quirks"),
    "interrupts": (
        "msix",
        "intx",
        "driver_start",
        "ring_while_masked",
        "ring_while_disabled",
        "function_mask",
        "bus_master_gates",
        "msix_limit",
        "quirks",
    ),
    "end": ("client", "waits_for_memory", "master_is_first", "reset_clears_mask", "migration_locks_devices", "quirks"),
    "memory": ("memory_container", "memory_default_bytes", "quirks"),
}
"""The cells of a profile that a difference of each kind can come from; a verdict can come from any of them."""

ARRIVED = frozenset({"delivered", "interrupts"})


class Difference(msgspec.Struct, frozen=True):
    """One difference; ``explained`` is empty for one that nothing explains.

    ``aspect`` is one of rings, order, interrupts, actions, verdict, end, memory.
    """

    aspect: str
    where: str
    simulated: str
    real: str
    explained: str = ""

    def __str__(self) -> str:
        why = f": {self.explained}" if self.explained else ": NOT EXPLAINED"
        return f"{self.aspect}, {self.where}: simulated {self.simulated}, real {self.real}{why}"


def compare_facts(
    topology: Topology, profiles: Mapping[str, str], simulated: Facts, real: Facts
) -> Iterator[Difference]:
    """The differences between two runs of ``topology``.

    Args:
        profiles: the profiles in the file of machines that have another one in the real run.
    """
    by_pace = yield from _rings(topology, profiles, simulated, real)
    yield from _order_differs(topology, simulated, real)
    yield from _interrupts(topology, profiles, simulated, real, by_pace)
    yield from _ends(topology, profiles, simulated, real)
    yield from _verdicts(profiles, simulated, real)
    yield from _memories(profiles, simulated, real, by_pace=by_pace)


def _cells(profiles: Mapping[str, str], machines: Sequence[str], aspect: str) -> str:
    """The cells of these machines' profiles that differ from those of a real QEMU, and can be the reason."""
    real = PROFILES["qemu-doorbell"]
    told = []
    for name in dict.fromkeys(profiles[machine] for machine in machines if machine in profiles):
        own = PROFILES[name]
        for cell in ASPECTS.get(aspect, own.cells()):
            if getattr(own, cell) != getattr(real, cell):
                told.append(f"{name}.{cell} = {_shown(getattr(own, cell))}, a real QEMU: {_shown(getattr(real, cell))}")
    return "; ".join(told)


def _shown(value: Any) -> str:
    if isinstance(value, frozenset):
        return "{" + ", ".join(sorted(member.name for member in value)) + "}"
    return str(getattr(value, "name", value))


# Rings


def _rings(
    topology: Topology, profiles: Mapping[str, str], simulated: Facts, real: Facts
) -> Generator[Difference, None, set[Line]]:
    """Edges that were rung in one run only. Returns the lines for which the pace explains it."""
    by_pace: set[Line] = set()
    for edge in sorted(simulated.edges.keys() ^ real.edges.keys()):
        source, target, peer, vector = edge
        more, less = (simulated, real) if edge in simulated.edges else (real, simulated)
        why = _pace(edge, more, less) or _shorter([source, target], more, less) or _arrival(source, target, more.moved)
        if why:
            by_pace.add((target, vector))
        else:
            why = _cells(profiles, [source, target], "rings")
        counts = [str(side.edges.get(edge, 0)) for side in (simulated, real)]
        known_as = "" if peer == LATER else f" (ID {peer})"
        where = f"{source} -> {target}{known_as}, vector {vector}"
        yield Difference("rings", where, counts[0], counts[1], why)
    return by_pace


def _pace(edge: Edge, more: Facts, less: Facts) -> str:
    """In words, that the other run did not get as far as the first doorbell of an edge; "" if that is not so."""
    source, target, peer, vector = edge
    rung, others = (sum(count for (other, *_), count in run.edges.items() if other == source) for run in (less, more))
    if peer == LATER and target in more.moved and rung < others:
        return f"pace: {source} rang {rung} doorbells there, {others} here, and had not heard of the new ID"
    if source not in more.order or target not in more.names:
        return ""
    places = np.flatnonzero(more.order[source] == more.names.index(target) << 16 | vector)
    if len(places) and places[0] >= rung:
        return f"pace: {source} rang {rung} doorbells there, and this is its doorbell {places[0] + 1}"
    if peer == LATER and rung < others and not (more.stays(target) and less.stays(target)):
        return f"pace: {source} rang {rung} doorbells there, {others} here, and had not heard of {target}"
    return ""


def _arrival(source: str, target: str, moved: frozenset[str]) -> str:
    """In words, that two machines have migrated, and rang each other by IDs that depend on when they did; or ""."""
    if source not in moved or target not in moved:
        return ""
    return (
        f"start: {source} and {target} have migrated, their IDs are by the order of arrival, and a machine rings "
        "by the old ones until it knows"
    )


def _shorter(machines: Sequence[str], more: Facts, less: Facts) -> str:
    """In words, that machines that join or leave were up together for a shorter time in the second run; or ""."""
    if all(run.stays(name) for run in (more, less) for name in machines):
        return ""
    for name in machines:
        if name in more.names and name not in more.up:
            return f"start: {name} had joined here, and left or died before it was Ready"
    times_ns = []
    for run in (more, less):
        spans = [run.up.get(name, (0, 0)) for name in machines]
        times_ns.append(max(0, min(end for _, end in spans) - max(begin for begin, _ in spans)))
    if times_ns[1] >= times_ns[0]:
        return ""
    return f"start: {' and '.join(machines)} up for {times_ns[1] / 1e9:.3f} s there, for {times_ns[0] / 1e9:.3f} s here"


def _order_differs(topology: Topology, simulated: Facts, real: Facts) -> Iterator[Difference]:
    """Where the order of rings is that of the seed, the shorter run is the beginning of the longer one."""
    if any(not isinstance(entry.action, HARMLESS) for entry in topology.timeline):
        return
    for machine in topology.machines:
        a, b = simulated.order.get(machine.name), real.order.get(machine.name)
        if machine.program not in ORDERED or a is None or b is None:
            continue
        shared = min(len(a), len(b))
        differs = np.flatnonzero(a[:shared] != b[:shared])
        if len(differs):
            at = int(differs[0])
            shown = [_doorbell(topology, int(doorbell)) for doorbell in (a[at], b[at])]
            yield Difference("order", f"doorbell {at + 1} of {machine.name}", shown[0], shown[1])


def _doorbell(topology: Topology, key: int) -> str:
    target = topology.machines[key >> 16].name if key >> 16 < len(topology.machines) else "nowhere"
    return f"rings {target}, vector {key & 0xFFFF}"


# Interrupts, ends, verdicts, memory


def _interrupts(
    topology: Topology, profiles: Mapping[str, str], simulated: Facts, real: Facts, by_pace: set[Line]
) -> Iterator[Difference]:
    for line in sorted(simulated.lines.keys() | real.lines.keys()):
        machine, vector = line
        a, b = simulated.lines.get(line, frozenset()), real.lines.get(line, frozenset())
        if simulated.moved or real.moved or not (simulated.stays(machine) and real.stays(machine)):
            # What is rung at a machine that has left, or by one that has not heard of its peers anew, is refused.
            a, b = a - {"refused"}, b - {"refused"}
        if a == b or line in by_pace:
            continue
        more, less = (simulated, real) if b < a else (real, simulated)
        why = (
            _shorter([machine], more, less)
            or _on_their_way(line, more, less)
            or _cells(profiles, [machine], "interrupts")
        )
        yield Difference("interrupts", f"{machine}, vector {vector}", _set(a), _set(b), why)
    for group in simulated.fates:
        a, b = simulated.fates[group], real.fates.get(group, frozenset())
        if a != b:
            members = [machine.name for machine in topology.machines if machine.group == group]
            yield Difference("interrupts", group, _set(a), _set(b), _cells(profiles, members, "interrupts"))


def _on_their_way(line: Line, more: Facts, less: Facts) -> str:
    """In words, that the only doorbells of a line had not arrived when the slower run ended; or ""."""
    if not less.pending.get(line) or more.lines.get(line, frozenset()) - less.lines.get(line, frozenset()) != ARRIVED:
        return ""
    return f"pace: {less.pending[line]} doorbells were still on their way there"


def _set(words: frozenset[str]) -> str:
    return " and ".join(sorted(words)) or "none"


def _ends(topology: Topology, profiles: Mapping[str, str], simulated: Facts, real: Facts) -> Iterator[Difference]:
    everyone = [machine.name for machine in topology.machines]
    if simulated.status != real.status:
        why = _cells(profiles, everyone, "end")
        yield Difference("end", "the run", simulated.status, real.status, why)
    for run, name in ((simulated, "simulated"), (real, "real")):
        if not run.balanced:
            yield Difference("end", f"the counts of the {name} run", "", "they do not balance")
    for machine in sorted(simulated.ends.keys() | real.ends.keys()):
        a, b = simulated.ends.get(machine, "as told"), real.ends.get(machine, "as told")
        if a != b:
            yield Difference("end", machine, a, b, _cells(profiles, [machine], "end"))
    for action in sorted(set(simulated.actions) ^ set(real.actions)):
        machine, do, why_not = action
        told = [f"{do}: {why_not or 'done'}" if action in run.actions else "not so" for run in (simulated, real)]
        why = _start(machine, simulated, real) or _cells(profiles, [machine], "end")
        yield Difference("actions", machine or "a server", told[0], told[1], why)


def _start(machine: str, simulated: Facts, real: Facts) -> str:
    """In words, that a machine takes another time to start: what is done to it then may find it in another state."""
    if simulated.stays(machine) and real.stays(machine):
        return ""
    times = [f"{run.up[machine][0] / 1e9:.3f} s" if machine in run.up else "never" for run in (simulated, real)]
    return f"start: {machine} was up at {times[0]} simulated, at {times[1]} real" if times[0] != times[1] else ""


def _verdicts(profiles: Mapping[str, str], simulated: Facts, real: Facts) -> Iterator[Difference]:
    from topologies.metrics import find_metric

    for text in simulated.verdicts:
        a, b = simulated.verdicts[text], real.verdicts.get(text)
        if b is None or a.met == b.met:
            continue
        metric = find_metric(a.metric)
        if metric.unit in TIMES or "_ns" in metric.name or "_us" in metric.name:
            why = "pace: a figure of time"
        elif a.got and b.got:
            why = "pace: an amount"
        else:
            why = _cells(profiles, list(profiles), "verdict")
        yield Difference("verdict", text, _verdict(a), _verdict(b), why)


def _verdict(verdict: Any) -> str:
    got = "nothing" if verdict.got is None else f"{verdict.got:g}"
    return f"{'met' if verdict.met else 'not met'} ({got})"


def _memories(
    profiles: Mapping[str, str], simulated: Facts, real: Facts, *, by_pace: set[Line]
) -> Iterator[Difference]:
    for domain, contents in simulated.memory.items():
        a, b = (_written(memory) for memory in (contents, real.memory.get(domain, b"")))
        if a == b:
            continue
        first = min(a ^ b)
        why = "pace: see the rings" if by_pace else _cells(profiles, list(profiles), "memory")
        where = f"domain {domain}, bytes {first * SLOT_BYTES:#x} to {(first + 1) * SLOT_BYTES - 1:#x}"
        more = f", and {len(a ^ b) - 1} more places" if len(a ^ b) > 1 else ""
        told = ["written" if first in written else "not written" for written in (a, b)]
        yield Difference("memory", where + more, told[0], told[1], why)


def _written(contents: bytes) -> set[int]:
    """The numbers of the pieces of 64 bytes that are not all 0."""
    whole = np.frombuffer(contents, np.uint8)[: len(contents) // SLOT_BYTES * SLOT_BYTES]
    return set(np.flatnonzero(whole.reshape(-1, SLOT_BYTES).any(axis=1)).tolist())
