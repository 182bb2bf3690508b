"""What became of migrations, as rows of a table and as sentences: `ivsim show` and the report have the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sim.results.summary import Migration, Summary
from sim.views.units import NOTHING, human_bytes, human_ns

__all__ = ["outcomes", "reasons"]

OUTCOMES_SHOWN = 16
HEAD = ("migration", "verdict", "times", "from", "to", "downtime", "copied", "PBA bits", "left behind")


def outcomes(figures: Summary, most: int = OUTCOMES_SHOWN) -> list[tuple[str, ...]]:
    """What became of each machine's migrations, below a head; those with one outcome are one row, ``most`` rows.

    Downtime is the longest of them, what was copied and left behind their sum; "PBA bits": vectors that were pending.
    """
    return [HEAD, *map(_row, _alike(figures)[:most])]


def _alike(figures: Summary) -> list[list[Migration]]:
    found: dict[tuple[object, ...], list[Migration]] = {}
    for each in figures.migrations:
        found.setdefault((each.machine, each.verdict, each.reason, each.hand_over, each.to_domain), []).append(each)
    return list(found.values())


def _row(its: Sequence[Migration]) -> tuple[str, ...]:
    first, last = its[0], its[-1]
    downtimes = [each.downtime_ms for each in its if each.downtime_ms is not None]
    behind = [each.left_behind for each in its if each.left_behind is not None]
    memory_bytes, state_bytes = sum(each.memory_bytes for each in its), sum(each.state_bytes for each in its)
    moved = first.verdict == "moved"
    return (
        first.machine,
        first.verdict,
        f"{len(its)}",
        NOTHING if first.from_peer is None else f"{first.from_domain} {first.from_peer}",
        NOTHING if last.to_peer is None else f"{last.to_domain} {last.to_peer}",
        human_ns(max(downtimes) * 1e6) if downtimes else NOTHING,
        human_bytes(memory_bytes) if memory_bytes else f"{state_bytes:,} B" if state_bytes else NOTHING,
        f"{sum(each.pending_vectors for each in its)}" if moved else NOTHING,
        f"{sum(behind):,}" if behind else NOTHING,
    )


def reasons(figures: Summary, most: int = OUTCOMES_SHOWN) -> Iterator[str]:
    """Why machines did not migrate, once for each reason; who was handed over; and how many rows have no room."""
    names: dict[tuple[str, str], dict[str, None]] = {}
    for each in figures.migrations:
        if each.reason:
            names.setdefault((each.verdict, each.reason), {})[each.machine] = None
        elif each.hand_over and each.verdict == "moved":
            names.setdefault(("handed over, connection and ID", ""), {})[each.machine] = None
    for (verdict, reason), machines in names.items():
        few = [*machines][:3]
        more = f" and {len(machines) - len(few)} more" if len(machines) > len(few) else ""
        yield f"{verdict}: {', '.join(few)}{more}" + (f": {reason}" if reason else "")
    unseen = len(_alike(figures)) - most
    if unseen > 0:
        yield f"{unseen:,} more outcomes of migrations stand in summary.json"
