"""Delivery of a drained counter, for every engine: record it, deliver it to the machine, record the handling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from nodes.vm import Vm
from sim.engines.shared.recorder import Recorder

__all__ = ["RecordedDevice", "make_delivery"]


class RecordedDevice(Protocol):
    """One device of a machine, and its recorder."""

    @property
    def vm(self) -> Vm: ...

    @property
    def recorder(self) -> Recorder: ...


def make_delivery(
    devices: Sequence[RecordedDevice], vectors: int
) -> tuple[Callable[[int, int, int], None], Callable[[int, int], int | None], Callable[[int], None]]:
    """The functions for a drained counter: ``drained``, ``deliver``, ``handled``.

    Their vectors count through all devices: ``device * vectors + vector``.
    """
    makers = [device.recorder.make_drains() for device in devices]
    vms = [device.vm for device in devices]
    for vm, maker in zip(vms, makers, strict=True):
        vm.on_left, vm.on_fired = maker.left, maker.fired
    if len(devices) == 1:
        return makers[0].drained, vms[0].deliver, makers[0].handled
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

    return drained, deliver, handled
