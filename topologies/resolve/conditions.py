"""Conditions of the file, ``that`` and ``when``, with the ``of`` that says whose metric is meant; its invariants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from topologies.language.problems import show
from topologies.language.reader import Report
from topologies.language.tables import Comparison
from topologies.language.toml_positions import Path
from topologies.language.values import MisfitError, describe
from topologies.metrics import EDGES, GROUPS, MACHINES, VECTORS, Metric, find_metric, parse_condition, parse_owner
from topologies.resolve.names import RESERVED_NAMES
from topologies.resolve.programs import ProgramError, ProgramFiles
from topologies.resolve.references import References
from topologies.schedule import Condition, Expectation, Invariant

CONSOLE_LINES = "console_lines"


def read_condition(
    table: Mapping[str, Any], key: str, path: Path, references: References, report: Report, *, live: bool
) -> Condition | None:
    """The condition under ``key``, with its ``of``; None when one of the two was reported, or ``key`` is missing."""
    condition = metric = None
    if table.get(key):
        try:
            condition = parse_condition(table[key], live=live)
            metric = find_metric(condition.metric)
        except MisfitError as misfit:
            report.add((*path, key), misfit.expected, show(table[key]), misfit.hint)
    if not (of := table.get("of", "")):
        return condition
    try:
        written = _owner(of, metric, references)
    except MisfitError as misfit:
        report.add((*path, "of"), misfit.expected, show(of), misfit.hint)
        return None
    return None if condition is None else msgspec.structs.replace(condition, of=written)


def _owner(of: str, metric: Metric | None, references: References) -> str:
    """``of`` in its plain spelling: a group, a machine, a vector or an edge that has the metric.

    Raises:
        MisfitError: an unknown name, a vector that the machines do not have, or an owner without the metric.
    """
    (source, target, vector), names = parse_owner(of), references.names
    for name in (target,) if source is None else (source, target):
        if name not in names.groups and name not in names.machines:
            if references.is_missing(name):
                return of
            hint = "without `of` it is all of them" if name in RESERVED_NAMES else references.hint_of(name)
            raise MisfitError('a group, a machine, a vector like "b:2", or an edge like "a -> b" or "a -> b:2"', hint)
    if metric is not None:
        kinds = (GROUPS, MACHINES) if target in names.machines and target in names.groups else (MACHINES,)
        kinds = kinds if target in names.machines else (GROUPS,)
        kinds = (EDGES,) if source is not None else (VECTORS,) if vector is not None else kinds
        if not set(kinds) & set(metric.of):
            raise MisfitError(f"nothing else: {metric.name} is a metric of {' and of '.join(metric.of)}")
    if vector is not None and vector >= (known_vectors := references.most_vectors(target)):
        raise MisfitError(f"a vector of {target}, which has {known_vectors}")
    written = target if source is None else f"{source} -> {target}"
    return written if vector is None else f"{written}:{vector}"


def read_expectations(
    tables: Sequence[Mapping[str, Any]], references: References, report: Report
) -> tuple[Expectation, ...]:
    """The expectations; one that ends the run needs a metric that is known during the run."""
    found = []
    for place, table in enumerate(tables):
        abort, console, path = table.get("abort", False), table.get("console", ""), ("expect", place)
        if not table.get("that") and not report.has((*path, "that")):
            if not console:
                report.add((*path, "that"), describe(Comparison), "nothing: this key is missing")
                continue
            table = {**table, "that": f"{CONSOLE_LINES} >= 1"}
        that = read_condition(table, "that", path, references, report, live=abort)
        if that is None:
            continue
        report.check_pattern((*path, "console"), console)
        if console and that.metric != CONSOLE_LINES:
            report.add((*path, "console"), f"{CONSOLE_LINES} in `that` beside it", that.metric)
        allow_empty = table.get("allow_empty", False)
        found.append(Expectation(that=that, console=console, abort=abort, allow_empty=allow_empty))
    return tuple(found)


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
