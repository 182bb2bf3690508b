"""Numbers for people: three digits, and the unit that fits."""

from __future__ import annotations

__all__ = ["NOTHING", "human_bytes", "human_count", "human_interval", "human_ns"]

NOTHING = "-"


def human_ns(value_ns: float | None) -> str:
    """Nanoseconds in three digits and the unit that fits: ns, us, ms or s."""
    if value_ns is None:
        return NOTHING
    for size, unit in ((10**9, "s"), (10**6, "ms"), (10**3, "us")):
        # 999,500 ns would round to "1000 us".
        if abs(value_ns) >= size * 0.9995:
            return f"{_three_digits(value_ns / size)} {unit}"
    return f"{value_ns:.0f} ns"


def human_interval(interval: tuple[float | None, float | None] | None) -> str:
    """From nanoseconds to nanoseconds, the unit once where both have it; an end that is not known is open."""
    if interval is None:
        return NOTHING
    low, high = human_ns(interval[0]), human_ns(interval[1]) if interval[1] is not None else "open"
    number, _, unit = low.partition(" ")
    return f"{number if high.endswith(' ' + unit) else low} - {high}"


def human_count(value: float | None) -> str:
    """A number in three digits and k, M or G."""
    if value is None:
        return NOTHING
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{_three_digits(value / size)} {unit}"
    return _three_digits(value)


def human_bytes(value_bytes: float | None) -> str:
    """Bytes as MiB."""
    return NOTHING if value_bytes is None else f"{value_bytes / 2**20:,.1f} MiB"


def _three_digits(value: float) -> str:
    decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:,.{decimals}f}"
