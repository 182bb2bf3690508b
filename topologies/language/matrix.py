"""``[matrix]``: dotted keys, and the values that a sweep gives to each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from topologies.language.document import Document, override_text, parse
from topologies.language.problems import Problem, TopologyError, show
from topologies.language.reader import Report

MAX_CELLS = 10_000
"""The most combinations of a sweep."""

_MAX_KEYS = 16
_EFFORT = 20_000
_PER_MACHINE = 64


def read_matrix(table: Mapping[str, Sequence[Any]], report: Report) -> dict[str, tuple[str, ...]]:
    """The values in the spelling of ``--set``; `try_values` checks what they do to the topology."""
    if len(table) > _MAX_KEYS:
        report.add(("matrix",), f"at most {_MAX_KEYS} keys", str(len(table)))
        return {}
    matrix: dict[str, tuple[str, ...]] = {}
    cells = 1
    for key, values in table.items():
        cells *= len(values)
        texts = tuple(override_text(value) for value in values)
        seen: set[str] = set()
        for place, text in enumerate(texts):
            if text in seen:
                report.add(("matrix", key, place), "each value once", show(values[place]))
            seen.add(text)
        if key.split(".")[0].strip() == "matrix":
            report.add(("matrix", key), "a key of the topology itself", show(key))
        else:
            matrix[key] = texts
    if cells > MAX_CELLS:
        report.add(("matrix",), f"at most {MAX_CELLS} combinations of the values", str(cells))
        return {}
    return matrix


def try_values(
    matrix: Mapping[str, Sequence[str]],
    document: Document,
    machines: int,
    problems_of: Callable[[Document], Sequence[Problem]],
    report: Report,
) -> None:
    """Report each value that by itself makes no topology: the first of each key, and others as long as it is quick.

    A run of the cell reports the rest.
    """
    cost = machines + len(document.text) // _PER_MACHINE
    left = max(len(matrix), _EFFORT // cost)
    said: set[tuple[str, str, str]] = set()
    for place, row in enumerate(zip_longest(*matrix.values())):
        for key, text in zip(matrix, row, strict=True):
            if text is None:
                continue
            if not left:
                return
            left -= 1
            try:
                problems = problems_of(parse(document.text, document.name, {**document.overrides, key: text}))
            except TopologyError as error:
                problems = error.problems
            for problem in problems[:1]:
                expected = problem.expected if problem.key in ("", key) else f"{problem.key} to be {problem.expected}"
                if (key, expected, problem.got) not in said:  # a wrong key is wrong with each of its values
                    report.add(("matrix", key, place), expected, problem.got, problem.hint)
                said.add((key, expected, problem.got))
