"""Delivery of a drained counter, for every engine: record it, deliver it to the machine, record the handling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from nodes.vm import Vm
from sim.engines.shared.recorder import Deliver, Drains, Recorder


class RecordedDevice(Protocol):
    """One device of a machine, and its recorder."""

    @property
    def vm(self) -> Vm: ...
    @property
    def recorder(self) -> Recorder: ...


class Delivery(NamedTuple):
    """The functions for a drained counter. Vectors count through all devices: ``device * vectors + vector``.

    An engine calls ``recorded(clock)`` once, and what that returns for each drain; or, where time passes in between,
    ``drained(vector, count, delivered_ns)``, ``deliver(vector, count)`` and ``handled(handled_ns)``. ``drains`` are
    those of the first device. ``flush()`` stores how many drains there are.
    """

    drained: Callable[[int, int, int], None]
    deliver: Deliver
    handled: Callable[[int], None]
    drains: Drains
    recorded: Callable[[Callable[[], int]], Deliver]
    flush: Callable[[], None]


def make_delivery(devices: Sequence[RecordedDevice], vectors: int) -> Delivery:
    """The delivery to a machine with these devices, each with so many vectors."""
    makers = [device.recorder.make_drains() for device in devices]
    vms = [device.vm for device in devices]
    for device, maker in zip(devices, makers, strict=True):
        device.vm.on_left, device.vm.on_fired = maker.left, device.recorder.count_fired
    if len(devices) == 1:
        only, vm = makers[0], vms[0]
        return Delivery(
            only.drained, vm.deliver, only.handled, only, lambda clock: only.recording(vm, clock), only.flush
        )
    handled_now = makers[0].handled

    def deliver(flat: int, count: int) -> int | None:
        number, vector = divmod(flat, vectors)
        vms[number].deliver(vector, count)
        for vm in vms:
            vm.settle()
        return vms[0].wait

    def drained(flat: int, count: int, delivered_ns: int) -> None:
        nonlocal handled_now
        number, vector = divmod(flat, vectors)
        handled_now = makers[number].handled
        makers[number].drained(vector, count, delivered_ns)

    def handled(handled_ns: int) -> None:
        handled_now(handled_ns)

    def recorded(clock: Callable[[], int]) -> Deliver:
        def deliver_recorded(flat: int, count: int) -> int | None:
            drained(flat, count, clock())
            wait = deliver(flat, count)
            handled(clock())
            return wait

        return deliver_recorded

    def flush() -> None:
        for maker in makers:
            maker.flush()

    return Delivery(drained, deliver, handled, makers[0], recorded, flush)
