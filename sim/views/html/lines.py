"""Line charts: one description, drawn for a wide page and for a narrow one; bars; their scales and round ticks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sim.results.analysis.time_series import Band
from sim.results.arrays import Floats
from sim.views.html.svg import Markup, line, picture, tag, text

CHARACTER = 6.7  # pixels, of the ticks' font, on the safe side
TOP, BOTTOM, RIGHT = 30, 44, 14
BADGE = 24.0
HOVER_EVERY = 6  # pixels


@dataclass(frozen=True)
class Scale:
    """``low`` to ``high`` onto ``start`` to ``end``, in pixels; logarithmic if asked for."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """The place of one value."""
        return float(self(np.array([value]))[0])

    def __call__(self, values: Floats) -> Floats:
        low, high, its = self.low, self.high, np.asarray(values, np.float64)
        if self.logarithmic:
            low, high, its = math.log10(low), math.log10(high), np.log10(np.maximum(its, self.low / 1e3))
        return self.start + (its - low) * ((self.end - self.start) / ((high - low) or 1.0))


def percentile_name(nines: int) -> str:
    """p90 for one nine, p99 for two, p99.9 for three."""
    return "p" + ("90" if nines == 1 else f"{100 - 100 / 10**nines:.{max(0, nines - 2)}f}")


def round_ticks(low: float, high: float, most: int, word: Callable[[float], str]) -> list[tuple[float, str]]:
    """At most ``most`` round values from ``low`` to ``high``, each with its word."""
    span = max(high - low, 1e-12)
    step = 10 ** math.floor(math.log10(span / most))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if span / (step * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    values = [place * step for place in range(first, math.floor(high / step + 1e-9) + 1)]
    return [(value, word(value)) for value in values]


def decades(low: float, high: float, most: int, word: Callable[[float], str]) -> list[tuple[float, str]]:
    """Powers of ten from ``low`` to ``high``; where there are few, what lies between them too (2 and 5)."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors, every in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 3), ((1,), 4)):
        values = [factor * 10.0**power for power in range(first, last + 1, every) for factor in factors]
        values = [value for value in values if low * 0.999 <= value <= high * 1.001]
        if len(values) < 2:
            break
        if len(values) <= most:
            return [(value, word(value)) for value in values]
    # Less than a decade, or more than there is room for.
    return round_ticks(low, high, most, word) if high < 100 * low else [(low, word(low)), (high, word(high))]


@dataclass(frozen=True)
class Axis:
    """``word`` says any value; ``make_ticks`` gives values and words for at most so many, by default round ones."""

    label: str
    low: float
    high: float
    word: Callable[[float], str]
    logarithmic: bool = False
    make_ticks: Callable[[int], list[tuple[float, str]]] | None = None

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """At most so many values, each with its word."""
        if self.make_ticks is not None:
            return self.make_ticks(most)
        return (decades if self.logarithmic else round_ticks)(self.low, self.high, most, self.word)


@dataclass(frozen=True)
class Line:
    """One line; ``style`` counts from 1 and is a colour and a dash. A value that is no number interrupts it."""

    name: str
    xs: Floats
    ys: Floats
    style: int


@dataclass(frozen=True)
class Mark:
    """A moment that is drawn across the chart, with a number that a table beside it explains."""

    x: float
    name: str


@dataclass(frozen=True)
class Chart:
    """The content of a chart, for every size."""

    title: str
    description: str
    x: Axis
    y: Axis
    lines: Sequence[Line]
    marks: Sequence[Mark] = ()
    bands: Sequence[Band] = ()

    def draw(self, width: int, height: int, class_: str) -> Markup:
        """The chart as an ``svg`` element of that size."""
        y_ticks = self.y.ticks(max(3, (height - TOP - BOTTOM) // 34))
        left = 10 + CHARACTER * max(len(word) for _, word in y_ticks)
        x = Scale(self.x.low, self.x.high, left, width - RIGHT, self.x.logarithmic)
        y = Scale(self.y.low, self.y.high, height - BOTTOM, TOP, self.y.logarithmic)
        x_ticks = self.x.ticks(max(3, int(width - left) // 75))
        behind, before = self._bands(x, y)
        parts = [*behind, *axes(x, y, x_ticks, y_ticks, self.x.label, self.y.label)]
        parts += self._marks(x, y)
        for each in self.lines:
            parts += line(x(each.xs), y(each.ys), each.style)
        parts += before
        hover = self._hover(x, y) if class_ != "narrow" else None
        return picture(width, height, self.title, self.description, parts, class_=class_, data_hover=hover)

    def _bands(self, x: Scale, y: Scale) -> tuple[list[Markup], list[Markup]]:
        """The bands behind the lines, and the names of the marks."""
        behind, before = [], []
        for band in self.bands:
            start, end = (x.at(min(max(at, self.x.low), self.x.high)) for at in (band.start, band.end))
            box = {"x": start, "y": y.end, "width": end - start, "height": y.start - y.end}
            behind.append(tag("rect", **box, class_="shade" if band.shaded else "band"))
            if end - start > (len(band.name) + 1) * CHARACTER:
                before.append(text(start + 5, y.end + 15, band.name, "soft"))
        return behind, before

    def _marks(self, x: Scale, y: Scale) -> list[Markup]:
        """Lines across; those that are too close for a badge each share one, from the first to the last of them."""
        parts: list[Markup] = []
        together: list[tuple[float, float, str, str]] = []
        for mark in sorted(self.marks, key=lambda mark: mark.x):
            at = x.at(mark.x)
            parts.append(tag("line", x1=at, x2=at, y1=y.end, y2=y.start, class_="mark"))
            if together and at - together[-1][1] < BADGE:
                first_at, _, first, _ = together.pop()
                together.append((first_at, at, first, mark.name))
            else:
                together.append((at, at, mark.name, mark.name))
        for first_at, last_at, first, last in together:
            name = first if first == last else f"{first}–{last}"
            half, at = (len(name) * CHARACTER + 8) / 2, (first_at + last_at) / 2
            box = {"x": at - half, "y": y.end - 8.0, "width": 2 * half, "height": 16.0, "rx": 8.0}
            parts += [tag("rect", **box, class_="badge"), text(at, y.end + 4, name, "badge-text", "middle")]
        return parts

    def _hover(self, x: Scale, y: Scale) -> str | None:
        """The values under each column of pixels, for the script that shows them; the page is complete without it."""
        columns = np.arange(x.start, x.end + 1, HOVER_EVERY)
        at = x.low + (columns - x.start) / (x.end - x.start) * (x.high - x.low)
        if x.logarithmic:
            at = x.low * (x.high / x.low) ** ((columns - x.start) / (x.end - x.start))
        lines = []
        for each in self.lines:
            good = np.isfinite(each.ys)
            if good.sum() < 2:
                continue
            values = np.interp(x(at), x(each.xs[good]), each.ys[good], left=np.nan, right=np.nan)
            there = np.isfinite(values)
            places = np.where(there, y(np.where(there, values, y.low)), -1).round().astype(int).tolist()
            said = [self.y.word(value) if its else "" for value, its in zip(values.tolist(), there, strict=True)]
            lines.append({"name": each.name, "style": each.style, "y": places, "words": said})
        if not lines:
            return None
        said_x = [self.x.word(value) for value in at.tolist()]
        facts = {"from": x.start, "every": HOVER_EVERY, "top": y.end, "bottom": y.start, "x": said_x, "lines": lines}
        return json.dumps(facts, separators=(",", ":"))


def axes(
    x: Scale,
    y: Scale,
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[tuple[float, str]],
    x_label: str,
    y_label: str,
) -> list[Markup]:
    """Grid, ticks and labels."""
    parts = []
    for value, word in y_ticks:
        at = y.at(value)
        parts.append(tag("line", x1=x.start, x2=x.end, y1=at, y2=at, class_="grid"))
        parts.append(text(x.start - 6, at + 4, word, anchor="end"))
    placed = [(x.at(value), word) for value, word in x_ticks]
    for at, _ in placed:
        parts.append(tag("line", x1=at, x2=at, y1=y.end, y2=y.start, class_="grid"))
    for at, word in thinned(placed):
        inside = min(at, x.end + RIGHT - CHARACTER * len(word) / 2)
        parts.append(text(inside, y.start + 17, word, anchor="middle"))
    parts.append(tag("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="axis"))
    parts.append(text((x.start + x.end) / 2, y.start + 36, x_label, "label", "middle"))
    parts.append(text(2, 12, y_label, "label"))
    return parts


def thinned(placed: Sequence[tuple[float, str]], gap: float = 8) -> list[tuple[float, str]]:
    """The words that can stand side by side without touching."""
    kept, free = [], -np.inf
    for at, word in placed:
        half = len(word) * CHARACTER / 2
        if at - half >= free:
            kept.append((at, word))
            free = at + half + gap
    return kept


def bars(
    names: Sequence[str],
    series: Mapping[str, Floats],
    labels: tuple[str, str],
    title: str,
    description: str,
    frame: tuple[int, int, str],
) -> Markup:
    """Bars in percent, side by side for each name; ``labels`` of x and y, ``frame``: width, height, class."""
    width, height, class_ = frame
    high = max(float(counts.max(initial=0)) for counts in series.values()) * 1.08
    y_ticks = round_ticks(0, high, 5, lambda value: f"{value:g} %")
    left = 10 + CHARACTER * max(len(word) for _, word in y_ticks)
    x = Scale(0, len(names), left, width - RIGHT)
    y = Scale(0, high, height - BOTTOM, TOP)
    step = (x.end - x.start) / len(names)
    wide = min(26.0, 0.76 * step / len(series))
    parts = axes(x, y, [], y_ticks, *labels)
    for place, name in enumerate(names):
        for number, (said, its) in enumerate(series.items()):
            tall = max(y.start - y.at(float(its[place])), 1.0 if its[place] else 0.0)
            at = x.start + (place + 0.5) * step + (number - len(series) / 2) * wide
            tip = tag("title", f"{name}: {its[place]:.3g} % {said}")
            box = {"x": at, "y": y.start - tall, "width": wide - 1, "height": tall}
            parts.append(tag("rect", tip, **box, class_=f"bar f{number + 1}"))
    middles = [(x.start + (place + 0.5) * step, name) for place, name in enumerate(names)]
    parts += [text(at, y.start + 17, name, anchor="middle") for at, name in thinned(middles, 5)]
    return picture(width, height, title, description, parts, class_=class_)
