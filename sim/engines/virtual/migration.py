"""A migration under virtual time: the machine pauses, its device is saved, and it goes on with another device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from nodes.errors import IvshmemError
from sim.engines import messages
from sim.engines.messages import Migrate, Report
from sim.engines.process.migration import IncomingDevice
from sim.engines.virtual.announced_link import AnnouncedLink
from sim.engines.virtual.device import VirtualDevice
from sim.engines.virtual.host import VirtualHost
from sim.engines.virtual.link import VirtualLink
from sim.engines.virtual.ready_counters import ReadyCounters
from sim.recording import header

FAULT_NS = 1_000_000
COPY_NS_PER_KIB = 250


class Migrating(Protocol):
    """The machine, as its migration needs it."""

    devices: list[VirtualDevice]
    counters: ReadyCounters

    def connect(self, number: int, domain: int, place: Callable[[int, int], object] | None = None) -> None: ...
    def end_migration(self) -> None: ...
    def report(self, report: Report) -> None: ...
    def hang_up(self, link: VirtualLink | AnnouncedLink) -> None: ...
    def kill(self) -> None: ...


class VirtualMigration:
    """One migration of a machine's only device. ``fault`` is `topologies.actions.Fault`."""

    def __init__(self, machine: Migrating, host: VirtualHost, order: Migrate) -> None:
        self._machine, self._host, self._order = machine, host, order
        self._paused_ns = host.loop.clock.ns
        self._device = device = machine.devices[0]
        device.vm.doorbells.flush()
        self._state = device.vm.device.save()
        self._old = device.vm.device
        self._old_link, self._old_endpoint = device.link, device.endpoint
        self._old_lines = machine.counters.lines
        self._arrival: IncomingDevice | None = None
        self._over = False
        self._copied_ns = 0

    def begin(self) -> None:
        """Begin it: it may fail, and so end, at once."""
        machine, host, order = self._machine, self._host, self._order
        match order.fault:
            case "target_dies":
                host.loop.after(FAULT_NS, lambda: self.fail("its new process died"))
            case "source_dies":
                host.loop.after(FAULT_NS, machine.kill)
            case "server_gone":
                host.loop.after(FAULT_NS, lambda: self.fail(f"no server listens in domain {order.domain}"))
            case _ if order.hand_over:
                host.loop.after(FAULT_NS, self._complete)
            case _:
                self._go()

    def _go(self) -> None:
        """Connect a new device to the server of the target's domain."""
        machine, device = self._machine, self._device
        elsewhere = self._order.domain != device.recorder.domain
        machine.counters.forget(self._old_lines)
        try:
            self._arrival = IncomingDevice(device.vm, self._state, elsewhere=elsewhere, fault=self._order.fault)
            machine.connect(0, self._order.domain, self._arrival.take)
        except IvshmemError as error:
            self.fail(str(error))

    def proceed(self) -> None:
        """The machine has had its turn: perhaps the new device has met all peers."""
        if self._over or self._arrival is None or not self._device.is_met:
            return
        if not self._copied_ns:
            self._copied_ns = 1 + self._arrival.memory_bytes * COPY_NS_PER_KIB // 1024
            self._host.loop.after(self._copied_ns, self._complete)

    def abandon(self) -> None:
        """The machine has ended."""
        self._over = True
        if self._arrival is not None and self._old_link is not None:
            self._machine.hang_up(self._old_link)

    def fail(self, reason: str) -> None:
        """It comes to nothing: the machine goes on where it was."""
        if self._over:
            return
        self._over = True
        device, machine = self._device, self._machine
        if self._arrival is not None:
            machine.counters.forget(machine.counters.lines)
            if device.link is not None:
                machine.hang_up(device.link)
            device.link, device.endpoint = self._old_link, self._old_endpoint
            device.vm.replace(self._old)
            machine.counters.wait_for(self._old_lines)
        machine.report(messages.Stayed(reason, self._host.loop.clock.ns - self._paused_ns))
        machine.end_migration()

    def _complete(self) -> None:
        if self._over:
            return
        if self._order.fault == "cancel":
            self.fail("it was cancelled")
            return
        self._over = True
        device, machine = self._device, self._machine
        if self._arrival is not None and self._old_link is not None:
            machine.hang_up(self._old_link)
        peer, guest = device.peer, device.vm.guest
        assert peer is not None
        device.recorder.domain = self._order.domain
        device.recording.words[header.PEER], device.recording.words[header.DOMAIN] = peer, self._order.domain
        pending = sum(guest.pending(vector) for vector in range(guest.vectors)) if device.vm.device.msix else 0
        copied = self._arrival.memory_bytes if self._arrival is not None else 0
        downtime_ns = self._host.loop.clock.ns - self._paused_ns
        machine.report(messages.Moved(peer, downtime_ns, len(self._state), copied, pending))
        device.vm.settle()
        machine.end_migration()
