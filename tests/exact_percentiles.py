"""The percentiles of values by nearest rank, from all of them in order: what the figures of a run are held against."""

from __future__ import annotations

from collections.abc import Iterable

RANKS = {"p50": 50_000, "p90": 90_000, "p99": 99_000, "p99_9": 99_900, "p99_99": 99_990, "max": 100_000}


def exact_percentiles(values: Iterable[int]) -> dict[str, int | None]:
    """None where no value lies above a percentile, other than the median; and the number of values."""
    ordered = sorted(int(value) for value in values)
    size = len(ordered)
    places = {name: -(-size * rank // 100_000) - 1 for name, rank in RANKS.items()}
    few = {name for name, place in places.items() if name not in ("p50", "max") and place == size - 1}
    return {name: ordered[at] if size and name not in few else None for name, at in places.items()} | {"samples": size}
