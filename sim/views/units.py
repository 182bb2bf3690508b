"""Numbers as text, for every view: three digits and the unit that fits.

``human_*`` keep trailing zeros, so that columns of a table align; ``short_*`` drop them, for axes and sentences. All
text is ASCII ("us"), as in the options and metrics that take a unit.
"""

from __future__ import annotations

from collections.abc import Sequence

NOTHING = "-"
Steps = Sequence[tuple[float, str]]
TIMES: Steps = ((1e9, "s"), (1e6, "ms"), (1e3, "us"), (1.0, "ns"))
COUNTS: Steps = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
SIZES: Steps = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))
ROUNDED_UP = 0.9995
"""The share of a unit from which three digits round to the whole unit: 999,500 ns read as 1.00 ms, not as 1000 us."""


def human_ns(value_ns: float | None) -> str:
    """Nanoseconds in ns, us, ms or s. ``None`` is "-"."""
    if value_ns is not None and abs(value_ns) < 1e3 * ROUNDED_UP:
        return f"{value_ns:.0f} ns"
    return _said(value_ns, TIMES)


def human_count(value: float | None) -> str:
    """A number with k, M or G."""
    return _said(value, COUNTS)


def human_bytes(value_bytes: float | None) -> str:
    """Bytes in B, KiB, MiB, GiB or TiB."""
    if value_bytes is not None and abs(value_bytes) < 2**10 * ROUNDED_UP:
        return f"{value_bytes:.0f} B"
    return _said(value_bytes, SIZES)


def short_ns(value_ns: float | None) -> str:
    """As :func:`human_ns`, without trailing zeros."""
    return _said(value_ns, TIMES, fixed=False)


def short_seconds(value_s: float | None) -> str:
    """Seconds, whatever their size, without trailing zeros."""
    return _said(value_s, ((1.0, "s"),), fixed=False)


def short_count(value: float | None) -> str:
    """As :func:`human_count`, without trailing zeros."""
    return _said(value, COUNTS, fixed=False)


def short_bytes(value_bytes: float | None) -> str:
    """As :func:`human_bytes`, without trailing zeros."""
    return _said(value_bytes, SIZES, fixed=False)


def human_interval(interval: tuple[float | None, float | None] | None) -> str:
    """An interval of nanoseconds, with the unit once where both ends have it. An end of ``None`` is "open"."""
    if interval is None:
        return NOTHING
    low, high = ("open" if end is None else human_ns(end) for end in interval)
    number, _, unit = low.partition(" ")
    return f"{number if unit and high.endswith(' ' + unit) else low} - {high}"


def counted(number: int, noun: str) -> str:
    """A number of things: "1 vector", "2 vectors"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def percentile_title(name: str) -> str:
    """The title of a percentile's column: p99.9 for p99_9."""
    return name.replace("_", ".")


def _said(value: float | None, steps: Steps, *, fixed: bool = True) -> str:
    if value is None:
        return NOTHING
    size, unit = next((step for step in steps if abs(value) >= step[0] * ROUNDED_UP), steps[-1])
    its = value / size
    decimals = 2 if abs(its) < 9.995 else 1 if abs(its) < 99.95 else 0
    text = f"{its:,.{decimals}f}"
    if not fixed and "." in text:
        text = text.rstrip("0").rstrip(".")
    return f"{text} {unit}".rstrip()
