"""From recordings to results, in the same way for a run that ends and for one whose coordinator died."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from nodes.errors import UsageError
from sim.recording.reader import VECTOR_MASK
from sim.results.analysis.account import Account, account, inferred_ending
from sim.results.analysis.joint import join_machines, join_summaries
from sim.results.analysis.latency.distribution import distribution, sizes_of_drains
from sim.results.analysis.latency.samples import sample_batches
from sim.results.analysis.migrations import migrations
from sim.results.analysis.summarize import summarize
from sim.results.ending import Ending
from sim.results.run import Run
from sim.results.store import files, schemas
from sim.results.store.batches import batches
from sim.results.store.events import Event, Statistics, read_events, remarks, statistics_of
from sim.results.store.manifest import Manifest
from sim.results.summary import Summary


def conclude(path: Path, manifest: Manifest, ending: Ending | None, into: Path | None = None) -> None:
    """Compute the tables and the summary of a run directory, write them, remove the recordings.

    Samples and drains go from the recordings to their tables a piece at a time, and the percentiles are computed from
    the tables, so memory grows by ``matching.INDEX_BYTES_EACH`` for each drain and not otherwise.

    Args:
        path: the run directory.
        manifest: its manifest.
        ending: what the coordinator knew last; None if it died (``account``).
        into: another directory to write to; then nothing in ``path`` is changed.

    Raises:
        OSError: the directory cannot be written; the recordings are kept.
    """
    place = path if into is None else into
    if manifest.parts:
        parts = Run(path).parts
        files.write_json(place / files.MANIFEST, join_machines(manifest, parts))
        ending = ending or inferred_ending(path, manifest, [])
        _write_summary(place, join_summaries(manifest, parts, ending))
        if into is None:
            _clean(path)
        return
    its = account(path, manifest, ending)
    if its.manifest != manifest or into is not None:
        manifest = its.manifest
        files.write_json(place / files.MANIFEST, manifest)
    _write_streams(place, its)
    for name, columns in _columns(its).items():
        schemas.write_table(place, name, _table(name, columns))
    schemas.write_table(place, "resources", its.resources)
    latencies = distribution(
        lambda: sample_batches(place, manifest), manifest, its.ending.measure_start_ns, its.ending.stop_ns
    )
    drained = sizes_of_drains(lambda: batches(place, "drains", ("machine", "count")), manifest)
    summary = _with_events(summarize(its, latencies, drained), its, _events(path), place)
    schemas.write_table(place, "histograms", _table("histograms", _histograms(latencies.histograms)))
    _write_summary(place, summary)
    if into is None:
        _clean(path)


def _write_summary(place: Path, summary: Summary) -> None:
    files.write_json(place / files.SUMMARY, summary)
    # The status last: a directory with another status than running has all the rest in place.
    files.write_status(place, summary.status, summary.reason)
    files.sync_directory(place)


def _write_streams(place: Path, its: Account) -> None:
    """The tables of drains and of samples, from the recordings."""
    with schemas.TableWriter(place, "drains") as writer:
        for drains in its.matching.drain_chunks():
            writer.write(
                _table(
                    "drains",
                    {
                        "machine": pa.array(drains.machine),
                        "vector": pa.array(drains.vector),
                        "count": pa.array(drains.count),
                        "delivered_ns": pa.array(drains.delivered_ns),
                        "handled_ns": pa.array(drains.handled_ns, mask=drains.handled_ns == 0),
                    },
                )
            )
    with schemas.TableWriter(place, "samples") as writer:
        for samples in its.matching.sample_chunks():
            lost = samples.delivered_ns == 0
            writer.write(
                _table(
                    "samples",
                    {
                        "source": pa.array(samples.source),
                        "target": pa.array(samples.target, mask=samples.target < 0),
                        "vector": pa.array(samples.vector),
                        "intended_ns": pa.array(samples.intended_ns, mask=samples.intended_ns == 0),
                        "rung_ns": pa.array(samples.rung_ns),
                        "delivered_ns": pa.array(samples.delivered_ns, mask=lost),
                        "handled_ns": pa.array(samples.handled_ns, mask=samples.handled_ns == 0),
                        "count": pa.array(samples.count, mask=lost),
                        "warmup": pa.array(samples.warmup),
                    },
                )
            )


def _events(path: Path) -> list[Event]:
    with contextlib.suppress(UsageError):  # a run whose events are gone says so when it is opened
        return read_events(path)[0]
    return []


def _in_order(statistics: Statistics, manifest: Manifest) -> Statistics:
    """The statistics by machine in the order of the machines: events come in the order in which the processes end."""
    index = {machine.name: machine.index for machine in manifest.machines}
    return dict(sorted(statistics.items(), key=lambda item: index.get(item[0], len(index))))


def _with_events(summary: Summary, its: Account, events: list[Event], place: Path) -> Summary:
    return msgspec.structs.replace(
        summary,
        statistics=_in_order(statistics_of(events), its.manifest),
        migrations=migrations(events, its, place),
        warnings=[*summary.warnings, *remarks(events)],
    )


def _columns(its: Account) -> dict[str, dict[str, pa.Array]]:
    """The columns of the tables of edges and vectors."""
    edges = its.edges
    own = [line for line in its.lines if line.machine >= 0]
    return {
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
