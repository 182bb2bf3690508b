"""The plan of a sweep: the combinations of values that are run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from nodes.errors import UsageError
from sim.results.store import files
from topologies import Topology, load
from topologies.language.matrix import MAX_CELLS


class Cell(msgspec.Struct, frozen=True):
    """One combination. ``place`` counts from 1, ``repeat`` from 0; ``overrides`` are all that make its topology."""

    place: int
    repeat: int
    overrides: dict[str, str]


class Plan(msgspec.Struct, frozen=True):
    """The plan of a sweep: a topology's file, its text as it was, and its cells in order.

    ``varied`` are the keys that differ, ``programs`` files of Python that the topology's programs are in.
    """

    source_name: str
    text: str
    varied: list[str]
    cells: list[Cell]
    programs: list[str] = []

    def topology(self, cell: Cell) -> Topology:
        """Raises ``TopologyError``, and ``UsageError`` when the file has changed since the sweep began."""
        topology = load(Path(self.source_name), cell.overrides, self.programs)
        if topology.source_text != self.text:
            raise UsageError(
                f"{self.source_name}: the topology has changed since this sweep began. To go on, put back what it was "
                f"(each run that is done has a copy, {files.TOPOLOGY}); or begin another sweep"
            )
        return topology

    def difference(self, other: Plan) -> str:
        """The first thing in which ``other`` differs, what it is here and what there; empty when it is the same."""
        if self.text != other.text:
            return f"expected the topology {self.source_name}, got {other.source_name}"
        if self.programs != other.programs:
            mine, theirs = (" ".join(plan.programs) or "none" for plan in (self, other))
            return f"expected the programs {mine}, got {theirs}"
        if len(self.cells) != len(other.cells):
            return f"expected {len(self.cells)} runs, got {len(other.cells)}"
        for cell, other_cell in zip(self.cells, other.cells, strict=True):
            if cell != other_cell:
                return f"expected {_shown(cell.overrides)} in run {cell.place}, got {_shown(other_cell.overrides)}"
        return ""


def make_plan(
    source: str,
    fixed: Mapping[str, str],
    axes: Mapping[str, Sequence[str]],
    repeat: int = 1,
    programs: Sequence[str | Path] = (),
) -> Plan:
    """All cells of the topology ``source``: the product of ``axes`` and of those in its ``[matrix]``.

    An axis that is given takes the place of the file's of the same key, and so does a value in ``fixed``.

    Raises ``TopologyError`` when one of them is no topology (its overrides are named), ``UsageError`` when nothing
    varies, or too much does.
    """
    files = [str(Path(file).absolute()) for file in programs]
    base = load(source, dict(fixed) | {key: values[0] for key, values in axes.items()}, files)
    name = str(Path(base.source_name).absolute())
    product: dict[str, Sequence[str]] = {key: values for key, values in base.matrix.items() if key not in fixed}
    product |= axes
    count = repeat
    for values in product.values():
        count *= len(values)
    if count < 2:
        raise UsageError("nothing varies: expected --set KEY=V1,V2, a [matrix] in the topology, or --repeat")
    if count > MAX_CELLS:
        raise UsageError(f"expected at most {MAX_CELLS} runs, got {count}")
    cells = []
    combinations = itertools.product(itertools.product(*product.values()), range(repeat))
    for place, (values, number) in enumerate(combinations, start=1):
        overrides = {**fixed, **dict(zip(product, values, strict=True))}
        seed = load(Path(name), overrides, files).seed
        if repeat > 1:
            overrides["seed"] = str((seed + number) % 2**63)
        cells.append(Cell(place, number, overrides))
    return Plan(name, base.source_text, list(product), cells, files)


def _shown(overrides: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in overrides.items()) or "as the file has it"
