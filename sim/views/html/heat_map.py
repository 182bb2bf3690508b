"""How often machines rang each other: the table of edges as a matrix, and the heat map of the report."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nodes.errors import UsageError
from sim.results import Run
from sim.results.arrays import Integers, sums_at
from sim.views.html.lines import CHARACTER, thinned
from sim.views.html.svg import Markup, cut, picture, tag, text
from sim.views.units import short_count

LEVELS = 9
WIDTH = 460
CELLS_MAX = 64
OTHERS = "others"


@dataclass(frozen=True)
class HeatMatrix:
    """``rung[source, target]`` doorbells and ``refused`` of them; ``labels`` name rows and columns.

    ``each`` is how many machines share a row. The last column may be :data:`OTHERS`, peers outside the topology.
    """

    sources: list[str]
    targets: list[str]
    rung: Integers
    refused: Integers
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
    cells, width = places[source] * (size + 1) + places[target], size + foreign
    rung, refused = (
        sums_at(cells, edges[name].to_numpy(), size * (size + 1)).reshape(size, size + 1)[:, :width]
        for name in ("rung", "refused")
    )
    return HeatMatrix(labels, [*labels, OTHERS][:width], rung, refused, each)


def heat_map(machines: HeatMatrix) -> Markup:
    """The heat map with its heading and its scale."""
    most = int(machines.rung.max(initial=0))
    source, target = divmod(int(machines.rung.argmax()), machines.rung.shape[1])
    description = f"The most: {machines.sources[source]} to {machines.targets[target]}, {most:,} doorbells."
    note = "Doorbells rung" if machines.each == 1 else f"Doorbells rung; {machines.each} machines share a row"
    note += "; outlined where some were refused" if machines.refused.any() else ""
    steps = [tag("i", class_=f"swatch h{step}") for step in range(LEVELS)]
    key = tag("p", tag("span", "0"), *steps, tag("span", short_count(most)), class_="ramp")
    caption = tag("figcaption", tag("h3", "Machine by machine"), tag("p", note))
    return tag("figure", caption, key, _picture(machines, "Doorbells by sender and receiver", description))


def heat_level(value: int, most: int) -> int:
    """0 for nothing, else 1 to ``LEVELS`` - 1 by the share of the most that it is."""
    if value <= 0:
        return 0
    return 1 + min(LEVELS - 2, value * (LEVELS - 1) // max(1, most))


def _picture(matrix: HeatMatrix, title: str, description: str) -> Markup:
    """Sources down, targets across; the colour is the count."""
    rows, columns = matrix.rung.shape
    longest = max(map(len, [*matrix.sources, *matrix.targets]))
    left = min(130.0, 12 + CHARACTER * longest)
    cell = min(44.0, (WIDTH - left - 8) / columns)
    top, most = 24.0, int(matrix.rung.max(initial=0))
    bottom = top + cell * rows
    parts = []
    for (source, target), value in np.ndenumerate(matrix.rung):
        said = f"{matrix.sources[source]} to {matrix.targets[target]}: {value:,}"
        refused = int(matrix.refused[source, target])
        said += f", {refused:,} of them refused" if refused else ""
        box = {"x": left + target * cell, "y": top + source * cell, "width": cell, "height": cell}
        class_ = f"cell h{heat_level(int(value), most)}" + (" refused" if refused else "")
        parts.append(tag("rect", tag("title", said), **box, class_=class_))
    limit = round((left - 12) / CHARACTER)
    every = max(1, math.ceil(15 / cell))
    for place in range(0, rows, every):
        parts.append(text(left - 6, top + (place + 0.5) * cell + 4, cut(matrix.sources[place], limit), anchor="end"))
    names, below = _column_labels(matrix, left, cell, bottom, limit)
    parts += names
    parts.append(text(2, 12, "ringing, down; rung, across", "label"))
    return picture(WIDTH, round(bottom + below), title, description, parts, class_="square")


def _column_labels(
    matrix: HeatMatrix, left: float, cell: float, bottom: float, limit: int
) -> tuple[list[Markup], float]:
    """The names below the columns, and the height that they take: side by side where all fit, else turned."""
    middles = [(left + (place + 0.5) * cell, name) for place, name in enumerate(matrix.targets)]
    longest = max(map(len, matrix.targets))
    half = CHARACTER * longest / 2
    inside = [(min(max(at, half), WIDTH - half), name) for at, name in middles]
    if len(thinned(inside)) == len(middles):
        return [text(at, bottom + 17, name, anchor="middle") for at, name in inside], 28
    every = max(1, math.ceil(15 / cell))
    turned = []
    for at, name in middles[::every]:
        place = f"translate({at:.1f} {bottom + 8:.1f}) rotate(-90)"
        turned.append(tag("g", text(0, 4, cut(name, limit), anchor="end"), transform=place))
    return turned, 20 + CHARACTER * min(limit, longest)
