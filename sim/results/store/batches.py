"""A run's large tables in batches of a few columns: ten million rows are never in memory at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from nodes.errors import UsageError
from sim.results.arrays import Integers
from sim.results.store.schemas import check_values, file_name, opened, stands_for_null

BATCH_ROWS = 1 << 17


def batches(directory: Path, name: str, columns: Sequence[str]) -> Iterator[dict[str, Integers]]:
    """The named columns of a table as int64, some 100,000 rows at a time; null is 0, or -1 for ``target``.

    Raises:
        UsageError: the file is missing or damaged, or has no such columns of numbers.
    """
    with opened(directory, name) as parquet:
        _check(name, parquet.schema_arrow, columns)
        for batch in parquet.iter_batches(BATCH_ROWS, columns=list(columns)):
            batch.validate(full=True)
            check_values(file_name(name), batch)
            yield {column: _numbers(batch.column(column), stands_for_null(column)) for column in columns}


def _check(name: str, schema: pa.Schema, columns: Sequence[str]) -> None:
    for column in columns:
        kind = schema.field(column).type if column in schema.names else None
        if kind is None or not (pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
            raise UsageError(f"{file_name(name)} has no column {column} of numbers")


def _numbers(column: pa.Array, missing: int) -> Integers:
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    if column.type != pa.int64():
        column = column.cast(pa.int64())
    if column.null_count:
        column = column.fill_null(missing)
    # Array.to_numpy imports pandas first, which takes longer than to read a million rows.
    return np.frombuffer(column.buffers()[1] or b"", np.int64, len(column), column.offset * 8)


def extent(directory: Path, name: str, column: str) -> tuple[int, int] | None:
    """The smallest and the largest value of a column; None when the table is empty.

    The statistics in the footer would tell, but damaged ones end the process (`schemas.check_table`).

    Raises:
        UsageError: as `batches`.
    """
    found = [batch[column] for batch in batches(directory, name, (column,)) if len(batch[column])]
    return (min(int(stamps.min()) for stamps in found), max(int(stamps.max()) for stamps in found)) if found else None
