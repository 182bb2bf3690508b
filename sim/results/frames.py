"""A run's tables as pandas frames, its samples as numpy columns, and the tables of a run over several hosts as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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


def join_tables(manifest: Manifest, parts: Sequence[tuple[Manifest, pa.Table]]) -> pa.Table:
    """One table of those of the parts, with the indices that the machines have in the manifest of the whole."""
    index_of = {row.name: row.index for row in manifest.machines}
    tables = []
    for theirs, table in parts:
        indices = pa.array(np.array([index_of[row.name] for row in theirs.machines], np.int64))
        for column in ("machine", "source", "target"):
            if (place := table.schema.get_field_index(column)) >= 0:
                kind = table.schema.field(place)
                table = table.set_column(place, kind, pc.take(indices, table[column]).cast(kind.type))
        tables.append(table)
    return pa.concat_tables(tables)
