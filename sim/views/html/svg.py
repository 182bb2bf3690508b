"""Elements of SVG and HTML as text. All that is text or the value of an attribute is escaped here, nowhere else."""

from __future__ import annotations

import html
import importlib.resources
from collections.abc import Iterable, Sequence

import numpy as np

from sim.results.arrays import Floats
from sim.views.printable import printable


class Markup(str):
    """Text that is markup already; all other content of an element is escaped."""

    __slots__ = ()


def words(content: object) -> Markup:
    """``content`` for a page: unchanged if it is markup, else escaped and printable."""
    if isinstance(content, Markup):
        return content
    return Markup(html.escape(printable(str(content), keep="\n")))


def tag(name: str, *content: object, **attributes: object) -> Markup:
    """An element. ``class_`` is ``class``, ``aria_label`` is ``aria-label``; an attribute of None is left out."""
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_attribute(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{said}>{''.join(map(words, content))}</{name}>")


def _attribute(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1f}".removesuffix(".0")
    return printable(str(value))


def document(
    head: Sequence[Markup], title: str, script: str, body: Sequence[Markup], policy: str, **of_body: str
) -> str:
    """A whole page in the style of the report.

    Args:
        head: further elements of the head.
        script: the name of its file in this folder.
        policy: what the page may load beside its own style and script (Content-Security-Policy).
        of_body: the attributes of the body.
    """
    here = importlib.resources.files("sim.views.html")
    style, code = (Markup((here / name).read_text("utf-8")) for name in ("report.css", script))
    allowed = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; {policy}"
    first = tag(
        "head",
        Markup('<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'),
        Markup('<meta name="color-scheme" content="light dark">\n'),
        *head,
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{allowed}">\n'),
        tag("title", title),
        tag("style", style),
    )
    content = tag("body", tag("main", *body), tag("script", code), **of_body)
    return "<!DOCTYPE html>\n" + tag("html", first, content, lang="en") + "\n"


def cut(name: str, most: int) -> str:
    """``name``, shortened to ``most`` characters."""
    return name if len(name) <= most else name[: max(1, most - 1)] + "…"


def block(parts: Iterable[Markup]) -> Markup:
    """Several elements, one after the other."""
    return Markup("\n".join(parts))


def text(x: float, y: float, content: object, class_: str = "tick", anchor: str | None = None) -> Markup:
    """A piece of text in a picture; ``anchor``: middle or end."""
    return tag("text", content, x=float(x), y=float(y), class_=class_, text_anchor=anchor)


def line(xs: Floats, ys: Floats, style: int) -> list[Markup]:
    """A line through points; where a value is no number it is interrupted, and a point alone there is a dot."""
    good = np.isfinite(xs) & np.isfinite(ys)
    pieces = []
    pen = "M"
    for x, y, there in zip(xs.tolist(), ys.tolist(), good.tolist(), strict=True):
        if there:
            pieces.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L" if there else "M"
    starts = "".join(pieces).split("M")[1:]
    joined = "".join(f"M{piece}" for piece in starts if "L" in piece)
    # Without a length, the round ends of a thick line are the dot.
    alone = "".join(f"M{piece}h.1" for piece in starts if "L" not in piece)
    drawn = {f"line s{style}": joined, f"lone s{style}": alone}
    return [tag("path", d=path, class_=class_) for class_, path in drawn.items() if path]


def picture(
    width: int, height: int, title: str, description: str, parts: Sequence[Markup], **attributes: object
) -> Markup:
    """An ``svg`` element with its title and its description for screen readers."""
    return tag(
        "svg",
        tag("title", title),
        tag("desc", description),
        *parts,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=f"{title}. {description}",
        **attributes,
    )
