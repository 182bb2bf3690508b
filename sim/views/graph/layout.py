"""Positions of a drawing's cards: in layers from sender to receiver, or on an ellipse where these form a cycle."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sim.views.graph.drawing import Drawing, Node

CHARACTER_PX, TITLE_CHARACTER_PX = 6.8, 9.0
CARD_MIN, CARD_MAX = 132.0, 300.0
CARD_PX, NOTE_PX = 66.0, 16.0
GAP_X, GAP_Y = 120.0, 28.0
# The most cards in a column; the most in one where no machine of the cluster rings another one of it.
COLUMN_MAX, COLUMN_LONE = 8, 6
PADDING, HEADER_PX = 30.0, 36.0
ROW_PX = 1500.0
MARGIN, TITLE_PX = 24.0, 64.0
# The card of a group has two more behind it; a group that rings itself has a loop above its card.
PILE_PX, LOOP_PX = 10.0, 50.0

Point = tuple[float, float]
Links = Collection[tuple[int, int]]


@dataclass(frozen=True)
class Box:
    """A rectangle, given by its centre and its size."""

    x: float
    y: float
    width: float
    height: float

    @property
    def left(self) -> float:
        return self.x - self.width / 2

    @property
    def top(self) -> float:
        return self.y - self.height / 2

    @property
    def right(self) -> float:
        return self.x + self.width / 2

    @property
    def bottom(self) -> float:
        return self.y + self.height / 2

    def moved(self, x: float, y: float) -> Box:
        return Box(self.x + x, self.y + y, self.width, self.height)

    def touches(self, other: Box, gap: float = 0.0) -> bool:
        return (
            abs(self.x - other.x) * 2 < self.width + other.width + 2 * gap
            and abs(self.y - other.y) * 2 < self.height + other.height + 2 * gap
        )

    def holds(self, point: Point, gap: float = 0.0) -> bool:
        return abs(point[0] - self.x) <= self.width / 2 + gap and abs(point[1] - self.y) <= self.height / 2 + gap

    def border(self, towards: Point, gap: float = 0.0) -> Point:
        """Return the point at which the line from the centre to a point outside leaves the box."""
        dx, dy = towards[0] - self.x, towards[1] - self.y
        scale = min(
            (self.width / 2 + gap) / abs(dx) if dx else math.inf, (self.height / 2 + gap) / abs(dy) if dy else math.inf
        )
        return (self.x, self.y) if math.isinf(scale) else (self.x + dx * scale, self.y + dy * scale)


@dataclass(frozen=True)
class Layout:
    """The size of the picture, and a box for each node and each cluster of a drawing.

    ``flowing`` are the nodes that stand in layers: most of them are rung from the left.
    """

    width: float
    height: float
    nodes: tuple[Box, ...]
    clusters: tuple[Box, ...]
    flowing: frozenset[int]


def lay_out(drawing: Drawing) -> Layout:
    """Place clusters side by side, each with its own nodes; a bridge stands to the right of its first domain."""
    links = {(edge.source, edge.target) for edge in drawing.edges}
    order = {cluster.name: number for number, cluster in enumerate(drawing.clusters)}
    behind: dict[int, list[int]] = {}
    for place in drawing.bridges:
        behind.setdefault(min(order[domain] for domain in drawing.nodes[place].domains), []).append(place)
    boxes: dict[int, Box] = {}
    clusters: list[Box] = []
    flowing: set[int] = set()
    row = _Row(TITLE_PX)
    rows = [row]
    for number, cluster in enumerate(drawing.clusters):
        inside, flows = _arrange({place: drawing.nodes[place] for place in cluster.nodes}, links)
        flowing |= set(cluster.nodes) if flows else set()
        width, height = _extent(inside.values())
        label = max(map(len, (f"{cluster.name}: {cluster.memory}", *cluster.notes)))
        header = HEADER_PX + NOTE_PX * len(cluster.notes)
        width = max(width, CARD_MIN, CHARACTER_PX * label) + 2 * PADDING
        height += header + PADDING
        if row.items and row.x + width > ROW_PX:
            row = _Row(row.bottom + PADDING)
            rows.append(row)
        row.add(
            {~number: Box(0, 0, width, height)}
            | {place: box.moved(0, (header - PADDING) / 2) for place, box in inside.items()},
            PADDING,
        )
        if number in behind:
            column = _column(
                behind[number], {place: _card(drawing.nodes[place], place, links) for place in behind[number]}
            )
            row.add(column, GAP_X * 0.75)
            row.x += GAP_X * 0.75 - PADDING
    for each in rows:
        boxes |= each.placed()
    clusters = [boxes[~number] for number in range(len(drawing.clusters))]
    nodes = tuple(boxes[place] for place in range(len(drawing.nodes)))
    width = max(box.right for box in boxes.values()) + MARGIN + PILE_PX
    return Layout(width, row.bottom + MARGIN, nodes, tuple(clusters), frozenset(flowing))


class _Row:
    """Place boxes side by side with their centres on one line."""

    def __init__(self, top: float) -> None:
        self.top, self.x, self.height = top, MARGIN, 0.0
        self.items: list[tuple[float, dict[int, Box]]] = []

    @property
    def bottom(self) -> float:
        return self.top + self.height

    def add(self, boxes: dict[int, Box], gap: float) -> None:
        """``boxes`` are around (0, 0)."""
        left, right = min(box.left for box in boxes.values()), max(box.right for box in boxes.values())
        self.x += gap if self.items else 0.0
        self.items.append((self.x - left, boxes))
        self.x += right - left
        self.height = max(self.height, *(2 * max(abs(box.top), abs(box.bottom)) for box in boxes.values()))

    def placed(self) -> dict[int, Box]:
        middle = self.top + self.height / 2
        return {key: box.moved(x, middle) for x, boxes in self.items for key, box in boxes.items()}


def _column(places: Sequence[int], sizes: Mapping[int, tuple[float, float]]) -> dict[int, Box]:
    """Place boxes in a column, centred on (0, 0)."""
    boxes: dict[int, Box] = {}
    y = -(sum(sizes[place][1] for place in places) + GAP_Y * (len(places) - 1)) / 2
    for place in places:
        width, height = sizes[place]
        boxes[place] = Box(0, y + height / 2, width, height)
        y += height + GAP_Y
    return boxes


def _card(node: Node, place: int, links: Links) -> tuple[float, float]:
    """Return the size of a node's card, and the height of what stands out above it."""
    lines = [node.what, node.device, node.later, *(f"  {note}" for note in node.notes)]
    width = max(TITLE_CHARACTER_PX * len(node.title), CHARACTER_PX * max(map(len, lines))) + 28
    height = CARD_PX + NOTE_PX * (len(node.notes) + bool(node.later))
    return min(CARD_MAX, max(CARD_MIN, width)), height + (LOOP_PX if (place, place) in links else 0)


def _arrange(nodes: Mapping[int, Node], links: Links) -> tuple[dict[int, Box], bool]:
    """Return boxes around (0, 0) that do not overlap, and whether they are in layers."""
    sizes = {place: _card(node, place, links) for place, node in nodes.items()}
    inner = {(a, b) for a, b in links if a in nodes and b in nodes and a != b}
    tangled = _is_tangled(list(nodes), inner)
    boxes = _round(sizes) if tangled else _layered(list(nodes), inner, sizes)
    if not boxes:
        return boxes, True
    x = (min(box.left for box in boxes.values()) + max(box.right for box in boxes.values())) / 2
    y = (min(box.top for box in boxes.values()) + max(box.bottom for box in boxes.values())) / 2
    return {place: box.moved(-x, -y) for place, box in boxes.items()}, not tangled


def _extent(boxes: Collection[Box]) -> tuple[float, float]:
    if not boxes:
        return 0.0, 0.0
    width = max(box.right for box in boxes) - min(box.left for box in boxes) + PILE_PX
    return width, 2 * max(max(abs(box.top), abs(box.bottom)) for box in boxes)


def _is_tangled(places: Sequence[int], links: Links) -> bool:
    """Whether three or more nodes ring each other in a cycle, which layers would not show."""
    reached = {place: {b for a, b in links if a == place} for place in places}
    for through in places:
        for place in places:
            if through in reached[place]:
                reached[place] |= reached[through]
    return any(sum(place in reached[other] for other in reached[place]) >= 3 for place in places)


def _round(sizes: Mapping[int, tuple[float, float]]) -> dict[int, Box]:
    """Place boxes on an ellipse, which is widened until no two overlap."""
    scale = 1.0
    while True:
        boxes = {}
        for number, (place, (width, height)) in enumerate(sizes.items()):
            angle = 2 * math.pi * number / len(sizes) - math.pi / 2
            boxes[place] = Box(190 * scale * math.cos(angle), 125 * scale * math.sin(angle), width, height)
        those = list(boxes.values())
        if not any(a.touches(b, GAP_Y) for number, a in enumerate(those) for b in those[:number]):
            return boxes
        scale *= 1.07


def _layered(places: Sequence[int], links: Links, sizes: Mapping[int, tuple[float, float]]) -> dict[int, Box]:
    """Place boxes in columns from left to right; a column that would be too high becomes several."""
    boxes: dict[int, Box] = {}
    x = 0.0
    for column in _columns(places, links):
        rows = COLUMN_MAX if links else max(COLUMN_LONE, math.ceil(math.sqrt(len(column))))
        parts = -(-len(column) // rows)
        each = -(-len(column) // parts)
        for part in range(parts):
            those = column[part * each : (part + 1) * each]
            width = max(sizes[place][0] for place in those)
            boxes |= {place: box.moved(x + width / 2, 0) for place, box in _column(those, sizes).items()}
            x += width + GAP_Y
        x += GAP_X - GAP_Y
    return boxes


def _columns(places: Sequence[int], links: Links) -> Iterator[list[int]]:
    """Place each node to the right of all that ring it, without links that close a cycle; then order by neighbours."""
    forward = _without_cycles(places, links)
    layer = dict.fromkeys(places, 0)
    for _ in places:
        for a, b in forward:
            layer[b] = max(layer[b], layer[a] + 1)
    columns = [
        [place for place in places if layer[place] == level] for level in range(max(layer.values(), default=-1) + 1)
    ]
    for number in range(1, len(columns)):
        rank = {place: at for at, place in enumerate(columns[number - 1])}

        def among(place: int, rank: Mapping[int, int] = rank) -> float:
            above = [rank[a] for a, b in forward if b == place and a in rank]
            return sum(above) / len(above) if above else len(rank) / 2

        columns[number].sort(key=among)
    yield from columns


def _without_cycles(places: Sequence[int], links: Links) -> list[tuple[int, int]]:
    """Return the links without those that close a cycle (depth-first)."""
    forward: list[tuple[int, int]] = []
    done: set[int] = set()
    targets = {place: sorted(b for a, b in links if a == place) for place in places}
    rung = {b for _, b in links}
    for root in sorted(places, key=lambda place: (place in rung, place)):
        if root in done:
            continue
        path, walks = [root], [iter(targets[root])]
        while walks:
            following = next(walks[-1], None)
            if following is None:
                walks.pop()
                done.add(path.pop())
            elif following not in path:
                forward.append((path[-1], following))
                if following not in done:
                    path.append(following)
                    walks.append(iter(targets[following]))
    return forward
