"""The table of edges as a matrix of counts, by machine or by group; many machines are binned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nodes.errors import UsageError
from sim.results import Run

CELLS_MAX = 64
OTHERS = "others"


@dataclass(frozen=True)
class HeatMatrix:
    """``rung[source, target]`` doorbells and ``refused`` of them; ``labels`` name rows and columns.

    ``each`` is how many machines share a row. The last column may be :data:`OTHERS`, peers outside the topology.
    """

    sources: list[str]
    targets: list[str]
    rung: npt.NDArray[np.int64]
    refused: npt.NDArray[np.int64]
    each: int = 1


def between_machines(run: Run, cells_max: int = CELLS_MAX) -> HeatMatrix:
    """By machine; beyond ``cells_max`` machines, neighbours share a row."""
    names = [machine.name for machine in run.origin.machines]
    each = -(-max(1, len(names)) // cells_max)
    firsts = names[::each]
    lasts = [names[min(len(names), place + each) - 1] for place in range(0, len(names), each)]
    labels = [first if first == last else f"{first} .. {last}" for first, last in zip(firsts, lasts, strict=True)]
    return _summed(run, [place // each for place in range(len(names))], labels, each)


def between_groups(run: Run) -> HeatMatrix:
    """By group of the topology."""
    names = [group.name for group in run.origin.groups]
    places = {name: place for place, name in enumerate(names)}
    return _summed(run, [places[machine.group] for machine in run.origin.machines], names, 1)


def _summed(run: Run, place_of: list[int], labels: list[str], each: int) -> HeatMatrix:
    """Raises ``UsageError`` when the table or the manifest is missing, or they are of different runs."""
    edges, size = run.edges(), len(labels)
    source = edges["source"].cast("int64").to_numpy()
    target = edges["target"].cast("int64").fill_null(len(place_of)).to_numpy()
    if max(source.max(initial=-1), target.max(initial=0) - 1) >= len(place_of):
        raise UsageError(f"{run.path}: edges name machines that the manifest does not have")
    # One past the last machine stands for the peers that are none of the topology.
    places = np.array([*place_of, size], np.int64)
    foreign = bool((target == len(place_of)).any())
    rung, refused = np.zeros((size, size + 1), np.int64), np.zeros((size, size + 1), np.int64)
    np.add.at(rung, (places[source], places[target]), edges["rung"].to_numpy())
    np.add.at(refused, (places[source], places[target]), edges["refused"].to_numpy())
    width = size + foreign
    return HeatMatrix(labels, [*labels, OTHERS][:width], rung[:, :width], refused[:, :width], each)
