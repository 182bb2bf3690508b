"""A trace: doorbells at given times, read from a CSV file beside the topology.

    time_s,source,target,vector
    0.000125,sender-0,receiver,0

Times are seconds from the start of the programs; the rows may be in any order. Every bad row is reported with the
file's own name and line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path as FilePath
from typing import Any

from msgspec import Struct, field

from nodes.spelling import nearest
from topologies.language.document import read_text
from topologies.language.problems import Problem, show
from topologies.model import Machines, Trace

HEADER = ("time_s", "source", "target", "vector")
MAX_TRACE_BYTES = 16 << 20
MAX_TRACE_ROWS = 500_000
_MAX_BAD_ROWS = 50
_LAST_S = 604_800

Row = tuple[int, int, int]


class TraceFile(Struct):
    """The rows of one file by source, each (due_ns, index of the target, vector), and the problems of the file."""

    name: str
    rows: dict[int, list[Row]] = field(default_factory=dict)
    first_line: dict[int, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def report(self, line: int, expected: str, got: str, column: str = "", hint: str = "") -> None:
        self.problems.append(Problem(self.name, max(1, line), column, expected, got, hint))

    def of(self, index: int) -> Trace:
        """The trace of one machine; an empty one if the file does not name it as a source."""
        rows = sorted(self.rows.get(index, ()), key=lambda row: row[0])
        targets = {target: place for place, target in enumerate(dict.fromkeys(target for _, target, _ in rows))}
        return Trace(
            machines=Machines(targets), doorbells=tuple((due, targets[target], vector) for due, target, vector in rows)
        )


def read_trace(file: FilePath, machines: Mapping[str, int], vectors_of: Callable[[int, int], int]) -> TraceFile:
    """The trace in ``file``.

    Args:
        machines: the indices of the machines by name.
        vectors_of: the number of vectors that a source can ring of a target.

    Raises:
        TopologyError: the file cannot be read.
    """
    trace = TraceFile(str(file))
    text = read_text(file, "the file of a trace", MAX_TRACE_BYTES)
    import csv

    rows = csv.reader(_lines(text), strict=True)
    try:
        _read_rows(rows, trace, machines, vectors_of)
    except csv.Error as error:
        trace.report(rows.line_num, "a row of a CSV file", str(error))
    return trace


def _lines(text: str) -> Iterator[str]:
    """The lines of a text, one at a time, because a list of them takes several times its size."""
    at = 0
    while at < len(text):
        end = text.find("\n", at) + 1 or len(text)
        yield text[at:end]
        at = end


def _read_rows(rows: Any, trace: TraceFile, machines: Mapping[str, int], vectors_of: Callable[[int, int], int]) -> None:
    header: list[str] = next(rows, [])
    if tuple(cell.strip() for cell in header) != HEADER:
        trace.report(1, f"the header {','.join(HEADER)}", show(",".join(header)))
        return
    for cells in rows:
        if rows.line_num > MAX_TRACE_ROWS + 1:
            trace.report(rows.line_num, f"at most {MAX_TRACE_ROWS} rows", "more")
            return
        if cells:
            _read_row([cell.strip() for cell in cells], rows.line_num, trace, machines, vectors_of)
        if len(trace.problems) >= _MAX_BAD_ROWS:
            return


def _read_row(
    cells: list[str], line: int, trace: TraceFile, machines: Mapping[str, int], vectors_of: Callable[[int, int], int]
) -> None:
    if len(cells) != len(HEADER):
        trace.report(line, f"{len(HEADER)} cells: {', '.join(HEADER)}", f"{len(cells)}")
        return
    time, source, target, vector = cells
    try:
        time_s = float(time)
    except ValueError:
        time_s = math.nan
    before = len(trace.problems)
    if not 0 <= time_s <= _LAST_S:
        trace.report(line, f"a time from 0 to {_LAST_S} seconds", show(time), "time_s")
    unknown = [(name, column) for name, column in ((source, "source"), (target, "target")) if name not in machines]
    for name, column in unknown:
        trace.report(line, "the name of a machine", show(name), column, nearest(name, [*islice(machines, 64)]))
    known = 0 if unknown else vectors_of(machines[source], machines[target])
    if not unknown and not (vector.isascii() and vector.isdecimal() and len(vector) <= 4 and int(vector) < known):
        expected = f"a vector that {source} can ring {target} with: there are {known}"
        trace.report(line, expected, show(vector), "vector")
    if len(trace.problems) > before:
        return
    index = machines[source]
    trace.first_line.setdefault(index, line)
    trace.rows.setdefault(index, []).append((round(time_s * 1e9), machines[target], int(vector)))
