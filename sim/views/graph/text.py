"""A drawing as text for other programs to lay out: Mermaid, and Graphviz' DOT. Text from files is escaped."""

from __future__ import annotations

import json

from sim.views.graph.drawing import Drawing, Node

SAFE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 .,:/()+=_-×")


def mermaid(drawing: Drawing) -> str:
    """Return a Mermaid flowchart, which many sites show in Markdown."""
    lines = ["---", f"title: {json.dumps(drawing.title, ensure_ascii=False)}", "---", "flowchart LR"]
    for place, cluster in enumerate(drawing.clusters):
        label = [f"{cluster.name}: {cluster.memory}", *cluster.notes]
        lines += [f"    subgraph d{place}[{_quoted(label)}]"]
        lines += [f"        n{node}{_mermaid_shape(drawing.nodes[node])}" for node in cluster.nodes]
        lines += ["    end"]
    lines += [f"    n{node}{_mermaid_shape(drawing.nodes[node])}" for node in drawing.bridges]
    domains = {cluster.name: place for place, cluster in enumerate(drawing.clusters)}
    for node in drawing.bridges:
        lines += [f"    n{node} -.- d{domains[domain]}" for domain in drawing.nodes[node].domains]
    for edge in drawing.edges:
        lines.append(f"    n{edge.source} -->|{_quoted([edge.label])}| n{edge.target}")
    absent = [f"n{place}" for place, node in enumerate(drawing.nodes) if node.absent]
    if absent:
        lines += ["    classDef absent stroke-dasharray: 5 4", f"    class {','.join(absent)} absent"]
    return "\n".join(lines) + "\n"


def _mermaid_shape(node: Node) -> str:
    """A rectangle; several for a group."""
    opening, closing = ("[[", "]]") if node.count > 1 else ("[", "]")
    return f"{opening}{_quoted(_said(node))}{closing}"


def _said(node: Node) -> list[str]:
    return [node.title, node.what, node.device, *filter(None, (node.later,)), *node.notes]


def _quoted(lines: list[str]) -> str:
    """Return lines as a Mermaid label; special characters become their numbers."""
    escaped = (
        "".join(character if character in SAFE else f"#{ord(character)};" for character in line) for line in lines
    )
    return '"' + "<br/>".join(escaped) + '"'


def dot(drawing: Drawing) -> str:
    """Return a digraph for `dot -Tsvg`."""
    lines = [f"digraph {_string(drawing.title)} {{"]
    lines += [f"    label={_string(drawing.title)}; labelloc=t; rankdir=LR; compound=true;"]
    lines += ['    node [shape=box, style=rounded, fontname="sans-serif"]; edge [fontname="sans-serif"];']
    for place, cluster in enumerate(drawing.clusters):
        label = _string(f"{cluster.name}: {cluster.memory}", *cluster.notes)
        lines += [f"    subgraph cluster_{place} {{", f"        label={label}; style=rounded;"]
        # A cluster without a node is not drawn: an invisible point stands for the memory.
        lines += [f"        m{place} [shape=point, style=invis];"]
        lines += [f"        n{node} {_attributes(drawing.nodes[node])};" for node in cluster.nodes]
        lines += ["    }"]
    domains = {cluster.name: place for place, cluster in enumerate(drawing.clusters)}
    for node in drawing.bridges:
        lines.append(f"    n{node} {_attributes(drawing.nodes[node])};")
        for domain in drawing.nodes[node].domains:
            place = domains[domain]
            lines.append(f"    n{node} -> m{place} [style=dotted, dir=none, lhead=cluster_{place}];")
    for edge in drawing.edges:
        lines.append(f"    n{edge.source} -> n{edge.target} [label={_string(edge.label)}];")
    return "\n".join([*lines, "}"]) + "\n"


def _attributes(node: Node) -> str:
    style = ", ".join(["rounded", *(["dashed"] if node.absent else [])])
    more = ", peripheries=2" if node.count > 1 else ""
    return f'[label={_string(*_said(node))}, style="{style}"{more}]'


def _string(*lines: str) -> str:
    """Return lines as a quoted string of DOT, with backslashes escaped."""
    escaped = (line.replace("\\", "\\\\").replace('"', '\\"') for line in lines)
    return '"' + "\\n".join(escaped) + '"'
