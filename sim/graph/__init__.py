"""A topology as a picture: what is drawn (``drawing``), where (``layout``), as SVG (``picture``) or text (``text``)."""

from sim.graph.drawing import Drawing, draw
from sim.graph.picture import svg
from sim.graph.text import dot, mermaid

__all__ = ["Drawing", "dot", "draw", "mermaid", "svg"]
