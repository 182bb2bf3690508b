"""A finished run, read from its directory: figures, tables, events."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import msgspec

from nodes.errors import UsageError
from sim.results.display import as_html
from sim.results.store import files
from sim.results.store.events import read_events
from sim.results.store.manifest import SCHEMA_VERSION, Manifest
from sim.results.summary import Summary

COUNTED_TABLES = ("edges", "vectors")
"""The tables of a run over several hosts: those without times."""
TABLES = ("samples", "drains", "edges", "vectors", "resources", "histograms")


class Run:
    """The results of a run; each file is read on its first use, and then kept.

    Tables and events are called (a table is a ``pyarrow.Table`` with the columns of ``store.schemas``), facts are
    not (``summary`` and ``manifest`` are plain dictionaries). What is missing or damaged raises ``UsageError`` when it
    is asked for, and stands in ``problems`` from the start.
    """

    def __init__(self, path: Path, place: Path | None = None, notes: Sequence[str] = ()) -> None:
        """A run in the directory ``path``.

        Args:
            path: the run directory.
            place: where its results are, if they could not be written to ``path``.
            notes: what a reader has to know about that; ``problems`` begin with them.
        """
        self.path = path
        self.place = path if place is None else place
        self._notes = list(notes)
        self._tables: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"<Run {self.path.name}: {self.status}>"

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Errors begin with the directory."""
        try:
            yield
        except UsageError as error:
            raise UsageError(f"{self.path}: {error}") from error

    @property
    def status(self) -> str:
        """finished, degraded, failed, interrupted or died; unknown when the directory does not say."""
        return self._status[0]

    @property
    def reason(self) -> str:
        """Why the status is what it is; empty for a run that finished."""
        return self._status[1]

    @cached_property
    def _status(self) -> tuple[str, str]:
        try:
            return files.read_status(self.place)
        except UsageError as error:
            return "unknown", str(error)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """``manifest.json``, checked."""
        return _plain(self.origin)

    @cached_property
    def origin(self) -> Manifest:
        """The manifest as a structure."""
        with self._named():
            version = files.read_json(self.place / files.MANIFEST, _Versioned).schema_version
            if version != SCHEMA_VERSION:
                raise UsageError(f"written with schema {version}, this program reads schema {SCHEMA_VERSION}")
            return files.read_json(self.place / files.MANIFEST, Manifest)

    @property
    def machines(self) -> list[dict[str, Any]]:
        """The machines by index: dictionaries of index, name, group, vectors."""
        machines: list[dict[str, Any]] = self.manifest["machines"]
        return machines

    @cached_property
    def summary(self) -> dict[str, Any]:
        """``summary.json``, checked (its fields: ``sim.results.summary``)."""
        return _plain(self.figures)

    @cached_property
    def parts(self) -> dict[str, Run]:
        """The parts of a run over several hosts that are there, by host; {} for any other run."""
        try:
            rows = self.origin.parts
        except UsageError:
            return {}
        paths = {row.host: self.path / files.PARTS / row.directory for row in rows}
        return {host: Run(path) for host, path in paths.items() if path.is_dir()}

    def check_one_host(self, what: str) -> None:
        """Raises ``UsageError`` for a run over several hosts, which has no ``what``."""
        if self.parts:
            raise UsageError(
                f"{what} are known within a host only: those of each are in its {files.PARTS}/, and in "
                f"run.parts ({', '.join(self.parts)})"
            )

    @cached_property
    def figures(self) -> Summary:
        """The summary as a structure."""
        with self._named():
            return files.read_json(self.place / files.SUMMARY, Summary)

    @property
    def balanced(self) -> bool:
        """Whether rung = delivered + pending + refused held on every line."""
        return self.figures.balanced

    def samples(self) -> Any:
        """Each sampled doorbell; machines are indices."""
        return self.table("samples")

    def drains(self) -> Any:
        """Each logged drain of an eventfd counter."""
        return self.table("drains")

    def edges(self) -> Any:
        """Doorbells rung and refused by (source, peer, vector), as the senders counted them."""
        return self.table("edges")

    def vectors(self) -> Any:
        """The account of every vector of every machine, settled where a death left it open."""
        return self.table("vectors")

    def resources(self) -> Any:
        """The sampled resources of processes; machine -1 is the coordinator."""
        return self.table("resources")

    def migrations(self) -> Any:
        """The outcome of each migration, as a ``pyarrow.Table`` (columns: ``sim.results.summary.MigrationOutcome``)."""
        import pyarrow as pa

        from sim.results.store.schemas import MIGRATIONS

        return pa.Table.from_pylist([_plain(migration) for migration in self.figures.migrations], MIGRATIONS)

    def table(self, name: str) -> Any:
        """One of samples, drains, edges, vectors, resources, histograms as a ``pyarrow.Table``."""
        if name not in self._tables:
            with self._named():
                self._tables[name] = self._read_table(name)
        return self._tables[name]

    def _read_table(self, name: str) -> Any:
        from sim.results.store.schemas import file_name, read_table

        file_name(name)
        if self.parts and name in COUNTED_TABLES:
            from sim.results.analysis.joint_tables import join_tables

            return join_tables(self.origin, [(run.origin, run.table(name)) for run in self.parts.values()])
        self.check_one_host(name)
        return read_table(self.place, name)

    @cached_property
    def columns(self) -> Any:
        """The samples as ``latency.latencies.Samples``: numpy columns, nothing nullable."""
        from sim.results.frames import samples

        return samples(self.samples())

    def events(self) -> list[dict[str, Any]]:
        """The events in order: ``time_ns``, ``utc``, ``kind`` and more; damaged lines are left out."""
        return self._events[0]

    @cached_property
    def _events(self) -> tuple[list[dict[str, Any]], int]:
        """The events, and how many lines are none."""
        with self._named():
            return read_events(self.path)

    @cached_property
    def problems(self) -> list[str]:
        """The missing and damaged parts, now or when the run ended; empty when there are none."""
        from sim.results.store.schemas import check_table

        def skipped_events() -> None:
            if skipped := self._events[1]:
                raise UsageError(f"{files.EVENTS}: {skipped} lines are damaged and left out")

        checks: list[Callable[[], object]] = [lambda: files.read_status(self.place), lambda: self.origin]
        checks += [lambda: self.figures, skipped_events]
        if not self.parts:
            checks += [partial(check_table, self.place, name) for name in TABLES]
        problems = [*self._notes]
        for check in checks:
            try:
                check()
            except UsageError as error:
                problems.append(str(error).removeprefix(f"{self.path}: "))
        problems += [f"{host}: {problem}" for host, run in self.parts.items() for problem in run.problems]
        if "figures" in self.__dict__:
            problems += self.figures.problems
        return list(dict.fromkeys(problems)) if self.parts else problems

    @property
    def warnings(self) -> list[str]:
        """The warnings about the figures, in words."""
        return self.figures.warnings

    @property
    def aborted(self) -> bool:
        """Whether an expectation with ``abort = true`` ended it."""
        return any(event.get("kind") == "aborted" for event in self.events())

    def actions(self) -> list[dict[str, Any]]:
        """Those of the events that the scenario had planned."""
        return [event for event in self.events() if event.get("kind") == "action"]

    def frame(self, name: str = "samples") -> Any:
        """A table as a ``pandas.DataFrame``; whole numbers stay whole, what is missing is ``<NA>``.

        ``samples`` also gets the latencies in nanoseconds, and ``group`` of the target. Raises ``UsageError``
        without pandas.
        """
        from sim.results.frames import frame

        return frame(self.table(name), self.origin)

    def latency(
        self, by: str | Sequence[str] = (), latencies: str | Sequence[str] | None = None, *, intervals: bool = False
    ) -> Any:
        """Percentiles in nanoseconds as a ``pyarrow.Table``: one row for each latency of each group of samples.

        ``by``: any of group, machine, vector (of the target), source, edge (source and machine together) and
        phase. ``latencies``: any of lag, delivery, handling, raw and total; all by default. total counts from
        the intended time (corrected for coordinated omission), raw from the ring. Columns: those of ``by``,
        latency, p50, p90, p99, p99_9, p99_99 (null: too few samples), max, samples; with ``intervals`` also
        p50_low, p50_high, ...: 95 % confidence (``latency.intervals``). The warm-up is left out; so are
        doorbells rung at peers outside the topology, unless ``by`` is empty.
        """
        from sim.results.analysis.latency.samples import latency

        by = (by,) if isinstance(by, str) else tuple(by)
        latencies = (latencies,) if isinstance(latencies, str) else latencies
        return self._samples_of(latency, self.figures if intervals else None, by, latencies)

    def latency_slices(self) -> Any:
        """Every latency by slices of the measured time (``latency.intervals.Slices``): what intervals are made of."""
        from sim.results.analysis.latency.samples import latency_slices

        return self._samples_of(latency_slices, self.figures)

    def percentiles_where(self, latency: str, where: Callable[[Any], Any]) -> dict[str, float | None]:
        """The percentiles of one latency in nanoseconds, the ``mean`` and the number of ``samples``.

        ``where`` takes a batch of ``latency.latencies.Samples`` and gives those that count; the warm-up never does.
        """
        from sim.results.analysis.latency.samples import percentiles_where

        found: dict[str, float | None] = self._samples_of(percentiles_where, latency, where)
        return found

    def _samples_of(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        """Apply a function of ``latency.samples`` to the samples, which are read in batches."""
        with self._named():
            self.check_one_host("latencies")
            return ask(self.place, self.origin, *arguments)

    def histogram(self, what: str = "delivery", by: str | None = None) -> Any:
        """How often each latency occurred, as a ``latency.histogram.Histogram``, 0.4 % at the most off.

        ``what`` is a latency, or drained: doorbells for each logged drain. With ``by`` (group, machine, phase;
        vector of drained) a dictionary of them by name. They add up: ``a.histogram() + b.histogram()``.
        """
        from sim.results.analysis.latency.stored_histograms import histogram

        return histogram(self.table, lambda: self.origin, what, by)

    def flows(self, by: str = "edge") -> Any:
        """Doorbells by sender and receiver, by names, as a table: source, target, rung, refused, delivered, pending.

        ``by``: edge (with vector and groups), machine or group. delivered and pending are null where they
        cannot be known (``sim.results.analysis.flows``).
        """
        from sim.results.analysis.flows import flows

        return flows(self.edges(), self.vectors(), self.origin, by)

    def matrix(self, by: str = "group", what: str = "rung") -> Any:
        """Senders down, receivers across, as ``sim.results.analysis.flows.FlowMatrix``: ``by`` machine or group.

        ``what``: rung, refused, delivered or pending.
        """
        from sim.results.analysis.flows import matrix

        if by not in ("machine", "group"):
            raise UsageError(f"a matrix by {by!r}: expected machine or group")
        names = [group.name for group in self.origin.groups]
        machines = [machine.name for machine in self.origin.machines]
        return matrix(self.flows(by), machines if by == "machine" else names, what)

    def coalescing(self, by: str | None = None) -> Any:
        """How many doorbells shared a wake-up, over all logged drains, the warm-up's too: a ``pyarrow.Table``.

        doorbells, wakes, mean, and percentiles of the doorbells for each wake; ``by`` group, machine, vector.
        """
        from sim.results.analysis.flows import coalescing

        return coalescing(self.drains(), self.origin, by)

    def _repr_html_(self) -> str | None:
        return as_html(self)


class _Versioned(msgspec.Struct):
    """Any manifest, of whatever age."""

    schema_version: int = 0


def _plain(structure: msgspec.Struct) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(structure)
    return plain
