"""The state of a run for Prometheus: the text exposition format, in a file as node_exporter's textfile collector
reads it, put in place whole on every snapshot.

The format: https://prometheus.io/docs/instrumenting/exposition_formats/ (version 0.0.4).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from nodes.errors import UsageError
from sim.telemetry import Snapshot, following
from sim.views.rates import pending

PHASES = ("starting", "running", "stopping", "done")

Labels = Mapping[str, str]


def exposition(snapshot: Snapshot, lost: int = 0) -> str:
    """Every figure of a snapshot, with its help and type; ``lost``: snapshots that never came."""
    run = {"title": snapshot.title, "path": snapshot.path}
    known = dict.fromkeys((*PHASES, snapshot.phase))
    phases = [({"phase": phase}, float(phase == snapshot.phase)) for phase in known]
    families: list[tuple[str, str, str, Iterable[tuple[Labels, float]]]] = [
        ("ivsim_run_info", "gauge", "The run that is told of.", [(run, 1)]),
        ("ivsim_phase", "gauge", "1 for the phase that the run is in.", phases),
    ]
    single: list[tuple[str, str, str, float]] = [
        ("ivsim_doorbells_pending", "gauge", "Doorbells rung, not refused and not yet delivered.", pending(snapshot)),
        ("ivsim_heartbeats_late_total", "counter", "Pings still unanswered at the next.", snapshot.heartbeats_late),
        ("ivsim_snapshots_total", "counter", "Snapshots published by the run.", snapshot.number),
        ("ivsim_snapshots_lost_total", "counter", "Snapshots that never came here.", lost),
        ("ivsim_snapshot_monotonic_seconds", "gauge", "CLOCK_MONOTONIC at the snapshot.", snapshot.time_ns / 1e9),
    ]
    families += [(name, kind, said, [({}, value)]) for name, kind, said, value in single]
    for name, kind, said, field in (
        ("ivsim_machines", "gauge", "Machines of the group.", "machines"),
        ("ivsim_machines_up", "gauge", "Machines of the group that are ready and alive.", "up"),
        ("ivsim_doorbells_rung_total", "counter", "Doorbells that machines of the group rang.", "rung"),
        ("ivsim_doorbells_delivered_total", "counter", "Doorbells delivered to the group.", "delivered"),
        ("ivsim_doorbells_refused_total", "counter", "Doorbells of the group that were refused.", "refused"),
        ("ivsim_interrupts_total", "counter", "Interrupts that machines of the group took.", "interrupts"),
    ):
        values = [({"group": group}, getattr(counts, field)) for group, counts in snapshot.groups.items()]
        families.append((name, kind, said, values))
    if snapshot.latency_ns:
        levels = [({"percentile": level}, value / 1e9) for level, value in snapshot.latency_ns.items()]
        families.append(("ivsim_delivery_seconds", "gauge", "Delivery in the last moments, by percentile.", levels))
    return "".join(_family(*family) for family in families)


def _family(name: str, kind: str, said: str, values: Iterable[tuple[Labels, float]]) -> str:
    lines = [f"# HELP {name} {_escaped(said)}", f"# TYPE {name} {kind}"]
    for labels, value in values:
        named = ",".join(f'{key}="{_escaped(text, quoted=True)}"' for key, text in labels.items())
        lines.append(f"{name}{{{named}}} {value!r}" if named else f"{name} {value!r}")
    return "\n".join(lines) + "\n"


def _escaped(text: str, *, quoted: bool = False) -> str:
    """Backslash and line feed in help, the double quote as well in the value of a label."""
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quoted else text


def write_metrics(path: Path, snapshot: Snapshot, lost: int = 0) -> None:
    """Write the metrics into a file that a collector may read at any moment.

    Raises:
        UsageError: it cannot be written.
    """
    from sim.results.store.files import replace

    try:
        # Readable for the collector, which is another user. It takes what ends in .prom: the file beside does not.
        replace(path, exposition(snapshot, lost).encode(), mode=0o644, is_durable=False)
    except OSError as error:
        raise UsageError(f"{path}: metrics cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def exporting(endpoint: str, path: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Write every snapshot of a run to a file until the block ends; the file stays, with the last snapshot.

    A failed write does not end the run: the number of failures is reported at the end.
    """
    failed = Counter[str]()

    def write(snapshot: Snapshot, lost: int) -> None:
        try:
            write_metrics(path, snapshot, lost)
        except UsageError as error:
            failed[str(error)] += 1

    with following(endpoint, write):
        yield
    for reason, times in failed.items():
        say(f"{reason} ({times} times)")
