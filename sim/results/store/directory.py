"""The run directory during its run: made, appended to, and finished.

Heavy modules are imported with the first batch of resources, when the coordinator has started the machines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from nodes.errors import HostError, IvshmemError, RunError
from sim.access import Access
from sim.host.wake_up_baseline import WakeUpBaseline
from sim.kernel.shortage import error_of_path, is_shortage
from sim.results.ending import Ending
from sim.results.run import Run
from sim.results.store import files
from sim.results.store.manifest import SCHEMA_VERSION, GroupRow, HostFacts, MachineRow, Manifest, Owner, PartRow
from sim.results.summary import BaselineMeasurement
from sim.version import VERSION
from topologies.model import Topology

# An event is a line for a reader: more of them are a fault of their source, and would fill the disk.
EVENTS_LIMIT = 1_000_000
# The size of ending.json, with its indentation.
RESERVED_BYTES, ENDING_MACHINE_BYTES, ENDING_VECTOR_BYTES = 4096, 120, 40


class RunDirectory:
    """A run directory that this process owns and writes.

    A context manager: leaving it closes its files; leaving it by an exception also says why there are no results.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.events_refused = 0
        self._finished = False
        self._events_written = 0
        self.clock: Callable[[], int] = time.monotonic_ns
        """The time of events in nanoseconds: that of the engine, once there is one."""
        self._encoder = msgspec.json.Encoder(enc_hook=str)
        self._events = os.open(
            path / files.EVENTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        self._resources = ResourceStream(path / files.RESOURCE_STREAM)

    @classmethod
    def create(
        cls, where: Path, topology: Topology, arguments: Mapping[str, Any], parts: Sequence[PartRow] = ()
    ) -> Self:
        """Make the directory, mode 0700, under ``where``: title, UTC time and the first free number.

        ``parts`` are those that hosts run; their directories are put below `files.PARTS` before `finish`.

        Raises:
            UsageError: ``where`` cannot hold a directory.
            HostError: the disk is full.
        """
        started_ns, started = time.monotonic_ns(), datetime.datetime.now(datetime.UTC)
        try:
            path = files.new_directory(where, files.slug(topology.title), started)
            (path / files.RAW).mkdir(mode=0o700)
            manifest = _manifest(topology, arguments, started_ns, started)
            manifest = msgspec.structs.replace(manifest, parts=list(parts))
            files.replace(path / files.TOPOLOGY, topology.source_text.encode())
            for name, source in topology.files.items():
                _copy(Path(source), path, Path(name))
            _reserve(path / files.RESERVE, manifest)
            # The manifest before the status: a directory with a status always names its owner.
            files.write_json(path / files.MANIFEST, manifest)
            files.write_status(path, files.RUNNING)
            return cls(path, manifest)
        except OSError as error:
            raise error_of_path(error, f"{where}: the run directory cannot be made") from error

    def recording_path(self, machine: int) -> Path:
        """Where the recording of the machine with that index belongs."""
        return self.path / files.RAW / f"{machine}.rec"

    def record_access(self, access: Sequence[Access]) -> None:
        """Write into the manifest how other programs join the run. Raises ``HostError`` when the disk refuses."""
        self.manifest = msgspec.structs.replace(self.manifest, access=list(access))
        try:
            files.write_json(self.path / files.MANIFEST, self.manifest)
        except OSError as error:
            raise HostError(f"{self.path}: the manifest cannot be written: {error.strerror or error}") from error

    def event(self, kind: str, **fields: Any) -> None:
        """Append an event: its kind, the time of ``clock`` as ``time_ns``, UTC as ``utc``, and ``fields``.

        Never raises for a full disk: what cannot be written is counted, and the summary says how many.
        """
        utc = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
        line = self._encoder.encode({"time_ns": self.clock(), "utc": utc, "kind": kind, **fields}) + b"\n"
        if self._events_written >= EVENTS_LIMIT or not self._append(line):
            self.events_refused += 1
        else:
            self._events_written += 1

    def resources(self, rows: Iterable[tuple[object, ...]]) -> None:
        """Append `sim.host.resource_row.Resources`, or rows in that order. Never raises for a full disk."""
        self._resources.append(rows)

    def save(self, ending: Ending) -> None:
        """Write down how the run ended, so that its figures can be computed whatever happens next.

        Raises:
            HostError, RunError: the disk is full, or the directory is gone.
        """
        with self._writing():
            (self.path / files.RESERVE).unlink(missing_ok=True)
            files.write_json(self.path / files.ENDING, ending)

    def finish(self, ending: Ending, baselines: Sequence[WakeUpBaseline] = ()) -> Run:
        """Turn the recordings into tables and a summary.

        Args:
            ending: how the run ended.
            baselines: the wake-up baselines measured before and after the run.

        Returns:
            The run.

        Raises:
            HostError, RunError: the disk is full, or the directory is gone. The recordings are kept
                then, and ``open`` on the directory finishes the job.
        """
        from sim.results.finalize import conclude

        self.close()
        ending = msgspec.structs.replace(
            ending,
            refused_events=self.events_refused,
            refused_resources=self._resources.refused,
            baselines=[BaselineMeasurement(**dataclasses.asdict(baseline)) for baseline in baselines],
        )
        self.save(ending)
        with self._writing():
            conclude(self.path, self.manifest, ending)
        self._finished = True
        return Run(self.path)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kept = f"the recordings are kept in {files.RAW}/, and opening the run again finishes the job"
            told = f"{self.path}: {_reason(error)} when the results were written; {kept}"
            raise (HostError(told) if is_shortage(error) else RunError(told)) from error

    def close(self) -> None:
        """Close the files that grow; a directory that is not finished stays for ``open`` to recover."""
        if self._events >= 0:
            os.close(self._events)
            self._events = -1
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None and not self._finished:
            # Not "running" while this process exists: another one that opens the run may conclude it now.
            with contextlib.suppress(OSError):
                (self.path / files.RESERVE).unlink(missing_ok=True)
                if isinstance(error, KeyboardInterrupt):
                    files.write_status(self.path, "interrupted", "given up before its results were written")
                else:
                    told = str(error) if isinstance(error, IvshmemError) else f"{type(error).__name__}: {error}"
                    files.write_status(self.path, "failed", told)
        self.close()

    def _append(self, line: bytes) -> bool:
        try:
            written = os.write(self._events, line)
            if written < len(line):  # the disk is full: half a line would spoil the next one
                os.ftruncate(self._events, os.fstat(self._events).st_size - written)
        except OSError:
            return False
        return written == len(line)


def _reserve(path: Path, manifest: Manifest) -> None:
    """Keep room on the disk for how the run ended, which must be written even when its results find none."""
    vectors = sum(machine.vectors for machine in manifest.machines)
    size_bytes = RESERVED_BYTES + len(manifest.machines) * ENDING_MACHINE_BYTES + vectors * ENDING_VECTOR_BYTES
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    finally:
        os.close(descriptor)


def _reason(error: OSError) -> str:
    return "no space left on the disk" if error.errno == errno.ENOSPC else error.strerror or str(error)


def _copy(source: Path, directory: Path, name: Path) -> None:
    """Put a file that the topology names beside it, so that it can be run again from here.

    Under the name that it is called by; one that leads out of the topology's folder is kept by its last part.
    """
    leads_out = name.is_absolute() or ".." in name.parts
    target = directory / (name.name if leads_out else name)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not target.exists():
        files.replace(target, source.read_bytes())


def _manifest(
    topology: Topology, arguments: Mapping[str, Any], started_ns: int, started: datetime.datetime
) -> Manifest:
    numbers = {domain.name: number for number, domain in enumerate(topology.domains)}
    return Manifest(
        schema_version=SCHEMA_VERSION,
        version=VERSION,
        title=topology.title,
        seed=topology.seed,
        started=started.isoformat(timespec="milliseconds"),
        started_ns=started_ns,
        duration_s=topology.run.duration_s,
        warmup_s=topology.run.warmup_s,
        sample_every=topology.run.sample_every,
        owner=Owner.this(),
        host=HostFacts.this(),
        argv=list(sys.argv),
        arguments=msgspec.to_builtins(dict(arguments), enc_hook=str),
        groups=[
            GroupRow(group.name, group.count, group.vectors, group.program, topology.real(group.name))
            for group in topology.groups
        ],
        machines=[
            MachineRow(machine.index, machine.name, machine.group, machine.vectors, numbers[machine.domains[0]])
            for machine in topology.machines
        ],
        domains=[domain.name for domain in topology.domains],
        engine=topology.run.engine,
    )


class ResourceStream:
    """Appends batches to one file; owns its descriptor from the first batch on until :meth:`close`.

    ``refused`` counts the rows that the disk did not take. After a batch that failed half way nothing can
    follow it in the stream, so everything later is refused, too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.refused = 0
        self._file: Any = None
        self._writer: Any = None
        self._broken = False

    def append(self, rows: Iterable[tuple[object, ...]]) -> None:
        """Write one batch and hand it to the kernel. Raises ``ValueError`` for a row of the wrong shape."""
        import pyarrow as pa

        from sim.results.store.schemas import RESOURCES

        columns = list(zip(*rows, strict=True))
        if not columns:
            return
        arrays = [pa.array(column, kind.type) for column, kind in zip(columns, RESOURCES, strict=True)]
        batch = pa.RecordBatch.from_arrays(arrays, schema=RESOURCES)
        if self._broken:
            self.refused += batch.num_rows
            return
        try:
            if self._writer is None:
                self._file = open(self.path, "xb")  # noqa: SIM115 - it stays open between batches
                self._writer = pa.ipc.new_stream(self._file, RESOURCES)
            self._writer.write_batch(batch)
            self._file.flush()
        except OSError:
            self._broken = True
            self.refused += batch.num_rows

    def close(self) -> None:
        """End the stream. A second call does nothing."""
        # A full disk cannot take the end mark either; readers do not need it.
        with contextlib.suppress(OSError):
            if self._writer is not None and not self._broken:
                self._writer.close()
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
        self._writer = self._file = None
        self._broken = True
