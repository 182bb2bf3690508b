"""A run's tables in the shapes that people analyse: pandas frames, percentiles by whatever they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nodes.errors import UsageError
from sim.results.latency import LATENCIES, QUANTILES, Samples, grouped, values
from sim.results.manifest import Manifest

__all__ = ["frame", "latency", "numbered", "samples"]

Column = npt.NDArray[np.int64]

# Up to here, counting all possible codes is quicker than sorting those that occur.
TABLE_LIMIT = 1 << 22
KEYS = ("group", "machine", "vector", "source")


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


def latency(columns: Samples, manifest: Manifest, by: Sequence[str], latencies: Sequence[str] | None) -> pa.Table:
    """See ``Run.latency``."""
    wanted = tuple(LATENCIES if latencies is None else latencies)
    wrong = sorted(set(wanted) - {*LATENCIES, "raw"})
    if wrong:
        raise UsageError(f"no latency {', '.join(wrong)}: expected {', '.join(LATENCIES)} or raw")
    keys = [key for name in by for key in (("source", "machine") if name == "edge" else (name,))]
    if set(keys) - set(KEYS) or len(set(keys)) < len(keys):
        raise UsageError(f"by {', '.join(by)}: expected each of {', '.join((*KEYS, 'edge'))} at most once")
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
    rows: dict[str, list[Any]] = {name: [] for name in (*keys, "latency", *(n for n, _ in QUANTILES), "samples")}
    for name in wanted:
        figures, measured = values(columns, name)
        measured = measured & ~columns.warmup & (code >= 0)
        for at, percentile in zip(there, grouped(code[measured], figures[measured], len(there)), strict=True):
            rest = int(at)
            for key, (_, labels) in zip(reversed(keys), reversed(parts), strict=True):
                rest, its = divmod(rest, len(labels))
                rows[key].append(labels[its])
            rows["latency"].append(name)
            for quantile, value in percentile.items():
                rows[quantile].append(value)
    kinds = {"vector": pa.uint16(), "latency": pa.string()} | dict.fromkeys(("group", "machine", "source"), pa.string())
    return pa.table({name: pa.array(column, kinds.get(name, pa.int64())) for name, column in rows.items()})


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
            ("total_ns", "intended_ns", "handled_ns"),
        ):
            result[name] = result[end] - result[start]
    return result
