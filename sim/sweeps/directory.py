"""A sweep: the same topology with every combination of some values, one run after the other, in one directory.

    sweep.json      the plan (text, cells), and a row of figures for each cell that is done
    sweep.parquet   those rows as a table
    001, 002, ...   the run directory of each cell, by its place in the plan
    unfinished/     runs that were interrupted; nothing reads them again

A cell is done once its directory stands in its place. Of ``repeat`` runs of the same values, number r has the
topology's seed + r: each draws another order, and every one of them can be run again alone.
"""

from __future__ import annotations

import datetime
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

import sim.results
from nodes.errors import UsageError
from sim.exit_codes import of_run
from sim.kernel.shortage import error_of_path
from sim.results import Run
from sim.results.expectations import evaluate
from sim.results.store import files
from sim.results.store.opening import nearest_directory
from sim.sweeps.plan import Cell, Plan
from topologies import Topology


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one cell; None: not known. Memory is that of a machine on average."""

    place: int
    repeat: int
    seed: int
    values: dict[str, str]
    status: str
    reason: str = ""
    balanced: bool = False
    aborted: bool = False
    rung_per_s: float | None = None
    coalescing: float | None = None
    delivery_p50_ns: int | None = None
    delivery_p99_ns: int | None = None
    total_p50_ns: int | None = None
    total_p99_ns: int | None = None
    uss_bytes: int | None = None
    ready_s: float | None = None
    expectations: int = 0
    missed: list[str] = []
    host: str = ""
    """The host of a cluster that ran it; "": this one."""

    @property
    def exit_code(self) -> int:
        """As ``ivsim run`` would end: 0, 1, or 99 for expectations that were missed."""
        return of_run(self.status, self.reason, balanced=self.balanced, aborted=self.aborted, missed=bool(self.missed))


def hosts_are_comparable(varied: Sequence[str], rows: Sequence[Row]) -> bool:
    """Whether each host has run every combination as often as the others: then each has a whole table of its own."""
    by_host: dict[str, Counter[tuple[str, ...]]] = {}
    for row in rows:
        by_host.setdefault(row.host, Counter())[tuple(row.values[key] for key in varied)] += 1
    first, *others = by_host.values() or (Counter(),)
    return all(other == first for other in others)


def make_table(varied: Sequence[str], rows: Sequence[Row]) -> Any:
    """The rows as a pyarrow table: a column for each key that varies, numbers where all its values are."""
    import pyarrow as pa

    from sim.results.store.schemas import schema_of

    columns: dict[str, Any] = {key: _typed([row.values[key] for row in rows]) for key in varied}
    for field in schema_of(Row):
        if field.name not in ("values", "missed"):
            columns[field.name] = pa.array([getattr(row, field.name) for row in rows], field.type)
    columns["missed"] = pa.array([row.missed for row in rows], pa.list_(pa.string()))
    return pa.table(columns)


def _typed(values: Sequence[str]) -> list[int] | list[float] | list[str]:
    for kind in (int, float):
        try:
            return [kind(value) for value in values]
        except ValueError:
            continue
    return list(values)


SCHEMA_VERSION = 1
PLAN, TABLE, UNFINISHED = "sweep.json", "sweep.parquet", "unfinished"
INTERRUPTED = "interrupted"


class _Record(msgspec.Struct, frozen=True):
    """``sweep.json``."""

    schema_version: int
    plan: Plan
    rows: list[Row] = []


class Sweep:
    """A sweep in its directory ``path``: what is to be run, and what is done."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path, self.plan = path, plan
        self._rows: dict[int, Row] = {}

    @classmethod
    def create(cls, where: Path, plan: Plan) -> Sweep:
        """Make a new directory under ``where``. Raises ``HostError`` when it cannot be made."""
        title = plan.topology(plan.cells[0]).title
        started = datetime.datetime.now(datetime.UTC)
        try:
            sweep = cls(files.new_directory(where, f"sweep-{files.slug(title)}", started), plan)
            sweep._write()
        except OSError as error:
            raise error_of_path(error, f"{where}: the sweep's directory cannot be made") from error
        return sweep

    @classmethod
    def resume(cls, path: Path, plan: Plan | None = None) -> Sweep:
        """An earlier one, to go on with.

        Raises ``UsageError`` when there is none, when its topology has changed or ``plan`` is another one than it began
        with, or when a run in it is of another topology.
        """
        try:
            record = files.read_json(path / PLAN, _Record)
        except UsageError as error:
            hint = "" if path.is_dir() else nearest_directory(path, PLAN)
            raise UsageError("; ".join(filter(None, (f"{path}: no sweep to go on with: {error}", hint)))) from None
        if record.schema_version != SCHEMA_VERSION:
            raise UsageError(f"{path}: a sweep of schema {record.schema_version}, this program has {SCHEMA_VERSION}")
        record.plan.topology(record.plan.cells[0])
        if plan is not None and (difference := record.plan.difference(plan)):
            raise UsageError(
                f"{path}: another sweep was begun there: {difference}. To go on with that one, leave out the topology "
                "and what goes with it; to run this one, leave out --resume"
            )
        sweep = cls(path, record.plan)
        for cell in sweep.plan.cells:
            if sweep.run_path(cell).exists():
                sweep._adopt(cell)
        return sweep

    @property
    def rows(self) -> list[Row]:
        """Those of the cells that are done, by place."""
        return [self._rows[place] for place in sorted(self._rows)]

    @property
    def left(self) -> list[Cell]:
        """The cells that are not done."""
        return [cell for cell in self.plan.cells if cell.place not in self._rows]

    @property
    def unfinished(self) -> Path:
        """The directory of runs that have no place yet."""
        return self.path / UNFINISHED

    def run_path(self, cell: Cell) -> Path:
        """Where the run of a cell is, once it is done."""
        return self.path / f"{cell.place:0{max(3, len(str(len(self.plan.cells))))}d}"

    def take(self, cell: Cell, done: Run) -> tuple[Row, str]:
        """Take the run of a cell, in a directory of ``unfinished``, into its place.

        A run that was interrupted is no result: it is left in ``unfinished``, and the cell is not done.

        Returns:
            The row of the cell, and the reason of an interruption ("" for none).
        """
        topology = self.plan.topology(cell)
        if done.status == INTERRUPTED:
            return self._row(cell, topology, done), done.reason or INTERRUPTED
        done.path.rename(self.run_path(cell))
        row = self._row(cell, topology, sim.results.open(self.run_path(cell)))
        self._rows[cell.place] = row
        self._write()
        return row, ""

    def finish(self) -> None:
        """Write the table of all that is done; an empty ``unfinished`` goes."""
        import pyarrow.parquet as pq

        buffer = io.BytesIO()
        pq.write_table(make_table(self.plan.varied, self.rows), buffer)
        files.replace(self.path / TABLE, buffer.getvalue())
        self._write()
        if self.unfinished.is_dir() and not any(self.unfinished.iterdir()):
            self.unfinished.rmdir()

    def _adopt(self, cell: Cell) -> None:
        topology, found = self.plan.topology(cell), sim.results.open(self.run_path(cell))
        text = files.read_bytes(found.path / files.TOPOLOGY, 1 << 30).decode(errors="replace")
        if text != self.plan.text or found.origin.seed != topology.seed:
            raise UsageError(f"{found.path}: a run of another topology or seed than this sweep's; move it away")
        self._rows[cell.place] = self._row(cell, topology, found)

    def _write(self) -> None:
        files.write_json(self.path / PLAN, _Record(SCHEMA_VERSION, self.plan, self.rows))

    def _row(self, cell: Cell, topology: Topology, run: Run) -> Row:
        known: dict[str, Any] = {}
        try:
            figures = run.figures
            delivery, total = figures.latency_ns.delivery, figures.latency_ns.total
            memory = [(group.uss_bytes, group.machines) for group in figures.groups.values()]
            looked = [(used, machines) for used, machines in memory if used is not None]
            machines = sum(those for _, those in looked)
            known = {
                "balanced": figures.balanced,
                "aborted": run.aborted,
                "rung_per_s": figures.doorbells_per_s,
                "coalescing": figures.coalescing,
                "delivery_p50_ns": delivery.p50,
                "delivery_p99_ns": delivery.p99,
                "total_p50_ns": total.p50,
                "total_p99_ns": total.p99,
                "uss_bytes": round(sum(used * those for used, those in looked) / machines) if machines else None,
                "ready_s": figures.ready_s,
                "host": run.origin.host.name,
            }
        except UsageError as error:
            known["reason"] = str(error)
        verdicts = evaluate(topology, run)
        return Row(
            place=cell.place,
            repeat=cell.repeat,
            seed=topology.seed,
            values={key: cell.overrides[key] for key in self.plan.varied},
            status=run.status,
            expectations=len(verdicts),
            missed=[str(verdict) for verdict in verdicts if not verdict.met],
            **({"reason": run.reason} | known),
        )
