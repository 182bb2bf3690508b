"""What the timeline does to one machine under virtual time, as far as it needs nothing of the coordinator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sim.engines.shared.failures import blaming_program
from sim.engines.virtual.device import VirtualDevice
from sim.engines.virtual.execution import Execution
from sim.engines.virtual.ready_counters import ReadyCounters

__all__ = ["WorkerActions"]

MICROSECOND_NS = 1_000


class WorkerActions:
    """A method for each `topologies.actions.WorkerAction`, by its name, and ``unplug``.

    ``is_plugged``: the machine has connected its devices and they have not been removed.
    """

    __slots__ = (
        "_counters",
        "_devices",
        "_execution",
        "_hang_up",
        "_vectors",
        "is_plugged",
    )

    def __init__(
        self,
        devices: Sequence[VirtualDevice],
        counters: ReadyCounters,
        execution: Execution,
        vectors: int,
        hang_up: Callable[[VirtualDevice], object],
    ) -> None:
        self._devices, self._counters, self._execution = devices, counters, execution
        self._vectors, self._hang_up = vectors, hang_up
        self.is_plugged = False

    def reset(self) -> None:
        if self.is_plugged and self._execution.has_begun:
            for device in reversed(self._devices):
                self._execution.wait = device.vm.reset(self._execution.program)

    def mask(self, vectors: list[int] | None = None, *, masked: bool = True) -> None:
        for device in self._devices:
            for vector in vectors or range(self._vectors):
                device.vm.mask(vector, masked=masked)
        self._execution.wait = self._devices[0].vm.wait

    def unmask(self, vectors: list[int] | None = None) -> None:
        self.mask(vectors, masked=False)

    def slow(self, delay_us: float) -> None:
        self._execution.slow(round(delay_us * MICROSECOND_NS))

    def deafen(self) -> None:
        for device in self._devices:
            if device.link is not None:
                device.link.close()

    def unplug(self) -> None:
        self.is_plugged = False
        self._counters.forget(self._counters.lines)
        with blaming_program():
            for device in self._devices:
                device.vm.unplug()
        self._execution.wait = None
        for device in self._devices:
            device.vm.doorbells.flush()
            self._hang_up(device)
