"""All that is computed from the samples when a run is over: percentiles with intervals, phases, histograms. Pure.

Each latency is looked at once: its values are put into bins, and from the bins come the intervals and the
histograms that are kept; the percentiles are of the values themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.results.analysis.histogram import BINS, bins_of, counted, lower_edges, upper_edges
from sim.results.analysis.intervals import SLICES, Slices, intervals, measured_slices, sliced
from sim.results.analysis.latency import EVERY_LATENCY, Samples, grouped, percentiles, values
from sim.results.analysis.phases import phase_names, phases_of
from sim.results.store.manifest import Manifest
from sim.results.summary import Latencies, Percentiles

__all__ = ["NOTHING", "Distribution", "distribution", "percentiles_of"]

Integers = npt.NDArray[np.int64]

Figures = dict[str, int | None]

# Those that exist for the same doorbells stand together: what depends on that is found once for each.
ALIKE = (("lag",), ("delivery",), ("handling", "raw", "total"))


def percentiles_of(numbers: Integers) -> Percentiles:
    """The percentiles of any numbers, without intervals."""
    return Percentiles(**percentiles(numbers))  # type: ignore[arg-type]


NOTHING = Latencies(**dict.fromkeys(EVERY_LATENCY, percentiles_of(np.zeros(0, np.int64))))
"""The latencies of no sample at all."""


@dataclass(frozen=True)
class Distribution:
    """``groups`` by the number of the group, the last one is of foreign peers; ``phases`` empty for one alone.

    ``histograms`` are the columns of the table of that name, machine -1: no machine of the topology.
    """

    all: Latencies
    groups: list[Latencies]
    phases: dict[str, Latencies]
    histograms: dict[str, Any] = field(repr=False)


def distribution(samples: Samples, manifest: Manifest) -> Distribution:
    """The latencies of a run, the warm-up left out."""
    names = [group.name for group in manifest.groups]
    places = {name: place for place, name in enumerate(names)}
    # Machine -1 picks the last entry: the foreign ones.
    of_machine = np.array([places[machine.group] for machine in manifest.machines] + [len(names)], np.int64)
    phases, phase = phase_names(manifest.phases), phases_of(samples, manifest.phases)
    cells = of_machine[samples.target] * SLICES + measured_slices(samples)
    # By phase and machine; what is in no phase comes behind the last one, and is not kept.
    machines = len(manifest.machines) + 1
    at = np.where(phase < 0, len(phases), phase) * machines + samples.target + 1

    every: dict[str, Percentiles] = {}
    by_group: dict[str, list[Percentiles]] = {}
    by_phase: dict[str, list[Percentiles]] = {}
    kept: list[dict[str, Any]] = []
    for alike in ALIKE:
        there = values(samples, alike[0])[1] & ~samples.warmup
        its_cells, its_at = cells[there], at[there]
        groups = its_cells // SLICES
        for name in alike:
            its = values(samples, name)[0][there]
            bins = bins_of(its)
            cut = sliced(bins, its_cells, len(names) + 1)
            found = grouped(groups, its, len(cut))
            by_group[name] = [_with(figures, part) for figures, part in zip(found, cut, strict=True)]
            alone = [figures for figures in found if figures["samples"] == len(its)]
            every[name] = _with(alone[0] if alone else percentiles(its), Slices.merged(cut))
            if len(phases) > 1:
                within = phase[there] >= 0
                by_phase[name] = [
                    Percentiles(**figures)  # type: ignore[arg-type]
                    for figures in grouped(phase[there][within], its[within], len(phases))
                ]
            kept.append(_counts(name, its_at, bins, phases, machines))
    return Distribution(
        all=Latencies(**every),
        groups=[Latencies(**{name: by_group[name][code] for name in by_group}) for code in range(len(names) + 1)],
        phases={
            phase: Latencies(**{name: by_phase[name][code] for name in by_phase})
            for code, phase in enumerate(phases if len(phases) > 1 else ())
        },
        histograms={name: np.concatenate([columns[name] for columns in kept]) for name in kept[0]},
    )


def _with(figures: Figures, its: Slices) -> Percentiles:
    return Percentiles(**figures, intervals=intervals(its, figures))  # type: ignore[arg-type]


def _counts(latency: str, cells: Integers, bins: Integers, phases: list[str], machines: int) -> dict[str, Any]:
    """Histograms of one latency, of every phase and machine, one below the other."""
    there, counts = counted(cells, bins, (len(phases) + 1) * machines)
    known = there < len(phases) * machines * BINS
    there, counts = there[known], counts[known]
    bins, of = there % BINS, there // BINS
    return {
        "latency": np.full(len(there), latency, object),
        "phase": np.array(phases, object)[of // machines],
        "machine": of % machines - 1,
        "bin": bins,
        "low_ns": lower_edges(bins),
        "high_ns": upper_edges(bins),
        "count": counts,
    }
