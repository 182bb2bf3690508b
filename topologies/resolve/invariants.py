"""The invariants of the file: functions that `ivsim explore` calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from topologies.language.reader import Report
from topologies.resolve.programs import ProgramError, ProgramFiles
from topologies.schedule import Invariant

__all__ = ["read_invariants"]


def read_invariants(
    tables: Sequence[Mapping[str, Any]], programs: ProgramFiles, report: Report
) -> tuple[Invariant, ...]:
    """The invariants; a function that cannot be found is reported."""
    found = []
    for place, table in enumerate(tables):
        path = ("invariant", place)
        if "that" not in table:
            continue
        try:
            that = programs.find_function(table["that"])
        except ProgramError as error:
            report.add((*path, "that"), error.expected, error.got, error.hint)
        else:
            found.append(Invariant(that=that, within_ms=table.get("within_ms")))
    return tuple(found)
