"""The tables of counts of a run over several hosts: those of its parts, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sim.results.store.manifest import Manifest

MACHINES = ("machine", "source", "target")


def join_tables(manifest: Manifest, parts: Sequence[tuple[Manifest, pa.Table]]) -> pa.Table:
    """One table of those of the parts, with the indices that the machines have in the manifest of the whole."""
    index_of = {row.name: row.index for row in manifest.machines}
    tables = []
    for theirs, table in parts:
        indices = pa.array(np.array([index_of[row.name] for row in theirs.machines], np.int64))
        for column in MACHINES:
            if (place := table.schema.get_field_index(column)) >= 0:
                kind = table.schema.field(place)
                table = table.set_column(place, kind, pc.take(indices, table[column]).cast(kind.type))
        tables.append(table)
    return pa.concat_tables(tables)
