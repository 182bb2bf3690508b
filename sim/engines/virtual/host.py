"""The objects that machines under virtual time share: the clock, the CPUs, the costs, the servers, all counters."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from nodes.bursts import Batch
from nodes.guest import Guest, Program
from nodes.vm import Vm
from sim.engines.virtual.batch import CounterBatch
from sim.engines.virtual.chaos import Decisions
from sim.engines.virtual.cost_model import CostModel, make_draw
from sim.engines.virtual.counter import VirtualCounter
from sim.engines.virtual.cpus import Cpus, Task
from sim.engines.virtual.loop import VirtualLoop
from sim.engines.virtual.plain_slice import make_has_more, make_plain_slice
from sim.engines.virtual.server import VirtualServer
from sim.kernel.memory import map_region


class Watcher(Protocol):
    """Sees what machines do, and changes nothing (`sim.explore`)."""

    def program(self, vm: Vm, program: Callable[[Guest], Program]) -> Callable[[Guest], Program]:
        """The program of a machine, as it is to be started."""

    def delivery(
        self, vms: Sequence[Vm], vectors: int, deliver: Callable[[int, int], int | None]
    ) -> Callable[[int, int], int | None]:
        """The function that delivers a drained counter to a machine, as it is to be called."""

    def after(self, task: Task) -> None:
        """An event of a machine is over."""


class VirtualHost:
    """One for a run. ``signal(line, 1)`` is the ring of all machines: it costs the ringing machine its time.

    ``make_batch(lines)`` prepares the same for each of many.
    """

    def __init__(
        self, loop: VirtualLoop, model: CostModel, seed: str, decisions: Decisions, watcher: Watcher | None = None
    ) -> None:
        self.loop, self.model, self.decisions, self.watcher = loop, model, decisions, watcher
        self.cpus = Cpus(loop, model, seed, None if watcher is None else watcher.after)
        self.now_ns = loop.clock.now_ns  # bound once for all machines
        self.servers: list[VirtualServer] = []
        self.announced = 0
        """How many announcements to all machines there were, of all servers."""
        self.handle_cost = make_draw(model.handle_ns, f"{seed}/handle")
        self.start_delay = make_draw(model.start_ns, f"{seed}/start")
        self.wire_delay = make_draw(model.wire_ns, f"{seed}/wire")
        self.has_more = make_has_more(loop, self.cpus, make_draw(model.expire_ns, f"{seed}/expire"))
        self.cpus.slice = make_plain_slice(self, loop.clock, model, self.handle_cost, self.has_more)
        self._counters: list[VirtualCounter] = []
        self.holding: set[VirtualCounter] = set()
        """The counters that hold doorbells without a time: only these can be full."""
        self._mappings: list[mmap.mmap] = []
        self.running: object | None = None
        """The machine whose program runs now; the watchdog ends it if the program does not return."""
        self.ticks = 0
        """How long it has run, in ticks of the watchdog."""
        self.signal = self._make_signal()
        self.make_batch: Callable[[Sequence[int]], Batch] = self._make_batch
        self.charge_ignored: Callable[[int], object] = self._charge_ignored  # bound once for all machines

    def announce(self) -> None:
        """A server has announced something to all machines."""
        self.announced += 1

    def add_counter(self, counter: VirtualCounter) -> int:
        """The line of a new counter."""
        self._counters.append(counter)
        return len(self._counters) - 1

    def counter(self, line: int) -> VirtualCounter:
        """The counter of a line."""
        return self._counters[line]

    def wire_delay_to(self, machine: str) -> Callable[[], int]:
        """The delays of messages to a machine."""
        cost, delay = self.wire_delay, self.decisions.delays("message", machine)
        return cost if delay is None else lambda: cost() + delay()

    def memory(self, domain: int, *, own: bool) -> memoryview:
        """The memory of a domain. A machine that may migrate has an ``own`` mapping, which is exchanged under it."""
        server = self.servers[domain]
        if not own:
            return server.memory
        mapping = map_region(server.descriptor)
        self._mappings.append(mapping)
        return memoryview(mapping)

    def _make_signal(self) -> Callable[[int, int], object]:
        counters, clock, ring_ns = self._counters, self.loop.clock, self.model.ring_ns
        wake: Callable[[Any, int], object] = self.cpus.wake

        def signal(line: int, _: int) -> None:
            clock.ns = now_ns = clock.ns + ring_ns
            counter = counters[line]
            if counter.held:
                counter.ring(now_ns)
                return
            counter.append(now_ns)
            if len(counter) == 1 and counter.is_heard:  # as `CounterOwner.rung`, without the call
                owner = counter.owner
                owner.queue.append(counter)
                if not owner.queued:
                    wake(owner, now_ns)

        return signal

    def _charge_ignored(self, count: int) -> None:
        """A doorbell that reaches no peer costs its write, too; the others have paid in ``signal``."""
        self.loop.clock.ns += count * self.model.ring_ns

    def _make_batch(self, lines: Sequence[int]) -> Batch:
        model = self.model
        counters = list(map(self.counter, lines))
        return CounterBatch(counters, self.loop.clock, model.ring_ns, model.burst_ring_ns, self.holding)
