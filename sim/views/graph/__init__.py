"""Pictures of a topology: content (``drawing``), positions (``layout``), as SVG (``picture``) or text (``text``)."""

from sim.views.graph.drawing import Drawing, draw
from sim.views.graph.picture import svg
from sim.views.graph.text import dot, mermaid

__all__ = ["Drawing", "dot", "draw", "mermaid", "svg"]
