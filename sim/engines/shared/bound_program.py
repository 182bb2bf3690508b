"""The program of a machine in its process: found by its name, with its parameters bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nodes import programs
from nodes.guest import Guest, Program, Trace
from nodes.vm import Vm
from sim.engines.messages import Stopped
from sim.engines.shared.configuration import WorkerConfiguration
from sim.engines.shared.failures import blaming_program
from sim.recording import header
from sim.recording.header import COUNTER_AT

STATISTICS_BYTES_MAX, NUMBER_BYTES = 50_000, 16
ABSENT = -1
"""Stands in a trace for a machine that has no ID yet, so that the indices of the others stay."""


class BoundProgram:
    """A machine's program with its parameters; a call with its guest starts it.

    Parameters that are machines become sequences of their IDs. These change in place when a machine has a new ID.
    """

    __slots__ = ("_arguments", "_foreign", "_function", "_ids", "_places", "_sequences")

    def __init__(self, configuration: WorkerConfiguration) -> None:
        self._function = _find(configuration.program)
        self._ids: dict[int, int] = {}
        self._foreign: tuple[int, ...] = ()  # most machines never have one
        self._sequences: list[tuple[tuple[int, ...], bool, list[int]]] = []
        """Machines, whether foreign peers belong to them, and their IDs, of each parameter."""
        self._places: list[tuple[tuple[int, ...], list[int]]] = []
        self._arguments: dict[str, Any] = dict(configuration.parameters)
        for parameter, machines in configuration.peers.items():
            self._arguments[parameter] = sequence = list[int]()
            self._sequences.append((machines, parameter in configuration.foreign, sequence))
        for parameter, (machines, doorbells) in configuration.traces.items():
            places = [ABSENT] * len(machines)
            self._arguments[parameter] = Trace(places, doorbells)
            self._places.append((machines, places))

    def __call__(self, guest: Guest) -> Program:
        return self._function(guest, **self._arguments)

    def learn(self, peers: dict[int, int], *, anew: bool, foreign: Mapping[int, bool]) -> None:
        """These machines have these IDs now; with ``anew``, all other machines have none.

        ``foreign`` are peers that are no machines: by ID, whether it is there.
        """
        if anew:
            self._ids.clear()
            self._foreign = ()
        if foreign:
            kept = [peer for peer in self._foreign if peer not in foreign]
            self._foreign = (*kept, *(peer for peer, is_there in foreign.items() if is_there))
        self._ids.update(peers)
        for machines, with_foreign, sequence in self._sequences:
            sequence[:] = [self._ids[machine] for machine in machines if machine in self._ids]
            sequence += self._foreign if with_foreign else ()
        for machines, places in self._places:
            places[:] = [self._ids.get(machine, ABSENT) for machine in machines]


def _find(name: str) -> Callable[..., Program]:
    function: Callable[..., Program]
    if ":" in name:
        # Not sooner: the whole language comes with it, and costs each machine that loads it more than a megabyte.
        from topologies.resolve.importing import import_program

        function = import_program(name)
    else:
        function = getattr(programs, name)
    return function


def stop_program(vms: Sequence[Vm], words: memoryview[int]) -> Stopped:
    """End the program, and store the counts of doorbells and what it missed.

    Statistics that do not go into the report are a warning of the machine.

    Args:
        vms: the devices of the machine, the first one first.
        words: the first device's recording.

    Raises:
        ProgramError: the program has raised at its end.
    """
    guest = vms[0].guest
    with blaming_program():
        for vm in vms:
            vm.stop()
        statistics, left_out = _kept(guest.statistics)
    if left_out:
        vms[0].warnings.append(f"{left_out} statistics of the program are no numbers that fit")
    for vm in vms:
        vm.doorbells.flush()
    words[COUNTER_AT["missed"]], words[header.MISSED_OLDEST_NS] = guest.missed, guest.missed_oldest_ns
    return Stopped(statistics)


def _kept(given: Mapping[str, object]) -> tuple[dict[str, int | float], int]:
    """The statistics that are finite numbers of 64 bits and fit into a report together, and how many are not kept."""
    kept: dict[str, int | float] = {}
    room_bytes = STATISTICS_BYTES_MAX
    for name, value in given.items():
        whole = type(value) is int and -(1 << 63) <= value < 1 << 63
        room_bytes -= NUMBER_BYTES + len(encoded := str(name).encode(errors="backslashreplace"))
        if room_bytes >= 0 and (whole or (type(value) is float and math.isfinite(value))):
            kept[encoded.decode()] = value  # type: ignore[assignment]
    return kept, len(given) - len(kept)
