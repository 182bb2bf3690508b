"""A run's tables in the shapes that people analyse: pandas frames, percentiles by whatever they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nodes.errors import UsageError
from sim.results.analysis.histogram import bins_of
from sim.results.analysis.intervals import SLICES, measured_slices, sliced
from sim.results.analysis.intervals import intervals as confidence
from sim.results.analysis.latency import EVERY_LATENCY, QUANTILES, Samples, grouped, percentiles, values
from sim.results.analysis.phases import phase_names, phases_of
from sim.results.store.manifest import Manifest

__all__ = ["frame", "latency", "numbered", "samples", "split"]

Column = npt.NDArray[np.int64]

# Up to here, counting all possible codes is quicker than sorting those that occur.
TABLE_LIMIT = 1 << 22
KEYS = ("group", "machine", "vector", "source", "phase")
KINDS = {"vector": pa.uint16()} | dict.fromkeys(("latency", "group", "machine", "source", "phase"), pa.string())


def samples(table: pa.Table) -> Samples:
    """The table ``samples`` as columns of numbers."""

    def column(name: str, missing: int = 0) -> Column:
        filled = table[name].fill_null(missing) if table[name].null_count else table[name]
        numbers: Column = filled.to_numpy()
        return numbers

    target = table["target"].cast(pa.int64()).fill_null(-1).to_numpy()
    return Samples(
        source=column("source"),
        target=target,
        vector=column("vector"),
        intended_ns=column("intended_ns"),
        rung_ns=column("rung_ns"),
        delivered_ns=column("delivered_ns"),
        handled_ns=column("handled_ns"),
        count=column("count"),
        warmup=table["warmup"].to_numpy(),
    )


def latency(
    columns: Samples, manifest: Manifest, by: Sequence[str], latencies: Sequence[str] | None, *, intervals: bool
) -> pa.Table:
    """See ``Run.latency``."""
    wanted = tuple(EVERY_LATENCY if latencies is None else latencies)
    wrong = sorted(set(wanted) - set(EVERY_LATENCY))
    if wrong:
        raise UsageError(f"no latency {', '.join(wrong)}: expected {', '.join(EVERY_LATENCY)}")
    keys, labels, code = split(columns, manifest, by)
    kept = ~columns.warmup if code is None else ~columns.warmup & (code >= 0)
    slices = measured_slices(columns) if intervals else None
    bounded = [name for name, _ in QUANTILES if name != "max"] if intervals else []
    titles = (
        *keys,
        "latency",
        *(name for name, _ in QUANTILES),
        "samples",
        *(f"{name}_{end}" for name in bounded for end in ("low", "high")),
    )
    rows: dict[str, list[Any]] = {name: [] for name in titles}
    for name in wanted:
        figures, measured = values(columns, name)
        measured &= kept
        its, codes = figures[measured], None if code is None else code[measured]
        found = [percentiles(its)] if codes is None else grouped(codes, its, len(labels))
        if slices is not None:
            cells = slices[measured] if codes is None else codes * SLICES + slices[measured]
            cut = sliced(bins_of(its), cells, len(labels))
            for percentile, part in zip(found, cut, strict=True):
                known = confidence(part, percentile)
                for quantile in bounded:
                    percentile[f"{quantile}_low"], percentile[f"{quantile}_high"] = known.get(quantile, (None, None))
        for label, percentile in zip(labels, found, strict=True):
            for title, value in (*zip(keys, label, strict=True), ("latency", name), *percentile.items()):
                rows[title].append(value)
    return pa.table({name: pa.array(column, KINDS.get(name, pa.int64())) for name, column in rows.items()})


def split(
    columns: Samples, manifest: Manifest, by: Sequence[str]
) -> tuple[list[str], list[tuple[Any, ...]], Column | None]:
    """The samples split by ``by``: the keys, the labels of every part, and each sample's part (-1: none).

    With an empty ``by`` there is one part, and no codes.
    """
    keys = [key for name in by for key in (("source", "machine") if name == "edge" else (name,))]
    if set(keys) - set(KEYS) or len(set(keys)) < len(keys):
        raise UsageError(f"by {', '.join(by)}: expected each of {', '.join((*KEYS, 'edge'))} at most once")
    if not keys:
        return [], [()], None
    parts = [numbered(manifest, columns, key) for key in keys]
    code, size = np.zeros(len(columns), np.int64), 1
    for numbers, labels in parts:
        code, size = (
            np.where((code < 0) | (numbers < 0), -1, code * len(labels) + numbers),
            size * len(labels),
        )
    # Only what occurs: a hundred machines have ten thousand edges, most of them silent.
    known = code >= 0
    there, place = _occurring(code[known], size)
    code[known] = place
    occurring = []
    for at in there.tolist():
        label: list[Any] = []
        for _, labels in reversed(parts):
            at, its = divmod(at, len(labels))
            label.append(labels[its])
        occurring.append(tuple(reversed(label)))
    return keys, occurring, code


def _occurring(codes: Column, size: int) -> tuple[Column, Column]:
    """The codes 0 .. ``size`` - 1 that occur, in order, and the place of each code among them."""
    if size > TABLE_LIMIT:
        return np.unique(codes, return_inverse=True)
    there = np.flatnonzero(np.bincount(codes, minlength=1))
    place = np.zeros(int(codes.max(initial=0)) + 1, np.int64)
    place[there] = np.arange(len(there))
    return there, place[codes]


def numbered(manifest: Manifest, columns: Samples, key: str) -> tuple[Column, list[Any]]:
    """The number of each sample's label, -1 for none, and the labels."""
    if key == "vector":
        return columns.vector.astype(np.int64), list(range(int(columns.vector.max(initial=0)) + 1))
    if key == "phase":
        return phases_of(columns, manifest.phases), phase_names(manifest.phases)
    machines = manifest.machines
    if key == "group":
        labels = [group.name for group in manifest.groups]
        places = {name: place for place, name in enumerate(labels)}
        of_machine = np.array([places[machine.group] for machine in machines] + [-1], dtype=np.int64)
        return of_machine[_checked(columns.target, len(machines))], labels
    numbers = columns.target if key == "machine" else columns.source.astype(np.int64)
    return _checked(numbers, len(machines)), [machine.name for machine in machines]


def _checked(numbers: Column, machines: int) -> Column:
    if len(numbers) and int(numbers.max()) >= machines:
        raise UsageError(f"samples name machine {int(numbers.max())}, the manifest has {machines}")
    return numbers


def frame(table: pa.Table, manifest: Manifest) -> Any:
    """See ``Run.frame``: ``manifest`` names the machines."""
    try:
        import pandas as pd
    except ImportError as error:
        raise UsageError("frames need pandas: pip install 'ivshmem-sim[notebook]'") from error
    whole = {pa.int64(): pd.Int64Dtype(), pa.uint16(): pd.UInt16Dtype(), pa.int32(): pd.Int32Dtype()}
    result = pd.DataFrame()
    for kind in table.schema:
        column = table[kind.name]
        # Nullable types where something is missing; plain numpy (faster, what plots want) elsewhere.
        nullable = whole if column.null_count else {}
        result[kind.name] = column.to_pandas(types_mapper=nullable.get)
    if "intended_ns" in result:
        labels = [group.name for group in manifest.groups]
        numbers, _ = numbered(manifest, samples(table), "group")
        result["group"] = pd.Categorical.from_codes(numbers.tolist(), dtype=pd.CategoricalDtype(labels))
        for name, start, end in (
            ("lag_ns", "intended_ns", "rung_ns"),
            ("delivery_ns", "rung_ns", "delivered_ns"),
            ("handling_ns", "delivered_ns", "handled_ns"),
            ("raw_ns", "rung_ns", "handled_ns"),
            ("total_ns", "intended_ns", "handled_ns"),
        ):
            result[name] = result[end] - result[start]
    return result
