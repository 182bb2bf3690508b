"""A run's tables as pandas frames, and its samples as numpy columns."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from sim.results.analysis.latency.latencies import Samples
from sim.results.analysis.latency.samples import numbered
from sim.results.arrays import Integers
from sim.results.display import require_pandas
from sim.results.store.manifest import Manifest


def samples(table: pa.Table) -> Samples:
    """The table ``samples`` as columns of numbers; some 50 bytes for each row."""

    def column(name: str) -> Integers:
        filled = table[name].cast(pa.int64()).fill_null(-1) if name == "target" else table[name]
        numbers: Integers = (filled.fill_null(0) if filled.null_count else filled).to_numpy()
        return numbers

    return Samples(**{name: column(name) for name in table.column_names})  # type: ignore[arg-type]


def frame(table: pa.Table, manifest: Manifest) -> Any:
    """See ``Run.frame``: ``manifest`` names the machines."""
    pd = require_pandas()
    whole = {pa.int64(): pd.Int64Dtype(), pa.uint16(): pd.UInt16Dtype(), pa.int32(): pd.Int32Dtype()}
    result = pd.DataFrame()
    for kind in table.schema:
        column = table[kind.name]
        # Nullable types where something is missing; plain numpy (faster, what plots want) elsewhere.
        nullable = whole if column.null_count else {}
        result[kind.name] = column.to_pandas(types_mapper=nullable.get)
    if "intended_ns" in result:
        numbers, labels = numbered(manifest, samples(table), "group")
        result["group"] = pd.Categorical.from_codes(numbers.tolist(), dtype=pd.CategoricalDtype(labels))
        due_ns = result["intended_ns"].fillna(result["rung_ns"])
        for name, start, end in (
            ("lag_ns", result["intended_ns"], "rung_ns"),
            ("delivery_ns", result["rung_ns"], "delivered_ns"),
            ("handling_ns", result["delivered_ns"], "handled_ns"),
            ("raw_ns", result["rung_ns"], "handled_ns"),
            ("total_ns", due_ns, "handled_ns"),
        ):
            result[name] = result[end] - start
    return result
