"""From recordings to results: the one way, for a run that ends and for one that was found dead."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from nodes.errors import UsageError
from sim.results.analysis.account import Account, account
from sim.results.analysis.distribution import distribution
from sim.results.analysis.matching import VECTOR_MASK
from sim.results.analysis.migrations import migrations
from sim.results.analysis.summarize import summarize
from sim.results.ending import Ending
from sim.results.store import files, schemas
from sim.results.store.events import Event, Statistics, read_events, remarks, statistics_of
from sim.results.store.manifest import Manifest
from sim.results.summary import Summary

__all__ = ["conclude"]


def conclude(path: Path, manifest: Manifest, ending: Ending | None) -> None:
    """Compute the tables and the summary of a run directory, write them, remove the recordings.

    Without an ``ending`` its coordinator died (``account``). Raises ``OSError`` when the directory cannot be
    written; the recordings are kept then.
    """
    its = account(path, manifest, ending)
    if its.manifest != manifest:
        manifest = its.manifest
        files.write_json(path / files.MANIFEST, manifest)
    # Compressing takes as long as counting, and neither holds the interpreter: one beside the other.
    with ThreadPoolExecutor(max_workers=1) as beside:
        written = beside.submit(_write, path, its)
        latencies = distribution(its.samples, manifest)
        summary = _with_events(summarize(its, latencies), its, _events(path))
        written.result()
    schemas.write_table(path, "histograms", _table("histograms", _histograms(latencies.histograms)))
    files.write_json(path / files.SUMMARY, summary)
    # The status last: whoever finds another one than running finds all the rest in place.
    files.write_status(path, summary.status, summary.reason)
    files.sync_directory(path)
    _clean(path)


def _events(path: Path) -> list[Event]:
    with contextlib.suppress(UsageError):  # a run whose events are gone says so when it is opened
        return read_events(path)[0]
    return []


def _in_order(statistics: Statistics, manifest: Manifest) -> Statistics:
    """The statistics by machine in the order of the machines: events come in the order in which the processes end."""
    index = {machine.name: machine.index for machine in manifest.machines}
    return dict(sorted(statistics.items(), key=lambda item: index.get(item[0], len(index))))


def _with_events(summary: Summary, its: Account, events: list[Event]) -> Summary:
    return msgspec.structs.replace(
        summary,
        statistics=_in_order(statistics_of(events), its.manifest),
        migrations=migrations(events, its),
        warnings=[*summary.warnings, *remarks(events)],
    )


def _write(path: Path, its: Account) -> None:
    """All tables but the histograms."""
    for name, columns in _columns(its).items():
        schemas.write_table(path, name, _table(name, columns))
    schemas.write_table(path, "resources", its.resources)


def _columns(its: Account) -> dict[str, dict[str, pa.Array]]:
    """The columns of every table but the resources."""
    samples, drains, edges = its.samples, its.drains, its.edges
    own = [line for line in its.lines if line.machine >= 0]
    return {
        "samples": {
            "source": pa.array(samples.source),
            "target": pa.array(samples.target, mask=samples.target < 0),
            "vector": pa.array(samples.vector),
            "intended_ns": pa.array(samples.intended_ns),
            "rung_ns": pa.array(samples.rung_ns),
            "delivered_ns": pa.array(samples.delivered_ns, mask=samples.delivered_ns == 0),
            "handled_ns": pa.array(samples.handled_ns, mask=samples.handled_ns == 0),
            "count": pa.array(samples.count, mask=samples.delivered_ns == 0),
            "warmup": pa.array(samples.warmup),
        },
        "drains": {
            "machine": pa.array(drains.machine),
            "vector": pa.array(drains.vector),
            "count": pa.array(drains.count),
            "delivered_ns": pa.array(drains.delivered_ns),
            "handled_ns": pa.array(drains.handled_ns, mask=drains.handled_ns == 0),
        },
        "edges": {
            "source": pa.array(edges[:, 0]),
            "peer": pa.array(edges[:, 1] >> 16 & 0xFFFF),
            "target": pa.array(edges[:, 2], mask=edges[:, 2] < 0),
            "vector": pa.array(edges[:, 1] & VECTOR_MASK),
            "rung": pa.array(edges[:, 3]),
            "refused": pa.array(edges[:, 4]),
        },
        "vectors": {
            name: pa.array([getattr(line, name) for line in own], pa.int64())
            for name in schemas.SCHEMAS["vectors"].names
        },
    }


def _histograms(columns: dict[str, Any]) -> dict[str, pa.Array]:
    return {
        name: pa.array(column, mask=column < 0) if name == "machine" else pa.array(column)
        for name, column in columns.items()
    }


def _table(name: str, columns: dict[str, pa.Array]) -> pa.Table:
    schema = schemas.SCHEMAS[name]
    return pa.table([columns[kind.name].cast(kind.type) for kind in schema], schema=schema)


def _clean(path: Path) -> None:
    """Remove what the tables now hold, and what an earlier attempt left half written."""
    for recording in files.recordings(path).values():
        recording.unlink()
    with contextlib.suppress(OSError):
        (path / files.RAW).rmdir()
    for name in (files.RESOURCE_STREAM, files.ENDING, files.RESERVE):
        (path / name).unlink(missing_ok=True)
    written = [files.SUMMARY, files.STATUS, files.ENDING, *map(schemas.file_name, schemas.SCHEMAS)]
    for name in written:
        for half in path.glob(f".{name}.*"):
            half.unlink(missing_ok=True)
