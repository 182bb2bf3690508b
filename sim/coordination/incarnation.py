"""The coordinator's state of one incarnation of a machine, from its start to its end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from sim.engines.base import DeviceRow, LiveMachine
from sim.recording import Recording
from topologies import Machine, Machines, Trace

MIGRATED, FAILED, REFUSED = "migrated", "migrations_failed", "migrations_refused"
MIGRATION_METRICS = MIGRATED, FAILED, REFUSED


@dataclass
class OngoingMigration:
    """A migration under way: to which domain, with which ID there (once it has joined)."""

    domain: int
    peer: int | None = None


@dataclass(eq=False, slots=True)
class Incarnation:
    """A machine joins, leaves and joins again: each time is an incarnation with recordings and IDs of its own.

    ``rows`` and ``recordings`` have one item for each device. ``live`` is the machine as its engine runs it.
    """

    machine: Machine
    name: str
    rows: list[DeviceRow]
    recordings: list[Recording]
    live: LiveMachine = field(init=False)

    peers: list[int | None] = field(init=False)
    """Its ID in each of its domains, once it has joined there."""
    greetings: list[int | None] = field(init=False)
    """How many eventfds each greeting contains."""
    identities: list[tuple[int, int, int]] = field(default_factory=list)
    """Every (row, domain, peer) that a server has known it as, migrations included."""
    moves: list[tuple[int, int, int, int]] = field(default_factory=list)
    """Every (row, domain, peer, ns) that a migration has given it, and since when."""

    started: bool = False
    ready: bool = False
    stopped: bool = False
    stalled: bool = False
    unplugged: bool = False
    left: bool = False
    """Whether it has left its domains, as ordered, and runs on without a device."""
    killed: bool = False
    """Whether it was killed because it did not stop when told to."""
    garbled: bool = False
    """Whether its server has sent it something malformed: it may end because of that."""
    ending: str | None = None
    """The action that ends it: its end is then no accident."""
    failure: str | None = None
    exit: str | None = None
    """How it ended, "" when as it should; None while it has not."""
    migration: OngoingMigration | None = None
    migrations: Counter[str] = field(default_factory=Counter)
    """How many of its migrations have ended how, by metric."""

    def __post_init__(self) -> None:
        self.peers = [None] * len(self.rows)
        self.greetings = [None] * len(self.rows)

    @property
    def is_running(self) -> bool:
        return self.started and self.exit is None

    @property
    def is_up(self) -> bool:
        """Whether it has joined all its domains, and has neither left them nor ended."""
        return self.ready and not self.left and self.exit is None

    @property
    def is_accident(self) -> bool:
        """Whether an end now would be an accident: the timeline has not asked for it."""
        return self.ending is None and not self.garbled

    def depart(self) -> dict[str, Any]:
        """Note that it has left as ordered and runs on; returns the fields of the event."""
        fields = {"machine": self.name, "how": "left", "action": self.ending}
        self.left, self.ending = True, None
        return fields

    def remain(self, reason: str) -> dict[str, Any]:
        """Note that it was to leave and has not; returns the fields of a warning."""
        text = f"{self.ending} was not done: {reason}"
        self.ending = None
        return {"machine": self.name, "text": text}


def named_machines(machine: Machine) -> set[int]:
    """The machines that a machine's program works with."""
    found: set[int] = set()
    for value in machine.parameters.values():
        match value:
            case Machines():
                found.update(value)
            case Trace(machines=machines):
                found.update(machines)
    return found
