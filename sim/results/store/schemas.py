"""The tables of a run: their columns, and their way to Parquet and back.

A table that is read has exactly the columns and types below, or it is refused: a crafted file gets no further
than its footer. Times are nanoseconds of CLOCK_MONOTONIC; machines are indices into the manifest's list.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nodes.errors import UsageError
from sim.results.store.files import at_once, private

__all__ = ["RESOURCES", "SCHEMAS", "file_name", "missing_columns", "read_stream", "read_table", "write_table"]

# What a 2-core laptop can hold: some 5 GB of samples. A crafted file of constant columns could claim any
# number.
ROW_LIMIT = 100_000_000


def _schema(*columns: tuple[str, pa.DataType, str]) -> pa.Schema:
    """Columns as (name, type, nullable: "null" or "")."""
    return pa.schema([pa.field(name, kind, nullable == "null") for name, kind, nullable in columns])


RESOURCES = _schema(
    ("machine", pa.int32(), ""),
    ("name", pa.string(), ""),
    ("time_ns", pa.int64(), ""),
    ("cpu_user_s", pa.float64(), ""),
    ("cpu_system_s", pa.float64(), ""),
    ("rss_bytes", pa.int64(), ""),
    ("uss_bytes", pa.int64(), "null"),
    ("instrument_bytes", pa.int64(), "null"),
    ("switches_voluntary", pa.int64(), ""),
    ("switches_involuntary", pa.int64(), ""),
    ("descriptors", pa.int32(), "null"),
    ("threads", pa.int32(), "null"),
    ("pss_bytes", pa.int64(), "null"),
    ("faults_minor", pa.int64(), "null"),
    ("faults_major", pa.int64(), "null"),
    ("steal_s", pa.float64(), "null"),
    ("load_1", pa.float64(), "null"),
    ("pressure_cpu_s", pa.float64(), "null"),
    ("pressure_memory_s", pa.float64(), "null"),
    ("pressure_io_s", pa.float64(), "null"),
    ("sampling_s", pa.float64(), "null"),
)

SCHEMAS: dict[str, pa.Schema] = {
    "samples": _schema(
        ("source", pa.uint16(), ""),
        ("target", pa.uint16(), "null"),
        ("vector", pa.uint16(), ""),
        ("intended_ns", pa.int64(), ""),
        ("rung_ns", pa.int64(), ""),
        ("delivered_ns", pa.int64(), "null"),
        ("handled_ns", pa.int64(), "null"),
        ("count", pa.int64(), "null"),
        ("warmup", pa.bool_(), ""),
    ),
    "drains": _schema(
        ("machine", pa.uint16(), ""),
        ("vector", pa.uint16(), ""),
        ("count", pa.int64(), ""),
        ("delivered_ns", pa.int64(), ""),
        ("handled_ns", pa.int64(), "null"),
    ),
    "edges": _schema(
        ("source", pa.uint16(), ""),
        ("peer", pa.uint16(), ""),
        ("target", pa.uint16(), "null"),
        ("vector", pa.uint16(), ""),
        ("rung", pa.int64(), ""),
        ("refused", pa.int64(), ""),
    ),
    "vectors": _schema(
        ("machine", pa.uint16(), ""),
        ("vector", pa.uint16(), ""),
        ("rung", pa.int64(), ""),
        ("delivered", pa.int64(), ""),
        ("pending", pa.int64(), ""),
        ("refused", pa.int64(), ""),
        ("interrupts", pa.int64(), ""),
        ("settled", pa.int64(), ""),
    ),
    "resources": RESOURCES,
    "histograms": _schema(
        ("latency", pa.string(), ""),
        ("phase", pa.string(), ""),
        ("machine", pa.uint16(), "null"),
        ("bin", pa.uint16(), ""),
        ("low_ns", pa.int64(), ""),
        ("high_ns", pa.int64(), ""),
        ("count", pa.int64(), ""),
    ),
}

# What runs of an earlier version do not have: such columns read as null, and the run says that they are missing.
ADDED = {
    "resources": (
        "pss_bytes",
        "faults_minor",
        "faults_major",
        "steal_s",
        "load_1",
        "pressure_cpu_s",
        "pressure_memory_s",
        "pressure_io_s",
        "sampling_s",
    ),
}

# Stamps grow slowly: differences take a third of the space that zstd alone leaves.
DELTA_COLUMNS = ("intended_ns", "rung_ns", "delivered_ns", "handled_ns", "time_ns")


def file_name(name: str) -> str:
    """The file of a table. Raises ``UsageError`` for a table that there is not."""
    if name not in SCHEMAS:
        raise UsageError(f"no table {name!r}: expected one of {', '.join(SCHEMAS)}")
    return f"{name}.parquet"


def write_table(directory: Path, name: str, table: pa.Table) -> None:
    """Write a table of ``SCHEMAS`` beside its place, sync it, rename it. Raises ``OSError`` (disk full)."""
    path = directory / file_name(name)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    schema = SCHEMAS[name]
    deltas = {column: "DELTA_BINARY_PACKED" for column in schema.names if column in DELTA_COLUMNS}
    try:
        with open(beside, "wb", opener=private) as file:
            pq.write_table(
                table.cast(schema),
                file,
                compression="zstd",
                compression_level=1,
                use_dictionary=[column for column in schema.names if column not in deltas],
                column_encoding=deltas,
                store_schema=True,
            )
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def read_table(directory: Path, name: str, *, footer_only: bool = False) -> pa.Table:
    """One table, whole; with ``footer_only`` an empty one, once its footer has been found sound.

    Columns that an older version did not write are null; an empty table does not have them.

    Raises ``UsageError`` when the file is missing, damaged, too long, or has other columns.
    """
    path = directory / file_name(name)
    schema = SCHEMAS[name]
    try:
        with open(path, "rb", opener=at_once) as file:
            parquet = pq.ParquetFile(file)
            missing = _check(path.name, parquet.schema_arrow, schema, ADDED.get(name, ()))
            if parquet.metadata.num_rows > ROW_LIMIT:
                raise UsageError(f"{path.name} has {parquet.metadata.num_rows} rows, more than {ROW_LIMIT}")
            if footer_only:
                return schema.empty_table().drop_columns(missing)
            table = parquet.read(use_threads=True)
            table.validate(full=True)
            return _complete(table, schema)
    except FileNotFoundError:
        raise UsageError(f"{path.name} is missing") from None
    # A damaged Parquet file surfaces as any of these: Arrow's own errors derive from the builtin ones.
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, EOFError, MemoryError) as error:
        raise UsageError(f"{path.name} is damaged: {str(error).splitlines()[0][:200]}") from error


def missing_columns(directory: Path, name: str) -> None:
    """Raise ``UsageError`` for columns that the version which wrote this table did not know."""
    missing = sorted(set(SCHEMAS[name].names) - set(read_table(directory, name, footer_only=True).column_names))
    if missing:
        raise UsageError(f"{file_name(name)} is of an older version, without {', '.join(missing)}")


def _complete(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """``table`` with all columns of ``schema``: those that are missing are null."""
    if table.column_names == schema.names:
        return table
    there = {column: table[column] for column in table.column_names}
    return pa.table([there.get(kind.name, pa.nulls(table.num_rows, kind.type)) for kind in schema], schema=schema)


def read_stream(path: Path) -> tuple[pa.Table, str]:
    """Every whole batch of the stream of resources, and what is wrong with its end ("" when nothing is).

    A stream that was cut, wherever, gives the batches before the cut; a missing one (nobody looked at the
    processes) gives none, and nothing is wrong with it.
    """
    batches: list[pa.RecordBatch] = []
    rows = 0
    try:
        with open(path, "rb", opener=at_once) as file, pa.ipc.open_stream(file) as reader:
            _check(path.name, reader.schema, RESOURCES, ADDED["resources"])
            for batch in reader:
                batch.validate(full=True)
                rows += batch.num_rows
                if rows > ROW_LIMIT:
                    raise UsageError(f"more than {ROW_LIMIT} rows")
                batches.append(batch)
        wrong = ""
    except FileNotFoundError:
        wrong = ""
    except (pa.ArrowException, OSError, ValueError, TypeError, EOFError, MemoryError, UsageError) as error:
        wrong = f"{path.name} ends early, after {rows} rows: {(str(error).splitlines() or [''])[0][:200]}"
    return _complete(pa.Table.from_batches(batches), RESOURCES) if batches else RESOURCES.empty_table(), wrong


def _check(name: str, found: pa.Schema, expected: pa.Schema, added: Sequence[str] = ()) -> list[str]:
    """The columns of ``added`` that are not there. Raises ``UsageError`` for any other difference."""
    missing = [column for column in added if column not in found.names]
    wanted = pa.schema([field for field in expected if field.name not in missing])
    if not found.equals(wanted, check_metadata=False):
        names = [f"{field.name} {field.type}" for field in expected]
        raise UsageError(f"{name} has other columns than {', '.join(names)}")
    return missing
