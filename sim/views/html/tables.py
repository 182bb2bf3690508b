"""Tables of a report as HTML."""

from __future__ import annotations

from collections.abc import Iterable

from sim.views.html.svg import Markup, tag
from sim.views.rows import TextTable

STATES = {"met": "met", "UNMET": "missed"}


def table(its: TextTable) -> Markup:
    """A table that scrolls by itself where it is too wide."""
    heads = [tag("th", cell, scope="col", class_=_class(its, at)) for at, cell in enumerate(its.head)]
    lines = []
    for first, *rest in its.rows:
        cells = [tag("td", cell, class_=_class(its, at)) for at, cell in enumerate(rest, start=1)]
        state = STATES.get(first)
        head = tag("span", first, class_=state) if state else first
        lines.append(tag("tr", tag("th", head, scope="row", class_="words"), *cells))
    inner = tag("table", tag("caption", its.title), tag("thead", tag("tr", *heads)), tag("tbody", *lines))
    return tag("div", inner, class_="scroll", role="region", aria_label=its.title, tabindex="0")


def _class(its: TextTable, column: int) -> str | None:
    return "words" if column in its.words else None


def folded(title: str, its: TextTable) -> list[Markup]:
    """A table to be unfolded; nothing without rows."""
    return [tag("details", tag("summary", title), table(its))] if its.rows else []


def facts(caption: str, rows: Iterable[tuple[str, object]]) -> Markup:
    """A table of names and values."""
    lines = [tag("tr", tag("th", name, scope="row"), tag("td", value, class_="words")) for name, value in rows]
    return tag("table", tag("caption", caption), tag("tbody", *lines), class_="facts")
