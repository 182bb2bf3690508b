"""A drawing as an SVG picture of its own: cards where there are few, a ring of dots where there are many.

It follows the reader's light or dark colour scheme, and needs no script, font or other file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from sim.views.graph.drawing import Cluster, Drawing, Edge, Node
from sim.views.graph.layout import (
    CARD_MAX,
    CHARACTER_PX,
    GAP_Y,
    LOOP_PX,
    MARGIN,
    NOTE_PX,
    PILE_PX,
    TITLE_CHARACTER_PX,
    Box,
    Layout,
    Point,
    lay_out,
)
from sim.views.graph.ring import ring
from sim.views.html.svg import Markup, cut, tag, text

CARDS_MAX = 28
# The most arrows with a label; the most if all labels are the same.
LABELS_MAX, ALIKE_MAX = 8, 3
SAMPLES = 12
LEGEND_PX = 30.0
LEGEND_WIDTH = 560.0

STYLE = """
.ivsim-graph text { font: 12px system-ui, -apple-system, Segoe UI, Roboto, sans-serif; fill: #1c2430; }
.ivsim-graph .title { font-size: 19px; font-weight: 650; }
.ivsim-graph .name { font-size: 15px; font-weight: 650; }
.ivsim-graph .what, .ivsim-graph .strong { font-weight: 500; }
.ivsim-graph .quiet { fill: #66707f; }
.ivsim-graph .quiet .strong { fill: #1c2430; }
.ivsim-graph .note { fill: #9a4a08; }
.ivsim-graph .paper { fill: #ffffff; }
.ivsim-graph .domain { fill: #f4f6f9; stroke: #d5dbe4; }
.ivsim-graph .card { fill: #ffffff; stroke: #8a96a8; stroke-width: 1.2; }
.ivsim-graph .absent { stroke-dasharray: 6 4; fill: #fbfbfc; }
.ivsim-graph .accent { fill: #d9730d; }
.ivsim-graph .edge { fill: none; stroke: #2f6fc4; stroke-width: 1.5; }
.ivsim-graph .head { fill: #2f6fc4; }
.ivsim-graph .member { fill: none; stroke: #8a96a8; stroke-width: 1.4; stroke-dasharray: 2 5; stroke-linecap: round; }
.ivsim-graph .edge-label { font-size: 11.5px; fill: #24548f; paint-order: stroke; stroke: #f4f6f9; stroke-width: 4px;
  stroke-linejoin: round; }
.ivsim-graph .thread { fill: none; stroke: #2f6fc4; }
.ivsim-graph .arc { fill: none; stroke-linecap: round; stroke: #b6c0cf; stroke-width: 3; }
.ivsim-graph .dot { fill: #2f6fc4; stroke: #ffffff; }
.ivsim-graph .dot.absent { fill: #ffffff; stroke: #2f6fc4; }
.ivsim-graph .dot.noted { fill: #d9730d; }
@media (prefers-color-scheme: dark) {
  .ivsim-graph text { fill: #e6eaf1; }
  .ivsim-graph .quiet { fill: #97a3b5; }
  .ivsim-graph .quiet .strong { fill: #e6eaf1; }
  .ivsim-graph .note { fill: #f0a868; }
  .ivsim-graph .paper { fill: #12161d; }
  .ivsim-graph .domain { fill: #1a2029; stroke: #303a48; }
  .ivsim-graph .card { fill: #222a35; stroke: #6b7a8f; }
  .ivsim-graph .absent { fill: #1c232d; }
  .ivsim-graph .accent { fill: #f0933f; }
  .ivsim-graph .edge { stroke: #6fa8f0; }
  .ivsim-graph .head { fill: #6fa8f0; }
  .ivsim-graph .member { stroke: #7d8a9d; }
  .ivsim-graph .edge-label { fill: #a9cbf7; stroke: #1a2029; }
  .ivsim-graph .thread { stroke: #6fa8f0; }
  .ivsim-graph .arc { stroke: #46536a; }
  .ivsim-graph .dot { fill: #6fa8f0; stroke: #12161d; }
  .ivsim-graph .dot.absent { fill: #12161d; stroke: #6fa8f0; }
  .ivsim-graph .dot.noted { fill: #f0933f; }
}
"""
"""Light and dark; the rules apply inside such a picture only."""


def svg(drawing: Drawing) -> Markup:
    """Return the picture as the text of an SVG file. In a page, its style applies to itself only."""
    width, height, parts = _cards(drawing) if len(drawing.nodes) <= CARDS_MAX else ring(drawing)
    heading = [text(MARGIN, 32, drawing.title, "title"), text(MARGIN, 51, drawing.subtitle, "quiet")]
    width = round(max(width, 11.8 * len(drawing.title) + 2 * MARGIN))
    whole = tag(
        "svg",
        tag("title", drawing.title),
        tag("desc", drawing.description),
        tag("style", STYLE),
        tag("rect", class_="paper", width="100%", height="100%"),
        *heading,
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        class_="ivsim-graph",
        role="img",
        aria_label=drawing.title,
        viewBox=f"0 0 {width} {round(height)}",
        width=width,
        height=round(height),
    )
    return Markup(whole + "\n")


def _cards(drawing: Drawing) -> tuple[float, float, list[Markup]]:
    layout = lay_out(drawing)
    rings_itself = {edge.source for edge in drawing.edges if edge.source == edge.target}
    cards = [
        Box(box.x, box.y + LOOP_PX / 2, box.width, box.height - LOOP_PX) if place in rings_itself else box
        for place, box in enumerate(layout.nodes)
    ]
    parts = [_arrowhead()]
    parts += [_cluster(cluster, box) for cluster, box in zip(drawing.clusters, layout.clusters, strict=True)]
    parts += list(_membership(drawing, layout, cards))
    alike = len({edge.label for edge in drawing.edges}) == 1
    labelled = len(drawing.edges) <= (ALIKE_MAX if alike else LABELS_MAX)
    lines, labels = [], []
    both = {(edge.source, edge.target) for edge in drawing.edges}
    for edge in drawing.edges:
        mutual = (edge.target, edge.source) in both and edge.source != edge.target
        if mutual and not labelled and edge.source > edge.target:
            continue  # drawn as one line with two heads
        line, at = _edge(drawing, edge, cards, layout.flowing, passing=mutual and labelled, heads=1 + mutual)
        lines.append(line)
        if labelled:
            labels.append(text(*at, edge.label, "edge-label", "middle"))
    parts += lines
    parts += [_card(node, box) for node, box in zip(drawing.nodes, cards, strict=True)]
    parts += labels
    height = layout.height
    legend = _legend(drawing, labelled)
    if legend:
        parts.append(text(MARGIN, height + 4, legend, "quiet"))
        height += LEGEND_PX
    return max(layout.width, LEGEND_WIDTH if legend else 0), height, parts


def _arrowhead() -> Markup:
    shape = tag("path", d="M0 0L9 4L0 8L2.4 4z", class_="head")
    size = {"markerWidth": "9", "markerHeight": "8", "refX": "8.6", "refY": "4", "markerUnits": "userSpaceOnUse"}
    return tag("defs", tag("marker", shape, id="ivsim-head", orient="auto-start-reverse", **size))


def _cluster(cluster: Cluster, box: Box) -> Markup:
    left, top = box.left, box.top
    name = tag("tspan", cluster.name, class_="strong")
    label = tag("text", name, tag("tspan", f"  {cluster.memory}"), x=left + 16, y=top + 23, class_="quiet")
    notes = [_note(note, left + 16, top + 23 + NOTE_PX * row) for row, note in enumerate(cluster.notes, start=1)]
    frame = tag("rect", x=left, y=top, width=box.width, height=box.height, rx="14", class_="domain")
    return tag("g", frame, label, *notes)


def _membership(drawing: Drawing, layout: Layout, cards: list[Box]) -> Iterator[Markup]:
    """Lines from each bridge to its domains."""
    frames = {cluster.name: box for cluster, box in zip(drawing.clusters, layout.clusters, strict=True)}
    for place in drawing.bridges:
        for domain in drawing.nodes[place].domains:
            frame, card = frames[domain], cards[place]
            x = min(max(card.x, frame.left), frame.right)
            y = min(max(card.y, frame.top), frame.bottom)
            start = card.border((x, y))
            yield tag("path", d=f"M{start[0]:.1f} {start[1]:.1f}L{x:.1f} {y:.1f}", class_="member")


def _card(node: Node, box: Box) -> Markup:
    """A card; for a group two more behind it; dashed for machines that join later."""
    classes = "card" + (" absent" if node.absent == node.count else "")
    shapes = []
    for behind in (PILE_PX, PILE_PX / 2, 0.0)[0 if node.count > 1 else 2 :]:
        size = {"width": box.width, "height": box.height, "rx": "9"}
        shapes.append(tag("rect", x=box.left + behind, y=box.top - behind, class_=classes, **size))
    left, top = box.left + 14, box.top
    if node.role == "master":
        shapes.append(tag("rect", x=box.left, y=top + 10, width=4.0, height=box.height - 20, class_="accent"))
    lines = [
        text(left, top + 23, _fitted(node.title, TITLE_CHARACTER_PX), "name"),
        text(left, top + 41, _fitted(node.what), "what"),
        text(left, top + 56, _fitted(node.device), "quiet"),
    ]
    y = top + 56
    for note in filter(None, (node.later, *node.notes)):
        y += NOTE_PX
        lines.append(_note(_fitted(note), left, y))
    said = f"{node.title}: {node.what}, {node.device}" + (f"; {node.parameters}" if node.parameters else "")
    return tag("g", tag("title", said), *shapes, *lines)


def _note(note: str, x: float, y: float) -> Markup:
    dot = tag("circle", cx=x + 3, cy=y - 4, r=2.6, class_="accent")
    return tag("g", dot, text(x + 11, y, note, "note"))


def _fitted(line: str, character_px: float = CHARACTER_PX) -> str:
    """Return ``line`` cut to the width of a card."""
    return cut(line, int((CARD_MAX - 28) / character_px))


def _edge(
    drawing: Drawing, edge: Edge, cards: list[Box], flowing: frozenset[int], *, passing: bool, heads: int
) -> tuple[Markup, Point]:
    """An arrow from card to card, and the position of its label; ``passing``: another arrow goes the other way."""
    source, target = cards[edge.source], cards[edge.target]
    ends = (drawing.nodes[edge.source].title, drawing.nodes[edge.target].title)
    said = f"{ends[0]} {'and' if heads > 1 and not passing else 'rings'} {ends[1]}: {edge.label}"
    two = heads > 1 and not passing
    if edge.source == edge.target:
        x, y = source.x, source.top - (PILE_PX if drawing.nodes[edge.source].count > 1 else 0)
        d = f"M{x - 26:.1f} {y:.1f}C{x - 34:.1f} {y - 30:.1f} {x + 34:.1f} {y - 30:.1f} {x + 26:.1f} {y:.1f}"
        return _arrow(d, said), (x, y - 27)
    others = [card for place, card in enumerate(cards) if place not in (edge.source, edge.target)]
    if not passing and edge.source in flowing and edge.target in flowing and source.right + GAP_Y < target.left:
        # From side to side, along the layers.
        a, b = (source.right + 2, source.y), (target.left - 4, target.y)
        middle = (a[0] + b[0]) / 2
        curve = _cubic(a, (middle, a[1]), (middle, b[1]), b)
        if not any(card.holds(at, 4) for at in curve for card in others):
            d = f"M{a[0]:.1f} {a[1]:.1f}C{middle:.1f} {a[1]:.1f} {middle:.1f} {b[1]:.1f} {b[0]:.1f} {b[1]:.1f}"
            return _arrow(d, said, two), (middle - (b[0] - a[0]) / 5, a[1] + 0.22 * (b[1] - a[1]) - 6)
    control = _control(source, target, next(_bends(passing)))
    for bend in _bends(passing):
        tried = _control(source, target, bend)
        curve = _cubic(*_raised((source.x, source.y), tried, (target.x, target.y)))
        if not any(card.holds(at, 6) for at in curve for card in others):
            control = tried
            break
    start, end = source.border(control, 4 if two else 2), target.border(control, 4)
    d = f"M{start[0]:.1f} {start[1]:.1f}Q{control[0]:.1f} {control[1]:.1f} {end[0]:.1f} {end[1]:.1f}"
    at = (start[0] + 2 * control[0] + end[0]) / 4, (start[1] + 2 * control[1] + end[1]) / 4
    return _arrow(d, said, two), (at[0], at[1] - 5)


def _arrow(d: str, said: str, two: bool = False) -> Markup:
    head = "url(#ivsim-head)"
    return tag("path", tag("title", said), d=d, class_="edge", marker_end=head, marker_start=head if two else None)


def _bends(mutual: bool) -> Iterator[float]:
    """The distances of a curve from the straight line that are tried, smallest first; the left side first."""
    if not mutual:
        yield 0.0
    for bend in (44.0, 90.0, 150.0, 220.0):
        yield bend
        if not mutual:
            yield -bend


def _control(source: Box, target: Box, bend: float) -> Point:
    dx, dy = target.x - source.x, target.y - source.y
    length = math.hypot(dx, dy) or 1.0
    return (source.x + target.x) / 2 + dy / length * bend, (source.y + target.y) / 2 - dx / length * bend


def _raised(a: Point, control: Point, b: Point) -> tuple[Point, Point, Point, Point]:
    """Return a quadratic Bezier curve as a cubic one."""
    c, d = (((2 * control[0] + end[0]) / 3, (2 * control[1] + end[1]) / 3) for end in (a, b))
    return a, c, d, b


def _cubic(a: Point, b: Point, c: Point, d: Point) -> list[Point]:
    """Return points along a curve, without its ends."""
    points = []
    for number in range(1, SAMPLES):
        t = number / SAMPLES
        w = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
        x, y = (w[0] * a[at] + w[1] * b[at] + w[2] * c[at] + w[3] * d[at] for at in (0, 1))
        points.append((x, y))
    return points


def _legend(drawing: Drawing, labelled: bool) -> str:
    """The legend: what the cards do not say."""
    said = []
    if not labelled:
        names = sorted({name for edge in drawing.edges for name in edge.parameters})
        said.append(f"arrows: {', '.join(names[:6])}" + (" and others" if len(names) > 6 else ""))
    if any(node.absent for node in drawing.nodes):
        said.append("dashed: not there at the start")
    if any(node.role == "master" for node in drawing.nodes):
        said.append("bar: master, migrates with the memory")
    return "; ".join(said)
