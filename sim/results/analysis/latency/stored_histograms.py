"""Histograms of a run, from the table that was stored at its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nodes.errors import UsageError
from nodes.spelling import did_you_mean
from sim.results.analysis.flows import drain_codes
from sim.results.analysis.labels import check_machines, labelled_machines, phase_names
from sim.results.analysis.latency.histogram import BINS, Histogram, bins_of
from sim.results.analysis.latency.latencies import EVERY_LATENCY
from sim.results.store.manifest import Manifest

DRAINED = "drained"
BY = ("group", "machine", "phase")


def histogram(
    table: Callable[[str], pa.Table], manifest: Callable[[], Manifest], what: str, by: str | None
) -> Histogram | dict[Any, Histogram]:
    """See ``Run.histogram``; ``table`` is ``Run.table``. The manifest is read for labels alone: it may be lost."""
    if what == DRAINED:
        return _drained(table("drains"), manifest, by)
    if what not in EVERY_LATENCY:
        hint = did_you_mean(what, (*EVERY_LATENCY, DRAINED))
        raise UsageError(f"no histogram of {what!r}: expected {', '.join(EVERY_LATENCY)} or {DRAINED}{hint}")
    if by is not None and by not in BY:
        raise UsageError(f"a histogram by {by!r}: expected {', '.join(BY)}{did_you_mean(by, BY)}")
    kept = table("histograms")
    kept = kept.filter(pc.equal(kept["latency"], what))
    bins, counts = kept["bin"].to_numpy().astype(np.int64), kept["count"].to_numpy()
    if by is None:
        return Histogram.sparse(bins, counts)
    labels, of = _labels(kept, manifest(), by)
    found = {label: Histogram.sparse(bins[of == place], counts[of == place]) for place, label in enumerate(labels)}
    return {label: its for label, its in found.items() if len(its)}


def _labels(kept: pa.Table, manifest: Manifest, by: str) -> tuple[list[str], Any]:
    """Labels, and the number of the label of each row; -1 for none."""
    if by == "phase":
        labels = phase_names(manifest.phases)
        return labels, np.array([labels.index(name) if name in labels else -1 for name in kept["phase"].to_pylist()])
    machine = kept["machine"].cast(pa.int64()).fill_null(-1).to_numpy()
    check_machines("histograms", machine, manifest)
    return labelled_machines(machine, manifest, by)


def _drained(drains: pa.Table, manifest: Callable[[], Manifest], by: str | None) -> Histogram | dict[Any, Histogram]:
    count = drains["count"].to_numpy()
    if by is None:
        return Histogram.of(count)
    labels, codes = drain_codes(drains, manifest(), by)
    bins = bins_of(count)
    found = {label: Histogram(np.bincount(bins[codes == at], minlength=BINS)) for at, label in enumerate(labels)}
    return {label: its for label, its in found.items() if len(its)}
