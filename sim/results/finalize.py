"""From recordings to results, in the same way for a run that ends and for one whose coordinator died."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from nodes.errors import UsageError
from sim.recording.reader import VECTOR_MASK
from sim.results.analysis.account import Account, account, inferred_ending
from sim.results.analysis.joint import join_machines, join_summaries
from sim.results.analysis.latency.distribution import distribution, sizes_of_drains
from sim.results.analysis.latency.samples import sample_batches
from sim.results.analysis.migrations import migrations
from sim.results.analysis.summarize import summarize
from sim.results.arrays import Integers
from sim.results.ending import Ending
from sim.results.run import Run
from sim.results.store import files, schemas
from sim.results.store.batches import batches
from sim.results.store.events import Event, read_events, remarks, statistics_of
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
    schemas.write_table(place, "histograms", _table("histograms", latencies.histograms))
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
    for name, chunks in (("drains", its.matching.drain_chunks()), ("samples", its.matching.sample_chunks())):
        with schemas.TableWriter(place, name) as writer:
            for chunk in chunks:
                writer.write(_table(name, vars(chunk)))


def _events(path: Path) -> list[Event]:
    with contextlib.suppress(UsageError):  # a run whose events are gone says so when it is opened
        return read_events(path)[0]
    return []


def _with_events(summary: Summary, its: Account, events: list[Event], place: Path) -> Summary:
    # Events come in the order in which the processes end; statistics are in that of the machines.
    index = {machine.name: machine.index for machine in its.manifest.machines}
    statistics = sorted(statistics_of(events).items(), key=lambda item: index.get(item[0], len(index)))
    return msgspec.structs.replace(
        summary,
        statistics=dict(statistics),
        migrations=migrations(events, its, place),
        warnings=[*summary.warnings, *remarks(events)],
    )


def _columns(its: Account) -> dict[str, dict[str, Integers]]:
    """The columns of the tables of edges and vectors."""
    source, keys, target, rung, refused = its.edges.T
    own = [line for line in its.lines if line.machine >= 0]
    return {
        "edges": {
            "source": source,
            "peer": keys >> 16 & 0xFFFF,
            "target": target,
            "vector": keys & VECTOR_MASK,
            "rung": rung,
            "refused": refused,
        },
        "vectors": {
            name: np.array([getattr(line, name) for line in own], np.int64) for name in schemas.SCHEMAS["vectors"].names
        },
    }


def _table(name: str, columns: Mapping[str, Any]) -> pa.Table:
    """A table from columns of numpy; null where a column that may be null holds the number that stands for nothing."""
    schema = schemas.SCHEMAS[name]
    arrays = []
    for kind in schema:
        column = columns[kind.name]
        missing = column == schemas.stands_for_null(kind.name) if kind.nullable else None
        arrays.append(pa.array(column, mask=missing).cast(kind.type))
    return pa.table(arrays, schema=schema)


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
