"""Many machines in one picture: dots on a ring in the order of their groups, and a thread for each doorbell pair."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from sim.views.graph.drawing import Drawing, Node
from sim.views.graph.layout import MARGIN, TITLE_PX
from sim.views.html.svg import Markup, tag, text

RADIUS = 350.0
DOT_MIN, DOT_MAX = 1.6, 9.0
LABELS_MAX = 120
THREADS_MAX = 6000
CHARACTER_SHARE = 0.56
ARC_PX = 16.0


def ring(drawing: Drawing) -> tuple[float, float, list[Markup]]:
    """Return the width, the height, and the content."""
    order = sorted(range(len(drawing.nodes)), key=lambda place: (drawing.nodes[place].domains, place))
    count = len(order)
    angles = {place: 2 * math.pi * number / count - math.pi / 2 for number, place in enumerate(order)}
    step_px = 2 * math.pi * RADIUS / count
    every = -(-count // LABELS_MAX)
    font_px = max(6.5, min(12.0, 0.8 * step_px * every))
    longest = max(len(node.title) for node in drawing.nodes)
    margin = MARGIN + ARC_PX + 14 + longest * font_px * CHARACTER_SHARE
    x, y = RADIUS + margin, TITLE_PX + RADIUS + margin
    parts = list(_threads(drawing, angles, x, y))
    dot_px = max(DOT_MIN, min(DOT_MAX, 0.34 * step_px))
    for number, (place, angle) in enumerate(angles.items()):
        node = drawing.nodes[place]
        parts.append(_dot(node, x + RADIUS * math.cos(angle), y + RADIUS * math.sin(angle), dot_px))
        if number % every == 0 and number + every <= count:  # the last label must not overlap the first
            parts.append(_label(node, angle, x, y, font_px))
    parts += _arcs(drawing, order, x, y)
    legend = f"threads: {len(drawing.edges):,} pairs that ring"
    if len(drawing.edges) > THREADS_MAX:
        legend += f", {THREADS_MAX:,} of them drawn"
    if any(node.absent for node in drawing.nodes):
        legend += "; hollow: not there at the start"
    if any(node.notes for node in drawing.nodes):
        legend += "; orange: something happens to it"
    height = y + RADIUS + margin
    parts.append(text(MARGIN, height, legend, "quiet"))
    return 2 * x, height + MARGIN, parts


def _threads(drawing: Drawing, angles: dict[int, float], x: float, y: float) -> Iterator[Markup]:
    """All threads of a source in one path; of too many, every n-th."""
    every = max(1, -(-len(drawing.edges) // THREADS_MAX))
    chosen = [edge for edge in drawing.edges if edge.source != edge.target][::every]
    opacity = max(0.14, min(0.7, 80 / max(1, len(chosen))))
    width = 0.6 if len(chosen) > 400 else 1.1
    for _, edges in itertools.groupby(chosen, key=lambda edge: edge.source):
        pieces = []
        for edge in edges:
            a, b = angles[edge.source], angles[edge.target]
            # The nearer two dots are, the less their thread bends to the centre.
            pull = 1 - 0.92 * abs(math.sin((a - b) / 2)) ** 0.75
            middle = math.atan2(math.sin(a) + math.sin(b), math.cos(a) + math.cos(b))
            xs = (x + RADIUS * math.cos(a), x + RADIUS * pull * math.cos(middle), x + RADIUS * math.cos(b))
            ys = (y + RADIUS * math.sin(a), y + RADIUS * pull * math.sin(middle), y + RADIUS * math.sin(b))
            pieces.append(f"M{xs[0]:.1f} {ys[0]:.1f}Q{xs[1]:.1f} {ys[1]:.1f} {xs[2]:.1f} {ys[2]:.1f}")
        yield tag("path", d="".join(pieces), class_="thread", style=f"stroke-width:{width};opacity:{opacity:.3f}")


def _dot(node: Node, x: float, y: float, radius: float) -> Markup:
    classes = "dot" + (" noted" if node.notes else "") + (" absent" if node.absent == node.count else "")
    said = "; ".join((f"{node.title}: {node.what}, {node.device}", *filter(None, (node.later,)), *node.notes))
    # Dots that are close together have no rim, which would cover them.
    rim = f"stroke-width:{min(1.0, radius / 3):.2f}"
    return tag("circle", tag("title", said), cx=x, cy=y, r=f"{radius:.2f}", class_=classes, style=rim)


def _label(node: Node, angle: float, x: float, y: float, font_px: float) -> Markup:
    """A label that points outwards and is never upside down."""
    far = RADIUS + ARC_PX
    at_x, at_y = x + far * math.cos(angle), y + far * math.sin(angle)
    left = math.cos(angle) < 0
    degrees = math.degrees(angle) + (180 if left else 0)
    return tag(
        "text",
        node.title,
        x=at_x,
        y=at_y,
        text_anchor="end" if left else "start",
        dominant_baseline="middle",
        transform=f"rotate({degrees:.2f} {at_x:.1f} {at_y:.1f})",
        style=f"font-size:{font_px:.1f}px",
    )


def _arcs(drawing: Drawing, order: list[int], x: float, y: float) -> Iterator[Markup]:
    """For several domains: an arc inside the ring for each, with its name."""
    if len(drawing.clusters) < 2:
        return
    step = 2 * math.pi / len(order)
    radius = RADIUS - ARC_PX
    numbers = itertools.groupby(range(len(order)), key=lambda number: drawing.nodes[order[number]].domains)
    for domains, those in numbers:
        its = list(those)
        start, end = ((its[0] - 0.35) * step - math.pi / 2, (its[-1] + 0.35) * step - math.pi / 2)
        xs, ys = ([x + radius * math.cos(a) for a in (start, end)], [y + radius * math.sin(a) for a in (start, end)])
        large = int(end - start > math.pi)
        d = f"M{xs[0]:.1f} {ys[0]:.1f}A{radius:.1f} {radius:.1f} 0 {large} 1 {xs[1]:.1f} {ys[1]:.1f}"
        yield tag("path", tag("title", ", ".join(domains)), d=d, class_="arc")
        middle, inner = (start + end) / 2, radius - 18
        name = " and ".join(domains)
        yield text(x + inner * math.cos(middle), y + inner * math.sin(middle), name, "edge-label", "middle")
