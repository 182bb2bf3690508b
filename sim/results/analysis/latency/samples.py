"""The samples of a run as a stream of batches, and their percentiles by any key."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nodes.errors import UsageError
from nodes.spelling import did_you_mean
from sim.results.analysis.labels import check_machines, labelled_machines, phase_names, phases_of
from sim.results.analysis.latency.distribution import LatencyOfGroups, Measured, measured_times
from sim.results.analysis.latency.intervals import Slices
from sim.results.analysis.latency.latencies import EVERY_LATENCY, QUANTILES, Samples, values
from sim.results.analysis.latency.percentiles import SparseCounts, ranked
from sim.results.arrays import Integers, Mask
from sim.results.store.batches import batches
from sim.results.store.manifest import Manifest
from sim.results.store.schemas import SCHEMAS
from sim.results.summary import Summary

Labels = Sequence[Any]

VECTORS = 1 << 16
KEYS = ("group", "machine", "vector", "source", "phase")
KINDS = {"vector": pa.uint16()} | dict.fromkeys(("latency", "group", "machine", "source", "phase"), pa.string())


def sample_batches(directory: Path, manifest: Manifest) -> Iterator[Samples]:
    """The samples in ``directory``, some 100,000 at a time.

    Raises:
        UsageError: the table is missing or damaged, or names a machine that the manifest does not have.
    """
    for batch in batches(directory, "samples", SCHEMAS["samples"].names):
        for name in ("source", "target"):
            check_machines("samples", batch[name], manifest)
        yield Samples(**{**batch, "warmup": batch["warmup"].astype(np.bool_)})  # type: ignore[arg-type]


def latency(
    directory: Path, manifest: Manifest, summary: Summary | None, by: Sequence[str], latencies: Sequence[str] | None
) -> pa.Table:
    """See ``Run.latency``; with a ``summary``, which knows the measured time, there are intervals."""
    wanted = tuple(EVERY_LATENCY if latencies is None else latencies)
    wrong = sorted(set(wanted) - set(EVERY_LATENCY))
    if wrong:
        raise UsageError(
            f"no latency {', '.join(wrong)}: expected {', '.join(EVERY_LATENCY)}{did_you_mean(wrong[0], EVERY_LATENCY)}"
        )
    keys = [key for name in by for key in (("source", "machine") if name == "edge" else (name,))]
    if set(keys) - set(KEYS) or len(set(keys)) < len(keys):
        raise UsageError(f"by {', '.join(by)}: expected each of {', '.join((*KEYS, 'edge'))} at most once")

    def read() -> Iterator[Samples]:
        return sample_batches(directory, manifest)

    labels, code_of = _parts(read, manifest, keys)
    times = []
    if summary is not None:
        whole, of_phases = measured_times(manifest.phases, summary.measure_start_ns, summary.stop_ns)
        times = [whole]
        if "phase" in keys:  # each part has the time of its phase
            places, at = {name: place for place, name in enumerate(phase_names(manifest.phases))}, keys.index("phase")
            times = [of_phases[places[label[at]]] for label in labels] or [whole]
    found = {name: LatencyOfGroups(len(labels), times) for name in wanted}
    for passed in ("count", "collect"):
        for samples in read():
            codes = code_of(samples)
            for name in wanted:
                its = Measured.of(samples, name, manifest.sample_every)
                getattr(found[name], passed)(its, codes[its.there])
    return _table(keys, labels, found, intervals=summary is not None)


def _table(
    keys: Sequence[str], labels: Sequence[tuple[Any, ...]], found: dict[str, LatencyOfGroups], *, intervals: bool
) -> pa.Table:
    bounded = [name for name, _ in QUANTILES if name != "max"] if intervals else []
    ends = [(name, end) for name in bounded for end in ("low", "high")]
    titles = (*keys, "latency", *(name for name, _ in QUANTILES), "samples", *(f"{name}_{end}" for name, end in ends))
    rows: dict[str, list[Any]] = {name: [] for name in titles}
    for name, samples in found.items():
        for label, figures in zip(labels, samples.percentiles(), strict=True):
            row = dict(zip(keys, label, strict=True)) | {"latency": name, "samples": figures.samples}
            row |= {quantile: getattr(figures, quantile) for quantile, _ in QUANTILES}
            for quantile, end in ends:
                interval = figures.intervals.get(quantile, (None, None))
                row[f"{quantile}_{end}"] = interval[0 if end == "low" else 1]
            for title in titles:
                rows[title].append(row[title])
    return pa.table({name: pa.array(column, KINDS.get(name, pa.int64())) for name, column in rows.items()})


def _parts(
    read: Callable[[], Iterator[Samples]], manifest: Manifest, keys: Sequence[str]
) -> tuple[list[tuple[Any, ...]], Callable[[Samples], Integers]]:
    """The labels of the parts that occur, and a function that gives each sample's part (-1: none).

    Only what occurs is a part: a hundred machines have ten thousand edges, most of them silent.
    """
    if not keys:
        return [()], lambda samples: np.zeros(len(samples), np.int64)

    def combined(samples: Samples) -> Integers:
        code = np.zeros(len(samples), np.int64)
        for key in keys:
            numbers, labels = numbered(manifest, samples, key)
            code = np.where((code < 0) | (numbers < 0), -1, code * len(labels) + numbers)
        return code

    occurring = SparseCounts(1 << 62)
    labels_of: list[Labels] = []
    for samples in read():
        code = combined(samples)
        occurring.add(code[code >= 0])
        labels_of = labels_of or [numbered(manifest, samples, key)[1] for key in keys]
    there, _ = occurring.occurring()
    labels = []
    for at in there.tolist():
        label: list[Any] = []
        for its in reversed(labels_of):
            at, number = divmod(at, len(its))
            label.append(its[number])
        labels.append(tuple(reversed(label)))

    def code_of(samples: Samples) -> Integers:
        code = combined(samples)
        return np.where(code < 0, -1, np.searchsorted(there, code))

    return labels, code_of


def numbered(manifest: Manifest, samples: Samples, key: str) -> tuple[Integers, Labels]:
    """The number of each sample's label, -1 for none, and the labels."""
    if key == "vector":
        return samples.vector.astype(np.int64), range(VECTORS)
    if key == "phase":
        return phases_of(samples, manifest.phases), phase_names(manifest.phases)
    machines = samples.source.astype(np.int64) if key == "source" else samples.target
    check_machines("samples", machines, manifest)
    labels, numbers = labelled_machines(machines, manifest, "group" if key == "group" else "machine")
    return numbers, labels


def latency_slices(directory: Path, manifest: Manifest, summary: Summary) -> dict[str, Slices]:
    """Every latency of a run, cut into slices of its measured time."""
    whole, _ = measured_times(manifest.phases, summary.measure_start_ns, summary.stop_ns)
    found = {name: LatencyOfGroups(1, [whole]) for name in EVERY_LATENCY}
    for samples in sample_batches(directory, manifest):
        for name, part in found.items():
            its = Measured.of(samples, name, manifest.sample_every)
            part.count(its, np.zeros(len(its.values), np.int64))
    return {name: samples.slices()[0] for name, samples in found.items()}


def percentiles_where(
    directory: Path, manifest: Manifest, latency: str, where: Callable[[Samples], Mask]
) -> dict[str, float | None]:
    """The percentiles of one latency of those samples, without the warm-up, and their ``mean`` and number."""

    def read() -> Iterator[tuple[Integers, Integers]]:
        for samples in sample_batches(directory, manifest):
            numbers, there = values(samples, latency)
            its = numbers[there & ~samples.warmup & where(samples)]
            yield np.zeros(len(its), np.int64), its

    ranks = ranked(read)
    (figures,), (mean,) = ranks.figures(), ranks.means()
    return {**figures, "mean": mean}
