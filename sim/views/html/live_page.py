"""The page of a run that goes on: the look of the report, drawn anew with every snapshot that the server sends."""

from __future__ import annotations

import importlib.resources

from sim.views.html.svg import Markup, tag

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
CHARTS = (
    ("rates", "Doorbells and interrupts", "a second, of all groups together"),
    ("latency", "Delivery", "of the doorbells of the last moments"),
    ("pending", "Pending", "doorbells rung, not refused and not yet delivered"),
)


def live_page() -> str:
    """The text of the page; its figures come as server-sent events from ``events``."""
    here = importlib.resources.files("sim.views.html")
    style, script = (Markup((here / name).read_text("utf-8")) for name in ("report.css", "live.js"))
    head = tag(
        "head",
        Markup('<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'),
        Markup('<meta name="color-scheme" content="light dark">\n'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'),
        tag("title", "ivsim top"),
        tag("style", style),
    )
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
    main = tag("main", header, tag("dl", "", id="tiles", class_="tiles"), *figures, table, events)
    body = tag("body", main, tag("script", script), class_="live")
    return "<!DOCTYPE html>\n" + tag("html", head, body, lang="en") + "\n"
