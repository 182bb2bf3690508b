"""``[[phases]]``: the parts of a run, or ``run.warmup_s`` and ``run.duration_s`` instead of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from topologies.language.problems import show
from topologies.language.reader import Report
from topologies.model import RunSettings
from topologies.schedule import Phase

__all__ = ["end_of", "read_phases"]

_LONGEST_S = 604_800


def read_phases(
    tables: Sequence[Mapping[str, Any]], run: Mapping[str, Any], given: Mapping[str, Any], report: Report
) -> tuple[tuple[Phase, ...], dict[str, Any]]:
    """The phases, and ``run`` with their times; ``given`` is the table ``[run]`` of the file."""
    before = len(report.problems)
    if not tables:
        return (), dict(run)
    for key in ("duration_s", "warmup_s"):
        if key in given:
            report.add(("run", key), "no time: the phases set the duration of the run", show(given[key]))
    seen: set[str] = set()
    for place, table in enumerate(tables):
        name = table.get("name")
        if name in seen:
            report.add(("phases", place, "name"), "a name that no other phase has", show(name))
        seen.add(str(name))
    total = sum(table.get("duration_s", 0.0) for table in tables)
    if total > _LONGEST_S:
        report.add(("phases",), f"at most {_LONGEST_S} seconds in all", f"{total:g}")
    if not any(table.get("measured", True) for table in tables):
        report.add(("phases",), "at least one phase that is measured", "none")
    if len(report.problems) > before or any("name" not in t or "duration_s" not in t for t in tables):
        return (), dict(run)
    phases = tuple(Phase(**{**table, "load": _load(table.get("load", 1.0))}) for table in tables)
    leading = next(place for place, phase in enumerate(phases) if phase.measured)
    warmup_s = sum(phase.duration_s for phase in phases[:leading])
    rest_s = sum(phase.duration_s for phase in phases[leading:])
    return phases, {**run, "warmup_s": float(warmup_s), "duration_s": float(rest_s)}


def _load(load: float | tuple[float, float]) -> tuple[float, float]:
    return (load, load) if isinstance(load, float) else load


def end_of(run: Mapping[str, Any]) -> float:
    """The duration of the programs, warm-up included, in seconds; defaults for keys that were reported."""
    settings = RunSettings()
    return float(run.get("warmup_s", settings.warmup_s) + run.get("duration_s", settings.duration_s))
