"""The page of a run that goes on: the look of the report, drawn anew with every snapshot that the server sends."""

from __future__ import annotations

from sim.views.html.svg import document, tag

CHARTS = (
    ("rates", "Doorbells and interrupts", "a second, of all groups together"),
    ("latency", "Delivery", "of the doorbells of the last moments"),
    ("pending", "Pending", "doorbells rung, not refused and not yet delivered"),
)


def live_page() -> str:
    """The text of the page; its figures come as server-sent events from ``events``."""
    header = tag(
        "header",
        tag("h1", tag("span", "waiting for the run", id="title"), " ", tag("span", "", id="phase", class_="status")),
        tag("p", "", id="meta", class_="meta", role="status"),
    )
    figures = [
        tag(
            "figure",
            tag("figcaption", tag("h2", title), tag("p", note)),
            tag("ul", "", class_="legend"),
            tag("svg", "", viewBox="0 0 1000 260", role="img", aria_label=title),
            id=name,
        )
        for name, title, note in CHARTS
    ]
    table = tag("div", tag("table", id="groups"), class_="scroll", role="region", aria_label="Groups", tabindex="0")
    events = tag("section", tag("h2", "What happened"), tag("ul", "", id="events"))
    main = [header, tag("dl", "", id="tiles", class_="tiles"), *figures, table, events]
    return document([], "ivsim top", "live.js", main, "connect-src 'self'", class_="live")
