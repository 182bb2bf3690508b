"""The rows of a sweep: the figures of each run, and the table of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from sim.exit_codes import of_run

__all__ = ["Row", "hosts_are_comparable", "make_table"]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one cell; None: not known. Memory is that of a machine on average."""

    place: int
    repeat: int
    seed: int
    values: dict[str, str]
    status: str
    reason: str = ""
    balanced: bool = False
    aborted: bool = False
    rung_per_s: float | None = None
    coalescing: float | None = None
    delivery_p50_ns: int | None = None
    delivery_p99_ns: int | None = None
    total_p50_ns: int | None = None
    total_p99_ns: int | None = None
    uss_bytes: int | None = None
    ready_s: float | None = None
    expectations: int = 0
    missed: list[str] = []
    host: str = ""
    """The host of a cluster that ran it; "": this one."""

    @property
    def exit_code(self) -> int:
        """As ``ivsim run`` would end: 0, 1, or 99 for expectations that were missed."""
        return of_run(self.status, self.reason, balanced=self.balanced, aborted=self.aborted, missed=bool(self.missed))


def hosts_are_comparable(varied: Sequence[str], rows: Sequence[Row]) -> bool:
    """Whether each host has run every combination as often as the others: then each has a whole table of its own."""
    by_host: dict[str, Counter[tuple[str, ...]]] = {}
    for row in rows:
        by_host.setdefault(row.host, Counter())[tuple(row.values[key] for key in varied)] += 1
    first, *others = by_host.values() or (Counter(),)
    return all(other == first for other in others)


def make_table(varied: Sequence[str], rows: Sequence[Row]) -> Any:
    """The rows as a pyarrow table: a column for each key that varies, numbers where all its values are."""
    import pyarrow as pa

    columns: dict[str, Any] = {key: _typed([row.values[key] for row in rows]) for key in varied}
    kinds = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string()}
    for field in msgspec.structs.fields(Row):
        if field.name in ("values", "missed"):
            continue
        kind = next(kinds[kind] for kind in kinds if kind.__name__ in str(field.type))
        columns[field.name] = pa.array([getattr(row, field.name) for row in rows], kind)
    columns["missed"] = pa.array([row.missed for row in rows], pa.list_(pa.string()))
    return pa.table(columns)


def _typed(values: Sequence[str]) -> list[int] | list[float] | list[str]:
    for kind in (int, float):
        try:
            return [kind(value) for value in values]
        except ValueError:
            continue
    return list(values)
