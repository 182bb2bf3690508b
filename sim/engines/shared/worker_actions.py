"""The actions that a machine does by itself: one handler for each, whatever the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nodes.guest import Guest, Program
from nodes.vm import Vm
from sim.engines.messages import Act
from sim.engines.shared.failures import blaming_program

MICROSECOND_NS = 1_000


class WorkerActions:
    """A method ``_NAME`` for each `Act`, with the keys of the action as its arguments.

    Args:
        vms: the devices of the machine, the first one first.
        vectors: how many vectors each has.
        delay_interrupts: ``delay_interrupts(delay_ns)`` lets the engine take each interrupt so much later.
        stop_reading: lets the engine read nothing more of what servers send.
        remove_devices: ends the program, removes the devices and closes their connections.

    Attributes:
        program: what the machine runs; None before it begins and after the devices are removed.
    """

    __slots__ = ("_delay_interrupts", "_remove_devices", "_stop_reading", "_vectors", "_vms", "program")

    def __init__(
        self,
        vms: Sequence[Vm],
        vectors: int,
        *,
        delay_interrupts: Callable[[int], object],
        stop_reading: Callable[[], object],
        remove_devices: Callable[[], object],
    ) -> None:
        self._vms, self._vectors = vms, vectors
        self._delay_interrupts, self._stop_reading = delay_interrupts, stop_reading
        self._remove_devices = remove_devices
        self.program: Callable[[Guest], Program] | None = None

    def carry_out(self, act: Act) -> None:
        """Call the handler. The program may have run meanwhile, and may wait for something else now.

        Raises:
            ProgramError: the program has raised.
        """
        with blaming_program():
            getattr(self, f"_{act.do}")(**act.arguments)

    def unplug(self) -> None:
        """Remove the devices; what their counters hold stays there."""
        self.program = None
        self._remove_devices()

    _unplug = unplug

    def _reset(self) -> None:
        if self.program is not None:
            for vm in reversed(self._vms):  # the first one last: its reset starts the program
                vm.reset(self.program)

    def _mask(self, vectors: Sequence[int] | None = None, *, masked: bool = True) -> None:
        for vm in self._vms:
            for vector in vectors or range(self._vectors):
                vm.mask(vector, masked=masked)

    def _unmask(self, vectors: Sequence[int] | None = None) -> None:
        self._mask(vectors, masked=False)

    def _slow(self, delay_us: float) -> None:
        self._delay_interrupts(round(delay_us * MICROSECOND_NS))

    def _deafen(self) -> None:
        self._stop_reading()
