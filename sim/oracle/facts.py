"""What one run of a topology shows, to be compared with another run of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.results import Run

LATER = -1
"""In the place of an ID that a machine gets during the run, as it joins or migrates: it depends on when others do."""

Line = tuple[str, int]
Edge = tuple[str, str, int, int]


@dataclass(frozen=True)
class Facts:
    """What one run shows.

    Attributes:
        edges: doorbells rung, by source, target (both by name), the target's ID (`LATER` for one that it gets
            during the run) and the vector.
        order: the doorbells of each source with a time stamp, as (target, vector), in the order of their rings.
        lines: by machine and vector, which of "delivered", "interrupts", "refused" are not 0.
        pending: by machine and vector, the doorbells that were on their way at the end.
        fates: by group, which of "pba_pending", "dropped" are not 0.
        actions: each action of the timeline: machine, action, why it was skipped or refused.
        ends: by machine, how it ended, if otherwise than told.
        up: by machine, from when to when it was up, in nanoseconds after the start.
        verdicts: each expectation's text, and its verdict.
        memory: by domain, the contents.
        names: every machine that joined, further incarnations included; a target in ``order`` is a place among them.
    """

    status: str
    balanced: bool
    edges: Mapping[Edge, int]
    order: Mapping[str, npt.NDArray[np.int64]]
    lines: Mapping[Line, frozenset[str]]
    pending: Mapping[Line, int]
    fates: Mapping[str, frozenset[str]]
    actions: Sequence[tuple[str, str, str]]
    ends: Mapping[str, str]
    up: Mapping[str, tuple[int, int]]
    verdicts: Mapping[str, Any]
    memory: Mapping[str, bytes]
    duration_ns: int = 0
    moved: frozenset[str] = frozenset()
    names: Sequence[str] = ()

    def stays(self, machine: str) -> bool:
        """Whether a machine was up from the start to the end, under one ID."""
        return self.up.get(machine) == (0, self.duration_ns) and machine not in self.moved


def facts(run: Run, memory: Mapping[str, bytes]) -> Facts:
    """The facts of a run whose memories had these contents at the end."""
    names = [machine.name for machine in run.origin.machines]
    figures, up = run.figures, _up(run, names)
    edges: dict[Edge, int] = {}
    rung = [row for row in run.edges().to_pylist() if row["rung"]]
    first = _first_ids(
        rung, [(names.index(each.machine), each.from_peer) for each in figures.migrations if each.machine in names]
    )
    for row in rung:
        target = "nowhere" if row["target"] is None else names[row["target"]]
        is_first = up.get(target, (1, 1))[0] == 0 and row["peer"] == first[row["target"]]
        edge = names[row["source"]], target, row["peer"] if is_first else LATER, row["vector"]
        edges[edge] = edges.get(edge, 0) + row["rung"]
    rows = {(names[row["machine"]], row["vector"]): row for row in run.vectors().to_pylist()}
    lines = {
        line: frozenset(name for name in ("delivered", "interrupts", "refused") if row[name])
        for line, row in rows.items()
    }
    return Facts(
        status=run.status,
        balanced=run.balanced,
        edges=edges,
        order=_order(run, names),
        lines=lines,
        pending={line: row["pending"] for line, row in rows.items()},
        fates={
            name: frozenset(counter for counter in ("pba_pending", "dropped") if getattr(group, counter))
            for name, group in figures.groups.items()
        },
        actions=sorted(
            (str(event.get("machine") or ""), str(event["do"]), str(event.get("skipped", event.get("refused", ""))))
            for event in run.actions()
        ),
        ends=figures.deaths,
        up=up,
        verdicts={str(expectation): expectation for expectation in figures.expectations},
        memory=memory,
        duration_ns=figures.stop_ns - figures.start_ns,
        moved=frozenset(migration.machine for migration in figures.migrations if migration.verdict == "moved"),
        names=names,
    )


def _first_ids(
    rung: Sequence[Mapping[str, Any]], migrations: Iterable[tuple[int, int | None]]
) -> dict[int | None, int]:
    """The ID that each machine, by its place, was first rung by, or that it first migrated from.

    IDs grow in a domain, but a machine may have a smaller one in the domain that it migrates to.
    """
    first: dict[int | None, int] = {}
    for machine, peer in migrations:
        if peer is not None:
            first.setdefault(machine, peer)
    moved = set(first)
    for row in rung:
        if row["target"] not in moved:
            first[row["target"]] = min(row["peer"], first.get(row["target"], row["peer"]))
    return first


def _up(run: Run, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    figures = run.figures
    begin_ns, end_ns = figures.start_ns, figures.stop_ns
    joined, left = {}, {}
    for event in run.events():
        if event["kind"] == "machine_joined":
            joined[event["machine"]] = event["time_ns"]
        elif event["kind"] in ("machine_left", "machine_died"):
            left[event["machine"]] = event["time_ns"]
    later = {event["machine"] for event in run.actions() if event["do"] == "join"}
    return {
        name: (max(0, joined.get(name, begin_ns) - begin_ns), max(0, left.get(name, end_ns) - begin_ns))
        for name in names
        if name in joined or not ("." in name or name in later)
    }


def _order(run: Run, names: Sequence[str]) -> dict[str, npt.NDArray[np.int64]]:
    table = run.samples()
    source = table["source"].to_numpy()
    target = table["target"].fill_null(0xFFFF).to_numpy().astype(np.int64)
    keys = target << 16 | table["vector"].to_numpy().astype(np.int64)
    rung_ns = table["rung_ns"].to_numpy()
    order = {}
    for machine in np.unique(source).tolist():
        own = source == machine
        order[names[machine]] = keys[own][np.argsort(rung_ns[own], kind="stable")]
    return order
