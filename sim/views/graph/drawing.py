"""The content of a picture of a topology: machines or groups, the doorbells between them, and the timeline."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from sim.views.printable import printable
from sim.views.units import SIZES, counted
from topologies import Machine, Machines, TimelineEntry, Topology, Trace
from topologies.actions import ServerAction

# A group of at most the first number is drawn machine by machine, if the picture then has at most the second.
EACH_MAX = 8
NODES_MAX = 24


@dataclass(frozen=True)
class Node:
    """A machine, or a group of ``count``, of which ``absent`` join after the start; ``kinds``: how many of each."""

    name: str
    count: int
    program: str
    vectors: int
    role: str
    profile: str
    kinds: dict[str, int]
    domains: tuple[str, ...]
    absent: int
    notes: tuple[str, ...]
    parameters: str

    @property
    def title(self) -> str:
        return f"{self.name} × {self.count}" if self.count > 1 else self.name

    @property
    def what(self) -> str:
        """The program and the number of vectors."""
        return f"{self.program}, {counted(self.vectors, 'vector')}"

    @property
    def device(self) -> str:
        """The profile; the role and the kind where they are not the default."""
        parts = [self.profile, *([self.role] if self.role != "peer" else [])]
        real = {kind: count for kind, count in self.kinds.items() if kind != "simulated"}
        parts += [kind if count == self.count else f"{count} of {self.count} {kind}" for kind, count in real.items()]
        return ", ".join(parts)

    @property
    def later(self) -> str:
        """How many machines join later; empty when all are present from the start."""
        if not self.absent:
            return ""
        return "joins later" if self.absent == self.count else f"{self.absent} of {self.count} join later"


@dataclass(frozen=True)
class Edge:
    """``source`` rings ``target`` (indices of nodes): the parameters that name the targets, and the number of pairs."""

    source: int
    target: int
    parameters: tuple[str, ...]
    pairs: int

    @property
    def label(self) -> str:
        names = ", ".join(self.parameters)
        return f"{names} × {self.pairs:,}" if self.pairs > 1 else names


@dataclass(frozen=True)
class Cluster:
    """A domain: the nodes (indices) that are in no other domain, and the timeline of its server."""

    name: str
    memory: str
    nodes: tuple[int, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Drawing:
    """``bridges`` are the nodes that are in several domains."""

    title: str
    subtitle: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    clusters: tuple[Cluster, ...]
    bridges: tuple[int, ...]

    @property
    def description(self) -> str:
        """Describe the picture in words, for screen readers."""
        said = [f"{node.title} ({node.what}{', ' + node.later if node.later else ''})" for node in self.nodes[:40]]
        rings = [
            f"{self.nodes[edge.source].title} rings {self.nodes[edge.target].title} ({edge.label})"
            for edge in self.edges[:40]
        ]
        more = len(self.nodes) - len(said), len(self.edges) - len(rings)
        said += [f"and {more[0]} more"] * bool(more[0])
        rings += [f"and {more[1]} more"] * bool(more[1])
        return f"Machines: {'; '.join(said)}. Doorbells: {'; '.join(rings) or 'no machine is named as a target'}."


def draw(topology: Topology, *, each: bool = False) -> Drawing:
    """Return what to draw of ``topology``: large groups as one node, or with ``each`` every machine."""
    singly = {group.name for group in topology.groups if each or group.count <= EACH_MAX}
    if not each and sum(group.count if group.name in singly else 1 for group in topology.groups) > NODES_MAX:
        singly = set()
    members: dict[str, list[Machine]] = defaultdict(list)
    for machine in topology.machines:
        members[machine.name if machine.group in singly else machine.group].append(machine)
    places = {machine.index: place for place, those in enumerate(members.values()) for machine in those}
    notes, server_notes = _notes(topology, members)
    nodes = tuple(_node(name, those, notes[place]) for place, (name, those) in enumerate(members.items()))
    clusters = tuple(
        Cluster(
            domain.name,
            f"{_size(domain.memory.size_bytes)} {domain.memory.kind.replace('_', ' ')}, {domain.dialect}",
            tuple(place for place, node in enumerate(nodes) if node.domains == (domain.name,)),
            tuple(server_notes[domain.name]),
        )
        for domain in topology.domains
    )
    bridges = tuple(place for place, node in enumerate(nodes) if len(node.domains) > 1)
    duration_s = sum(phase.duration_s for phase in topology.phases)
    count = len(topology.machines)
    subtitle = f"{count:,} machine{'' if count == 1 else 's'}, {topology.eventfds:,} eventfds, {duration_s:g} s"
    return Drawing(printable(topology.title), subtitle, nodes, _edges(topology, places), clusters, bridges)


def _node(name: str, machines: list[Machine], notes: list[str]) -> Node:
    first = machines[0]
    plain = {key: value for key, value in first.parameters.items() if not isinstance(value, Machines | Trace)}
    return Node(
        name=name,
        count=len(machines),
        program=printable(first.program),
        vectors=first.vectors,
        role=first.role,
        profile=first.profile,
        kinds=dict(Counter(machine.kind for machine in machines)),
        domains=first.domains,
        absent=sum(not machine.present for machine in machines),
        notes=tuple(notes),
        parameters=printable(", ".join(f"{key} = {value}" for key, value in plain.items())),
    )


def _edges(topology: Topology, places: dict[int, int]) -> tuple[Edge, ...]:
    pairs: Counter[tuple[int, int]] = Counter()
    names: dict[tuple[int, int], dict[str, None]] = defaultdict(dict)
    for machine in topology.machines:
        source, rung = places[machine.index], set()
        for parameter, targets in _named(machine):
            for index in targets:
                names[source, places[index]][printable(parameter)] = None
            rung |= set(targets)
        pairs.update((source, places[index]) for index in rung)
    return tuple(Edge(*at, tuple(names[at]), count) for at, count in sorted(pairs.items()))


def _named(machine: Machine) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The parameters of a machine that name other machines."""
    for parameter, value in machine.parameters.items():
        if isinstance(value, Machines):
            yield parameter, value
        elif isinstance(value, Trace):
            yield parameter, value.machines


def _notes(topology: Topology, members: dict[str, list[Machine]]) -> tuple[list[list[str]], dict[str, list[str]]]:
    """The entries of the timeline, by node and by domain."""
    by_node: list[list[str]] = [[] for _ in members]
    by_domain: dict[str, list[str]] = defaultdict(list)
    for entry in topology.timeline:
        if isinstance(entry.action, ServerAction):
            by_domain[entry.action.domain or topology.domains[0].name].append(_told(entry, ""))
            continue
        concerned = set(entry.machines)
        for notes, those in zip(by_node, members.values(), strict=True):
            its = sum(machine.index in concerned for machine in those)
            if its:
                whom = f" {its} of {len(those)}" if its < len(those) else ""
                notes.append(_told(entry, whom, those[0].index if len(those) == 1 else None))
    return by_node, by_domain


def _told(entry: TimelineEntry, whom: str, alone: int | None = None) -> str:
    """Describe one entry briefly: kill 1 of 16 at 2 s, 3 times. For a machine drawn ``alone``, give its own moment."""
    at_s, every_s = entry.at_s, entry.every_s
    if alone is not None and entry.pick is None and not entry.waits:
        at_s, every_s = at_s + every_s * entry.machines.index(alone), 0.0
    if entry.pick is not None:
        whom = f" {entry.pick} of{whom}" if whom else f" {entry.pick}"
    text = f"{entry.action.do.replace('_', ' ')}{whom}"
    if entry.when is not None:
        text += f" when {entry.when}" + (f", from {at_s:g} s" if at_s else "")
    elif entry.console:
        text += f" when {entry.console!r} is printed" + (f", from {at_s:g} s" if at_s else "")
    else:
        text += f" at {at_s:g} s"
    if every_s:
        text += f", one every {every_s:g} s"
    return text + (f", {entry.repeat} times {entry.period_s:g} s apart" if entry.repeat > 1 else "")


def _size(value_bytes: int) -> str:
    one, unit = next((entry for entry in SIZES[:-1] if value_bytes >= entry[0]), (1, "bytes"))
    return f"{value_bytes / one:g} {unit}"
