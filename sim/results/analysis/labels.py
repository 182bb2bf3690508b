"""The names behind the numbers in the tables of a run: machines, groups, and the phase of each doorbell. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nodes.errors import UsageError
from sim.results.analysis.latency.latencies import Samples
from sim.results.arrays import Integers
from sim.results.store.manifest import Manifest, Phase

MEASURED = "measured"
"""The one phase of a run that names none: all after the warm-up."""


def check_machines(what: str, machines: Integers, manifest: Manifest) -> None:
    """Raises ``UsageError`` if ``what``, a table, names a machine that the manifest does not have."""
    if (highest := int(machines.max(initial=-1))) >= len(manifest.machines):
        raise UsageError(f"{what} name machine {highest}, the manifest has {len(manifest.machines)}")


def group_of_machines(manifest: Manifest, foreign: int = -1) -> Integers:
    """The number of each machine's group; ``foreign``, the last entry, is that of machine -1."""
    numbers = {group.name: number for number, group in enumerate(manifest.groups)}
    return np.array([numbers[machine.group] for machine in manifest.machines] + [foreign], np.int64)


def labelled_machines(machines: Integers, manifest: Manifest, by: str) -> tuple[list[str], Integers]:
    """The names of all machines or groups (``by``), and the number of the name of each of ``machines``."""
    if by == "machine":
        return [machine.name for machine in manifest.machines], machines
    return [group.name for group in manifest.groups], group_of_machines(manifest)[machines]


def phase_names(phases: Sequence[Phase]) -> list[str]:
    """The names of the measured phases, each once, in order: a phase may occur again."""
    return list(dict.fromkeys(phase.name for phase in phases if phase.measured)) or [MEASURED]


def phases_of(samples: Samples, phases: Sequence[Phase]) -> Integers:
    """The number of each sample's phase in :func:`phase_names`, -1 for none; the warm-up has none.

    A doorbell belongs to the phase in which it was due, however late it was rung; of phases that overlap, to
    the last one named.
    """
    codes = np.zeros(len(samples), np.int64)
    measured = [phase for phase in phases if phase.measured]
    if measured:
        codes[:] = -1
        due_ns = samples.due_ns
        places = {name: place for place, name in enumerate(phase_names(phases))}
        for phase in measured:
            within = (due_ns >= phase.start_ns) & (due_ns < phase.end_ns)
            codes[within] = places[phase.name]
    codes[samples.warmup] = -1
    return codes
