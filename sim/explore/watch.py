"""Watches the interrupts of every machine: each has a cause, and each masked vector stays silent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nodes.device.msix import Undelivered
from nodes.guest import STEP, Guest, Interrupt, Program
from nodes.vm import Vm
from sim.engines.virtual.cpus import Task


class InterruptWatch:
    """A `sim.engines.virtual.host.Watcher`; ``found(invariant, reason)`` is told what does not hold.

    ``on_wait`` and ``on_resume`` are called when a program yields, and when it is resumed after that; ``after`` with a
    machine after each of its events.
    """

    def __init__(self, found: Callable[[str, str], object], after: Callable[[Task], object]) -> None:
        self._found, self._after = found, after
        self.on_wait: Callable[[int | None], object] | None = None
        self.on_resume: Callable[[Interrupt | None], object] | None = None
        self._pending: dict[Vm, int] = {}
        """Of each device, the vectors that a masked doorbell has left pending, as bits."""
        self._running: set[Guest] = set()
        self._draining: tuple[Vm, int, int, bool] | None = None
        """The device, the vector, the doorbells and whether it is masked, until the interrupt comes."""

    def after(self, task: Task) -> None:
        self._after(task)

    def program(self, vm: Vm, program: Callable[[Guest], Program]) -> Callable[[Guest], Program]:
        def watched(guest: Guest) -> Program:
            for device in guest.devices:
                self._pending = {each: bits for each, bits in self._pending.items() if each.guest is not device}
            running, interrupt = program(guest), None
            self._running.add(guest)
            try:
                while True:
                    wait = running.send(interrupt)
                    if self.on_wait is not None:
                        self.on_wait(wait)
                    interrupt = yield wait
                    if self.on_resume is not None:
                        self.on_resume(interrupt)
                    if interrupt is not None:
                        self._interrupted(guest, interrupt)
            except StopIteration:
                return
            finally:
                self._running.discard(guest)
                running.close()

        return watched

    def delivery(
        self, vms: Sequence[Vm], vectors: int, deliver: Callable[[int, int], int | None]
    ) -> Callable[[int, int], int | None]:
        def watched(flat: int, count: int) -> int | None:
            number, vector = divmod(flat, vectors)
            vm = vms[number]
            msix = vm.device.msix
            if msix is None or not msix.enabled or not vm.device.profile.server:
                return deliver(flat, count)
            masked = msix.masked(vector)
            self._draining = vm, vector, count, masked
            wait = deliver(flat, count)
            draining, self._draining = self._draining, None
            if masked and (msix.pending | msix.kept) >> vector & 1:
                self._pending[vm] = self._pending.get(vm, 0) | 1 << vector
            elif masked and vm.device.profile.ring_while_masked is Undelivered.PEND and draining is not None:
                self._found("an interrupt is not lost", f"a doorbell at masked vector {vector} left no pending bit")
            elif not masked and draining is not None and msix.bus_master and vms[0].guest in self._running:
                self._found("an interrupt is not lost", f"{count} doorbells at vector {vector} interrupted nothing")
            return wait

        return watched

    def look(self, vm: Vm) -> None:
        """Compare the pending bits of a device with those that doorbells have left."""
        bits = self._pending.get(vm, 0)
        msix = vm.device.msix
        if not bits or msix is None or vm.device.effects or vm.wait == STEP:
            return
        if lost := bits & ~(msix.pending | msix.kept):
            self._pending[vm] = bits & ~lost
            self._found("an interrupt is not lost", f"the pending bits {lost:#x} are clear, and nothing has fired")

    def _interrupted(self, guest: Guest, interrupt: Interrupt) -> None:
        draining = self._draining
        if draining is not None and draining[0].number == interrupt.device and draining[1] == interrupt.vector:
            _, vector, count, masked = draining
            self._draining = None
            if masked:
                self._found("a masked vector is silent", f"vector {vector} is masked, and has fired")
            elif interrupt.doorbells != count:
                told = f"{count} doorbells were taken at vector {vector}, and the interrupt has {interrupt.doorbells}"
                self._found("no interrupt from nothing", told)
            return
        its = guest.devices[interrupt.device]
        if its.device.msix is None or not its.device.msix.enabled or not its.device.profile.server:
            return
        vm = next((pending for pending in self._pending if pending.guest is its), None)
        bit = 1 << interrupt.vector
        if vm is None or not self._pending.get(vm, 0) & bit:
            told = f"vector {interrupt.vector} has fired, and no doorbell has arrived or was pending"
            self._found("no interrupt from nothing", told)
        else:
            self._pending[vm] &= ~bit
