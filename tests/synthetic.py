"""Runs that never ran: recordings with known stamps and counts, to check what the analysis makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from sim.host.wake_up_baseline import WakeUpBaseline
from sim.recording import Recording, RecordingLayout, State, header
from sim.results import Ending, Run, RunDirectory
from sim.results.store.manifest import Phase
from topologies.model import Group, Machine, RunSettings, Topology

SECOND_NS = 1_000_000_000
START_NS = 1_000 * SECOND_NS
MEASURE_NS = START_NS + SECOND_NS
STOP_NS = START_NS + 3 * SECOND_NS

Edges = Mapping[tuple[int, int], tuple[int, int]]


def topology(groups: Mapping[str, tuple[int, int]], title: str = "Made up", sample_every: int = 1) -> Topology:
    """A topology of groups: name -> (machines, vectors); a second of warm-up, two that count."""
    machines: list[Machine] = []
    for name, (count, vectors) in groups.items():
        machines += [
            Machine(
                index=len(machines) + place,
                name=f"{name}-{place}",
                group=name,
                vectors=vectors,
                role="peer",
                profile="qemu-doorbell",
                program="idle",
                parameters={},
            )
            for place in range(count)
        ]
    return Topology(
        title=title,
        seed=7,
        run=RunSettings(duration_s=2.0, warmup_s=1.0, sample_every=sample_every),
        groups=tuple(
            Group(name=name, count=count, vectors=vectors, program="idle") for name, (count, vectors) in groups.items()
        ),
        machines=tuple(machines),
        source_text=f"title = {title!r}\n",
    )


def record(
    directory: RunDirectory,
    machine: int,
    *,
    peer: int | None = None,
    state: int = State.STOPPED,
    vectors: Iterable[tuple[int, int]] = (),
    edges: Edges | None = None,
    rings: Iterable[tuple[int, int, int, int]] = (),
    drains: Iterable[tuple[int, int, int, int]] = (),
    sample_every: int = 1,
    further: Mapping[int, int] | None = None,
) -> None:
    """Write the recording of one machine.

    ``vectors``: (delivered, interrupts) of each; ``edges``: (peer, vector) -> (rung, refused); ``rings``:
    (peer, vector, intended_ns, rung_ns); ``drains``: (vector, count, delivered_ns, handled_ns); ``further``:
    words of the header by their place.
    """
    vectors, rings, drains, edges = list(vectors), list(rings), list(drains), edges or {}
    layout = RecordingLayout(len(vectors), len(edges) + 1, len(rings) + 1, len(drains) + 1)
    path = directory.recording_path(machine)
    with Recording.create(path, layout, machine=machine, sample_every=sample_every) as made:
        words = made.words
        sections = (
            (layout.vectors_at, _beyond(vectors, drains)),
            (layout.edges_at, [(to << 16 | vector, *counts) for (to, vector), counts in edges.items()]),
            (layout.rings_at, [(to << 16 | vector, *stamps) for to, vector, *stamps in rings]),
            (layout.drains_at, [(count << 16 | vector, *stamps) for vector, count, *stamps in drains]),
        )
        for at, rows in sections:
            for offset, word in enumerate(word for row in rows for word in row):
                words[at + offset] = word
        words[header.EDGES_USED], words[header.RINGS_USED] = len(edges), len(rings)
        words[header.DRAINS_USED] = len(drains)
        words[header.PEER] = machine if peer is None else peer
        words[header.STATE] = state
        words[header.READY_NS], words[header.STARTED_NS] = START_NS - SECOND_NS, START_NS
        words[header.STOPPED_NS] = STOP_NS if state == State.STOPPED else 0
        for at, word in (further or {}).items():
            words[at] = word


def _beyond(
    vectors: Iterable[tuple[int, int]], drains: Iterable[tuple[int, int, int, int]]
) -> Iterator[tuple[int, int, int]]:
    """What the section of vectors holds: doorbells and interrupts that are not among the drains."""
    drains = list(drains)
    for vector, (delivered, interrupts) in enumerate(vectors):
        counts = [count for at, count, *_ in drains if at == vector]
        yield max(0, delivered - sum(counts)), max(0, interrupts - len(counts)), max(0, len(counts) - interrupts)


def finish(
    directory: RunDirectory,
    pending: Mapping[tuple[int, int], int] | None = None,
    *,
    exits: Mapping[int, str | None] | None = None,
    status: str = "finished",
    foreign_pending: Mapping[tuple[int, int], int] | None = None,
    foreign_peers: int = 0,
    phases: Sequence[Phase] = (),
    baselines: Sequence[WakeUpBaseline] = (),
    identities: Sequence[tuple[int, int, int]] = (),
    moves: Sequence[tuple[int, int, int, int]] = (),
) -> Run:
    """End a made-up run; nothing pends unless said otherwise."""
    ending = Ending(
        status=status,
        reason="",
        deaths={machine: how for machine, how in (exits or {}).items() if how is not None},
        pending=[(*at, count) for at, count in (pending or {}).items()],
        foreign_pending=[(*at, count) for at, count in (foreign_pending or {}).items()],
        foreign_peers=foreign_peers,
        start_ns=START_NS,
        measure_start_ns=MEASURE_NS,
        stop_ns=STOP_NS,
        phases=list(phases),
        identities=list(identities),
        moves=list(moves),
    )
    return directory.finish(ending, baselines)


def usage(machine: int, name: str, second: float, **changed: object) -> tuple[object, ...]:
    """A row of resources, ``second`` seconds after the start: half a CPU, 2 MiB private, 10 switches/s."""
    row = {
        "machine": machine,
        "name": name,
        "time_ns": START_NS + round(second * SECOND_NS),
        "cpu_user_s": 0.4 * second,
        "cpu_system_s": 0.1 * second,
        "rss_bytes": 9 << 20,
        "uss_bytes": 3 << 20,
        "instrument_bytes": 1 << 20,
        "switches_voluntary": round(10 * second),
        "switches_involuntary": round(2 * second),
        "descriptors": 12,
        "threads": 1,
        "pss_bytes": 4 << 20,
        "faults_minor": round(100 * second),
        "faults_major": 0,
        **dict.fromkeys(
            (
                "steal_s",
                "load_1",
                "pressure_cpu_s",
                "pressure_memory_s",
                "pressure_io_s",
                "sampling_s",
                "irq_s",
                "softirq_s",
            ),
            None,
        ),
    }
    return tuple((row | changed).values())


def pair(parent: Path, title: str = "Made up") -> RunDirectory:
    """Two groups of one machine with two vectors: ``ping`` rang ``echo`` three times, one of them pends.

    Of vector 0: warm-up, 100 us late, delivered after 5 us with one doorbell; measured, on time, delivered
    after 7 us, handled 2 us later. Of vector 1: one that is still in the counter.
    """
    directory = RunDirectory.create(parent, topology({"ping": (1, 2), "echo": (1, 2)}, title), {})
    early, late = START_NS + 1000, MEASURE_NS + 1000
    record(
        directory,
        0,
        vectors=[(0, 0), (0, 0)],
        edges={(1, 0): (2, 0), (1, 1): (1, 0)},
        rings=[(1, 0, early - 100_000, early), (1, 0, late, late), (1, 1, late, late + 300)],
    )
    record(
        directory,
        1,
        vectors=[(2, 2), (0, 0)],
        edges={(0, 0): (0, 0), (0, 1): (0, 0)},
        drains=[(0, 1, early + 5000, early + 6000), (0, 1, late + 7000, late + 9000)],
    )
    return directory


def long_run(parent: Path, samples: int) -> Path:
    """A run whose coordinator died: one machine rang another so often, each doorbell sampled and drained alone."""
    directory = RunDirectory.create(parent, topology({"tx": (1, 1), "rx": (1, 1)}, "Long"), {})
    rung_ns = MEASURE_NS + np.arange(samples) * (2 * SECOND_NS // samples)
    took = np.random.default_rng(1).integers(100, 400, samples)
    rings = np.column_stack((np.full(samples, 1 << 16), rung_ns - 50, rung_ns))
    drains = np.column_stack((np.full(samples, 1 << 16), rung_ns + took, rung_ns + took + 60))
    for machine, (section, entries) in enumerate((("rings", rings), ("drains", drains))):
        path = directory.recording_path(machine)
        sizes = {"rings": 1, "drains": 1} | {section: samples}
        layout = RecordingLayout(vectors=1, edges=1, **sizes)
        with Recording.create(path, layout, machine=machine, sample_every=1) as made:
            words = np.frombuffer(made.words, np.int64)
            at = layout.rings_at if section == "rings" else layout.drains_at
            words[at : at + entries.size] = entries.reshape(-1)
            if section == "rings":
                words[layout.edges_at : layout.edges_at + 3] = 1 << 16, samples, 0
                words[header.EDGES_USED], words[header.RINGS_USED] = 1, samples
            else:
                words[header.DRAINS_USED] = samples
            words[header.PEER], words[header.STATE] = machine, State.STOPPED
            words[header.READY_NS], words[header.STARTED_NS] = START_NS - SECOND_NS, START_NS
            words[header.STOPPED_NS] = STOP_NS
            del words  # the recording cannot be unmapped while an array views it
    return orphan(directory)


PENDING = {(1, 1): 1}
"""What pends in the run of :func:`pair`."""
ACCOUNT = ("rung", "delivered", "pending", "refused", "settled")


def account(figures: dict[str, int]) -> tuple[int, ...]:
    """Rung, delivered, pending, refused, settled."""
    return tuple(figures[name] for name in ACCOUNT)


def orphan(directory: RunDirectory) -> Path:
    """Make it look as if the process that owns the run had died: its start time becomes another one."""
    directory.close()
    manifest = directory.path / "manifest.json"
    content = json.loads(manifest.read_text())
    content["owner"]["start_ticks"] -= 1
    manifest.write_text(json.dumps(content))
    return directory.path
