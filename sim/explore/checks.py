"""The invariants of every run, checked after the events of machines, and those of the topology."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

from sim.coordination.coordinator import Coordinator
from sim.coordination.machines import LiveMachines
from sim.engines.base import COUNTER_MAX, LiveMachine
from sim.engines.virtual.chaos import Decisions
from sim.engines.virtual.cpus import Task
from sim.engines.virtual.device import VirtualDevice
from sim.engines.virtual.engine import VirtualEngine
from sim.engines.virtual.machine import VirtualMachine
from sim.engines.virtual.server import VirtualServer
from sim.explore.outcome import Broken
from sim.explore.state import RunState
from sim.explore.tracer import Tracer
from sim.explore.watch import InterruptWatch
from sim.recording import header
from sim.recording.reader import vectors_so_far
from topologies import Invariant, Topology
from topologies.resolve.importing import import_program

PEER_BITS = VECTOR_BITS = 16
LOW = (1 << VECTOR_BITS) - 1
MILLISECOND_NS = 1_000_000
LEFT_BEFORE = re.compile(r"peer (\d+) left, but was never connected or had left before")
"""A client's warning of a leave that it has been told before (`nodes.wire.client`)."""
FILLED = COUNTER_MAX // 2
"""A counter that holds more has been filled by an action, which keeps what it held before."""


class BrokenInvariantError(Exception):
    """An invariant does not hold: the run need not go on."""

    def __init__(self, broken: Broken) -> None:
        super().__init__(str(broken))
        self.broken = broken


class _Liveness:
    """A result that is not True changes in time."""

    def __init__(self, within_ns: int) -> None:
        self.within_ns = within_ns
        self.since_ns, self.value = 0, object()

    def is_late(self, value: object, now_ns: int) -> bool:
        if value is True or value != self.value:
            self.since_ns, self.value = now_ns, value
            return False
        return now_ns - self.since_ns > self.within_ns


class Checks:
    """Checks one run. ``coordinator`` is set when it has been made.

    Args:
        topology: whose invariants are checked, too.
        balance_every: the counts of all lines are compared once in so many events, and at the end.
    """

    coordinator: Coordinator

    def __init__(self, topology: Topology, decisions: Decisions, *, balance_every: int) -> None:
        self._balance_every, self._until_balance = balance_every, balance_every
        self.events = 0
        self.tracer: Tracer | None = None
        self.interrupts = InterruptWatch(self._found, self._after)
        self.engine = ExploredEngine(topology, decisions, self)
        self._clock = self.engine.loop.clock
        self.state = RunState(self.engine.host)
        self._own: list[tuple[Invariant, Callable[[RunState], object], _Liveness | None]] = [
            (
                invariant,
                import_program(invariant.that),
                None if invariant.within_ms is None else _Liveness(round(invariant.within_ms * MILLISECOND_NS)),
            )
            for invariant in topology.invariants
        ]
        self._broken: Broken | None = None
        self._heard: dict[VirtualDevice, tuple[int, int, int]] = {}
        self._ids: dict[tuple[int, int], object] = {}
        self._admitted: dict[int, int] = {}

    def _after(self, machine: Task) -> None:
        """Check what an event of a machine can have changed.

        Raises:
            BrokenInvariantError: something does not hold.
        """
        assert isinstance(machine, VirtualMachine)
        if self.tracer is not None:
            self.tracer.after(machine)
        self.events += 1
        for device in machine.devices:
            self.interrupts.look(device.vm)
            self._check_peers(device)
        if 0 < self.state.start_ns <= self._clock.ns:  # the programs have started
            self._check_own()
        self._until_balance -= 1
        if not self._until_balance:
            self._until_balance = self._balance_every
            if self.coordinator.phase != "done":  # then the counters have been taken
                self.check_balance()
        if self._broken is not None:
            raise BrokenInvariantError(self._broken)

    def warned(self, machine: str, text: str) -> None:
        found = LEFT_BEFORE.search(text)
        clients = (server.client(int(found[1])) for server in self.engine.host.servers) if found else ()
        if any(client is not None and client.eventfds for client in clients):  # no client hears of one without vectors
            self._found("each leave is told once", f"{machine}: {text}")

    def check_balance(self, pending: dict[tuple[int, int, int], int] | None = None) -> None:
        """Check that rung = delivered + pending + refused on every line.

        Args:
            pending: what the counters held at the end, by (domain, peer, vector); None while they hold it.
        """
        servers = self.engine.host.servers
        for incarnation in self.coordinator.machines.incarnations if pending is None else ():
            self.engine.flush(incarnation.live)

        def held(domain: int, peer: int, vector: int) -> int | None:
            if pending is not None:
                return pending.get((domain, peer, vector), 0)
            its = servers[domain].clients_of(peer)
            value = sum(client.eventfds[vector].value for client in its if vector < len(client.eventfds))
            return None if value > FILLED else value

        if wrong := _unbalanced_line(self.coordinator.machines, held):
            self._found("rung = delivered + pending + refused", wrong)

    def finish(self, status: str, reason: str, pending: dict[tuple[int, int, int], int]) -> Broken | None:
        """Check how the run ended; the first invariant that was broken."""
        if status != "finished":
            self._found("no machine fails", reason)
        else:
            self.check_balance(pending)
        return self._broken

    def _found(self, invariant: str, reason: str, kind: Literal["safety", "liveness"] = "safety") -> None:
        if self._broken is None:
            self._broken = Broken(invariant, kind, reason, self.state.time_ns, self.events)

    def _check_own(self) -> None:
        for invariant, function, liveness in self._own:
            try:
                value = function(self.state)
            except Exception as error:  # a function of the topology's author can raise anything; assertions above all
                self._found(invariant.name, f"{type(error).__name__}: {error}".rstrip(": "))
                return
            if liveness is None:
                if value is not True:
                    self._found(invariant.name, f"expected True, got {value!r}")
            elif liveness.is_late(value, self._clock.ns):
                self._found(invariant.name, f"{value!r} for more than {invariant.within_ms:g} ms", "liveness")

    def _check_peers(self, device: VirtualDevice) -> None:
        """A machine that has read all that its server said knows the connected machines, by their own lines."""
        link, domain = device.link, device.recorder.domain
        if link is None or not link.is_read or not device.is_met or not device.vm.device.profile.server:
            return
        server = self.engine.host.servers[domain]
        seen = server.version, device.vm.guest.generation, id(link)
        if self._heard.get(device) == seen:
            return
        self._heard[device] = seen
        self._check_ids(domain, server)
        if link not in {client.link for client in server.connected}:
            return
        known, peers = device.vm.guest.peers, device.vm.device.peers
        connected = {client.peer: client for client in server.connected if client.eventfds}
        if gone := sorted(known.keys() - connected.keys()):
            self._found("each leave is told once", f"{device.name} knows {gone} that the server has not connected")
        elif missed := sorted(connected.keys() - known.keys()):
            self._found("each join is told", f"{device.name} does not know {missed} that the server has connected")
        for peer, vectors in known.items():
            for vector in range(min(vectors, len(connected[peer].eventfds)) if peer in connected else 0):
                line = peers.line(peer, vector)
                if line is not None and self.engine.host.counter(line) is not connected[peer].eventfds[vector]:
                    self._found("no wrong peer", f"{device.name} would ring another counter than {peer}:{vector}")

    def _check_ids(self, domain: int, server: VirtualServer) -> None:
        """No ID belongs to two machines: at whatever times, or at once where a server gives it again (ivshmem v2)."""
        if self._admitted.get(domain) == server.version:
            return
        self._admitted[domain] = server.version
        if server.reuses_ids:
            for peer, count in Counter(client.peer for client in server.connected).items():
                if count > 1:
                    self._found("one machine, one ID", f"{count} machines have the ID {peer} in domain {domain}")
            return
        for client in server.clients():
            if self._ids.setdefault((domain, client.peer), client) is not client:
                self._found("one machine, one ID", f"two machines had the ID {client.peer} in domain {domain}")


class ExploredEngine(VirtualEngine):
    """The virtual engine with a look after each event of a machine."""

    def __init__(self, topology: Topology, decisions: Decisions, checks: Checks) -> None:
        super().__init__(topology, decisions, checks.interrupts)
        self._checks = checks

    def flush(self, live: LiveMachine) -> None:
        """Store what a machine has rung."""
        assert isinstance(live, VirtualMachine)
        for device in live.devices:
            device.vm.doorbells.flush()

    def make_machine(self, machine: Any, name: str, *others: Any) -> VirtualMachine:
        made = super().make_machine(machine, name, *others)
        self._checks.state.add(machine.name, made)
        return made


def _unbalanced_line(machines: LiveMachines, held: Callable[[int, int, int], int | None]) -> str:
    """The first line whose counts differ, in words; empty when there is none.

    ``held(domain, peer, vector)`` is what the counter of a line holds; None: it cannot be told now.
    """
    rung, reached = _rung(machines), _delivered(machines)
    unknown: set[tuple[int, int]] = set()
    for incarnation in machines.incarnations:
        for row, domain, peer in incarnation.identities:
            if (last := machines.row_of[domain, peer]) != row:  # an ID that is reused: all is counted at the last row
                for vector in range(incarnation.machine.vectors):
                    reached[last, vector] += reached.pop((row, vector), 0)
                continue
            for vector in range(incarnation.machine.vectors):
                if (value := held(domain, peer, vector)) is None:
                    unknown.add((row, vector))
                else:
                    reached[row, vector] += value
    for line in rung | reached:
        if line not in unknown and rung[line] != reached[line]:
            name = next(
                row.name for incarnation in machines.incarnations for row in incarnation.rows if row.row == line[0]
            )
            return f"{rung[line]} doorbells were rung at {name}:{line[1]}, and {reached[line]} were delivered or wait"
    return ""


def _rung(machines: LiveMachines) -> Counter[tuple[int, int]]:
    """How many doorbells were rung at each (row, vector), without those that were refused."""
    rung: Counter[tuple[int, int]] = Counter()
    row_of = machines.row_of
    for incarnation in machines.incarnations:
        for recording in incarnation.recordings:
            words, at = recording.words, recording.layout.edges_at
            for edge in range(at, at + 3 * words[header.EDGES_USED], 3):
                key = words[edge]
                row = row_of.get((key >> VECTOR_BITS + PEER_BITS, key >> VECTOR_BITS & LOW))
                if row is not None:
                    rung[row, key & LOW] += words[edge + 1] - words[edge + 2]
    return rung


def _delivered(machines: LiveMachines) -> Counter[tuple[int, int]]:
    """How many doorbells were delivered at each (row, vector)."""
    delivered: Counter[tuple[int, int]] = Counter()
    for incarnation in machines.incarnations:
        for row, recording in zip(incarnation.rows, incarnation.recordings, strict=True):
            for vector, count in enumerate(vectors_so_far(recording)[:, 0].tolist()):
                delivered[row.row, vector] = count
    return delivered
