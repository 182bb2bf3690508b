"""The events of a kernel trace in a run directory: a table that only a run with an outlier and a trace has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from sim.host.kernel_trace import KernelEvent
from sim.results.store import schemas

KERNEL = "kernel"


def write_kernel_events(directory: Path, events: Sequence[KernelEvent]) -> None:
    """Write the table. Raises ``OSError`` (disk full)."""
    schema = schemas.SCHEMAS[KERNEL]
    columns = zip(*events, strict=True)
    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, schema, strict=True)]
    schemas.write_table(directory, KERNEL, pa.Table.from_arrays(arrays, schema=schema))


def read_kernel_events(directory: Path) -> list[KernelEvent]:
    """The events; none for a run without them. Raises ``UsageError`` for a damaged table."""
    if not (directory / schemas.file_name(KERNEL)).exists():
        return []
    table = schemas.read_table(directory, KERNEL)
    return [KernelEvent(*row) for row in zip(*(column.to_pylist() for column in table.columns), strict=True)]
