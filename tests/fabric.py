"""Machines in one thread on a virtual clock: what ``sim`` does with processes, as a function of a seed.

Each machine is a `nodes.vm.Vm` with a `nodes.endpoint.Endpoint`, behind a stream that is cut at random. An eventfd is a
number, its counter an entry of a dictionary. Every event has a time in one heap; every delay comes from the seed.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from nodes.device.profiles import PROFILES
from nodes.endpoint import EndpointHooks
from nodes.endpoint_factory import make_endpoint
from nodes.guest import Guest, Program
from nodes.load import STEADY, Load
from nodes.peer_table import AnnouncedPeers, Announcements
from nodes.vm import Vm
from nodes.wire.protocol import MESSAGE_BYTES, V0, Dialect, Message
from nodes.wire.server import Outbound, Server

FULL = (1 << 64) - 2
MEMORY_DESCRIPTOR = -1  # any number: what it stands for is ``Fabric.memory``
MICROSECOND_NS = 1_000


class Wire:
    """One direction of a stream socket that carries descriptors, as its reader sees it."""

    def __init__(self) -> None:
        self.messages: list[tuple[bytes, tuple[Any, ...]]] = []

    def send(self, message: Message[Any]) -> None:
        self.messages.append((message.encode(), message.descriptors))

    def read(self, size: int) -> tuple[bytes, tuple[Any, ...]]:
        """A read joins messages and ends behind bytes that carry descriptors, as in the kernel."""
        taken: bytes = b""
        carried: tuple[Any, ...] = ()
        while self.messages and len(taken) < size and not carried:
            data, carried = self.messages.pop(0)
            piece = data[: size - len(taken)]
            taken += piece
            if piece != data:
                self.messages.insert(0, (data[len(piece) :], ()))
        return taken, carried


class KeptLedger:
    """A ledger in memory."""

    def __init__(self) -> None:
        self.edges: list[tuple[int, int]] = []
        self.stored: dict[int, tuple[int, int]] = {}
        self.samples: list[tuple[int, int, int, int]] = []
        self.nowhere = 0

    def open_edge(self, peer: int, vector: int) -> int:
        self.edges.append((peer, vector))
        return len(self.edges) - 1

    def store_edge(self, edge: int, rung: int, refused: int) -> None:
        self.stored[edge] = rung, refused

    def sample(self, edge: int, rung: int, refused: int, intended_ns: int, rung_ns: int) -> None:
        self.store_edge(edge, rung, refused)
        self.samples.append((*self.edges[edge], intended_ns, rung_ns))

    def store_nowhere(self, rung: int) -> None:
        self.nowhere = rung


class Machine:
    """One machine of a fabric, in the place of a worker process."""

    def __init__(
        self, fabric: Fabric, name: str, program: Callable[[Guest], Program], vectors: int, options: dict[str, Any]
    ) -> None:
        self.fabric, self.name = fabric, name
        self.wire = Wire()
        self.ledger = KeptLedger()
        self.delivered = [0] * vectors
        self.present = True
        self._program = program
        self._turn = 0  # grows with each resume of the program; earlier deadlines are void
        self._poked = False
        self.started = False
        self.vm = Vm(
            PROFILES[options.pop("profile", "qemu-doorbell")],
            vectors=vectors,
            role=options.pop("role", "peer"),
            signal=fabric.signal,
            ledger=self.ledger,
            clock=lambda: fabric.now_ns,
            random=random.Random(f"{fabric.seed}/{name}"),
            sample_every=options.pop("sample_every", 1),
        )
        assert not options, options
        self.odd: list[str] = []
        self.endpoint = make_endpoint(
            self.vm,
            AnnouncedPeers(fabric.announcements, vectors),
            EndpointHooks(
                place=lambda peer, _: self.vm.place(peer, memoryview(fabric.memory)),
                warn=self.odd.append,
            ),
        )
        self.own = self.endpoint.own
        self.interrupts = [0] * vectors  # counted as engines do: one for each drain that is not left, and fired ones
        self.vm.on_left = lambda vector, pended, lost: self._count_interrupt(vector, -1)
        self.vm.on_fired = self._count_interrupt

    def _count_interrupt(self, vector: int, interrupts: int = 1) -> None:
        self.interrupts[vector] += interrupts

    @property
    def peer(self) -> int:
        assert self.endpoint.peer is not None
        return self.endpoint.peer

    def read_server(self, size: int) -> None:
        if self.vm.device.profile.client == "2012":
            size = MESSAGE_BYTES  # a message that is cut is a defect of its own (row 56)
        self.endpoint.receive(*self.wire.read(size))
        assert not self.odd, self.odd

    def start(self) -> None:
        """Start the program; the first start is the start of the run."""
        fabric, guest = self.fabric, self.vm.guest
        if fabric.start_ns is None:
            fabric.start_ns = fabric.now_ns
        guest.start_ns, guest.joined_ns, guest.load = fabric.start_ns, fabric.now_ns, fabric.load
        self.started = True
        if late_ns := fabric.late_ns():
            fabric.after(late_ns, self._begin)
        else:
            self._begin()

    def _begin(self) -> None:
        self._wait(self.vm.start(self._program))
        self.poke()

    def poke(self) -> None:
        """One of the own counters is no longer zero."""
        if not self._poked and self.started:
            self._poked = True
            self.fabric.after(self.fabric.delay(), self._drain)

    def _drain(self) -> None:
        self._poked = False
        if not self.present:
            return
        for line, vector in self.own.items():
            count = self.fabric.counters[line]
            if count:
                self.fabric.counters[line] = 0
                self.delivered[vector] += count
                self.fabric.note(self.name, "delivered", vector, count)
                self._count_interrupt(vector)
                self._wait(self.vm.deliver(vector, count))

    def _wait(self, wait: int | None) -> None:
        self._turn += 1
        if wait is not None:
            turn = self._turn
            at_ns = max(wait, self.fabric.now_ns + MICROSECOND_NS) + self.fabric.late_ns()
            self.fabric.at(at_ns, lambda: self._expire(turn))

    def _expire(self, turn: int) -> None:
        if turn == self._turn and self.present:
            self._wait(self.vm.expire())


class Fabric:
    """All machines, their server, their memory and the clock.

    Args:
        seed: of all delays and of the programs' random numbers.
        dialect: what the server speaks.
        memory_bytes: the size of the shared memory.
        load: the load of the run.
        slower: how many times slower the host is: delays are longer by that factor, and timers expire late.
    """

    def __init__(
        self, seed: int, *, dialect: Dialect = V0, memory_bytes: int = 4096, load: Load = STEADY, slower: int = 1
    ) -> None:
        self.seed = seed
        self.load = load
        self.slower = slower
        self.start_ns: int | None = None
        self.now_ns = 1_000_000
        self.memory = bytearray(memory_bytes)
        self.server: Server[int] = Server(MEMORY_DESCRIPTOR, dialect=dialect)
        self.announcements = Announcements()
        self.machines: dict[int, Machine] = {}
        self.departed: list[Machine] = []
        self.counters: Counter[int] = Counter()
        self.limits: dict[int, int] = {}
        self.owners: dict[int, tuple[Machine, int]] = {}
        self.trace: list[tuple[object, ...]] = []
        self._random = random.Random(seed)
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._lines = itertools.count(100)

    # Time

    def at(self, moment_ns: int, callback: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (max(moment_ns, self.now_ns), next(self._order), callback))

    def after(self, delay_ns: int, callback: Callable[[], None]) -> None:
        self.at(self.now_ns + delay_ns, callback)

    def delay(self) -> int:
        return self._random.randrange(1, 20) * MICROSECOND_NS * self.slower

    def late_ns(self) -> int:
        return self.delay() if self.slower > 1 else 0

    def run(self, until_ns: int) -> None:
        """Process all events up to ``until_ns``."""
        while self._heap and self._heap[0][0] <= until_ns:
            self.now_ns, _, callback = heapq.heappop(self._heap)
            callback()
        self.now_ns = until_ns

    def run_for(self, seconds: float) -> None:
        self.run(self.now_ns + round(seconds * 1e9))

    def note(self, *what: object) -> None:
        self.trace.append((self.now_ns, *what))

    # Eventfds

    def signal(self, line: int, value: int) -> None:
        if self.counters[line] + value > self.limits.get(line, FULL):
            raise BlockingIOError
        self.counters[line] += value
        self.owners[line][0].poke()

    # Machines

    def join(
        self, program: Callable[[Guest], Program], *, vectors: int = 1, start: bool = True, **options: Any
    ) -> Machine:
        """A machine connects; its program starts when every machine has read the announcements."""
        peer = self.server.next_peer
        machine = Machine(self, f"machine-{peer}", program, vectors, options)
        lines = [next(self._lines) for _ in range(vectors)]
        for vector, line in enumerate(lines):
            self.owners[line] = machine, vector
        self.machines[peer] = machine
        self.announcements.join(peer, lines)
        self._tell(self.server.join(lines)[1])
        if start:
            self.settle()
            machine.start()
        return machine

    def leave(self, machine: Machine) -> None:
        """A machine ends at once, as by SIGKILL; its counters keep what they hold."""
        machine.present = False
        machine.vm.doorbells.flush()
        del self.machines[machine.peer]
        self.departed.append(machine)
        self.note(machine.name, "left")
        self.announcements.leave(machine.peer)
        self._tell(self.server.leave(machine.peer))

    def _tell(self, messages: list[Outbound[Any]]) -> None:
        for to, message in messages:
            machine = self.machines[to]
            machine.wire.send(message)
            self.after(self.delay(), functools.partial(self._read, machine))

    def _read(self, machine: Machine) -> None:
        if machine.present and machine.wire.messages:
            machine.read_server(self._random.randrange(1, 25))
            if machine.wire.messages:
                self.after(self.delay(), lambda: self._read(machine))

    def settle(self) -> None:
        """Run until every machine has read all messages of the server."""
        while any(machine.wire.messages for machine in self.machines.values()):
            self.run(self._heap[0][0])

    # Counts

    def stop(self) -> None:
        for machine in self.machines.values():
            machine.vm.stop()
            machine.vm.doorbells.flush()

    def rung(self) -> Counter[tuple[int, int]]:
        """(peer, vector) -> doorbells that all machines have rung there."""
        return self._sum(0)

    def refused(self) -> Counter[tuple[int, int]]:
        return self._sum(1)

    def _sum(self, which: int) -> Counter[tuple[int, int]]:
        total: Counter[tuple[int, int]] = Counter()
        for machine in (*self.machines.values(), *self.departed):
            for edge, counts in machine.ledger.stored.items():
                total[machine.ledger.edges[edge]] += counts[which]
        return total

    def check_balance(self) -> None:
        """Rung = delivered + pending + refused, on every line."""
        self.stop()
        rung, refused = self.rung(), self.refused()
        for line, (machine, vector) in self.owners.items():
            at = machine.peer, vector
            accounted = machine.delivered[vector] + self.counters[line] + refused[at]
            assert rung[at] == accounted, (at, rung[at], machine.delivered[vector], self.counters[line], refused[at])
