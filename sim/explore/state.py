"""The state of a run, as invariants of a topology see it."""

from __future__ import annotations

from collections.abc import Mapping

from sim.engines.virtual.host import VirtualHost
from sim.engines.virtual.machine import VirtualMachine


class RunState:
    """What a function of ``[[invariant]]`` is called with. It must change nothing.

    Attributes:
        start_ns: when the programs started; 0 before that.
    """

    def __init__(self, host: VirtualHost) -> None:
        self._host = host
        self._machines: dict[str, VirtualMachine] = {}
        self.start_ns = 0

    def add(self, name: str, machine: VirtualMachine) -> None:
        """A machine, or its latest incarnation."""
        self._machines[name] = machine

    @property
    def time_ns(self) -> int:
        """The time since the programs started, in nanoseconds."""
        return self._host.loop.clock.ns - self.start_ns

    @property
    def memory(self) -> memoryview:
        """The shared memory of the first domain, bytes."""
        return self._host.servers[0].memory

    def memory_of(self, domain: int) -> memoryview:
        """The shared memory of the domain with that number."""
        return self._host.servers[domain].memory

    @property
    def machines(self) -> list[str]:
        """The names of the machines that have started."""
        return list(self._machines)

    def statistics(self, machine: str) -> Mapping[str, int | float]:
        """What the program of a machine has counted in ``guest.statistics``."""
        return self._machines[machine].devices[0].vm.guest.statistics

    def is_running(self, machine: str) -> bool:
        """Whether the machine has started and has not ended."""
        return self._machines[machine].is_running

    def pending(self, machine: str) -> int:
        """How many doorbells the machine has not taken yet."""
        return self._machines[machine].counters.pending()
