"""Senders and receivers, as two pictures and a table: groups with arrows, machines as a heat map."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from sim.results import Run
from sim.views.graph.layout import Box, Point
from sim.views.html.heat_map import HeatMatrix, between_groups, between_machines, heat_map
from sim.views.html.svg import Markup, cut, picture, tag, text
from sim.views.html.tables import table
from sim.views.rows import TextTable
from sim.views.units import counted, short_count

GROUPS_DRAWN = 8
PAIRS_LISTED = 20
NODE_WIDTH, NODE_HEIGHT = 128.0, 46.0
GRAPH_WIDTH, LOOP = 460, 30.0


def pictures(run: Run, seconds: float) -> list[Markup]:
    """The figures. Raises ``UsageError`` when the edges or the manifest are missing."""
    machines, groups = between_machines(run), between_groups(run)
    parts = []
    # A single group needs no arrows: its name says which machines ring each other.
    has_arrows = 1 < len(groups.sources) <= GROUPS_DRAWN and bool(groups.rung.any())
    if has_arrows:
        caption = tag("figcaption", tag("h3", "Topology"), tag("p", "Groups of machines, and doorbells a second"))
        drawing = _graph(groups, _captions(run), seconds, "Topology", _description(groups))
        parts.append(tag("figure", caption, drawing))
    # The heat map of two machines shows nothing that the arrows do not show.
    if machines.rung.any() and (len(machines.sources) > 2 or not has_arrows):
        parts.append(heat_map(machines))
    if machines.rung.any():
        parts.append(tag("details", tag("summary", "Doorbells by sender and receiver, as a table"), _pairs(machines)))
    else:
        parts.append(tag("p", "No doorbell was rung.", class_="note"))
    return parts


def _graph(matrix: HeatMatrix, captions: Mapping[str, str], seconds: float, title: str, description: str) -> Markup:
    """Groups as boxes; an arrow for each sender and receiver, as wide as the logarithm of its doorbells."""
    size = len(matrix.sources)
    radius = 0.0 if size == 1 else 85.0 if size == 2 else 60.0 + 22 * size
    middle = (GRAPH_WIDTH / 2, radius + NODE_HEIGHT / 2 + LOOP + 18)
    height = 2 * middle[1] if size > 1 else 2 * middle[1] - LOOP - 14
    across = GRAPH_WIDTH / 2 - NODE_WIDTH / 2 - 4
    angles = [2 * math.pi * place / size - math.pi / 2 for place in range(size)]
    at = [(middle[0] + min(across, 1.2 * radius) * math.cos(a), middle[1] + radius * math.sin(a)) for a in angles]
    most = int(matrix.rung.max(initial=0))
    arrows, labels = [], []
    for (source, target), value in np.ndenumerate(matrix.rung[:, :size]):
        if value <= 0:
            continue
        width = 1.2 + 3.3 * math.log1p(int(value)) / math.log1p(most)
        said = short_count(int(value) / seconds) + "/s" if seconds > 0 else short_count(int(value))
        route, place = (
            _loop(at[source], at[source][1] > middle[1]) if source == target else _arc(at[source], at[target])
        )
        tip = tag("title", f"{matrix.sources[source]} rang {matrix.targets[target]} {value:,} times")
        arrows.append(tag("path", tip, d=route, class_="arrow", stroke_width=width, marker_end="url(#arrowhead)"))
        labels.append(text(place[0], place[1] + 4, said, "flow", "middle"))
    boxes = []
    for name, (x, y) in zip(matrix.sources, at, strict=True):
        box = Box(x, y, NODE_WIDTH, NODE_HEIGHT)
        boxes.append(tag("rect", x=box.left, y=box.top, width=box.width, height=box.height, rx=8, class_="node"))
        boxes.append(text(x, y - 3, cut(name, 17), "node-name", "middle"))
        boxes.append(text(x, y + 13, cut(captions.get(name, ""), 22), "node-note", "middle"))
    head = tag("path", d="M0 0L8 4L0 8z", class_="arrowhead")
    form = {"viewBox": "0 0 8 8", "refX": "7", "refY": "4", "markerWidth": "11", "markerHeight": "11"}
    marker = tag("marker", head, id="arrowhead", **form, orient="auto", markerUnits="userSpaceOnUse")
    parts = [tag("defs", marker), *arrows, *boxes, *labels]
    return picture(GRAPH_WIDTH, round(height), title, description, parts, class_="square")


def _loop(at: Point, below: bool) -> tuple[str, Point]:
    """An arrow from a box to itself, above it or below: its path, and the place of its label."""
    x, y = at
    way = 1 if below else -1
    edge, far = y + way * NODE_HEIGHT / 2, y + way * (NODE_HEIGHT / 2 + LOOP)
    return f"M{x - 24:.1f} {edge:.1f}C{x - 30:.1f} {far:.1f} {x + 30:.1f} {far:.1f} {x + 24:.1f} {edge:.1f}", (
        x,
        edge + way * (0.75 * LOOP + 11),
    )


def _arc(start: Point, end: Point) -> tuple[str, Point]:
    """A bent arrow between two boxes; the way back bends to the other side."""
    (x1, y1), (x2, y2) = start, end
    bend = (x1 + x2) / 2 - (y2 - y1) * 0.16, (y1 + y2) / 2 + (x2 - x1) * 0.16
    a, b = (Box(*at, NODE_WIDTH, NODE_HEIGHT).border(bend, 2) for at in (start, end))
    route = f"M{a[0]:.1f} {a[1]:.1f}Q{bend[0]:.1f} {bend[1]:.1f} {b[0]:.1f} {b[1]:.1f}"
    # Outside the bend: a label on a short arrow would hide it, and the two of a pair would meet.
    middle = (a[0] + 2 * bend[0] + b[0]) / 4, (a[1] + 2 * bend[1] + b[1]) / 4
    outwards = bend[0] - (x1 + x2) / 2, bend[1] - (y1 + y2) / 2
    length = math.hypot(*outwards) or 1.0
    return route, (middle[0] + 14 * outwards[0] / length, middle[1] + 12 * outwards[1] / length)


def _captions(run: Run) -> dict[str, str]:
    said = {}
    for group in run.origin.groups:
        said[group.name] = f"{group.count} × {group.program or 'machine'}, {counted(group.vectors, 'vector')}"
        said[group.name] += f", {group.real}" if group.real else ""
    return said


def _description(groups: HeatMatrix) -> str:
    arrows = [
        f"{source} rings {target}"
        for row, source in enumerate(groups.sources)
        for column, target in enumerate(groups.targets)
        if groups.rung[row, column]
    ]
    return "; ".join(arrows) + "." if arrows else "No doorbell was rung."


def _pairs(machines: HeatMatrix) -> Markup:
    """The pairs that rang most."""
    rung = machines.rung
    width = max(1, rung.shape[1])
    order = (-rung).ravel().argsort(kind="stable")[:PAIRS_LISTED]
    rows = []
    for place in order.tolist():
        source, target = divmod(place, width)
        count, refused = int(rung[source, target]), int(machines.refused[source, target])
        if count:
            rows.append((machines.sources[source], machines.targets[target], f"{count:,}", f"{refused:,}"))
    silent = int((rung > 0).sum()) - len(rows)
    caption = "Doorbells by sender and receiver" + (f"; {silent:,} more pairs rang less" if silent > 0 else "")
    return table(TextTable(caption, ("from", "to", "rung", "refused"), rows, words=(0, 1)))
