"""The tables of a run: their columns, and their way to Parquet and back.

A table that is read has exactly the columns and types below, or it is refused: a crafted file gets no further
than its footer. Times are nanoseconds of CLOCK_MONOTONIC; machines are indices into the manifest's list.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self, get_args, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nodes.errors import UsageError
from nodes.spelling import did_you_mean
from sim.host.kernel_trace import KernelEvent
from sim.host.libraries import keep_pandas_out
from sim.host.resource_row import Resources
from sim.results.store.files import at_once, private
from sim.results.summary import MigrationOutcome

keep_pandas_out(lambda: pa.scalar(0))

# The most that a host with 2 cores can hold: some 5 GB of samples. A crafted file of constant columns could claim
# any number.
ROW_LIMIT = 100_000_000


# The types of columns by their names; all others are whole numbers of 64 bits.
COLUMN_TYPES = {
    **dict.fromkeys(("source", "target", "machine", "peer", "vector", "bin"), pa.uint16()),
    **dict.fromkeys(("cpu", "pid", "next_pid"), pa.int32()),
    **dict.fromkeys(("latency", "phase", "event", "name", "state", "next_name"), pa.string()),
    "warmup": pa.bool_(),
}


def _schema(*columns: str) -> pa.Schema:
    """Columns by their names; those that end in a question mark may be null."""
    names = [column.rstrip("?") for column in columns]
    kinds = [COLUMN_TYPES.get(name, pa.int64()) for name in names]
    return pa.schema([*map(pa.field, names, kinds, (column.endswith("?") for column in columns))])


KINDS = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string()}


def schema_of(row: type, **kinds: pa.DataType) -> pa.Schema:
    """A column for each field of a class, nullable where the field may be None; ``kinds``: those that differ."""
    found = []
    for name, hint in get_type_hints(row).items():
        members = {hint, *get_args(hint)}
        kind = kinds.get(name) or next(KINDS[member] for member in members if member in KINDS)
        found.append(pa.field(name, kind, type(None) in members))
    return pa.schema(found)


RESOURCES = schema_of(Resources, machine=pa.int32(), descriptors=pa.int32(), threads=pa.int32())

SCHEMAS: dict[str, pa.Schema] = {
    "samples": _schema(
        "source", "target?", "vector", "intended_ns?", "rung_ns", "delivered_ns?", "handled_ns?", "count?", "warmup"
    ),
    "drains": _schema("machine", "vector", "count", "delivered_ns", "handled_ns?"),
    "edges": _schema("source", "peer", "target?", "vector", "rung", "refused"),
    "vectors": _schema("machine", "vector", "rung", "delivered", "pending", "refused", "interrupts", "settled"),
    "resources": RESOURCES,
    "histograms": _schema("latency", "phase", "machine?", "bin", "low_ns", "high_ns", "count"),
    "kernel": _schema("time_ns", "cpu", "event", "pid", "name", "state", "next_pid", "next_name"),
}

MIGRATIONS = schema_of(MigrationOutcome, verdict=pa.string())
"""``Run.migrations``."""

BINS_LIMIT = 7296
"""``analysis.latency.histogram.BINS``, which a test compares."""
CPUS_LIMIT = 1 << 13
TIME_LIMIT, COUNT_LIMIT, BYTES_LIMIT, SECONDS_LIMIT = 1 << 62, 1 << 44, 1 << 50, 1e12
# The values that a column may hold, by its name or by the unit at the end of its name. A larger one is damage: what
# reads a table relies on sums, differences and casts to double that are exact.
LIMITS: dict[str, tuple[float, float]] = {
    "ns": (0, TIME_LIMIT),
    "bytes": (0, BYTES_LIMIT),
    "s": (-SECONDS_LIMIT, SECONDS_LIMIT),
    "load_1": (0, SECONDS_LIMIT),
    "low_ns": (0, (1 << 63) - 1),
    "high_ns": (0, (1 << 63) - 1),
    "bin": (0, BINS_LIMIT - 1),
    **dict.fromkeys(("rung", "delivered", "pending", "refused", "interrupts", "settled", "count"), (0, COUNT_LIMIT)),
    **dict.fromkeys(
        ("switches_voluntary", "switches_involuntary", "faults_minor", "faults_major"), (-COUNT_LIMIT, COUNT_LIMIT)
    ),
    **dict.fromkeys(("descriptors", "threads"), (0, 1 << 30)),
    "machine": (-3 - CPUS_LIMIT, (1 << 16) - 1),
}

# Stamps grow slowly: differences take a third of the space that zstd alone leaves.
DELTA_COLUMNS = ("intended_ns", "rung_ns", "delivered_ns", "handled_ns", "time_ns")


def stands_for_null(column: str) -> int:
    """The number that stands for null where a column of whole numbers is one of numpy."""
    return -1 if column in ("machine", "source", "target") else 0


def file_name(name: str) -> str:
    """The file of a table. Raises ``UsageError`` for a table that there is not."""
    if name not in SCHEMAS:
        raise UsageError(f"no table {name!r}: expected one of {', '.join(SCHEMAS)}{did_you_mean(name, SCHEMAS)}")
    return f"{name}.parquet"


class TableWriter:
    """Writes one table of ``SCHEMAS`` a piece at a time, beside its place; leaving the context syncs and renames it.

    Pieces are encoded by a thread of its own, one at a time: encoding does not hold the interpreter. Leaving by an
    exception removes what was written.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._path = directory / file_name(name)
        self._beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        self._schema = SCHEMAS[name]
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._last: Future[None] | None = None

    def __enter__(self) -> Self:
        deltas = {column: "DELTA_BINARY_PACKED" for column in self._schema.names if column in DELTA_COLUMNS}
        try:
            self._file = open(self._beside, "wb", opener=private)
            self._writer = pq.ParquetWriter(
                self._file,
                self._schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=[column for column in self._schema.names if column not in deltas],
                column_encoding=deltas,
                store_schema=True,
            )
        except BaseException:
            self._thread.shutdown()
            raise
        return self

    def write(self, table: pa.Table) -> None:
        """Append the rows of ``table``. Raises ``OSError`` (disk full), also for the piece before."""
        self._wait()
        whole = table.cast(self._schema)
        self._last = self._thread.submit(self._writer.write_table, whole)

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._wait()
        finally:
            self._thread.shutdown()
            try:
                self._close(keep=kind is None)
            except BaseException:
                with contextlib.suppress(OSError):
                    self._beside.unlink()
                raise

    def _close(self, *, keep: bool) -> None:
        if not keep:
            with contextlib.suppress(Exception):
                self._writer.close()
            self._file.close()
            with contextlib.suppress(OSError):
                self._beside.unlink()
            return
        with self._file:
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
        self._beside.rename(self._path)


def write_table(directory: Path, name: str, table: pa.Table) -> None:
    """Write a whole table of ``SCHEMAS``. Raises ``OSError`` (disk full)."""
    with TableWriter(directory, name) as writer:
        writer.write(table)


def read_table(directory: Path, name: str) -> pa.Table:
    """One table, whole.

    Raises:
        UsageError: the file is missing, damaged, or too long, or has other columns.
    """
    with opened(directory, name) as parquet:
        _check_footer(file_name(name), parquet, SCHEMAS[name])
        table = parquet.read(use_threads=True)
        table.validate(full=True)
        check_values(file_name(name), table)
        return table


def write_kernel_events(directory: Path, events: Sequence[KernelEvent]) -> None:
    """Write the table ``kernel``, which only a run with an outlier and a trace has. Raises ``OSError`` (disk full)."""
    schema = SCHEMAS["kernel"]
    columns = zip(*events, strict=True)
    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, schema, strict=True)]
    write_table(directory, "kernel", pa.Table.from_arrays(arrays, schema=schema))


def read_kernel_events(directory: Path) -> list[KernelEvent]:
    """The events; none for a run without them. Raises ``UsageError`` for a damaged table."""
    if not (directory / file_name("kernel")).exists():
        return []
    table = read_table(directory, "kernel")
    return [KernelEvent(*row) for row in zip(*(column.to_pylist() for column in table.columns), strict=True)]


def check_table(directory: Path, name: str) -> None:
    """Raise ``UsageError`` for a table whose footer is missing or damaged, or has other columns.

    The statistics of the footer are not looked at: for damaged ones, Arrow ends the process (pyarrow 26,
    ColumnChunkMetaData.statistics). Values are checked as they are read.
    """
    with opened(directory, name) as parquet:
        _check_footer(file_name(name), parquet, SCHEMAS[name])


DAMAGE = (pa.ArrowException, OSError, ValueError, TypeError, KeyError, EOFError, MemoryError, OverflowError)
"""What Arrow raises for a damaged file; its own errors derive from the builtin ones."""


@contextlib.contextmanager
def opened(directory: Path, name: str) -> Iterator[pq.ParquetFile]:
    """Open the file of a table. Raises ``UsageError`` when it is missing, or proves damaged in the block."""
    path = directory / file_name(name)
    try:
        with open(path, "rb", opener=at_once) as file:
            yield pq.ParquetFile(file)
    except FileNotFoundError as error:
        raise UsageError(f"{path.name} is missing") from error
    except DAMAGE as error:
        raise UsageError(f"{path.name} is damaged: {(str(error).splitlines() or [''])[0][:200]}") from error


def _check_footer(name: str, parquet: pq.ParquetFile, schema: pa.Schema) -> None:
    _check(name, parquet.schema_arrow, schema)
    if parquet.metadata.num_rows > ROW_LIMIT:
        raise UsageError(f"{name} has {parquet.metadata.num_rows} rows, more than {ROW_LIMIT}")


def check_values(name: str, table: pa.Table | pa.RecordBatch) -> None:
    """Raise ``UsageError`` for a value beyond ``LIMITS``."""
    for column in table.schema.names:
        values = table.column(column)
        if limits_of(column) is not None and len(values) > values.null_count:
            if pa.types.is_floating(values.type) and not pc.all(pc.is_finite(values)).as_py():
                raise UsageError(f"{name} is damaged: {column} holds a value that is not finite")
            both = pc.min_max(values).as_py()
            _check_range(name, column, both["min"], both["max"])


def limits_of(column: str) -> tuple[float, float] | None:
    """The smallest and the largest value that a column may hold; None without limits."""
    return LIMITS.get(column) or LIMITS.get(column.rpartition("_")[2])


def _check_range(name: str, column: str, low: object, high: object) -> None:
    limits = limits_of(column)
    for value in (low, high):
        if limits and isinstance(value, int | float) and not limits[0] <= value <= limits[1]:
            raise UsageError(f"{name} is damaged: {column} reads {value}")


def read_stream(path: Path) -> tuple[pa.Table, str]:
    """The stream of resources as far as it is sound, and what is wrong with it ("" if nothing is).

    A stream that was cut gives the batches before the cut; a missing one (no process was sampled) gives none, and
    nothing is wrong with it. Rows with a value out of range are left out.
    """
    batches: list[pa.RecordBatch] = []
    rows, wrong, left_out = 0, "", 0
    try:
        with open(path, "rb", opener=at_once) as file, pa.ipc.open_stream(file) as reader:
            _check(path.name, reader.schema, RESOURCES)
            for batch in reader:
                batch.validate(full=True)
                kept, its_wrong = _sound_rows(path.name, batch)
                left_out, wrong = left_out + batch.num_rows - kept.num_rows, wrong or its_wrong
                rows += batch.num_rows
                if rows > ROW_LIMIT:
                    raise UsageError(f"more than {ROW_LIMIT} rows")
                batches.append(kept)
    except FileNotFoundError:
        pass
    except (*DAMAGE, UsageError) as error:
        wrong = f"{path.name} ends early, after {rows} rows: {(str(error).splitlines() or [''])[0][:200]}"
    if left_out:
        wrong = f"{wrong}; {left_out} rows are left out"
    return pa.Table.from_batches(batches, RESOURCES), wrong


def _sound_rows(name: str, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, str]:
    """The rows of a batch without a value out of range, and what is wrong with the others."""
    try:
        check_values(name, batch)
        return batch, ""
    except UsageError as error:
        sound = pa.array(np.ones(batch.num_rows, np.bool_))
        for column in batch.schema.names:
            limits = limits_of(column)
            if limits is not None:
                its = batch.column(column)
                within = pc.and_(pc.greater_equal(its, limits[0]), pc.less_equal(its, limits[1]))
                sound = pc.and_(sound, pc.fill_null(within, True))
        return batch.filter(sound), str(error)


def _check(name: str, found: pa.Schema, expected: pa.Schema) -> None:
    if not found.equals(expected, check_metadata=False):
        names = [f"{field.name} {field.type}" for field in expected]
        raise UsageError(f"{name} is of another version: it has other columns than {', '.join(names)}")
