"""Doorbells from each machine to each, and doorbells for each wake-up: from edges, vectors and drains. Pure.

An eventfd does not record its senders. The delivered and pending doorbells of an edge are known only if nothing is
pending on the line, or if a single machine rang it. Elsewhere, and where the counts of a dead machine were settled,
they are null (NaN).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nodes.errors import UsageError
from nodes.spelling import did_you_mean
from sim.results.analysis.labels import check_machines, group_of_machines, labelled_machines
from sim.results.analysis.latency.latencies import QUANTILES
from sim.results.analysis.latency.percentiles import ranked
from sim.results.arrays import Integers, sums_at
from sim.results.display import as_html, require_pandas
from sim.results.store.manifest import Manifest

BY = ("edge", "machine", "group")
COUNTS = ("rung", "refused", "delivered", "pending")
FOREIGN = "(foreign)"
UNKNOWN = -1


@dataclass(frozen=True, eq=False)
class FlowMatrix:
    """``values[row, column]``: what ``rows[row]`` sent to ``columns[column]``; NaN where it cannot be known.

    Indexed by names: ``matrix["sender-0", "receiver-0"]``.
    """

    what: str
    rows: list[str]
    columns: list[str]
    values: npt.NDArray[Any]

    def __getitem__(self, at: tuple[str, str]) -> Any:
        try:
            return self.values[self.rows.index(at[0]), self.columns.index(at[1])]
        except ValueError:
            hint = did_you_mean(at[0], self.rows) if at[0] not in self.rows else did_you_mean(at[1], self.columns)
            expected = f"expected one of {self.rows} to one of {self.columns}"
            raise UsageError(f"no {at[0]} to {at[1]}: {expected}{hint}") from None

    def __repr__(self) -> str:
        return f"<Matrix of {self.what}: {len(self.rows)} x {len(self.columns)}>"

    def frame(self) -> Any:
        """As a ``pandas.DataFrame``: senders down, receivers across. Raises ``UsageError`` without pandas."""
        return require_pandas().DataFrame(self.values, index=self.rows, columns=self.columns)

    def _repr_html_(self) -> str | None:
        return as_html(self)


def flows(edges: pa.Table, vectors: pa.Table, manifest: Manifest, by: str) -> pa.Table:
    """See ``Run.flows``."""
    if by not in BY:
        raise UsageError(f"flows by {by!r}: expected one of {', '.join(BY)}{did_you_mean(by, BY)}")
    source, target, vector = (
        edges[name].cast(pa.int64()).fill_null(-1).to_numpy() for name in ("source", "target", "vector")
    )
    check_machines("edges", np.maximum(source, target), manifest)
    groups = [group.name for group in manifest.groups]
    of_machine = group_of_machines(manifest, foreign=len(groups))
    sender = of_machine[source] if by == "group" else source
    # One row for each sender of each line; foreign lines have the number 2^32 and more.
    peer = edges["peer"].cast(pa.int64()).to_numpy()
    line = np.where(target < 0, (1 << 16 | peer) << 16, target << 16) | vector
    pairs, place = np.unique(np.stack((sender, line)), axis=1, return_inverse=True)
    place = place.reshape(-1)
    sums = {name: sums_at(place, edges[name].to_numpy(), pairs.shape[1]) for name in ("rung", "refused")}
    delivered, pending = _delivered(pairs[1], sums["rung"], sums["refused"], vectors)

    sender, at_machine = pairs[0], np.where(pairs[1] >> 32, -1, pairs[1] >> 16)
    at = of_machine[at_machine] if by == "group" else at_machine
    by_edge = by == "edge"
    keys, place = np.unique(
        np.stack((sender, at, pairs[1] if by_edge else np.zeros_like(at))), axis=1, return_inverse=True
    )
    place = place.reshape(-1)
    columns = {}
    for name, column in (*sums.items(), ("delivered", delivered), ("pending", pending)):
        unknown = np.zeros(keys.shape[1], np.bool_)
        unknown[place[column == UNKNOWN]] = True
        columns[name] = pa.array(sums_at(place, column, keys.shape[1]), mask=unknown)
    names = [*groups, FOREIGN] if by == "group" else [*(machine.name for machine in manifest.machines), FOREIGN]
    ends = {"source": [names[index] for index in keys[0]], "target": [names[index] for index in keys[1]]}
    if by_edge:
        ends |= {
            "source_group": [[*groups, FOREIGN][of_machine[index]] for index in keys[0]],
            "target_group": [[*groups, FOREIGN][of_machine[index]] for index in keys[1]],
        }
    text = {name: pa.array(column, pa.string()) for name, column in ends.items()}
    numbers = {"vector": pa.array(keys[2] & 0xFFFF, pa.uint16())} if by_edge else {}
    return pa.table({**text, **numbers, **columns})


def _delivered(lines: Integers, rung: Integers, refused: Integers, vectors: pa.Table) -> tuple[Integers, Integers]:
    """Delivered and pending of each sender at a line, ``UNKNOWN`` where the line's counts do not tell."""
    its = {name: vectors[name].to_numpy() for name in ("delivered", "pending", "settled")}
    numbers = vectors["machine"].to_numpy().astype(np.int64) << 16 | vectors["vector"].to_numpy()
    order = np.argsort(numbers)
    found = order[np.minimum(np.searchsorted(numbers[order], lines), max(0, len(order) - 1))] if len(order) else None
    arrived = rung - refused
    if found is None:
        return np.full_like(rung, UNKNOWN), np.full_like(rung, UNKNOWN)
    sound = (numbers[found] == lines) & (its["settled"][found] == 0)
    silent = arrived == 0
    _, place = np.unique(lines, return_inverse=True)
    alone = np.bincount(place.reshape(-1), weights=~silent)[place.reshape(-1)] == 1
    empty = its["pending"][found] == 0
    known = sound & (empty | silent | alone)
    pending = np.where(empty | silent, 0, its["pending"][found])
    return np.where(known, arrived - pending, UNKNOWN), np.where(known, pending, UNKNOWN)


def matrix(table: pa.Table, names: Sequence[str], what: str) -> FlowMatrix:
    """The flows by machine or by group as a matrix; ``names`` gives the order of rows and columns."""
    if what not in COUNTS:
        raise UsageError(f"a matrix of {what!r}: expected one of {', '.join(COUNTS)}{did_you_mean(what, COUNTS)}")
    columns = [*names, *([FOREIGN] if FOREIGN in table["target"].to_pylist() else [])]
    places = {name: place for place, name in enumerate(columns)}
    counts = table[what].to_numpy(zero_copy_only=False)
    values = np.zeros((len(names), len(columns)), np.float64 if table[what].null_count else np.int64)
    rows = [places[name] for name in table["source"].to_pylist()]
    values[rows, [places[name] for name in table["target"].to_pylist()]] = counts
    return FlowMatrix(what, list(names), columns, values)


def drain_codes(drains: pa.Table, manifest: Manifest, by: str) -> tuple[list[Any], Integers]:
    """Labels, and the label of each drain, by machine, group or vector."""
    machine, vector = drains["machine"].to_numpy().astype(np.int64), drains["vector"].to_numpy().astype(np.int64)
    check_machines("drains", machine, manifest)
    if by in ("machine", "group"):
        return labelled_machines(machine, manifest, by)
    if by == "vector":
        return list(range(int(vector.max(initial=0)) + 1)), vector
    raise UsageError(f"drains by {by!r}: expected machine, group or vector")


def coalescing(drains: pa.Table, manifest: Manifest, by: str | None) -> pa.Table:
    """See ``Run.coalescing``."""
    count = drains["count"].to_numpy()
    labels, codes = ([""], np.zeros(len(count), np.int64)) if by is None else drain_codes(drains, manifest, by)
    rows = []
    doorbells = np.bincount(codes, weights=count, minlength=len(labels))
    ranks = ranked(lambda: [(codes, count)], len(labels))
    for label, total, counts in zip(labels, doorbells.tolist(), ranks.figures(), strict=True):
        wakes = counts.pop("samples") or 0
        row = {} if by is None else {by: label}
        rows.append(row | {"doorbells": int(total), "wakes": wakes, "mean": total / wakes if wakes else None} | counts)
    kinds = [] if by is None else [(by, pa.uint16() if by == "vector" else pa.string())]
    kinds += [("doorbells", pa.int64()), ("wakes", pa.int64()), ("mean", pa.float64())]
    return pa.Table.from_pylist(rows, pa.schema([*kinds, *((name, pa.int64()) for name, _ in QUANTILES)]))
