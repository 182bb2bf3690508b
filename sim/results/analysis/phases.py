"""The phases of a run, and the phase of each doorbell. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sim.results.analysis.latency.latencies import Samples
from sim.results.store.manifest import Phase

__all__ = ["phase_names", "phases_of"]

MEASURED = "measured"
"""The one phase of a run that names none: all after the warm-up."""


def phase_names(phases: Sequence[Phase]) -> list[str]:
    """The names of the measured phases, each once, in order: a phase may occur again."""
    return list(dict.fromkeys(phase.name for phase in phases if phase.measured)) or [MEASURED]


def phases_of(samples: Samples, phases: Sequence[Phase]) -> npt.NDArray[np.int64]:
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
