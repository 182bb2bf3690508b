"""Senders and receivers, as two pictures and a table: groups with arrows, machines as a heat map."""

from __future__ import annotations

from sim.results import Run
from sim.views.html.heat_map import HeatMatrix, between_groups, between_machines, heat_map
from sim.views.html.shapes import graph
from sim.views.html.svg import Markup, tag
from sim.views.html.tables import table
from sim.views.rows import TextTable
from sim.views.units import counted

GROUPS_DRAWN = 8
PAIRS_LISTED = 20


def pictures(run: Run, seconds: float) -> list[Markup]:
    """The figures. Raises ``UsageError`` when the edges or the manifest are missing."""
    machines, groups = between_machines(run), between_groups(run)
    parts = []
    # A single group needs no arrows: its name says which machines ring each other.
    has_arrows = 1 < len(groups.sources) <= GROUPS_DRAWN and bool(groups.rung.any())
    if has_arrows:
        caption = tag("figcaption", tag("h3", "Topology"), tag("p", "Groups of machines, and doorbells a second"))
        drawing = graph(groups, _captions(run), seconds, "Topology", _description(groups))
        parts.append(tag("figure", caption, drawing))
    # The heat map of two machines shows nothing that the arrows do not show.
    if machines.rung.any() and (len(machines.sources) > 2 or not has_arrows):
        parts.append(heat_map(machines))
    if machines.rung.any():
        parts.append(tag("details", tag("summary", "Doorbells by sender and receiver, as a table"), _pairs(machines)))
    else:
        parts.append(tag("p", "No doorbell was rung.", class_="note"))
    return parts


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
